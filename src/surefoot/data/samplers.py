"""Samplers of torch's, and of a user's own, as orders; and the weights that samples are drawn by."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from .. import batches
from ..copying import with_data_shared
from ..errors import UsageError
from ..fingerprint import Fingerprint
from ..registry import describe, did_you_mean
from ..rng import fold
from ..text import counted
from .orders import Order, Shuffled, Weighted
from .sources import Source, TensorSource, check_labels
from .workers import seeded


def order_of(sampler: Any, count: int, seed: int) -> Order:
    """The order that a sampler, or a batch sampler, stands for over `count` samples.

    torch's own are taken by their meaning, with random numbers of (seed, epoch); any other is asked in each epoch.
    Raises UsageError for what is no sampler.
    """
    kind = type(sampler)
    if kind in (SequentialSampler, RandomSampler):
        # Those that the sampler was made for, where they are not all.
        size = len(sampler.data_source)
        some = None if size == count else _indices(list(range(size)), count, kind.__name__)
        if kind is SequentialSampler:
            return Shuffled(count, seed, shuffle=False, indices=some)
        if not sampler.replacement:
            return Shuffled(count, seed, shuffle=True, samples=sampler.num_samples, indices=some)
        drawn = torch.arange(count, device="cpu") < size
        return Weighted(drawn.to(torch.float64), sampler.num_samples, seed)
    if kind is SubsetRandomSampler:
        return Shuffled(
            count, seed, shuffle=True, indices=_indices(list(sampler.indices), count, "SubsetRandomSampler")
        )
    if kind is WeightedRandomSampler:
        weights = _checked(sampler.weights, count)
        if not sampler.replacement and (positive := int((weights > 0).sum())) < sampler.num_samples:
            raise UsageError(
                f"data: sampler: of {counted(sampler.num_samples, 'sample')} without replacement only {positive} have "
                "a weight above 0; give fewer, or replacement=True"
            )
        return Weighted(weights, sampler.num_samples, seed, sampler.replacement)
    return OwnSampler(sampler, count, seed)


def refuse_parts(sampler: Any, ranks: int) -> None:
    """Raise UsageError where batches that `ranks` share out are of a part of the samples already, another for each."""
    for each in (sampler, getattr(sampler, "sampler", None)):
        if ranks > 1 and getattr(each, "num_replicas", 1) not in (None, 1):
            raise UsageError(
                f"data: sampler: {type(each).__name__} leaves each process a part of the samples, and of the batches "
                "made of them each would take its part once more; leave it out: batch_size counts the samples of all "
                "processes, and each is given its rows of every batch"
            )


class OwnSampler(Order):
    """A user's own sampler or batch sampler, asked anew in each epoch.

    It is told the epoch where it has `set_epoch`, and what it draws depends on (seed, epoch): the process's generators
    and its own are seeded. One that answers otherwise when it is asked again `remembers`. Where it has `state_dict` and
    `load_state_dict`, a checkpoint holds its state at the epoch's start; else it is asked for all epochs from the first
    one on, in turn, after a resume. A digest of the epoch's order is compared on resume.
    """

    def __init__(self, sampler: Any, count: int, seed: int):
        self._name = type(sampler).__name__
        if isinstance(sampler, type) or not hasattr(sampler, "__iter__") or not hasattr(sampler, "__len__"):
            raise UsageError(
                f"data: sampler: {self._name} has no __iter__ and __len__; give an object that has both, e.g. "
                "torch.utils.data.WeightedRandomSampler(weights, num_samples)"
            )
        self._count, self._seed = count, seed
        self._stateful = hasattr(sampler, "state_dict") and hasattr(sampler, "load_state_dict")
        self._given = with_data_shared(sampler)
        self._sampler, self._next = sampler, 0
        self._states: dict[int, Any] = {}
        self._digests: dict[int, str] = {}
        trial = with_data_shared(sampler)
        first = self._ask(trial, 0)
        self.remembers = _digest(self._ask(trial, 0)) != _digest(first)
        batched = isinstance(first[0], Tensor)
        self.batches = len(first) if batched else None
        self.samples = sum(map(len, first)) if batched else len(first)
        self.repeats = True  # for all that can be known

    @property
    def note(self) -> str | None:
        """What a user should know before the run."""
        if not self.remembers or self._stateful:
            return None
        return (
            f"data: {self._name} gives another order each time it is asked, and has no state_dict: when the run is "
            "resumed it is asked for all earlier epochs again; state_dict and load_state_dict spare that, and so does "
            "set_epoch(epoch) for one whose order depends on the epoch alone"
        )

    def of(self, epoch: int) -> Tensor | Sequence[Tensor]:
        if self._stateful:
            if epoch in self._states:
                self._sampler.load_state_dict(copy.deepcopy(self._states[epoch]))
            else:
                self._states[epoch] = copy.deepcopy(self._sampler.state_dict())
        elif self.remembers:
            if epoch < self._next:
                self._sampler, self._next = with_data_shared(self._given), 0
            for earlier in range(self._next, epoch):
                self._ask(self._sampler, earlier)
            self._next = epoch + 1
        items = self._ask(self._sampler, epoch)
        size = sum(map(len, items)) if self.batches else len(items)
        if size != self.samples or (self.batches or len(items)) != len(items):
            first = self._size(self.batches, self.samples)
            raise UsageError(
                f"data: sampler: {self._name} gives {self._size(len(items) if self.batches else None, size)} in epoch "
                f"{epoch + 1} and {first} in the first; give as many in each, since a run's length is planned by it"
            )
        self._digests[epoch] = _digest(items)
        for kept in (self._states, self._digests):
            for old in sorted(kept)[:-3]:
                del kept[old]
        return items if self.batches else torch.tensor(items, device="cpu")

    def _size(self, batches: int | None, samples: int) -> str:
        return (f"{counted(batches, 'batch')} of " if batches else "") + counted(samples, "sample")

    def _ask(self, sampler: Any, epoch: int) -> list[Any]:
        with seeded(sampler) as seed_all:
            seed_all(fold(self._seed, epoch))
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            items = list(itertools.islice(iter(sampler), len(sampler)))
        if items and (isinstance(items[0], list | tuple) or getattr(items[0], "ndim", 0) == 1):
            return [_indices(list(item), self._count, self._name) for item in items]
        return _indices(items, self._count, self._name).tolist()

    def settings(self) -> dict[str, Any]:
        return {"sampler": self._name}

    def state(self, epoch: int) -> dict[str, Any]:
        state = {"digest": self._digests[epoch]} if epoch in self._digests else {}
        if self._stateful:
            state["sampler"] = copy.deepcopy(
                self._states[epoch] if epoch in self._states else self._sampler.state_dict()
            )
        return state

    def restore(self, epoch: int, state: Mapping[str, Any]) -> None:
        if self._stateful:
            if "sampler" not in state:
                raise UsageError(
                    f"loader state: the state of {self._name} is missing; its order cannot be gone on with",
                    code="resume-data",
                )
            self._states = {epoch: state["sampler"]}
        if "digest" in state:
            self.of(epoch)
            if self._digests[epoch] != state["digest"]:
                raise UsageError(
                    f"loader state: {self._name} gives another order of epoch {epoch + 1} than in the saved run; "
                    "what it depends on must be the same, or be in its state_dict",
                    code="resume-data",
                )


def weights_of(source: Source, weights: Any) -> Tensor:
    """A weight for each sample, float64 (N,), from what a user gives.

    That is ``"balanced"`` (each class as often as any other), the name of a column, one weight for each sample, or
    one for each class. Raises UsageError where weights cannot be: of another length, negative, not finite, all zero.
    """
    count = len(source)
    if isinstance(weights, str) and weights != "balanced":
        names = (*source.names, *source.aside) if isinstance(source, TensorSource) else ()
        if not isinstance(source, TensorSource) or weights not in names:
            columns = f"; its columns are {', '.join(names)}" if names else "; these data have no columns by name"
            raise UsageError(
                f"data: weights: {weights!r} is neither balanced nor a column{did_you_mean(weights, names)}{columns}"
            )
        return _checked(source.column(weights), count)
    if isinstance(weights, str):
        targets = _classes(source)
        counts = targets.bincount()
        return (1.0 / counts.double())[targets]
    numbers = _numbers(weights)
    if len(numbers) == count:
        return _checked(numbers, count)
    classes = len(source.classes) if source.classes else None
    try:
        targets = _classes(source)
    except UsageError:
        raise UsageError(f"data: weights: {len(numbers)} were given for {counted(count, 'sample')}") from None
    classes = classes or int(targets.max()) + 1
    if len(numbers) != classes:
        raise UsageError(
            f"data: weights: {len(numbers)} were given; give one for each of {counted(count, 'sample')}, or for each "
            f"of {counted(classes, 'class')}"
        )
    check_labels(targets, classes)
    return _checked(_checked(numbers, classes)[targets], count)


def lengths_of(source: Source, lengths: Any) -> Tensor:
    """The length of each sample, int64 (N,), from what a user gives.

    That is one number each, the name of a part of the samples, a function of a sample, or ``"auto"``: the first part.
    What must be read from samples is read once. Raises UsageError where lengths cannot be.
    """
    count = len(source)
    if (
        isinstance(source, TensorSource)
        and isinstance(lengths, str)
        and lengths in source.names
        and source.column(lengths).dim() == 1
    ):
        lengths = source.column(lengths)
    elif callable(lengths) or isinstance(lengths, str):
        lengths = [_length(sample, lengths, number) for number, sample in enumerate(source.samples())]
    numbers = _numbers(lengths, "lengths")
    if numbers.shape != (count,):
        raise UsageError(
            f"data: lengths: {tuple(numbers.shape)} were given for {counted(count, 'sample')}; give one each"
        )
    if len(wrong := (~numbers.isfinite() | (numbers < 0) | (numbers != numbers.floor())).nonzero()):
        raise UsageError(f"data: lengths: number {int(wrong[0])} is {float(numbers[wrong[0]]):g}; give whole numbers")
    return numbers.long()


def _length(sample: Any, which: Any, number: int) -> int:
    if callable(which):
        return int(which(sample))
    single = isinstance(sample, list) and sample and isinstance(sample[0], int | float)
    parts = {"": sample} if single else {str(name): part for name, part in batches.inside(sample) or [("", sample)]}
    if which != "auto" and which not in parts:
        names = ", ".join(parts) or type(sample).__name__
        raise UsageError(f"data: lengths: a sample has no part {which!r}; it has {names}{did_you_mean(which, parts)}")
    part = next(iter(parts.values())) if which == "auto" else parts[which]
    if isinstance(part, int):
        return part
    if getattr(part, "ndim", None) == 0:
        return int(part)
    if not hasattr(part, "__len__"):
        raise UsageError(f"data: lengths: sample {number} has no length: {batches.form(part)}; give a number each")
    return len(part)


def _classes(source: Source) -> Tensor:
    targets = source.targets()
    if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex() or int(targets.min()) < 0:
        raise UsageError(
            f"data: weights: the targets are {targets.dtype} {tuple(targets.shape)} and no class labels; give one "
            "weight for each sample"
        )
    return targets.long()


def _numbers(values: Any, name: str = "weights") -> Tensor:
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(numpy.asarray(values), device="cpu")
        if not tensor.dim():
            raise TypeError("one number")
        return tensor.detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"data: {name}: {describe(values)} is no list of numbers; give one for each sample") from error


def _checked(weights: Any, count: int) -> Tensor:
    numbers = _numbers(weights)
    if numbers.dim() != 1 or len(numbers) != count:
        raise UsageError(f"data: weights: {tuple(numbers.shape)} were given where {count} were expected")
    if wrong := (~numbers.isfinite() | (numbers < 0)).nonzero().flatten().tolist():
        raise UsageError(
            f"data: weights: number {wrong[0]} is {float(numbers[wrong[0]]):g}; give finite weights of 0 or more"
        )
    if not numbers.any():
        raise UsageError("data: weights: all are 0, so that there is nothing to draw; give some above 0")
    return numbers


def _indices(items: list[Any], count: int, name: str) -> Tensor:
    if not items:
        raise UsageError(f"data: sampler: {name} gives no samples")
    try:
        indices = torch.tensor([int(item) for item in items], dtype=torch.int64, device="cpu")
    except (TypeError, ValueError):
        raise UsageError(
            f"data: sampler: {name} gives {type(items[0]).__name__} and not the index of a sample"
        ) from None
    wrong = indices[(indices < 0) | (indices >= count)]
    if len(wrong):
        raise UsageError(f"data: sampler: {name} gives index {int(wrong[0])}; the data have {counted(count, 'sample')}")
    return indices


def _digest(items: list[Any]) -> str:
    return Fingerprint.of(items)[:16]
