"""Sums of what batches gave, from which means are made: losses, samples, right answers, further numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..batches import tensors
from .sums import Pair

# Of a batch: its loss, what that is a mean over, its samples, further numbers, whether the objective itself said what
# the mean is over, and whether it is a micro-batch of an update.
Row = tuple[float, float, int, dict[str, float], bool, bool]


class Parts(tuple[Any, ...]):
    """Outputs or targets of one update's micro-batches that cannot be joined (padded to several lengths): a list of an
    `iterable` of them."""


def parts_of(value: Any) -> Sequence[Any]:
    """The micro-batches' own, or the one that there is."""
    return value if isinstance(value, Parts) else (value,)


def data_of(value: Any) -> Any:
    """A tensor without its graph; anything else as it is."""
    return value.data if isinstance(value, Tensor) else value


def bytes_of(value: Any) -> int:
    """What the tensors in a value hold."""
    if isinstance(value, Tensor) or value is None:
        return 0 if value is None else value.nbytes
    return sum(tensor.nbytes for tensor in tensors(value))


def pairs_of(held: Sequence[tuple[Any, ...]]) -> list[Pair]:
    """Outputs and targets of batches, (loss, outputs, targets, ...), but for those without outputs."""
    if not any([isinstance(one[1], Parts) for one in held]):
        return [(one[1], one[2]) for one in held if one[1] is not None]
    return [
        pair
        for _, outputs, targets, *_ in held
        for pair in zip(parts_of(outputs), parts_of(targets), strict=True)
        if pair[0] is not None
    ]


class Unread:
    """What was summed in this process and is not in the sums yet.

    `groups` says of each call of `add` how many batches were its own, `rows` holds one for each of these.
    """

    def __init__(self, classes: int):
        self.groups: list[int] = []
        self.rows: list[Row] = []
        self.own: dict[str, list[Tensor]] = {}
        self.answers: list[Pair] = []
        self.matrix = torch.zeros(classes, classes, dtype=torch.long, device="cpu")
        self.right = self.seen = 0


class Sums:
    """The sums of one stretch of batches."""

    __slots__ = ("loss", "numbers", "right", "samples", "seen", "weight")

    def __init__(
        self,
        loss: float = 0.0,
        weight: float = 0,
        samples: int = 0,
        right: int = 0,
        seen: int = 0,
        numbers: Mapping[str, Sequence[float]] | None = None,
    ):
        self.loss, self.weight, self.samples, self.right, self.seen = loss, weight, samples, right, seen
        self.numbers: dict[str, list[float]] = {name: list(sums) for name, sums in (numbers or {}).items()}

    def add(self, rows: Sequence[Row], summed: bool) -> None:
        """Add batches, or the micro-batches of one update, whose losses are shares of its loss."""
        whole = not any(row[5] for row in rows[:1])
        loss, total, count = self.loss, self.weight, self.samples  # of small steps there are thousands a second
        for value, weight, samples, numbers, _, _ in rows:
            if numbers:
                for name, number in numbers.items():
                    self.number(name, number, weight)
            count += samples
            total += weight
            if not whole:
                continue
            if summed:
                loss += value
            elif weight:  # the mean over no position at all (every one ignored) is 0/0 and has no part
                loss += value * weight
        self.loss, self.weight, self.samples = loss, total, count
        if not whole:
            values, weights, samples_of_each = (sum(row[k] for row in rows) for k in range(3))  # type: ignore[misc]
            if any(row[4] for row in rows):  # an objective's shares are of the samples
                weights = samples_of_each
            if summed:
                self.loss += values
            elif weights:
                self.loss += values * weights

    def number(self, name: str, value: float, weight: float) -> None:
        """Add one batch's value of a number that an objective returns."""
        sums = self.numbers.setdefault(name, [0.0, 0.0])
        if weight:
            sums[0] += value * weight
            sums[1] += weight

    def means(self, accuracy: bool) -> dict[str, float]:
        """The means by name, ``nan`` where nothing was added."""
        means = {"loss": self.loss / self.weight if self.weight else math.nan}
        if accuracy:
            means["accuracy"] = self.right / self.seen if self.seen else math.nan
        for name, (total, weight) in self.numbers.items():
            means[name] = total / weight if weight else math.nan
        return means

    def state(self) -> dict[str, float]:
        """The sums as plain numbers, by the constructor's arguments."""
        return {name: getattr(self, name) for name in self.__slots__}


def plain(values: Sequence[Any]) -> list[Any]:
    """Tensors among `values` as numbers, with one look at the device; the rest as it is."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    numbers = iter(numbers_of([tensor.double() for tensor in tensors]) if tensors else [])
    return [next(numbers) if isinstance(value, Tensor) else value for value in values]


def numbers_of(tensors: Sequence[Tensor]) -> list[float]:
    """The values of many one-number tensors, with one look at the device where they are alike."""
    try:
        return [float(value) for value in torch.stack(list(tensors)).reshape(-1).tolist()]
    except RuntimeError:  # of several shapes or devices: one by one
        return [t.item() for t in tensors]
