#!/usr/bin/env python3
"""Surefoot beside other loops on this machine: `python3 dev.py bench`.

Every contender lives in a process of its own and they take turns, so that whatever else the machine does falls on
all of them; each figure is the median of its turns. Peers are installed into an environment of their own
(benchmarks/.venv), which uses the same torch. Results are printed, and with --write they go into docs/benchmarks.md.

    python3 dev.py bench                    all rows
    python3 dev.py bench --rows steps       only some: steps, overhead, growth, start, job
    python3 dev.py bench --repeats 3        fewer turns
    python3 dev.py bench --epochs 13        the tutorial's whole job at its full length (a quarter of an hour)
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = HERE / ".venv"
PEERS_PYTHON = PEERS / "bin" / "python"
LOG = ROOT / "build" / "benchmarks.log"
PINS = HERE / "peers.txt"
PAGE = ROOT / "docs" / "benchmarks.md"
NAMES = ("hand", "lightning", "accelerate", "ignite")
STEPS = {4: 1500, 64: 300, 512: 50}
TUTORIAL_STEPS = 600
ROWS = ("steps", "overhead", "growth", "start", "job")


def main() -> int:
    """Run what was asked for; 0, or 1 where a peer could not be installed or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 64, 512])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=1, help="of the whole job (the tutorial's figure is of 13)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    args = parser.parse_args()
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    tables = {}
    if "steps" in args.rows:
        make_peers()
        for batch in args.batches:
            tables[f"steps-{batch}"] = steps(batch, args.repeats)
    if "overhead" in args.rows:
        tables["overhead"] = overhead([b for b in args.batches if b in (4, 64)], args.repeats)
    for name in ("growth", "start", "job"):
        if name in args.rows:
            import side  # the rows that are no race of steps

            tables[name] = getattr(side, name)(args)
    for lines in tables.values():
        print("\n" + "\n".join(lines))
    if args.write:
        write(tables)
    return 0


def make_peers() -> None:
    """An environment with the peers, over the same torch as this one; made again when its pins change."""
    stamp = PEERS / "ready"
    wanted = PINS.read_text() + sys.executable
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("installing the peers into benchmarks/.venv (once)", file=sys.stderr)
    venv.EnvBuilder(symlinks=True, with_pip=False, clear=True).create(PEERS)
    own = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    here = PEERS / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (here / "same-torch.pth").write_text(f"{own}\n")
    subprocess.run([PEERS_PYTHON, "-m", "pip", "install", "-q", "--no-input", "-r", PINS], check=True)
    stamp.write_text(wanted)


class Contender:
    """A process of contenders.py, told to run some steps at a time."""

    def __init__(self, name: str, batch: int):
        self.name = name
        python = PEERS_PYTHON if name in ("lightning", "accelerate", "ignite") else sys.executable
        with LOG.open("a") as log:
            self.process = subprocess.Popen(
                [python, HERE / "contenders.py", name, str(batch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.about = self._answer()["ready"]
        self.seconds: list[Any] = []

    def turn(self, steps: int, counted: bool = True) -> None:
        """Run so many steps; the time of one goes to `seconds`."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        seconds = self._answer()["seconds"]
        if counted:
            self.seconds.append(seconds)

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the contender {self.name} failed; its output is in {LOG}")
        return json.loads(line)

    def close(self) -> None:
        """Let it end."""
        self.process.stdin.close()
        self.process.wait()

    @property
    def ms(self) -> float:
        """Median milliseconds a step."""
        return statistics.median(self.seconds) * 1e3


def race(names: list[str], batch: int, repeats: int) -> dict[str, Contender]:
    """All of `names` in turn, `repeats` turns each after one that does not count."""
    contenders: dict[str, Contender] = {}
    try:
        for name in names:  # one after the other: choosing a plan wants the machine for itself
            contenders[name] = Contender(name, batch)
        for number in range(repeats + 1):
            for name, contender in contenders.items():
                count = TUTORIAL_STEPS if name == "tutorial" else STEPS[batch]
                contender.turn(count, counted=number > 0)
    finally:
        for contender in contenders.values():
            contender.close()
    return contenders


def steps(batch: int, repeats: int) -> list[str]:
    """Milliseconds a step at one batch size, against the peers and (at batch 4) the tutorial's loop."""
    names = [*(["tutorial"] if batch == 4 else []), *NAMES, "surefoot", "surefoot compiled"]
    done = race(names, batch, repeats)
    fastest = min((done[name] for name in NAMES), key=lambda c: c.ms)
    lines = [
        f"Batch {batch}: milliseconds a step, median of {repeats} turns of {STEPS[batch]} steps",
        "",
        "| loop | ms a step | spread | surefoot is faster by | compiled by |",
        "|---|---|---|---|---|",
    ]
    own, compiled = done["surefoot"], done["surefoot compiled"]
    for name, contender in done.items():
        spread = f"{min(contender.seconds) * 1e3:.3f} to {max(contender.seconds) * 1e3:.3f}"
        peer = name not in ("surefoot", "surefoot compiled")
        ratios = f"{contender.ms / own.ms:.2f} | {contender.ms / compiled.ms:.2f}" if peer else "|"
        label = f"{name} ({contender.about})" if contender.about else name
        lines.append(f"| {label} | {contender.ms:.3f} | {spread} | {ratios} |")
    lines += [
        "",
        f"Against the fastest peer ({fastest.name}): {fastest.ms / own.ms:.2f}, "
        f"compiled {fastest.ms / compiled.ms:.2f}.",
    ]
    return lines


def overhead(batches: list[int], repeats: int) -> list[str]:
    """What `fit` adds to the bare step: both in one process, in turn."""
    turns = 3 * repeats  # a difference of two like times takes more turns than a ratio of unlike ones
    lines = [f"`fit` beside the bare step (one process and plan, batches already made); median of {turns} pairs", ""]
    lines += ["| batch | plan | bare step, ms | fit, ms | overhead |", "|---|---|---|---|---|"]
    for batch in batches:
        for name in ("overhead", "overhead compiled"):
            done = race([name], batch, turns)[name]
            bare, own = (statistics.median(pair[i] for pair in done.seconds) * 1e3 for i in (0, 1))
            # Pair by pair, so that what the machine did otherwise meanwhile is in both.
            ratio = statistics.median(fit / step for step, fit in done.seconds)
            lines.append(f"| {batch} | {done.about} | {bare:.3f} | {own:.3f} | {ratio - 1:+.1%} |")
    return lines


def write(tables: dict[str, list[str]]) -> None:
    """Replace each table in docs/benchmarks.md, between its marks."""
    text = PAGE.read_text()
    for name, lines in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if start not in text:
            raise SystemExit(f"{PAGE}: there is no place for {name} ({start})")
        head, rest = text.split(start, 1)
        text = head + start + "\n" + "\n".join([*lines, "", machine()]) + "\n" + end + rest.split(end, 1)[1]
    PAGE.write_text(text)


def machine() -> str:
    """Where and when, in one line."""
    import torch

    from surefoot.execution.machine import cores, processor

    day = time.strftime("%Y-%m-%d")
    return f"_{processor()}, {cores()} cores, torch {torch.__version__}, Python {platform.python_version()}, {day}_"


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
