"""Data sets inside of data sets (Subset, ConcatDataset): their tensors, targets and attributes, what lies in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from ..fingerprint import Fingerprint
from .arrays import as_tensor


def tensors_of(data: Any) -> tuple[Tensor, ...] | None:
    """The tensors of a TensorDataset, and of a Subset or ConcatDataset of such; None for all else."""
    if type(data) is TensorDataset:
        return data.tensors
    if type(data) is Subset and (tensors := tensors_of(data.dataset)) is not None:
        indices = torch.as_tensor(data.indices, dtype=torch.int64, device="cpu")
        return tuple(tensor[indices] for tensor in tensors)
    if type(data) is ConcatDataset:
        parts = [tensors_of(part) for part in data.datasets]
        alike = len({tuple((t.dtype, t.shape[1:]) for t in part or ()) for part in parts}) == 1
        if alike and (columns := [part for part in parts if part is not None]):
            return tuple(map(torch.cat, zip(*columns, strict=True)))
    return None


def targets_of(dataset: Any) -> Tensor | None:
    """The `targets` that a data set keeps, or those of the data sets that it is a Subset or ConcatDataset of."""
    if isinstance(dataset, Subset):
        whole = targets_of(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.int64, device="cpu")]
    if isinstance(dataset, ConcatDataset):
        parts = [targets_of(part) for part in dataset.datasets]
        targets = [part for part in parts if part is not None]
        return torch.cat(targets) if len(targets) == len(parts) else None
    listed = getattr(dataset, "targets", None)
    changed = getattr(dataset, "target_transform", None) is not None  # they are kept as they were before it
    listable = not changed and isinstance(listed, Tensor | numpy.ndarray | list) and len(listed) == len(dataset)
    return as_tensor(listed) if listable else None


def attribute_of(dataset: Any, name: str) -> Any:
    """An attribute of a data set, or of those that it is a Subset or ConcatDataset of, where they agree."""
    if (value := getattr(dataset, name, None)) is not None:
        return value
    if isinstance(dataset, Subset):
        return attribute_of(dataset.dataset, name)
    if isinstance(dataset, ConcatDataset):
        values = [attribute_of(part, name) for part in dataset.datasets]
        return values[0] if all(isinstance(v, list | tuple) and list(v) == list(values[0]) for v in values) else None
    return None


def held_in_memory(dataset: Any, place: str = "data", around: tuple[Any, ...] = ()) -> Iterator[tuple[str, str]]:
    """Fingerprints of the arrays, tensors and lists of plain values that a data set has as attributes."""
    if any(dataset is each for each in around):  # a part that knows its whole
        return
    around = (*around, dataset)
    for name, value in (getattr(dataset, "__dict__", None) or {}).items():
        where = f"{place}.{name}"
        if isinstance(value, Tensor | numpy.ndarray) or (isinstance(value, list | tuple) and _plain(value)):
            yield where, Fingerprint.of(_names_only(value))
        elif isinstance(value, Dataset):
            yield from held_in_memory(value, where, around)
        elif isinstance(value, list | tuple) and all(isinstance(item, Dataset) for item in value):
            for number, item in enumerate(value):
                yield from held_in_memory(item, f"{where}.{number}", around)


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return isinstance(value, str | bytes | int | float | Tensor | numpy.ndarray | numpy.generic)


def _names_only(value: Any) -> Any:
    """Files by their names: the same data in another directory are the same data."""
    if isinstance(value, list | tuple):
        return [_names_only(item) for item in value]
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value
