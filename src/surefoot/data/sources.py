"""What a loader reads from: tensors in memory, or any map-style data set of torch's."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from .. import batches
from ..arguments import Arguments
from ..batches import TARGET_NAMES
from ..errors import UsageError
from ..fingerprint import Fingerprint, hash_bytes
from ..table_columns import TableColumns
from ..text import counted
from .arrays import as_float32, as_tensor
from .nested import attribute_of, held_in_memory, targets_of
from .workers import fetch

_ITEMS_IN_FINGERPRINT = 64


class Source(ABC):
    """Samples by index. `classes` names the values of integer targets, `columns` what a table's rows hold; if known."""

    classes: tuple[str, ...] | None = None
    columns: TableColumns | None = None

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, as hex digits, of what the samples are; equal for equal data, on any machine."""

    @abstractmethod
    def samples(self) -> Iterator[Any]:
        """Every sample in order."""

    @abstractmethod
    def targets(self) -> Tensor:
        """The targets of all samples, in order. Raises UsageError where there are none."""


class TensorSource(Source):
    """Samples in memory: each of `tensors` is (N, ...), and a batch is one slice of each.

    Usually inputs and targets; uint8 images stay uint8 until a loader uses them. With `names` a batch is one
    dictionary of columns. NumPy arrays are taken without a copy, frames and columns of pandas and lists of numbers with
    one. With `classes`, labels are checked against them. Raises UsageError for tensors of unequal lengths, an empty
    data set and labels outside the classes.

    >>> source = TensorSource(torch.zeros(3, 1, 28, 28), torch.tensor([0, 1, 1]), classes=("shirt", "bag"))
    >>> len(source), source.targets().tolist()
    (3, [0, 1, 1])
    """

    # What the tensors of a batch are turned into, where they are kept smaller than a model takes them.
    batch_dtype: torch.dtype | None = None
    names: tuple[str, ...] = ()

    def __init__(
        self,
        *tensors: Any,
        classes: Sequence[str] | None = None,
        columns: TableColumns | None = None,
        names: Sequence[str] = (),
    ):
        if not tensors:
            raise UsageError("data: no tensors given; give inputs (N, ...) and targets (N, ...)")
        self.tensors = tuple(as_tensor(tensor) for tensor in tensors)
        self.names = tuple(map(str, names))
        self.aside: dict[str, Tensor] = {}  # columns (N,) that are no part of a sample, as weights to draw by
        if self.names and len(self.names) != len(self.tensors):
            raise UsageError(f"data: {counted(len(self.tensors), 'column')} and {len(self.names)} names; give one each")
        lengths = [len(tensor) for tensor in self.tensors]
        if len(set(lengths)) > 1:
            labels = [f"{name!r} {n}" for name, n in zip(self.names, lengths, strict=True)] if names else lengths
            what = "the columns" if names else "tensors"
            raise UsageError(f"data: {what} hold {' and '.join(map(str, labels))} samples; give as many of each")
        if not lengths[0]:
            raise UsageError("data: the data set is empty; give at least one sample")
        self.classes, self.columns = class_names(classes), columns
        if self.classes is not None and (targets := self._targets()) is not None:
            check_labels(targets, len(self.classes))
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        """The tensors of one sample, or of those that a slice or an index tensor names."""
        return self.widened(tuple(tensor[index] for tensor in self.tensors))

    def widened(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors of some samples in the `batch_dtype`."""
        return tensors if self.batch_dtype is None else tuple(tensor.to(self.batch_dtype) for tensor in tensors)

    def narrowed(self) -> TensorSource:
        """The same source with float32 in the place of float64."""
        other = copy.copy(self)
        other.tensors, other._fingerprint = tuple(map(as_float32, self.tensors)), None
        return other

    def formed(self, columns: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """A batch of some samples' `columns`: one dictionary where they have names."""
        return (dict(zip(self.names, columns, strict=True)),) if self.names else columns

    def samples(self) -> Iterator[Any]:
        return (batches.whole(self.formed(self[index])) for index in range(len(self)))

    def column(self, name: str) -> Tensor:
        """The column of that name, also one that is no part of a sample."""
        return self.aside[name] if name in self.aside else self.tensors[self.names.index(name)]

    def without(self, name: str) -> TensorSource:
        """The same source with that column aside, no part of a sample."""
        kept = [other for other in self.names if other != name]
        source = TensorSource(*map(self.column, kept), classes=self.classes, names=kept)
        source.aside = {**self.aside, name: self.column(name)}
        return source

    def targets(self) -> Tensor:
        if (targets := self._targets()) is None:
            named = f": none of {', '.join(self.names)} is called {' or '.join(TARGET_NAMES)}" if self.names else ""
            raise UsageError(f"data: there are inputs only, without targets{named}")
        return targets

    def _targets(self) -> Tensor | None:
        if not self.names:
            return self.tensors[-1] if len(self.tensors) > 1 else None
        name = next((name for name in TARGET_NAMES if name in self.names), None)
        return None if name is None else self.column(name)

    def subset(self, indices: Tensor | slice) -> TensorSource:
        """A source of some of the samples; a slice shares memory with this one."""
        part = TensorSource(*self[indices], classes=self.classes, columns=self.columns, names=self.names)
        part.aside = {name: column[indices] for name, column in self.aside.items()}
        return part

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            digest = hashlib.sha256(repr(self.names).encode() if self.names else b"")
            for tensor in (*self.tensors, *self.aside.values()):
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
                hash_bytes(digest, tensor)
            if self.columns is not None:
                digest.update(json.dumps([self.columns.to_json(), self.classes]).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


class DatasetSource(Source):
    """Any map-style torch `dataset`: an object with ``__len__`` and ``__getitem__``.

    A sample is a tuple or list (inputs, targets, ...), or one value; torch's default_collate makes the batches,
    unless `collate` is given (it takes the list of samples). `classes` are the data set's own unless given, also
    those of a Subset. Raises UsageError for iterable data sets (see StreamSource) and for empty ones.
    """

    def __init__(
        self, dataset: Any, *, classes: Sequence[str] | None = None, collate: Callable[[list[Any]], Any] | None = None
    ):
        name = type(dataset).__qualname__
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__getitem__")
            or not hasattr(dataset, "__len__")
        ):
            raise UsageError(
                f"data: {name} has no __len__ and __getitem__, as a DatasetSource needs them; give "
                "surefoot.data.StreamSource(dataset, collate=...) for what is read by iterating"
            )
        if not len(dataset):
            raise UsageError(f"data: the data set {name} is empty; give at least one sample")
        if collate is not None:
            check = Arguments("data: ")
            check.function("collate", collate, "a function that makes a batch of a list of samples")
            check.done()
        self.dataset = dataset
        self.collate = collate
        names = class_names(classes) if classes is not None else attribute_of(dataset, "classes")
        self.classes = tuple(map(str, names)) if isinstance(names, Sequence) and len(names) else None
        self.notes: list[str] = []
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def targets(self) -> Tensor:
        """The data set's own `targets`, or those of every sample, read one by one."""
        if (listed := targets_of(self.dataset)) is not None:
            return listed
        targets = []
        for sample in self.samples():
            parts = sample if isinstance(sample, tuple | list) else batches.pair((sample,))
            if parts is None or len(parts) < 2:
                raise UsageError("data: a sample is no (inputs, targets) pair; there are no targets to read")
            targets.append(parts[-1].cpu() if isinstance(parts[-1], Tensor) else parts[-1])
        return as_tensor(targets)

    def samples(self) -> Iterator[Any]:
        for first in range(0, len(self), 1024):
            yield from fetch(self.dataset, range(first, min(first + 1024, len(self))), 0, 0)

    def fingerprint(self) -> str:
        """Of the class's name, the number of samples, 64 of them spread over the whole, and what lies in memory.

        Not of every sample: that would read a data set that may not fit in memory. But each array, tensor and list
        of plain values among its attributes is taken whole, and so are the data sets inside of it (a Subset's).
        `notes` then says what of it could not be seen.
        """
        if self._fingerprint is None:
            last = len(self) - 1
            steps = max(1, min(_ITEMS_IN_FINGERPRINT, len(self)) - 1)
            indices = sorted({last * k // steps for k in range(steps + 1)})
            before = dict(held_in_memory(self.dataset))
            samples = Fingerprint()
            for index in indices:  # one at a time: a sample may be large
                samples.add(fetch(self.dataset, [index], 0, 0)[0])
            once, again = (Fingerprint.of(fetch(self.dataset, indices[:1], 0, 0)) for _ in range(2))
            whole = Fingerprint()
            kind = type(self.dataset)
            whole.add(f"{kind.__module__}.{kind.__qualname__} {len(self)}")
            # What reading has changed is a cache and not the data.
            whole.add({place: digest for place, digest in held_in_memory(self.dataset) if before.get(place) == digest})
            if again == once:
                whole.add(samples.digest())
            else:
                self.notes.append(
                    f"data: {kind.__qualname__}: sample {indices[0]} reads differently each time under equal seeds: it "
                    "draws from a source that cannot be found, so a resume is not exact and changed samples are not "
                    "noticed; draw from torch, numpy, random, or from a generator that is an attribute"
                )
            if samples.unseen:
                self.notes.append(
                    f"data: {kind.__qualname__}: what a {' or a '.join(sorted(samples.unseen))} in a sample holds "
                    "cannot be seen, so a change of it is not noticed when the run is resumed"
                )
            self._fingerprint = whole.digest()
        return self._fingerprint


def class_names(classes: Any) -> tuple[str, ...] | None:
    """The names of classes as texts."""
    if classes is None:
        return None
    if isinstance(classes, int) or not hasattr(classes, "__iter__"):
        raise UsageError(
            f"data: classes: {classes!r} is not a list of names; give one for each class", code="data-labels"
        )
    return tuple(map(str, classes))


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise UsageError unless `labels` are whole numbers 0 .. classes - 1, or -100, which torch's losses leave out."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UsageError(
            f"data: targets are {labels.dtype}; class labels are whole numbers 0 to {classes - 1}", code="data-labels"
        )
    low, high = (int(v) for v in torch.aminmax(labels))
    if low >= 0 and high < classes:
        return
    wrong = (((labels < 0) & (labels != -100)) | (labels >= classes)).reshape(-1).nonzero()
    if len(wrong):
        sample = int(wrong[0]) // (labels.numel() // len(labels))
        raise UsageError(
            f"data: {len(wrong)} of {labels.numel()} labels lie outside the {classes} classes 0 to {classes - 1}: "
            f"the first is {int(labels.reshape(-1)[wrong[0]])} at sample {sample}; mend the labels or name "
            "all the classes",
            code="data-labels",
        )
