"""Arrays of others as tensors: NumPy's of every dtype and byte order, data frames, lists of numbers; or one message."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from ..batches import form
from ..errors import UsageError

# torch has hardly an operation for NumPy's larger unsigned types; each fits in a signed one of twice the size.
_WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64", "longdouble": "float64", "clongdouble": "complex128"}


def is_array(value: Any) -> bool:
    """Whether `value` is a tensor, a NumPy array, or something that gives one (a column or a frame of pandas)."""
    return isinstance(value, Tensor | numpy.ndarray) or (
        not isinstance(value, type) and callable(getattr(value, "to_numpy", None))
    )


def as_tensor(value: Any) -> Tensor:
    """A contiguous tensor of `value`: (N, ...), without a copy where NumPy and torch allow it.

    Takes tensors, NumPy arrays, columns and frames of pandas or polars, and lists of numbers (floats become float32,
    as in ``torch.tensor``). Raises UsageError, with what to give instead, for everything that is no numbers: texts,
    objects, dates, records, masked values, sparse and nested tensors.
    """
    if isinstance(value, Tensor):
        if value.is_nested or value.layout != torch.strided:
            raise UsageError("data: a sparse or nested tensor cannot be read by index; give tensor.to_dense()")
        tensor = value.detach()
        if str(tensor.dtype).removeprefix("torch.") in _WIDER:
            tensor = _from_numpy(tensor.cpu().numpy())
    elif isinstance(value, list | tuple):
        tensor = _from_list(value)
    elif isinstance(value, numpy.ndarray):
        tensor = _from_numpy(value)
    elif is_array(value):
        tensor = _from_numpy(numpy.asarray(value.to_numpy()), value)
    else:
        sparse = "; give data.toarray()" if hasattr(value, "toarray") else ""
        raise UsageError(f"data: found {type(value).__name__} where a tensor or a NumPy array was expected{sparse}")
    if not tensor.dim():
        raise UsageError("data: a tensor of one number has no samples; its first dimension counts them")
    return tensor.contiguous()


def as_float32(value: Any) -> Any:
    """A tensor of float64 as one of float32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _from_list(values: Any) -> Tensor:
    if values and all(isinstance(v, Tensor | numpy.ndarray) for v in values):
        tensors = [v if isinstance(v, Tensor) else _from_numpy(v) for v in values]
        if len({(t.shape, t.dtype) for t in tensors}) == 1:
            return torch.stack(tensors).detach()
        raise UsageError(f"data: {_UNEQUAL}: {_shapes(tensors)}; {COLLATE}")
    try:
        array = numpy.asarray(values)
    except (ValueError, OverflowError):
        array = numpy.empty(0, dtype=object)
    if array.dtype == object:
        raise UsageError(
            f"data: a list of {len(values)} items is no array of numbers: {_UNEQUAL}, or of others; {COLLATE}"
        )
    tensor = _from_numpy(array)
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def _from_numpy(array: numpy.ndarray, frame: Any = None) -> Tensor:
    if isinstance(array, numpy.ma.MaskedArray):
        if numpy.ma.is_masked(array):
            raise UsageError(
                "data: a masked array has values that are masked; fill them (array.filled(0)) or leave them out"
            )
        array = array.data
    kind, name = array.dtype.kind, array.dtype.name
    if kind == "O":
        array = _numbers(array, frame)
    elif kind not in "biufc":
        raise UsageError(f"data: an array of {name} is no array of numbers; {_instead(kind)}")
    if array.dtype.name == "uint64" and array.size and int(array.max()) > torch.iinfo(torch.int64).max:
        raise UsageError(
            "data: an array of uint64 has numbers above 2**63 - 1; give array.astype('float32') or smaller ones"
        )
    scalar = array.dtype.type
    wider = next((w for n, w in _WIDER.items() if scalar is getattr(numpy, n)), None)
    array = array.astype(wider or array.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _numbers(array: numpy.ndarray, frame: Any) -> numpy.ndarray:
    """An array of Python numbers as one of numbers."""
    try:
        numbers = numpy.asarray(array.tolist())
    except (ValueError, OverflowError):
        numbers = array
    if numbers.dtype.kind in "biufc" and numbers.shape == array.shape:
        return numbers
    columns = list(getattr(frame, "columns", ()))
    dtypes = list(getattr(frame, "dtypes", ())) if columns else []
    others = [str(c) for c, d in zip(columns, dtypes, strict=False) if not _numeric(d)]
    if others:
        raise UsageError(
            f"data: the columns {', '.join(others[:5])} hold no numbers; leave them out, or have them encoded: {TABLE}"
        )
    first = next((v for v in array.reshape(-1) if not isinstance(v, int | float)), None)
    advice = COLLATE if isinstance(first, numpy.ndarray | list | tuple | Tensor) else _instead("U")
    raise UsageError(f"data: an array of objects ({type(first).__name__}) is no array of numbers; {advice}")


def _numeric(dtype: Any) -> bool:
    """Whether a column's dtype, of pandas or polars, is one of numbers."""
    is_numeric = getattr(dtype, "is_numeric", None)
    return bool(is_numeric()) if callable(is_numeric) else getattr(dtype, "kind", "O") in "biufc"


# What makes inputs and targets of a frame's columns.
TABLE = 'splits = surefoot.data.table(frame, target="NAME"), then data=splits'


def _instead(kind: str) -> str:
    return {
        **dict.fromkeys("UST", "encode it: classes, labels = numpy.unique(array, return_inverse=True)"),
        "M": "give numbers, e.g. (array - array.min()) / numpy.timedelta64(1, 'D')",
        "m": "give numbers, e.g. array / numpy.timedelta64(1, 'D')",
    }.get(kind, "give its columns as numbers, e.g. array['name'] or array.astype('float32')")


def _shapes(values: Any) -> str:
    return " and ".join(list(dict.fromkeys(map(form, values)))[:3])


_UNEQUAL = "samples are of unequal shapes"
COLLATE = (
    "give a Dataset and say how a batch is made of its samples: "
    "surefoot.data.DatasetSource(dataset, collate=function), which takes the list of samples"
)
