"""What the tests of recipes share: a whole recipe, and reading one."""

from __future__ import annotations

import pytest

from surefoot.errors import Problems
from surefoot.metrics.registry import METRICS
from surefoot.recipe import parse_recipe
from surefoot.registry import Entry, Range, Registry


def lenet(classes: int = 10, channels: int = 1): ...


def sgd(params, lr: float = 0.001, momentum: float = 0, weight_decay: float = 0, *, nesterov: bool = False): ...


def garments(train_size: int = 1000, seed: int = 0): ...


def cross_entropy(label_smoothing: float = 0.0, reduction: str = "mean"): ...


def step_lr(optimizer, step_size: int, gamma: float = 0.1): ...


def linear_warmup(optimizer, warmup_period: int): ...


def random_crop(padding: int): ...


FAKES = {
    "model": Registry("model", "models", [Entry("LeNet5", lenet)]),
    "data": Registry("data set", "data", [Entry("garments", garments)]),
    "loss": Registry("loss", "losses", [Entry("CrossEntropyLoss", cross_entropy)]),
    "metric": METRICS,
    "optimizer": Registry(
        "optimizer",
        "optimizers",
        [Entry("SGD", sgd, provided=("params",), limits={"lr": Range(low=0, hint="give a positive rate, e.g. 0.001")})],
    ),
    "scheduler": Registry("scheduler", "schedulers", [Entry("StepLR", step_lr, provided=("optimizer",))]),
    "warmup": Registry("warmup", "warmups", [Entry("LinearWarmup", linear_warmup, provided=("optimizer",))]),
    "augmentation": Registry("augmentation", "augmentations", [Entry("RandomCrop", random_crop)]),
}


BASE = """\
epochs: 3
model: LeNet5
data: {name: garments, batch_size: 32}
loss: CrossEntropyLoss
optimizer:
  name: SGD
  lr: 0.1
"""


def read(text: str = BASE, *overrides: str, registries=FAKES):
    return parse_recipe(text, "r.yaml", overrides, registries=registries)


def told(text: str = BASE, *overrides: str, registries=FAKES) -> list[str]:
    with pytest.raises(Problems) as caught:
        read(text, *overrides, registries=registries)
    return list(caught.value.problems)
