"""What the tests of checkpoints share: a small model and a Checkpointer of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from surefoot.checkpoint import Checkpointer, scan


def model() -> nn.Module:
    return nn.Linear(3, 2)


def steps_of(run: Path) -> list[int]:
    return [status.step for status in scan(run)]


def saver_for(run: Path, net: nn.Module | None = None, **options) -> Checkpointer:
    net = model() if net is None else net
    options.setdefault("every", "1 step")
    return Checkpointer(run, model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), **options)
