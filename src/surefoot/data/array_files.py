"""Arrays by name as data: NumPy's .npz files and .safetensors, one array the inputs and one the targets."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping

import numpy
import torch
from torch import Tensor

from .. import safe_tensors
from ..batches import TARGET_NAMES, form
from ..errors import UsageError, first_line
from .arrays import as_float32, as_tensor
from .orders import held_out
from .sources import TensorSource
from .splits import DataSplits, image_preprocessing
from .table_files import nearest, ordinary_file

# Whole numbers from 0 to below this are classes.
MOST_CLASSES = 10_000
_VALIDATING = ({"val", "valid", "validation"}, {"test"})
_SPLITS = {"train", "training"}.union(*_VALIDATING)
# By name; in the place of what is no array of numbers, why it is none.
Arrays = Mapping[str, Tensor | UsageError]


def npz(
    path: str,
    inputs: str | None = None,
    targets: str | None = None,
    val: str | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    numbers: bool = False,
) -> DataSplits:
    """Arrays of an .npz file, as ``numpy.savez(path, x=..., y=...)`` writes it: inputs (N, ...) and targets (N, ...).

    `inputs` and `targets` name them. Else the targets are the array called ``y``, ``target``, ``targets``, ``label`` or
    ``labels``, and the inputs the only other one; alone, it is data without targets. Arrays with ``val`` in their names
    validate, or where there are none those with ``test`` (``x_train`` and ``x_test``); else those of the same names in
    a second file `val`, or a `val_share` of the samples, drawn by `seed`.

    Targets of whole numbers are classes, int64 (N,), from (N, 1) too, or (N, H, W) for masks; others are float32, (N,)
    as (N, 1). With `numbers`, for a loss that compares numbers, whole numbers are such as well.
    Inputs of float64 become float32; uint8 (N, H, W) and (N, H, W, 3) are pictures, and become (N, C, H, W).

    Raises UsageError for a file that cannot be read and for names that do not say which array is which.
    """
    first, second = _read_npz(path), None if val is None else _read_npz(val)
    return _splits(path, first, second, inputs, targets, val_share, seed, numbers)


def safetensors(
    path: str,
    inputs: str | None = None,
    targets: str | None = None,
    val: str | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    numbers: bool = False,
) -> DataSplits:
    """Tensors of a .safetensors file. As `npz`."""
    first, second = (None if p is None else safe_tensors.load(ordinary_file(p)).tensors for p in (path, val))
    assert first is not None
    return _splits(path, first, second, inputs, targets, val_share, seed, numbers)


def _read_npz(path: str) -> Arrays:
    file = ordinary_file(path)
    try:
        with open(file, "rb") as stream:
            loaded = numpy.load(stream, allow_pickle=False)
            if isinstance(loaded, numpy.ndarray):
                raise UsageError("is one array; write several with numpy.savez(path, x=inputs, y=targets)")
            return {name: _tensor(loaded, name, f"path: {file}: {name!r}") for name in loaded.files}
    except UsageError as error:
        raise UsageError(f"path: {file}: {error}") from error
    except (ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise UsageError(f"path: {file}: cannot be read as an .npz file: {first_line(error)}") from error


def _tensor(loaded: Mapping[str, numpy.ndarray], name: str, where: str) -> Tensor | UsageError:
    """An array as a tensor, or why it is none: beside inputs and targets a file may hold anything."""
    try:
        return as_tensor(loaded[name])
    except UsageError as error:
        return UsageError(f"{where}: {str(error).removeprefix('data: ')}")
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        return UsageError(f"{where}: it holds Python objects, which are never read; save arrays of numbers")


def _splits(
    path: str,
    first: Arrays,
    second: Arrays | None,
    inputs: str | None,
    targets: str | None,
    share: float,
    seed: int,
    numbers: bool,
) -> DataSplits:
    names = _pair(path, first, inputs, targets)
    train = _source(path, first, names, numbers)
    candidates = [[n for n in first if _words(n) & words and n not in names] for words in _VALIDATING]
    beside = next((some for some in candidates if some), [])
    val: TensorSource | None
    if second is not None:
        val = _source("val", second, names, numbers, train)
    elif candidates[0] and len(beside) != len(names):
        raise UsageError(
            f"path: {path} has {', '.join(sorted(beside))} to validate on, where {' and '.join(names)} train; give as "
            "many, a second file (val: FILE), or other names"
        )
    elif len(beside) == len(names):
        val = _source(path, first, _like(path, names, beside), numbers, train)
    else:
        training, validating = held_out(len(train), share, seed)
        whole, val = train, train.subset(validating) if len(validating) else None
        train = whole.subset(training)
    pixels = train.tensors[0].dtype == torch.uint8
    return DataSplits(train, val, train.classes, image_preprocessing() if pixels else None)


def _words(name: str) -> set[str]:
    return set(re.split(r"[\W_]+", name.lower()))


def _is_target(name: str) -> bool:
    return bool(_words(name) & set(TARGET_NAMES))


def _like(path: str, names: list[str], beside: list[str]) -> list[str]:
    """Those `beside` in the order of `names`: by what names say but for the split, else by which are targets."""
    pairs = [(one, other) for one in names for other in beside if _words(one) - _SPLITS == _words(other) - _SPLITS]
    if [one for one, _ in pairs] == names:
        return [other for _, other in pairs]
    if len(set(map(_is_target, beside))) != len(beside):
        raise UsageError(
            f"path: {path}: which of {' and '.join(beside)} goes with which of {' and '.join(names)}? give them names "
            "that differ in the split only (x_train, x_val), or a second file (val: FILE)"
        )
    return sorted(beside, key=_is_target)


def _pair(path: str, arrays: Arrays, inputs: str | None, targets: str | None) -> list[str]:
    """The names of inputs and targets; of the inputs alone where there are no targets."""
    for key, name in (("inputs", inputs), ("targets", targets)):
        if name is not None and name not in arrays:
            raise UsageError(f"{key}: {path} has no array {name!r}{nearest(name, list(arrays), 'arrays')}")
    free = [name for name in arrays if name not in (inputs, targets) and not _words(name) & set().union(*_VALIDATING)]
    targets = targets or _only([name for name in free if _is_target(name)])
    inputs = inputs or _only([name for name in free if name != targets and not _is_target(name)])
    if inputs is None or (targets is None and len(arrays) > 1):
        there = ", ".join(f"{name} {_form(array)}" for name, array in list(arrays.items())[:12])
        raise UsageError(f"path: {path} holds {there or 'no arrays'}; say which is which: inputs: NAME, targets: NAME")
    return [inputs] if targets is None else [inputs, targets]


def _form(array: Tensor | UsageError) -> str:
    return form(array) if isinstance(array, Tensor) else "(no array of numbers)"


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _source(
    path: str, arrays: Arrays, names: list[str], numbers: bool, train: TensorSource | None = None
) -> TensorSource:
    if lacking := [name for name in names if name not in arrays]:
        raise UsageError(f"val: has no array {lacking[0]!r}{nearest(lacking[0], list(arrays), 'arrays')}")
    tensors: list[Tensor] = []
    for name in names:
        tensor = arrays[name]
        if isinstance(tensor, UsageError):
            raise tensor
        tensor = as_float32(tensor)  # where numbers beyond its range are not finite
        tensors.append(tensor)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            wrong = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1)
            count = f"{int(wrong.sum())} of {len(tensor)} samples, first in {int(wrong.int().argmax())}"
            whole = bool(torch.isfinite(arrays[name]).all())  # type: ignore[arg-type]  # it is a tensor
            advice = "scale them: they are beyond float32" if whole else "mend it"
            raise UsageError(f"{path}: {name!r} is not finite in {count}; {advice}")
    inputs = tensors[0]
    if inputs.dtype == torch.uint8 and inputs.dim() == 4 and inputs.shape[3] in (1, 3) and inputs.shape[1] > 3:
        inputs = inputs.permute(0, 3, 1, 2)
    elif inputs.dtype == torch.uint8 and inputs.dim() == 3:
        inputs = inputs[:, None]
    if len(tensors) == 1:
        return TensorSource(inputs)
    targets, classes = tensors[1], None
    if numbers or targets.is_floating_point():
        targets = targets.float()
        return TensorSource(inputs, targets[:, None] if targets.dim() == 1 else targets)
    targets = targets.long()
    column = targets.dim() == 2 and targets.shape[1] == 1
    if train is not None:
        classes = train.classes
    elif (
        (targets.dim() != 2 or column)
        and targets.numel()
        and 0 <= int(targets.min()) <= int(targets.max()) < MOST_CLASSES
    ):
        classes = tuple(map(str, range(int(targets.max()) + 1)))
    return TensorSource(inputs, targets[:, 0] if column and classes is not None else targets, classes=classes)
