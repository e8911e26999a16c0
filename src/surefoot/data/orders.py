"""Orders: which samples an epoch has, and in which batches, as a function of (seed, epoch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..fingerprint import Fingerprint
from ..rng import fold


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """torch's generator under a seed from (seed, epoch)."""
    return torch.Generator().manual_seed(fold(seed, epoch))


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of `samples` indices in one epoch: int64 (samples,), a function of its arguments only.

    >>> epoch_order(5, seed=0, epoch=1).tolist() == epoch_order(5, seed=0, epoch=1).tolist()
    True
    """
    return torch.randperm(samples, generator=generator_of(seed, epoch))


class Order(ABC):
    """The order of the `samples` of an epoch; `batches` is their number where the order makes the batches itself."""

    samples: int
    batches: int | None = None
    repeats = False  # whether a sample may come more than once in an epoch

    @abstractmethod
    def of(self, epoch: int) -> Tensor | Sequence[Tensor]:
        """The data set indices of one epoch in order, int64 (samples,), or those of each batch."""

    def settings(self) -> dict[str, Any]:
        """What a resume must find unchanged, beside the loader's own settings."""
        return {}

    def state(self, epoch: int) -> dict[str, Any]:
        """What the order of an epoch depends on beside its settings."""
        return {}

    def restore(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Go on from a `state` of that epoch."""
        return


class Shuffled(Order):
    """All `count` samples, or those of `indices`, each once: permuted in each epoch, or as they stand.

    With `samples`, an epoch has so many: the first of a permutation, and of further ones where one does not suffice.
    """

    def __init__(self, count: int, seed: int, shuffle: bool, samples: int | None = None, indices: Any = None):
        self._indices = None if indices is None else torch.as_tensor(indices, dtype=torch.int64).clone()
        self._count = count if self._indices is None else len(self._indices)
        self._seed, self._shuffle = seed, shuffle
        self.samples = self._count if samples is None else samples
        distinct = self._count if self._indices is None else len(set(self._indices.tolist()))
        self.repeats = self.samples > distinct

    def of(self, epoch: int) -> Tensor:
        if self._shuffle:
            generator = generator_of(self._seed, epoch)
            rounds = -(-self.samples // self._count)
            permutations = [torch.randperm(self._count, generator=generator) for _ in range(rounds)]
            order = permutations[0] if rounds == 1 else torch.cat(permutations)
        else:
            order = torch.arange(self.samples) % self._count
        order = order[: self.samples]
        return order if self._indices is None else self._indices[order]

    def settings(self) -> dict[str, Any]:
        part = {} if self._indices is None else {"sampler": Fingerprint.of(self._indices)[:16]}
        return part if self.samples == self._count else {**part, "num_samples": self.samples}


class Weighted(Order):
    """Samples drawn by their weights: with replacement, or each at most once.

    The meaning of ``torch.utils.data.WeightedRandomSampler``, for any number of samples. `weights` is float64 (N,).
    """

    def __init__(self, weights: Tensor, samples: int, seed: int, replacement: bool = True):
        self._weights, self.samples, self._seed, self.repeats = weights, samples, seed, replacement

    def of(self, epoch: int) -> Tensor:
        generator = generator_of(self._seed, epoch)
        if self.repeats:
            sums = self._weights.cumsum(0)
            draws = torch.rand(self.samples, dtype=torch.float64, generator=generator) * sums[-1]
            # A draw may round up to the last sum, and must not give a sample of weight 0.
            last = int(self._weights.nonzero()[-1])
            return torch.searchsorted(sums, draws, right=True).clamp_(max=last)
        # The smallest of exponential times, each at its weight as the rate (Efraimidis and Spirakis, 2006).
        draws = torch.rand(len(self._weights), dtype=torch.float64, generator=generator)
        return (-torch.log1p(-draws) / self._weights).argsort(stable=True)[: self.samples]

    def settings(self) -> dict[str, Any]:
        weights = {"weights": Fingerprint.of([self._weights, self.repeats])[:16]}
        return weights if self.samples == len(self._weights) else {**weights, "num_samples": self.samples}


def occurrences(order: Tensor) -> Tensor:
    """How often each sample of an order has come before: int64 (samples,).

    >>> occurrences(torch.tensor([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    values, places = order.sort(stable=True)
    first = torch.searchsorted(values, values)
    counts = torch.empty_like(order)
    counts[places] = torch.arange(len(order)) - first
    return counts
