"""Orders: which samples an epoch has, and in which batches, as a function of (seed, epoch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..fingerprint import Fingerprint
from ..rng import fold

# Where the data suffice, samples of like length lie in at least so many buckets, of at most so many batches each.
FEWEST_BUCKETS = 16
MOST_BATCHES_IN_BUCKET = 50


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """torch's generator under a seed from (seed, epoch)."""
    return torch.Generator().manual_seed(fold(seed, epoch))


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of `samples` indices in one epoch: int64 (samples,), a function of its arguments only.

    >>> epoch_order(5, seed=0, epoch=1).tolist() == epoch_order(5, seed=0, epoch=1).tolist()
    True
    """
    return torch.randperm(samples, generator=generator_of(seed, epoch), device="cpu")


def held_out(samples: int, share: float, seed: int, number: int = 0) -> tuple[Tensor, Tensor]:
    """The indices that train and those that validate, int64 in order: a `share` of the samples, at least one, or none.

    Drawn by `seed` and the `number` of what is split. One sample alone trains.

    >>> [part.tolist() for part in held_out(5, 0.2, seed=0)], held_out(5, 0, seed=0)[1].tolist()
    ([[0, 1, 3, 4], [2]], [])
    """
    order = epoch_order(samples, seed, number)
    count = min(samples - 1, max(1, round(share * samples))) if share else 0
    return order[count:].sort().values, order[:count].sort().values


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
        self._indices = None if indices is None else torch.as_tensor(indices, dtype=torch.int64, device="cpu").clone()
        self._count = count if self._indices is None else len(self._indices)
        self._seed, self._shuffle = seed, shuffle
        self.samples = self._count if samples is None else samples
        distinct = self._count if self._indices is None else len(set(self._indices.tolist()))
        self.repeats = self.samples > distinct

    def of(self, epoch: int) -> Tensor:
        if self._shuffle:
            generator = generator_of(self._seed, epoch)
            rounds = -(-self.samples // self._count)
            permutations = [torch.randperm(self._count, generator=generator, device="cpu") for _ in range(rounds)]
            order = permutations[0] if rounds == 1 else torch.cat(permutations)
        else:
            order = torch.arange(self.samples, device="cpu") % self._count
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
            draws = torch.rand(self.samples, dtype=torch.float64, generator=generator, device="cpu") * sums[-1]
            # A draw may round up to the last sum, and must not give a sample of weight 0.
            last = int(self._weights.nonzero()[-1])
            return torch.searchsorted(sums, draws, right=True).clamp_(max=last)
        # The smallest of exponential times, each at its weight as the rate (Efraimidis and Spirakis, 2006).
        draws = torch.rand(len(self._weights), dtype=torch.float64, generator=generator, device="cpu")
        return (-torch.log1p(-draws) / self._weights).argsort(stable=True)[: self.samples]

    def settings(self) -> dict[str, Any]:
        weights = {"weights": Fingerprint.of([self._weights, self.repeats])[:16]}
        return weights if self.samples == len(self._weights) else {**weights, "num_samples": self.samples}


class Bucketed(Order):
    """Batches of samples of like length, every sample once: `lengths` is int64 (N,).

    Sorted by length, the samples are cut into buckets of some batches. In each epoch a bucket is permuted within itself
    and cut into batches, which come in any order: their number and sizes are the same in all epochs. With `max_tokens`
    a batch has at most `batch_size` samples, and the longest times their number is at most `max_tokens`.
    """

    def __init__(
        self, lengths: Tensor, batch_size: int, seed: int, shuffle: bool, drop_last: bool, max_tokens: int | None = None
    ):
        self._lengths, self._seed, self._shuffle, self._max_tokens = lengths, seed, shuffle, max_tokens
        if max_tokens is not None and int(lengths.max()) > max_tokens:
            raise UsageError(
                f"data: max_tokens: sample {int(lengths.argmax())} has a length of {int(lengths.max())}, above "
                f"{max_tokens}; give at least that many, or leave the sample out of the data"
            )
        longest_first = lengths.argsort(descending=True, stable=True)
        batches = len(lengths) / batch_size if max_tokens is None else int(lengths.sum()) / max_tokens
        per_bucket = min(max(1, int(batches) // FEWEST_BUCKETS), MOST_BATCHES_IN_BUCKET)
        self._buckets: list[tuple[Tensor, int]] = []  # samples, and how many make a batch
        while len(longest_first):
            longest = max(1, int(lengths[longest_first[0]]))
            size = batch_size if max_tokens is None else min(batch_size, max_tokens // longest)
            bucket, longest_first = longest_first[: per_bucket * size], longest_first[per_bucket * size :]
            self._buckets.append((bucket, size))
        self.samples = len(lengths)
        self.batches = sum(-(-len(bucket) // size) for bucket, size in self._buckets)
        last, size = self._buckets[-1]
        self._dropped = drop_last and self.batches > 1 and len(last) % size != 0
        if self._dropped:
            self.samples, self.batches = self.samples - len(last) % size, self.batches - 1

    def of(self, epoch: int) -> Sequence[Tensor]:
        generator = generator_of(self._seed, epoch)
        made: list[Tensor] = []
        for bucket, size in self._buckets:
            mixed = bucket[torch.randperm(len(bucket), generator=generator, device="cpu")] if self._shuffle else bucket
            made += torch.split(mixed, size)
        if self._dropped:
            made.pop()
        if not self._shuffle:
            return made
        return [made[place] for place in torch.randperm(len(made), generator=generator, device="cpu").tolist()]

    def settings(self) -> dict[str, Any]:
        lengths = {"lengths": Fingerprint.of(self._lengths)[:16]}
        return lengths if self._max_tokens is None else {**lengths, "max_tokens": self._max_tokens}


def occurrences(order: Tensor) -> Tensor:
    """How often each sample of an order has come before: int64 (samples,).

    >>> occurrences(torch.tensor([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    values, places = order.sort(stable=True)
    first = torch.searchsorted(values, values)
    counts = torch.empty_like(order)
    counts[places] = torch.arange(len(order), device="cpu") - first
    return counts
