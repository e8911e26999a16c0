"""A tiny run with all that a checkpoint holds, killed anywhere without a process: for the exactness grid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surefoot import rng
from surefoot.checkpoint import Checkpointer
from surefoot.checkpoint.snapshot import Snapshots
from surefoot.data import Loader
from surefoot.world import World

EPOCHS, SAMPLES, BATCH = 2, 22, 4  # 6 steps an epoch, the last batch short


class Net(nn.Module):
    """Everything that has state: convolution, BatchNorm, dropout, a tied weight, a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.3)
        self.one = nn.Linear(12, 12)
        self.two = nn.Linear(12, 12)
        self.two.weight = self.one.weight
        self.head = nn.Linear(12, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1)
        return self.head(self.two(torch.tanh(self.one(x))))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(SAMPLES, 1, 4, 4, generator=generator), torch.arange(SAMPLES) % 3


def digest(objects: dict[str, Any]) -> str:
    """SHA-256 over every bit of the state of the objects and of the random number generators."""
    snapshot = Snapshots(objects, World.alone()).take(step=0, epoch=0, journal=None, metrics={})
    found = hashlib.sha256(json.dumps(snapshot.state, sort_keys=True).encode())
    for image in (snapshot.model, snapshot.other):
        for chunk in image.chunks():
            found.update(chunk)
    return found.hexdigest()


class Killed(Exception):
    """The process is gone: nothing after this runs."""


class Run:
    """One sitting of a run: `objects` are built anew, restored if there is something, and trained.

    `build(model)` gives (optimizer, what is called after an update, what is called after an epoch, more objects).
    """

    def __init__(self, path: Path, build: Callable[[nn.Module], Any], *, seed: int, **loader: Any):
        rng.seed_all(seed)
        self.model = Net()
        self.optimizer, self.after_step, self.after_epoch, more = build(self.model)
        self.loader = Loader(data(), batch_size=BATCH, seed=5, **loader)
        self.objects = {"model": self.model, "optimizer": self.optimizer, "loader": self.loader, **more}
        self.losses: dict[int, float] = {}
        self.saver = Checkpointer(path, every=None, signals=False, **self.objects)

    def train(self, kill_at: int | None = None, when: str = "step") -> str:
        """Train to the end, or save and vanish after `kill_at` updates (`when`: "step", "epoch").

        Returns the digest of the state.
        """
        try:
            self.saver.resume()
            self.model.train()
            while self.loader.epoch < EPOCHS:
                for inputs, targets in self.loader:
                    self.losses[self.saver.steps] = self.update(inputs, targets)
                    self.after_step()
                    self.saver.step()
                    self.maybe_kill(kill_at if when == "step" else None)
                self.after_epoch(1.0)  # a loss that never improves: plateaus reduce
                self.saver.epoch()
                self.maybe_kill(kill_at if when == "epoch" else None)
        except Killed:
            self.saver.save()
        finally:
            self.vanish()
        return digest(self.objects)

    def update(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(inputs), targets)
            loss.backward()
            return loss

        return float(self.optimizer.step(closure).detach())

    def maybe_kill(self, at: int | None) -> None:
        if at is not None and self.saver.steps >= at:
            raise Killed

    def vanish(self) -> None:
        """Give back what a killed process would: the lock, and nothing else."""
        self.saver.wait()
        self.saver.run.close()


def assert_exact(tmp_path: Path, build: Callable[[nn.Module], Any], **loader: Any) -> None:
    """Killed in mid-epoch, after an epoch's last batch and at its edge, the run ends as if it had not been."""
    whole = Run(tmp_path / "whole", build, seed=1, **loader)
    end = whole.train()
    for kill_at, when in ((3, "step"), (6, "step"), (6, "epoch"), (11, "step")):
        path = tmp_path / f"{kill_at}-{when}"
        first = Run(path, build, seed=1, **loader)
        first.train(kill_at, when)
        second = Run(path, build, seed=99, **loader)  # another seed: all that counts is restored
        assert second.train() == end, f"differs when killed at {kill_at} ({when})"
        assert {**first.losses, **second.losses} == whole.losses
