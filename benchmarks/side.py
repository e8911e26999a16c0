"""The rows of the benchmark that are no race of steps: growth of the data, start, the tutorial's whole job."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GROWTH = (1_000, 10_000, 100_000, 1_000_000)
BATCH = 64
BATCHES_TIMED = 300
SAMPLES, VAL_SAMPLES = 60_000, 10_000


def growth(args: Any) -> list[str]:
    """The loader over data sets of growing size: to the first batch, a batch after it, a seek."""
    import torch

    import surefoot
    from surefoot.preprocessing import Preprocessing

    lines = [f"A loader over n images of 28x28 (uint8), shuffled, batch {BATCH}; median of {args.repeats}", ""]
    lines += ["| n | to the first batch, ms | a sample, us | seek to the middle, ms |", "|---|---|---|---|"]
    for count in GROWTH:
        pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)
        labels = torch.randint(0, 10, (count,))
        first, each, seek = [], [], []
        for _ in range(args.repeats):
            start = time.perf_counter()
            source = surefoot.TensorSource(pixels, labels)
            loader = surefoot.Loader(
                source, BATCH, preprocessing=Preprocessing(mean=(0.5,), std=(0.5,)), normalize_once=False
            )
            batches = iter(loader)
            next(batches)
            first.append(time.perf_counter() - start)
            seen = 0
            start = time.perf_counter()
            while seen < BATCHES_TIMED:
                for _batch in batches:
                    seen += 1
                    if seen == BATCHES_TIMED:
                        break
                else:
                    batches = iter(loader)
            each.append((time.perf_counter() - start) / (BATCHES_TIMED * BATCH))
            start = time.perf_counter()
            loader.seek(0, len(loader) // 2)
            next(iter(loader))
            seek.append(time.perf_counter() - start)
        shown = [statistics.median(first) * 1e3, statistics.median(each) * 1e6, statistics.median(seek) * 1e3]
        lines.append(f"| {count:,} | {shown[0]:.1f} | {shown[1]:.2f} | {shown[2]:.2f} |")
    return lines


def start(args: Any) -> list[str]:
    """From the command to its first sign of life."""
    surefoot = Path(sys.executable).with_name("surefoot")
    lines = ["From the command, seconds (median on a warm machine)", "", "| command | s |", "|---|---|"]
    for arguments in (["--version"], ["--help"]):
        times = []
        for _ in range(args.repeats):
            began = time.perf_counter()
            subprocess.run([surefoot, *arguments], check=True, capture_output=True)
            times.append(time.perf_counter() - began)
        lines.append(f"| `surefoot {arguments[0]}` | {statistics.median(times):.2f} |")
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(min(args.repeats, 3)):
            times.append(_first_record(surefoot, Path(folder) / str(number)))
    lines.append(f"| `surefoot train` to its first record | {statistics.median(times):.2f} |")
    return lines


def _first_record(surefoot: Path, run: Path) -> float:
    """Seconds from the command to the first line of metrics.jsonl, four steps into the quickstart."""
    began = time.perf_counter()
    process = subprocess.Popen([surefoot, "train", "--run", run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        journal = run / "metrics.jsonl"
        while not (journal.exists() and journal.stat().st_size):
            if process.poll() is not None:
                raise SystemExit("surefoot train ended before its first record")
            time.sleep(0.01)
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def job(args: Any) -> list[str]:
    """The tutorial's job, epochs of training with validation, tracking and a checkpoint, beside its own loop."""
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"SUREFOOT_DATA": _data(Path(folder))}
        command = [Path(sys.executable).with_name("surefoot"), "train", "fashion_mnist"]
        command += ["--run", str(Path(folder) / "run"), f"epochs={args.epochs}"]
        times = {}
        for name, run in (
            ("surefoot", command),
            ("tutorial", [sys.executable, here / "tutorial_job.py", str(args.epochs), folder]),
        ):
            began = time.perf_counter()
            subprocess.run(run, check=True, env=environment, stdout=subprocess.DEVNULL)
            times[name] = time.perf_counter() - began
    own, theirs = times["surefoot"], times["tutorial"]
    return [
        f"The tutorial's job, {args.epochs} epoch(s) with validation, tracking and a checkpoint each, whole process",
        "",
        "| loop | seconds |",
        "|---|---|",
        f"| the tutorial's | {theirs:.1f} |",
        f"| `surefoot train fashion_mnist epochs={args.epochs}` | {own:.1f} |",
        "",
        f"The tutorial's loop takes {theirs / own:.1f} times as long.",
    ]


def _data(folder: Path) -> str:
    """The real images where SUREFOOT_DATA has them, else random ones in the same files."""
    import struct

    import numpy

    if os.environ.get("SUREFOOT_DATA"):
        return os.environ["SUREFOOT_DATA"]
    random = numpy.random.default_rng(0)
    raw = folder / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", SAMPLES), ("t10k", VAL_SAMPLES)):
        pixels = random.integers(0, 256, (count, 28, 28), numpy.uint8)
        labels = random.integers(0, 10, count, numpy.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + labels.tobytes())
    return str(folder / "data")
