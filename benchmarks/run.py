#!/usr/bin/env python3
"""Surefoot beside other loops on this machine: `python3 dev.py bench`.

The contenders of a job take turns in one process, so that whatever else the machine does falls on all of them. Peers
are installed into an environment of their own (benchmarks/.venv), which uses the same torch. Results are printed, and
with --write they go into docs/benchmarks.md.

    python3 dev.py bench                    all rows
    python3 dev.py bench --rows jobs        only some: jobs, overhead, growth, start, job
    python3 dev.py bench --jobs mlp gpt     only some jobs
    python3 dev.py bench --tricks           what each backend and trick of Surefoot wins on each job, and nothing else
    python3 dev.py bench --repeats 3        fewer turns
    python3 dev.py bench --epochs 13        the tutorial's whole job at its full length (a quarter of an hour)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

from work import JOBS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = HERE / ".venv"
PEERS_PYTHON = PEERS / "bin" / "python"
LOG = ROOT / "build" / "benchmarks.log"
PINS = HERE / "peers.txt"
PAGE = ROOT / "docs" / "benchmarks.md"
PEER_LOOPS = ("hand", "lightning", "accelerate", "ignite")
OWN = ("plain", "eager", "auto")
# What is compared with `fit` on which jobs: the bare step, or with an objective a loop by hand (3 ms a step).
OVERHEAD = {
    "lenet-4": ("overhead eager", "overhead auto"),
    "lenet-64": ("overhead eager", "overhead auto"),
    "lstm": ("overhead objective",),
}
ROWS = ("jobs", "overhead", "growth", "start", "job")


def main() -> int:
    """Run what was asked for; 0, or 1 where a peer could not be installed or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--tricks", action="store_true", help="what each backend and trick wins on each job, alone")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=1, help="of the whole job (the tutorial's figure is of 13)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    args = parser.parse_args()
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    tables = {}
    make_peers()
    if args.tricks:
        args.rows = []
        tables["tricks"] = tricks(args.jobs, args.repeats)
    if "jobs" in args.rows:
        tables["jobs"] = jobs(args.jobs, args.repeats)
    if "overhead" in args.rows:
        tables["overhead"] = overhead([name for name in args.jobs if name in OVERHEAD], args.repeats)
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


def ask(script: str, *arguments: Any) -> Any:
    """What one of the scripts beside this one answers; it runs with the peers' packages, and with this Surefoot."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with LOG.open("a") as log:
        done = subprocess.run(
            [PEERS_PYTHON, HERE / script, *map(str, arguments)], stdout=subprocess.PIPE, stderr=log, env=environment
        )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(map(str, arguments))} failed; its output is in {LOG}")
    return json.loads(done.stdout)


def jobs(names: list[str], repeats: int) -> list[str]:
    """Every job: milliseconds a step of each loop, and how many times as long the fastest peer takes."""
    lines = [
        f"Milliseconds a step, the fastest of {repeats} turns; `fit` with `execution: plain`, with `compile: false` and"
        " as a long run chooses",
        "",
        "| job | " + " | ".join(PEER_LOOPS) + " | plain | eager | auto | fastest peer by eager | by auto | chosen |",
        "|---|" + "---|" * (len(PEER_LOOPS) + 6),
    ]
    for name in names:
        loops = [*PEER_LOOPS, *OWN, *(["tutorial"] if name == "lenet-4" else [])]
        answer = ask("contenders.py", name, repeats, *loops)
        ms = {loop: 1e3 * min(seconds) for loop, seconds in answer["seconds"].items()}
        peer = min(ms[loop] for loop in PEER_LOOPS)
        shown = " | ".join(f"{ms[loop]:.3f}" for loop in (*PEER_LOOPS, *OWN))
        ratios = f"{peer / ms['eager']:.2f} | {peer / ms['auto']:.2f}"
        lines.append(f"| {JOBS[name].title} | {shown} | {ratios} | {answer['about']['auto']} |")
        print(lines[-1], file=sys.stderr)
        if name == "lenet-4":
            tutorial = ms["tutorial"]
            by = f"{tutorial / ms['eager']:.2f} times as long as eager, {tutorial / ms['auto']:.2f} as auto"
            after = f"The tutorial's own loop (two workers) at batch 4: {tutorial:.3f} ms, {by}."
    return lines + (["", after] if "lenet-4" in names else [])


def tricks(names: list[str], repeats: int) -> list[str]:
    """What each backend and trick wins on each job: the time without it by the time with it."""
    ratios = {name: ask("tricks.py", name, repeats) for name in names}
    found = list(dict.fromkeys(trick for row in ratios.values() for trick in row))
    lines = ["Time of a step without each trick by the time with it; what is below 1.1 on every job is deleted", ""]
    lines += ["| trick | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for trick in found:
        cells = [f"{ratios[name][trick]:.2f}" if trick in ratios[name] else "" for name in names]
        lines.append(f"| {trick} | " + " | ".join(cells) + " |")
    return lines


def overhead(names: list[str], repeats: int) -> list[str]:
    """What `fit` adds to the bare step: both in one process, in turn."""
    turns = 3 * repeats  # a difference of two like times takes more turns than a ratio of unlike ones
    lines = [
        f"`fit` beside the bare step, or with an objective beside a loop by hand (one process, batches already made); "
        f"median of {turns} pairs",
        "",
    ]
    lines += ["| job | execution settings | bare, ms | fit, ms | overhead |", "|---|---|---|---|---|"]
    for name in names:
        loops = OVERHEAD[name]
        answer = ask("contenders.py", name, turns, *loops)
        for loop in loops:
            pairs = answer["seconds"][loop]
            bare, own = (statistics.median(pair[i] for pair in pairs) * 1e3 for i in (0, 1))
            # Pair by pair, so that what the machine did otherwise meanwhile is in both.
            ratio = statistics.median(fit / step for step, fit in pairs)
            about = answer["about"][loop]
            lines.append(f"| {JOBS[name].title} | {about} | {bare:.3f} | {own:.3f} | {ratio - 1:+.1%} |")
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
