"""Figures of docs/distributed.md: what a second process wins, and what agreeing on a stop costs, on this machine.

python benchmarks/ranks.py [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from work import JOBS, Job, normalized

from surefoot import World, fit
from surefoot.tracking import Progress
from surefoot.training import RunOptions

NAMES = ("lenet-512", "resnet", "gpt")
TURNS, EPOCHS, BATCHES = 3, 3, 60
STEPS, STEP_S = 2000, 0.0005
WAYS = {"surefoot": "", "DistributedDataParallel by hand": ":ddp", "two that never meet": ":alone"}


class Ends(Progress):
    """Shows nothing, and remembers when each epoch was over."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "epoch":
            self.seconds.append(record["wall_s"])


def samples_of(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of `BATCHES` batches, the same in each process."""
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    samples = job.batch * BATCHES
    inputs = normalized(job.inputs(samples, draws))
    return inputs, torch.randint(job.classes, (samples, *job.targets), generator=draws)


def by_hand_ms(job: Job, world: World, meet: bool) -> float:
    """The same steps of a hand-written loop: under DistributedDataParallel, or of processes that never meet."""
    inputs, targets = samples_of(job)
    model, optimizer = job.make()
    whole = DistributedDataParallel(model) if meet and world.size > 1 else model
    loss, rows = torch.nn.CrossEntropyLoss(), job.batch // world.size
    seconds = []
    for _ in range(EPOCHS):
        world.gather(0)
        start = time.perf_counter()
        for batch in torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).split(job.batch):
            own = batch[world.rank * rows : (world.rank + 1) * rows]
            optimizer.zero_grad()
            outputs = whole(inputs[own])
            loss(outputs, targets[own]).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return min(world.gather(min(seconds))) / BATCHES * 1e3


def step_ms(job: Job, world: World) -> float:
    """The fastest epoch's milliseconds a step of the plain step, one thread a process, a batch of all processes."""
    inputs, targets = samples_of(job)
    model, optimizer = job.make()
    ends = Ends()
    run = RunOptions(execution="plain", world=world, progress=ends, log_every=BATCHES, lint_off=["all"])
    fit(
        model,
        torch.nn.CrossEntropyLoss(),
        optimizer,
        (inputs, targets),
        epochs=EPOCHS,
        batch_size=job.batch,
        metrics=(),
        run=run,
    )
    took = min((b - a for a, b in itertools.pairwise(ends.seconds)), default=0.0)  # rank 0 alone has records
    return world.gather(took)[0] / BATCHES * 1e3


def asking_share(world: World) -> float:
    """What a question after each step of half a millisecond adds to it: the median share of 15 pairs of rounds."""
    matrix, gradient = torch.randn(64, 64), torch.zeros(64)

    def step(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    start = time.perf_counter()
    step(10_000)
    times = world.gather(int(STEP_S / ((time.perf_counter() - start) / 10_000)))[0]

    def round_s(ask: bool) -> float:
        world.gather(0)
        start = time.perf_counter()
        for _ in range(STEPS):
            step(times)
            world.sum(gradient)  # as in training, where ranks that meet at each step do not drift apart
            if ask:
                world.ask((0, 0))
        return time.perf_counter() - start

    return statistics.median(round_s(True) / round_s(False) - 1 for _ in range(15))


def work(name: str) -> None:
    """What one process of `spread` does; rank 0 prints."""
    torch.set_num_threads(1)
    with World.here() as world:
        name, _, how = name.partition(":")
        if name == "asking":
            value = asking_share(world)
        else:
            value = by_hand_ms(JOBS[name], world, how == "ddp") if how else step_ms(JOBS[name], world)
        if world.rank == 0:
            print(json.dumps(value))


def spread(name: str, ranks: int) -> float:
    """What rank 0 of so many processes says of `name`."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, __file__, "--work", name], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures to a file as well")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(arguments.work)
    rows = []
    for name in NAMES:
        row: dict[str, Any] = {"job": JOBS[name].title}
        for title, how in WAYS.items():
            turns = [[spread(name + how, ranks) for ranks in (1, 2)] for _ in range(TURNS)]
            one, two = (min(times) for times in zip(*turns, strict=True))
            row[title] = {"one process, ms": one, "two, ms": two, "times as fast": one / two}
            print(f"{row['job']}, {title}: {one:.1f} ms a step in one process, {two:.1f} in two: {one / two:.2f} times")
        rows.append(row)
    share = spread("asking", 2)
    print(f"asking for stops adds {share:.2%} to steps of half a millisecond")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"steps": rows, "asking": share}, file, indent=1)


if __name__ == "__main__":
    main()
