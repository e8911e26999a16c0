"""What a loader reads from: tensors in memory, or any map-style data set of torch's."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from ..errors import UsageError
from .fetching import fetch

# Hashed in pieces: a piece is copied to one contiguous block, however the tensor lies in memory.
_HASHED_AT_ONCE = 16 << 20
_ITEMS_IN_FINGERPRINT = 16


class Source(ABC):
    """Samples by index. `classes` names the values of integer targets, where there are such."""

    classes: tuple[str, ...] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, as hex digits, of what the samples are; equal for equal data, on any machine."""

    @abstractmethod
    def targets(self) -> Tensor:
        """The targets of all samples, in order. Raises UsageError where there are none."""

    def class_counts(self, classes: int | None = None) -> Tensor:
        """How many samples each class has: int64 (classes,), for balanced weights.

        `classes` is taken from the names or from the largest label where it is not given. Raises UsageError for
        targets that are not class labels 0 .. classes - 1.
        """
        labels = self.targets()
        if classes is None:
            classes = len(self.classes) if self.classes else int(labels.max()) + 1
        check_labels(labels, classes)
        return torch.bincount(labels.reshape(-1).to(torch.int64), minlength=classes)


class TensorSource(Source):
    """Samples in memory: each of `tensors` is (N, ...), and a batch is one slice of each.

    Usually inputs and targets; uint8 images stay uint8 until a loader uses them. NumPy arrays are taken without
    a copy. With `classes`, labels are checked against them. Raises UsageError for tensors of unequal lengths, an
    empty data set and labels outside the classes.

    >>> source = TensorSource(torch.zeros(3, 1, 28, 28), torch.tensor([0, 1, 1]), classes=("shirt", "bag"))
    >>> len(source), source.class_counts().tolist()
    (3, [1, 2])
    """

    def __init__(self, *tensors: Tensor | numpy.ndarray, classes: Sequence[str] | None = None):
        if not tensors:
            raise UsageError("data: no tensors given; give inputs (N, ...) and targets (N, ...)")
        self.tensors = tuple(_as_tensor(tensor) for tensor in tensors)
        lengths = [len(tensor) for tensor in self.tensors]
        if len(set(lengths)) > 1:
            raise UsageError(f"data: tensors hold {' and '.join(map(str, lengths))} samples; give as many of each")
        if not lengths[0]:
            raise UsageError("data: the data set is empty; give at least one sample")
        self.classes = tuple(classes) if classes is not None else None
        if self.classes is not None and len(self.tensors) > 1:
            check_labels(self.tensors[-1], len(self.classes))
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        """The tensors of one sample, or of those that a slice or an index tensor names."""
        return tuple(tensor[index] for tensor in self.tensors)

    def targets(self) -> Tensor:
        if len(self.tensors) < 2:
            raise UsageError("data: there are inputs only, without targets")
        return self.tensors[-1]

    def subset(self, indices: Tensor | slice) -> TensorSource:
        """A source of some of the samples; a slice shares memory with this one."""
        return TensorSource(*self[indices], classes=self.classes)

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for tensor in self.tensors:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
                _hash_tensor(digest, tensor)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


