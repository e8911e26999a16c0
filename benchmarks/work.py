"""The work that every contender does: seven jobs, from LeNet-5 at batch 4 to a small GPT, and a stopwatch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SAMPLES = 60_000


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


class Perceptron(nn.Sequential):
    """Three layers over 32 columns."""

    def __init__(self):
        super().__init__(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


class Recurrent(nn.Module):
    """An LSTM that reads 50 tokens and classifies them."""

    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.head = (
            nn.Embedding(1000, 64),
            nn.LSTM(64, 128, batch_first=True),
            nn.Linear(128, 10),
        )

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0][:, -1])


class Block(nn.Module):
    """One layer of a GPT: causal attention of 4 heads, then two linear layers."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        n, t, width = x.shape
        heads = self.qkv(self.norm1(x)).view(n, t, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(n, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """4 layers, 128 wide, over 64 of 256 tokens; outputs (N, 256, 64), as CrossEntropyLoss takes them."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, 128), nn.Parameter(torch.zeros(64, 128))
        self.blocks = nn.Sequential(*(Block(128) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(128), nn.Linear(128, 256)

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places))).transpose(1, 2)


class Residual(nn.Module):
    """Two convolutions with BatchNorm, and the way around them."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        around = [nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        self.around = nn.Identity() if (before, stride) == (width, 1) else nn.Sequential(*around)

    def forward(self, x):
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.around(x))


class ResNet18(nn.Sequential):
    """ResNet-18 for images of 32x32, `width` to 8 times as many channels wide."""

    def __init__(self, width: int = 16):
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = [
            Residual(widths[i] if j == 0 else widths[i + 1], widths[i + 1], 2 if i and j == 0 else 1)
            for i in range(4)
            for j in range(2)
        ]
        first = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


@dataclass(frozen=True)
class Job:
    """A model with its optimizer and batch size, and what its samples look like; a turn is `steps` steps."""

    title: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer]
    batch: int
    steps: int
    inputs: Callable[[int, torch.Generator], torch.Tensor]
    targets: tuple[int, ...] = ()
    classes: int = 10

    def make(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A fresh model, the same each time, and the optimizer over it."""
        torch.manual_seed(0)
        model = self.model()
        return model, self.optimizer(model.parameters())

    def samples(self, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """So many samples (by default those of a turn): made up, since no timing depends on what they show."""
        count = self.steps * self.batch if count is None else count
        generator = torch.Generator().manual_seed(0)
        inputs = self.inputs(count, generator)
        return inputs, torch.randint(0, self.classes, (count, *self.targets), generator=generator)


def _sgd(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.001, momentum=0.9)


def _adamw(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.001)


def _pixels(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)


def _numbers(*shape: int) -> Callable[[int, torch.Generator], torch.Tensor]:
    return lambda count, generator: torch.randn(count, *shape, generator=generator)


def _tokens(vocabulary: int, length: int) -> Callable[[int, torch.Generator], torch.Tensor]:
    return lambda count, generator: torch.randint(0, vocabulary, (count, length), generator=generator)


JOBS = {
    "lenet-4": Job("LeNet-5, batch 4", GarmentClassifier, _sgd, 4, 300, _pixels),
    "lenet-64": Job("LeNet-5, batch 64", GarmentClassifier, _sgd, 64, 60, _pixels),
    "lenet-512": Job("LeNet-5, batch 512", GarmentClassifier, _sgd, 512, 12, _pixels),
    "mlp": Job("MLP on 32 columns, batch 128", Perceptron, _adamw, 128, 200, _numbers(32)),
    "lstm": Job("LSTM over 50 tokens, batch 32", Recurrent, _adamw, 32, 20, _tokens(1000, 50)),
    "gpt": Job("GPT, 4 layers, 64 tokens, batch 16", GPT, _adamw, 16, 6, _tokens(256, 64), (64,), 256),
    "resnet": Job("ResNet-18, 16 wide, batch 32", ResNet18, _sgd, 32, 5, _numbers(3, 32, 32)),
}


def normalized(inputs: torch.Tensor) -> torch.Tensor:
    """What ToTensor and Normalize((0.5,), (0.5,)) make of images, all at once; other inputs as they are."""
    return inputs.float().div_(255).sub_(0.5).div_(0.5) if inputs.dtype == torch.uint8 else inputs


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
