"""Surefoot on one GPU: right, without waits, exact on resume, and how fast; one JSON and one page in under six minutes.

    python3 dev.py cuda [--json FILE] [--seconds 345] [--only SECTION ...]
    PYTHONPATH=src python3 benchmarks/gpu.py ...       with a torch (2.10 or newer) that is there already

Each section has a process and a deadline of its own: what hangs, or leaves the device with an error, takes nothing
else with it. The JSON is written anew with each entry. `--device cpu` runs the same logic on tiny models, which the
tests do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_sections as sections
from gpu_sections import Bench, Found

from surefoot.execution.limit import TookTooLong, limited

# What a process may take to end by itself once its deadline has passed, and to start.
GRACE_S = 8.0


def all_are(*wanted: Any) -> Callable[[Found], bool]:
    """Whether every value is one of these."""
    return lambda found: bool(found) and all(value in wanted for value in found.values())


# Name, what it does, the most seconds that it has, and whether what it found is good.
SECTIONS: dict[str, tuple[Callable[[Bench, Found], None], float, Callable[[Found], bool]]] = {
    "environment": (sections.environment, 25, lambda found: "python" in found),
    "equal": (sections.equal, 70, all_are("equal")),
    "resumed": (sections.resumed, 30, all_are("equal")),
    "exact": (sections.exact, 25, lambda found: "the same bits" in found.values()),
    "waits": (sections.waits, 25, all_are([])),
    "save_pause": (sections.save_pause, 25, lambda found: found.get("what was saved") == "as it was then"),
    "memory": (sections.memory, 15, lambda found: found.get("bytes left", 1 << 62) <= 64 << 20),
    "speed": (sections.speed, 3600, lambda found: all(isinstance(ms, float) for ms in found.values())),
}


class Written(Found):
    """What was found, in a file too: written anew with each entry."""

    def __init__(self, path: Path):
        super().__init__()
        self._path = path

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(self))
        os.replace(temporary, self._path)

    def __ior__(self, other: Any) -> Written:  # type: ignore[override,misc]
        for key, value in other.items():
            self[key] = value
        return self


def section(name: str, bench: Bench, most: float, path: Path) -> None:
    """Run one here; what it found, and how it ended, is in the file `path` afterwards."""
    found = Written(path)
    try:
        with limited(most, name):
            SECTIONS[name][0](bench, found)
    except TookTooLong as error:
        found["ended"] = str(error)
    except Exception as error:  # a section must not take the others with it
        found["ended"] = f"{type(error).__name__}: {error}"
    else:
        found["ended"] = ""


def apart(name: str, bench: Bench, most: float, path: Path) -> None:
    """Run one in a process of its own, which is killed where it does not end by its deadline."""

    def work() -> None:
        os.setsid()  # what it starts to compile with ends with it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        section(name, bench, most, path)

    # Forked from one that has never touched the device, so that nothing is imported again.
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(most + GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()


def run(
    bench: Bench, names: Sequence[str], seconds: float, path: Path, *, here: bool = False, say: Any = print
) -> dict[str, Any]:
    """Each section by its name: what it found, and how it ended. The JSON file is whole after each."""
    end, results, part = time.monotonic() + seconds, dict[str, Any](), path.with_suffix(".part")
    for name in names:
        start = time.monotonic()
        most = min(SECTIONS[name][1], end - start)
        part.unlink(missing_ok=True)
        if most > 0.1:
            (section if here else apart)(name, bench, most, part)
        found = json.loads(part.read_text()) if part.exists() else {}
        ended = found.pop("ended", f"killed after {most:.0f} s" if most > 0.1 else "not run: no time was left")
        # Figures are good without those that there was no time for.
        whole = not ended or (name == "speed" and "took more than" in ended)
        result = {"passed": whole and SECTIONS[name][2](found), "found": found}
        results[name] = result | ({"ended": ended} if ended else {}) | {"seconds": round(time.monotonic() - start, 1)}
        path.write_text(json.dumps(results, indent=1) + "\n")
        say(page({name: results[name]}))
    part.unlink(missing_ok=True)
    return results


def page(results: dict[str, Any]) -> str:
    """The results as text: what is as it should be is left out, and a row's times stand together."""
    lines = []
    for name, result in results.items():
        lines.append(f"{'ok    ' if result['passed'] else 'FAILED'} {name} ({result['seconds']} s)")
        if "ended" in result:
            lines.append(f"         {result['ended']}")
        rows: dict[str, dict[str, Any]] = {}
        for key, value in result["found"].items():
            row, bar, contender = key.partition(" | ")
            if bar:
                rows.setdefault(row, {})[contender] = value
            elif value not in ("equal", []):
                lines.append(f"         {key}: {value}")
        lines += [f"         {row}: {_times(times)}" for row, times in rows.items()]
    return "\n".join(lines)


def _times(times: dict[str, Any]) -> str:
    """Milliseconds, and how many times as fast the fastest of ours is as the loop by hand and as reduce-overhead."""
    text = ", ".join(f"{name} {value}" for name, value in times.items())
    others = ("hand", "reduce-overhead", "torch.compile")
    ours = min((ms for name, ms in times.items() if name not in others and isinstance(ms, float)), default=None)
    for other in others[:2]:
        if ours and isinstance(ms := times.get(other), float):
            text += f"; {ms / ours:.2f}x {other}"
    return text


def has_gpu() -> bool:
    """Whether torch sees one; asked in a process of its own, since a device that was touched cannot be forked."""
    import torch

    with multiprocessing.get_context("fork").Pool(1) as pool:
        return bool(pool.apply(torch.cuda.is_available))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where a section did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, default=Path("cuda.json"))
    parser.add_argument("--seconds", type=float, default=345.0)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    given = parser.parse_args(arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms need of cuBLAS
    if given.device.startswith("cuda") and not has_gpu():
        print("cuda: torch sees no GPU here; --device cpu runs the same logic on tiny models")
        return 2
    small = given.device == "cpu"
    bench = Bench(given.device, small=small)
    results = run(bench, given.only, given.seconds, given.json, here=small, say=_say)
    print(f"written: {given.json}")
    return 0 if all(result["passed"] for result in results.values()) else 1


def _say(text: str) -> None:
    """Print, and at once: the output of a process that is killed is lost otherwise."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