class DatasetSource(Source):
    """Any map-style torch Dataset: an object with ``__len__`` and ``__getitem__``.

    A sample is a tuple or list (inputs, targets, ...), or one value; torch's default_collate makes the batches,
    unless `collate` is given (it takes the list of samples). Raises UsageError for iterable data sets, which have
    no order that could be resumed, and for empty ones.
    """

    def __init__(self, dataset: Dataset, *, classes: Sequence[str] | None = None, collate=None):
        name = type(dataset).__qualname__
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise UsageError(
                f"data: {name} has no __len__ and __getitem__; a map-style Dataset is needed, because only samples "
                "with an index can be put in the same order again on resume"
            )
        if not len(dataset):
            raise UsageError(f"data: the data set {name} is empty; give at least one sample")
        self.dataset = dataset
        self.collate = collate
        found = classes if classes is not None else getattr(dataset, "classes", None)
        self.classes = tuple(map(str, found)) if isinstance(found, Sequence) and len(found) else None
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def targets(self) -> Tensor:
        """The data set's own `targets`, or those of every sample, read one by one."""
        own = getattr(self.dataset, "targets", None)
        if isinstance(own, Tensor | numpy.ndarray | list) and len(own) == len(self):
            return torch.as_tensor(own)
        targets = []
        for first in range(0, len(self), 1024):
            for sample in fetch(self.dataset, range(first, min(first + 1024, len(self))), 0, 0):
                if not isinstance(sample, tuple | list) or len(sample) < 2:
                    raise UsageError("data: a sample is no (inputs, targets) pair; there are no targets to read")
                targets.append(torch.as_tensor(sample[-1]))
        return torch.stack(targets)

    def fingerprint(self) -> str:
        """Of the class's name, the number of samples and 16 of them spread over the whole.

        Not of every sample: that would read a data set that may not fit in memory.
        """
        if self._fingerprint is None:
            kind = type(self.dataset)
            digest = hashlib.sha256(f"{kind.__module__}.{kind.__qualname__} {len(self)}\n".encode())
            last = len(self) - 1
            steps = max(1, min(_ITEMS_IN_FINGERPRINT, len(self)) - 1)
            indices = sorted({last * k // steps for k in range(steps + 1)})
            for sample in fetch(self.dataset, indices, 0, 0):
                _hash_value(digest, sample)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def as_source(data: Any, *, classes: Sequence[str] | None = None) -> Source:
    """A Source of whatever holds samples: a Source, a tuple of tensors or arrays, or a map-style torch Dataset.

    A TensorDataset, or a Subset of one, becomes a TensorSource, which is far faster than reading it sample by
    sample. Raises UsageError for anything else.

    >>> len(as_source((torch.zeros(5, 2), torch.zeros(5))))
    5
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, tuple | list) and data and all(isinstance(d, Tensor | numpy.ndarray) for d in data):
        return TensorSource(*data, classes=classes)
    if type(data) is TensorDataset:
        return TensorSource(*data.tensors, classes=classes)
    if type(data) is Subset and type(data.dataset) is TensorDataset:
        indices = torch.as_tensor(data.indices, dtype=torch.int64)
        return TensorSource(*(tensor[indices] for tensor in data.dataset.tensors), classes=classes)
    if isinstance(data, DataLoader):
        raise UsageError(
            "data: a DataLoader was given; give its data set (loader.dataset): the order of samples must be "
            "Surefoot's own to be resumed exactly"
        )
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        if isinstance(data, Tensor | numpy.ndarray | str | dict):
            raise UsageError(f"data: found one {type(data).__name__}; give (inputs, targets)")
        return DatasetSource(data, classes=classes)
    raise UsageError(
        f"data: {type(data).__name__} is not a data set; give (inputs, targets) tensors or a map-style torch Dataset"
    )


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise UsageError unless `labels` are whole numbers 0 .. classes - 1."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UsageError(f"data: targets are {labels.dtype}; class labels are whole numbers 0 to {classes - 1}")
    low, high = (int(v) for v in torch.aminmax(labels))
    if low < 0 or high >= classes:
        wrong = ((labels < 0) | (labels >= classes)).reshape(-1).nonzero()
        raise UsageError(
            f"data: {len(wrong)} of {labels.numel()} labels lie outside the {classes} classes 0 to {classes - 1}: "
            f"the first is {int(labels.reshape(-1)[wrong[0]])} at sample {int(wrong[0])}; mend the labels or name "
            "all the classes"
        )


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, numpy.ndarray):
        if not value.flags.writeable:
            value = value.copy()
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise UsageError(f"data: found {type(value).__name__} where a tensor or a NumPy array was expected")
    if not value.dim():
        raise UsageError("data: a tensor of one number has no samples; its first dimension counts them")
    return value.detach().contiguous()


def _hash_tensor(digest, tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        octets = flat.view(torch.uint8).numpy()
        for first in range(0, len(octets), _HASHED_AT_ONCE):
            digest.update(octets[first : first + _HASHED_AT_ONCE])


def _hash_value(digest, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
        _hash_tensor(digest, value)
    elif isinstance(value, numpy.ndarray) and value.dtype != object:
        digest.update(f"array {value.dtype} {value.shape}\n".encode())
        digest.update(numpy.ascontiguousarray(value).tobytes())
    elif isinstance(value, tuple | list):
        digest.update(f"sequence {len(value)}\n".encode())
        for item in value:
            _hash_value(digest, item)
    elif isinstance(value, dict):
        digest.update(f"mapping {len(value)}\n".encode())
        for key, item in value.items():
            digest.update(f"{key!r}\n".encode())
            _hash_value(digest, item)
    elif isinstance(value, int | float | str | bytes | bool | numpy.generic) or value is None:
        digest.update(f"{type(value).__name__} {value!r}\n".encode())
    else:
        digest.update(f"{type(value).__qualname__}\n".encode())
