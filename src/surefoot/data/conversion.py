"""Whatever holds samples as a Source; what does not is refused with what to give instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..errors import UsageError
from .arrays import TABLE, is_array
from .nested import tensors_of
from .sources import DatasetSource, Source, TensorSource
from .streams import READ_ONCE, StreamSource, is_stream


def as_source(data: Any, *, classes: Sequence[str] | None = None) -> TensorSource | DatasetSource | StreamSource:
    """A Source of whatever holds samples; `classes` are the names of the classes, where the data do not tell them.

    `data` is a Source, a tuple or mapping of columns, a list of samples, a map-style Dataset, or a stream. The samples
    of a mapping of columns, and of a `datasets.Dataset`, are dictionaries of tensors. A column is a tensor, a NumPy
    array, a frame or column of pandas, or a list of numbers. A TensorDataset, a Subset of one and several in a
    ConcatDataset become a TensorSource, which is far faster than reading it sample by sample. Raises UsageError for
    anything else, with what to give instead.

    >>> len(as_source(([[0.0, 1.0], [2.0, 3.0]], [0, 1])))
    2
    """
    if isinstance(data, TensorSource | DatasetSource | StreamSource):
        return data
    if isinstance(data, list) and len(data) > 3 and all(map(is_array, data)):
        raise UsageError(
            f"data: a list of {len(data)} arrays may be samples or columns; give (torch.stack(samples),), or "
            "tuple(columns)"
        )
    if isinstance(data, tuple | list) and data:
        if all(map(is_array, data)) or (len(data) == 2 and all(_is_column(d, data) for d in data)):
            return TensorSource(*data, classes=classes)
        _refuse_nests(data)
        samples = isinstance(data, list) or all(isinstance(d, tuple | dict) for d in data)
        if len(data) <= 3 and (any(map(is_array, data)) or not samples):
            return TensorSource(*data, classes=classes)  # which names what is no column
    if isinstance(data, Mapping) and data and all(is_array(v) or isinstance(v, list) for v in data.values()):
        return TensorSource(*data.values(), classes=classes, names=tuple(data))
    if type(data).__module__.startswith("datasets.") and getattr(data, "format", {}).get("type", "torch") is None:
        # Of lists torch's collate makes lists of columns; as tensors the samples are what a model takes.
        data = data.with_format("torch")
    if hasattr(data, "batch_at") and isinstance(getattr(data, "source", None), Source):
        raise UsageError(
            "data: a Loader was given; give its source (loader.source); fit and evaluate take a Loader as it is"
        )
    if is_stream(data):
        plain = type(data).__module__.startswith("datasets.") and getattr(data, "_formatting", 0) is None
        return StreamSource(data.with_format("torch") if plain else data, classes=classes)
    if inspect.isgenerator(data):
        raise UsageError(f"data: a generator {READ_ONCE}")
    if (tensors := tensors_of(data)) is not None:
        return TensorSource(*tensors, classes=classes)
    if isinstance(data, DataLoader):
        raise UsageError(
            "data: a DataLoader was given; give its data set (loader.dataset), and what it does with it to the Loader "
            "or the recipe: batch_size, workers, weights; fit and evaluate take a DataLoader as it is"
        )
    if hasattr(data, "train") and hasattr(data, "val") and not isinstance(data, Dataset):
        raise UsageError(f"data: a {type(data).__name__} was given; give data=splits.train and val=splits.val")
    if inspect.isclass(data):
        raise UsageError(f"data: the class {data.__name__} was given; give an object of it")
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        if hasattr(data, "columns"):
            raise UsageError(f"data: a {type(data).__name__} was given; give (inputs, targets), or {TABLE}")
        if is_array(data) or isinstance(data, str | dict):
            keys = f" with {', '.join(map(repr, list(data)[:6]))}" if isinstance(data, dict) else ""
            alone = ", or (inputs,) where an objective needs no targets" if is_array(data) else ""
            raise UsageError(f"data: found one {type(data).__name__}{keys}; give (inputs, targets){alone}")
        return DatasetSource(data, classes=classes)
    raise UsageError(
        f"data: {type(data).__name__} is not a data set; give (inputs, targets) tensors or a torch Dataset"
    )


def _is_column(value: Any, data: Any) -> bool:
    """Whether one of two items is a column: an array, or a list as long as the other item is."""
    if is_array(value):
        return True
    lengths = {len(d) if hasattr(d, "__len__") else -1 for d in data}
    return isinstance(value, list) and len(lengths) == 1 and len(value) > 0 and not isinstance(value[0], tuple | dict)


def _refuse_nests(data: Any) -> None:
    """Raise UsageError for what looks like samples and is not: two data sets, two pairs, inputs in a tuple."""
    if len(data) <= 3 and all(isinstance(d, Dataset | Source) for d in data):
        raise UsageError(
            f"data: {len(data)} data sets were given; give the first as data and the second as val "
            "(in a function for a recipe, return them as a tuple: train, val)"
        )

    def holds_arrays(item: Any) -> bool:
        values = list(item.values()) if isinstance(item, dict) else item
        return isinstance(values, tuple | list) and bool(values) and all(is_array(v) and v.ndim > 0 for v in values)

    if isinstance(data, tuple) and len(data) == 2 and all(map(holds_arrays, data)):
        raise UsageError("data: two pairs were given; give data=(inputs, targets) and val=(inputs, targets)")
    if isinstance(data, tuple) and len(data) <= 3 and holds_arrays(data[0]):
        raise UsageError(
            f"data: the inputs are a {type(data[0]).__name__} of {len(data[0])} arrays; give a Dataset whose samples "
            "are (inputs, target), each with its inputs so: the model is then called with a batch of them as one "
            "argument"
        )
