"""What each backend and trick of `execution` wins on one job: `tricks.py JOB TURNS` prints ratios as JSON.

A step is timed over batches that are there already, once with the trick and once without, in turn; the ratio is the
time without it by the time with it, each the fastest of its turns. What wins less than 10 % on every job is deleted.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import torch
from contenders import EAGER, chosen
from torch import nn
from work import JOBS, Job, normalized

from surefoot import torch_compat
from surefoot.execution import CannotCompile, backends, eager, pools, prepare
from surefoot.step import TrainStep

PATCHES: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "": contextlib.nullcontext,
    "optimizer.step()": lambda: mock.patch.object(eager, "DirectUpdate", lambda optimizer: optimizer.step),
    "autograd.backward": lambda: mock.patch.object(torch_compat, "run_backward", lambda: torch.autograd.backward),
    "memory given back": lambda: mock.patch("surefoot.execution.settings.freed_memory_kept", contextlib.nullcontext),
    "pools": lambda: mock.patch.object(pools, "written_pools", lambda graph: {}),
}


class Variant:
    """A step under some settings, with a part of `execution` replaced."""

    def __init__(self, job: Job, settings, patch: str = "", steps: int = 0):
        self.settings, self.patch, self.steps = settings, PATCHES[patch], steps or job.steps
        self.seconds: list[float] = []
        self.model, self.optimizer = job.make()
        self.step = TrainStep(self.model, nn.CrossEntropyLoss(), self.optimizer)
        inputs, targets = job.samples(4 * job.batch)
        pairs = zip(normalized(inputs).split(job.batch), targets.split(job.batch), strict=True)
        self.batches = [[pair] for pair in pairs]
        self.made = False

    def turn(self) -> None:
        """Some steps, the first of them not counted."""
        with self.patch(), prepare(self.settings, self.model, self.optimizer):
            if not self.made:
                self.step.backend = backends.make_backend(self.settings, self.step, self.batches[0][0], self.say)
                self.made = True
            self.step(self.batches[0])
            began = time.perf_counter()
            for number in range(self.steps):
                self.step(self.batches[number % len(self.batches)])
            self.seconds.append((time.perf_counter() - began) / self.steps)

    @staticmethod
    def say(text: str) -> None:
        print(text, file=sys.stderr)


def compare(job: Job, turns: int) -> dict[str, float]:
    """The ratio of every trick that can matter to this job."""
    base = chosen(job, EAGER)
    images = any(p.dim() == 4 for p in job.make()[0].parameters())
    pooled = any(isinstance(m, nn.MaxPool2d) for m in job.make()[0].modules())
    variants = {"eager": Variant(job, base)}
    pairs: dict[str, tuple[str, str]] = {}

    def add(trick: str, settings=None, patch: str = "", *, to: str = "eager", wins: bool = False) -> None:
        """`trick` as a variant; what `to` has and it lacks is the gain, or with `wins` what it has and `to` lacks."""
        variants[trick] = Variant(job, settings or variants[to].settings, patch)
        pairs[trick] = (trick, to) if wins else (to, trick)

    add("lean eager step", replace(base, plain=True))
    add("update without optimizer.step()'s wrappers", patch="optimizer.step()")
    add("backward without autograd's wrapper", patch="autograd.backward")
    add("freed memory kept", patch="memory given back")
    if base.optimizer_impl != "default":
        add(f"{base.optimizer_impl} optimizer", replace(base, optimizer_impl="default"))
    if base.threads != torch.get_num_threads():
        add("fewer threads", replace(base, threads=torch.get_num_threads()))
    if images:
        add("oneDNN as chosen", replace(base, onednn=not base.onednn))
        if base.memory_format != "contiguous":
            add("channels_last", replace(base, memory_format="contiguous"))
    if worth_compiling(job):
        contiguous = replace(base, memory_format="contiguous")
        add("compiled gradients", replace(contiguous, compile="gradients"), wins=True)
        add("compiled module", replace(contiguous, compile="module"), wins=True)
        if pooled:
            add("pools written out", patch="pools", to="compiled gradients")
    for _ in range(turns + 1):
        for name, variant in list(variants.items()):
            try:
                variant.turn()
            except CannotCompile as error:
                print(f"{name}: {error}", file=sys.stderr)
                del variants[name]
    fastest = {name: min(variant.seconds[1:]) for name, variant in variants.items()}
    print({name: f"{seconds * 1e3:.3f} ms" for name, seconds in fastest.items()}, file=sys.stderr)
    run = {trick: pair for trick, pair in pairs.items() if set(pair) <= set(fastest)}
    return {trick: fastest[without] / fastest[with_it] for trick, (with_it, without) in run.items()}


def worth_compiling(job: Job) -> bool:
    """ResNet-18 takes minutes to compile and is slower then."""
    return not any(isinstance(module, nn.BatchNorm2d) for module in job.make()[0].modules())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(compare(JOBS[sys.argv[1]], int(sys.argv[2]))), file=answers)
