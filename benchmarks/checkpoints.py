"""Figures of docs/reliability.md: what a save costs while training, what a resume costs, on this machine.

python benchmarks/checkpoints.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from surefoot.checkpoint import Checkpointer, scan
from surefoot.data import Loader
from surefoot.models import LeNet5
from surefoot.schedules import LinearWarmup, Schedule

ROUNDS = 5


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def tutorial_job(images: int = 4096) -> dict:
    """Model, optimizer, schedule and loader of the tutorial: LeNet-5, batch 4, SGD with momentum, plateau, warmup."""
    torch.manual_seed(0)
    data = torch.randn(images, 1, 28, 28), torch.randint(10, (images,))
    model = LeNet5()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    schedule = Schedule(optimizer, plateau, LinearWarmup(optimizer, warmup_period=10), warmup_by="epoch")
    return {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "loader": Loader(data, batch_size=4, seed=0),
    }


def train(job: dict, steps: int, saver: Checkpointer | None) -> float:
    """Seconds of `steps` updates."""
    loss_fn, model, optimizer, loader = nn.CrossEntropyLoss(), job["model"], job["optimizer"], job["loader"]
    start = time.perf_counter()
    done = 0
    while True:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            optimizer.step()
            job["schedule"].step()
            if saver is not None:
                saver.step()
            done += 1
            if done == steps:
                return time.perf_counter() - start


def pauses(folder: Path, job: dict, count: int) -> list[float]:
    """Milliseconds that training waits for each of `count` background saves, the one before being done."""
    with Checkpointer(folder, every=None, keep_last=2, **job) as saver:
        found = []
        for _ in range(count):
            train(job, 3, None)
            saver.steps += 3
            found.append(milliseconds(lambda: saver.save(wait=False)))
            saver.wait()
    return found


def small_model(folder: Path) -> dict[str, float]:
    """The pause for LeNet-5."""
    found = pauses(folder / "pause", tutorial_job(), 200)[20:]
    return {"pause, median (ms)": statistics.median(found), "pause, 95th percentile (ms)": sorted(found)[171]}


def overhead(folder: Path) -> dict[str, float]:
    """What one save every 100 steps of the tutorial's job costs; short rounds of both kinds alternate."""
    steps = 200
    plain_job, saved_job = tutorial_job(), tutorial_job()
    plain, saved = [], []
    with Checkpointer(folder / "overhead", every="100 steps", keep_last=2, **saved_job) as saver:
        train(plain_job, steps + 50, None)
        train(saved_job, steps + 50, saver)  # so that both saves of a round end within it
        for _ in range(12 * ROUNDS):
            plain.append(train(plain_job, steps, None))
            saved.append(train(saved_job, steps, saver))
    pairs = [one / other for one, other in zip(saved, plain, strict=True)]
    return {
        "step without (us)": statistics.median(plain) / steps * 1e6,
        "step with (us)": statistics.median(saved) / steps * 1e6,
        "overhead, median of pairs (%)": (statistics.median(pairs) - 1) * 100,
    }


def large_model(folder: Path) -> dict[str, float]:
    """100 MB of parameters: the pause against one memory copy, verifying, and verifying while loading."""
    model = nn.Sequential(*(nn.Linear(1600, 1600, bias=False) for _ in range(10)))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    source = [p.detach().clone() for p in model.parameters()]
    target = [torch.empty_like(p) for p in source]
    copies = [milliseconds(lambda: [t.copy_(s) for t, s in zip(target, source, strict=True)]) for _ in range(12)]
    pause, verify, load, write = [], [], [], []
    with Checkpointer(folder / "large", every=None, keep_last=1, model=model) as saver:
        for _ in range(8):
            saver.steps += 1
            pause.append(milliseconds(lambda: saver.save(wait=False)))
            write.append(milliseconds(saver.wait))
    for _ in range(ROUNDS):
        verify.append(milliseconds(lambda: list(scan(folder / "large"))))
        with Checkpointer(folder / "large", every=None, model=model) as saver:
            load.append(milliseconds(saver.resume))
    return {
        "size (MB)": size / 1e6,
        "one memory copy (ms)": statistics.median(copies[2:]),
        "pause, median (ms)": statistics.median(pause[2:]),
        "write and fsync, in the background (ms)": statistics.median(write[2:]),
        "verify (ms)": statistics.median(verify),
        "verify and load (ms)": statistics.median(load),
    }


def seeking(folder: Path) -> dict[str, float]:
    """A resume in the first and in the last batch of an epoch of a million samples, to the first batch in hand."""
    samples, batch = 1_000_000, 4
    data = torch.zeros(samples, 4), torch.zeros(samples, dtype=torch.int64)
    found = {}
    for title, position in (("first", 1), ("last", samples // batch - 1)):
        path = folder / title
        loader = Loader(data, batch_size=batch, seed=0)
        loader.seek(0, position)
        with Checkpointer(path, every=None, loader=loader) as saver:
            saver.step()
            saver.save()
        times = []
        for _ in range(ROUNDS):
            loader = Loader(data, batch_size=batch, seed=0)
            with Checkpointer(path, every=None, loader=loader) as saver:

                def resume(saver: Checkpointer = saver, loader: Loader = loader) -> None:
                    saver.resume()
                    next(iter(loader))

                times.append(milliseconds(resume))
        found[f"resume in the {title} batch (ms)"] = statistics.median(times)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = {}
    with tempfile.TemporaryDirectory(prefix="surefoot-bench-") as folder:
        for name, measure in (
            ("LeNet-5, a save in the background", small_model),
            ("LeNet-5, batch 4, a save every 100 steps", overhead),
            ("100 MB", large_model),
            ("an epoch of a million samples", seeking),
        ):
            table[name] = measure(Path(folder))
            print(name)
            for figure, value in table[name].items():
                print(f"  {figure:<42} {value:10.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"cpus": os.cpu_count(), "torch": torch.__version__, **table}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
