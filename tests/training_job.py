"""A small classification job for tests of `fit`: its data, its model, and a progress that counts records."""

from __future__ import annotations

import torch
from fit_arguments import Heard
from torch import nn

SAMPLES, FEATURES, CLASSES = 50, 6, 3


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
    targets = (inputs @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1)
    return inputs, targets


def make_model(*, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, CLASSES))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


class Counted(Heard):
    """Notes each record."""

    def __init__(self, records):
        super().__init__()
        self.records = records

    def record(self, record):
        self.records.append(record)
