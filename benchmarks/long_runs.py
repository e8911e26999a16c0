"""What a very long run costs: going back to a checkpoint, the card's history, the report (docs/tracking.md).

python benchmarks/long_runs.py [FOLDER]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from surefoot.tracking import RunRecords, write_report

LONG = {"2 million steps": (2_000_000, 20_000), "200,000 epochs": (200_000, 1)}


def main(folder: Path) -> None:
    """Measure each in a process of its own, for its memory."""
    for name, (steps, per_epoch) in LONG.items():
        run = folder / name.replace(" ", "-")
        run.mkdir()
        _write(run / "metrics.jsonl", steps, per_epoch)
        print(f"{name}: journal of {(run / 'metrics.jsonl').stat().st_size / 1e6:.0f} MB")
        for what in PARTS:
            subprocess.run([sys.executable, __file__, "--part", what, str(run)], check=True)


def _write(path: Path, steps: int, per_epoch: int) -> None:
    with path.open("w") as file:
        for step in range(1, steps + 1):
            epoch = (step - 1) // per_epoch
            values = {"loss": 1 / step, "accuracy": 1 - 1 / step, "lr": [0.1], "wall_s": step / 9}
            kinds = [("step", "train")] if per_epoch > 1 else []
            kinds += [("epoch", "train"), ("epoch", "val")] if step % per_epoch == 0 else []
            for kind, split in kinds:
                record = {"kind": kind, "split": split, "epoch": epoch, "step": step, **values}
                file.write(json.dumps(record) + "\n")


def _rebuild(run: Path) -> None:
    records = RunRecords(run)
    records.truncate(records.offset)
    for step in (10**9, 10**9 + 1):
        records.append({"kind": "step", "split": "train", "epoch": 10**6, "step": step, "loss": 0.1, "lr": [0.1]})
    (run / "marks.json").write_text(json.dumps([records.offset, records.marks()]))


def _go_back(run: Path) -> None:
    offset, marks = json.loads((run / "marks.json").read_text())
    assert RunRecords(run, tensorboard=True).truncate(offset, marks) == ([], [])


def _history(run: Path) -> None:
    RunRecords(run, tensorboard=False).history()


def _report(run: Path) -> None:
    print(f"page of {write_report(run).stat().st_size / 1000:.0f} kB; ", end="")


PARTS: dict[str, Callable[[Path], None]] = {
    "events made anew, which a resume no longer does": _rebuild,
    "going back to a checkpoint, at every resume": _go_back,
    "history for the model card, once a sitting": _history,
    "report": _report,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        start, cpu = time.perf_counter(), time.process_time()
        PARTS[sys.argv[2]](Path(sys.argv[3]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(f"  {sys.argv[2]}: {wall:.1f} s ({cpu:.1f} s of a core), {peak:.0f} MB of memory", flush=True)
    else:
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as place:
            main(Path(place))
