"""The work that every contender does: the tutorial's LeNet-5, data of Fashion-MNIST's size, and a stopwatch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SAMPLES = 60_000
LR, MOMENTUM = 0.001, 0.9


class GarmentClassifier(nn.Module):
    """The model of the PyTorch tutorial "Training with PyTorch", as it stands there."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 4 * 4)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def images(count: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images (N, 1, 28, 28) and labels (N,): made up, since no timing depends on what they show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(0, 10, (count,), generator=generator)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """What ToTensor and Normalize((0.5,), (0.5,)) make of images, all at once."""
    return pixels.float().div_(255).sub_(0.5).div_(0.5)


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A fresh model, and the tutorial's optimizer over it."""
    torch.manual_seed(0)
    model = GarmentClassifier()
    return model, torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)


class Stopwatch:
    """Times the steps of any loop from the outside: by when it asks for its batches.

    The clock runs from the request after the first `warm` batches to the request of the last one, since some loops
    ask for no more than there are, and some ask one ahead.
    """

    def __init__(self, batches: Iterable[Any], count: int, warm: int):
        self.batches, self.count, self.warm = batches, count, warm
        self.seconds = 0.0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        start, last = 0.0, self.count - 1
        batches = iter(self.batches)
        for index in range(self.count):
            if index == self.warm:
                start = time.perf_counter()
            elif index == last:
                self.seconds = time.perf_counter() - start
            yield next(batches)
        # A Loader counts an epoch as done when it is asked once more.
        next(batches, None)

    @property
    def per_step(self) -> float:
        """Seconds a step."""
        return self.seconds / (self.count - 1 - self.warm)
