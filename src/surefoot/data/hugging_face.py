"""Data sets of Hugging Face's library `datasets`, from disk or by name: columns as inputs and targets."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UsageError
from ..pictures import decode_picture
from ..registry import did_you_mean, package
from ..safe_tensors import BadFile
from ..text import counted, shortened
from .arrays import as_float32
from .augment import picture_shape
from .image_folder import bytes_of, kept_in_memory
from .orders import held_out
from .sources import DatasetSource, TensorSource
from .splits import DataSplits, image_preprocessing
from .table_files import nearest

# Splits that validate where `val` names none; a test set is not for choosing the best model by.
VALIDATION = ("validation", "val", "valid", "dev")
_READERS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json"}
_NAME = re.compile(r"[A-Za-z0-9_-][\w.-]*(/[\w.-]+)?")
_PATIENCE_S = 5.0


def hugging_face(
    path: str,
    inputs: str | Sequence[str],
    targets: str | None = None,
    config: str | None = None,
    train: str = "train",
    val: str | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    size: int | Sequence[int] = 64,
    channels: int = 3,
) -> DataSplits:
    """A data set on disk (of `save_to_disk`, or a folder or file of Parquet, Arrow, CSV or JSON), or one of the hub's.

    `inputs` names a column, or several, which are then given to the model as keywords; `targets` the column to learn,
    where there is one. Pictures become uint8 (N, channels, height, width) of `size` as `image_folder` makes them;
    numbers and lists of numbers become tensors (float64 as float32). ClassLabel's names are the classes, and so are a
    target's texts. `val` names the split that validates; else it is the one named validation, val, valid or dev, or a
    `val_share` of `train`, drawn by `seed`. `config` is the hub's name for one of several versions.

    No code of a data set is run. Raises UsageError for what is not there, columns that are no numbers, missing values,
    and a hub that cannot be reached.
    """
    shape = picture_shape(size, channels)
    splits = _loaded(str(path), config)
    for key, name in (("train", train), ("val", val)):
        if name is not None and name not in splits:
            meant = did_you_mean(name, splits) or f"; there are {', '.join(map(str, splits))}"
            raise UsageError(f"data.{key}: {path} has no split {name!r}{meant}")
    rows = splits[train]
    val = val or next((name for name in VALIDATION if name in splits and name != train), None)
    if val is not None:
        parts = [rows, splits[val]]
    else:
        parts = [rows.select(part.tolist()) for part in held_out(len(rows), val_share, seed) if len(part)]
    names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    classes = _check_columns(rows, names, targets)
    for part in [rows] if val is None else parts:  # as they lie in the file, so that their numbers can be found in it
        for name in (*names, *(() if targets is None else (targets,))):
            if name in part.column_names and _kind(part, name) != "Image":
                refuse_gaps(part.select_columns([name]).with_format("arrow")[:][name], name)
    sources = [_source(part, names, targets, shape, classes) for part in parts]
    pictures = len(names) == 1 and _kind(rows, names[0]) == "Image"
    return DataSplits(
        sources[0], sources[1] if len(sources) > 1 else None, classes, image_preprocessing() if pictures else None
    )


def _loaded(path: str, config: str | None) -> Mapping[str, Any]:
    """The splits of a data set by name, as `datasets` reads them."""
    place = Path(path).expanduser()
    if not place.exists() and (place.suffix in _READERS or not _NAME.fullmatch(path)):
        raise UsageError(f"data.path: {path}: there is no such directory or file")
    install = 'pip install "surefoot[datasets]"'
    datasets = package("datasets", f"data: hugging_face needs the library datasets, which is missing; {install}")
    with _quiet(datasets):
        try:
            if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
                splits = datasets.load_from_disk(str(place))
            elif place.exists():
                files = {"data_dir" if place.is_dir() else "data_files": str(place)}
                splits = datasets.load_dataset(_reader(place), **files)
            else:
                splits = _from_hub(datasets, path, config)
        except UsageError:
            raise
        except Exception as error:  # of every kind: whatever a file or the hub makes one of a dozen libraries raise
            raise UsageError(f"data.path: {path} cannot be read: {_reason(error)}") from error
    return splits if isinstance(splits, Mapping) else {"train": splits}


def _reason(error: BaseException) -> str:
    """What was wrong with a file: the library itself says no more than that it could not make a data set of it."""
    if type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, StopIteration):
        return "there are no rows in it"
    return f"{type(error).__name__}: {shortened(' '.join(str(error).split()), 400)}"


def _reader(place: Path) -> str:
    """The reader of `datasets` for the files in a folder, or for a file."""
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    endings = {path.suffix.lower() for path in files} & set(_READERS)
    readers = {_READERS[ending] for ending in endings}
    if len(readers) != 1:
        kinds = f"files of several kinds ({', '.join(sorted(endings))})" if readers else "no files that are read"
        raise UsageError(f"data.path: {place}: {kinds}; give a folder with one kind of {', '.join(_READERS)}")
    return readers.pop()


def _from_hub(datasets: Any, name: str, config: str | None) -> Any:
    """A data set by its name on the hub; without a connection, what an earlier download has left."""
    import huggingface_hub
    from huggingface_hub import constants

    try:
        # The library itself would try for half a minute.
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)
        offline = False
    except Exception:
        offline = True
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    try:
        if offline:
            datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
        return datasets.load_dataset(name, config)
    except Exception as error:
        if offline:
            raise UsageError(
                f"data.path: {name} is no directory or file here, {constants.ENDPOINT} cannot be reached, and no "
                "earlier download of it was found; give the path of a data set on disk, or connect"
            ) from error
        raise
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's own progress bars."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _kind(rows: Any, name: str) -> str:
    """What a column holds, by its feature: "Image", "ClassLabel", "texts", or another feature's name."""
    feature = rows.features[name]
    texts = str(getattr(feature, "dtype", "")) in ("string", "large_string", "string_view")
    return "texts" if texts else type(feature).__name__


def _check_columns(rows: Any, names: Sequence[str], target: str | None) -> tuple[str, ...] | None:
    """The names of the classes, if the target is such; raises UsageError for columns that cannot be used."""
    if not names:
        raise UsageError("data.inputs: name at least one column")
    for key, name in [("inputs", name) for name in names] + ([("targets", target)] if target is not None else []):
        if name not in rows.column_names:
            raise UsageError(f"data.{key}: there is no column {name!r}{nearest(name, rows.column_names)}")
        if key == "inputs" and _kind(rows, name) == "texts":
            raise UsageError(
                f"data.inputs: the column {name!r} holds texts; make numbers of them first, e.g. by a tokenizer: "
                "dataset.map(lambda row: tokenizer(row['text'], padding='max_length', truncation=True))"
                ".save_to_disk('encoded')"
            )
    if target is None:
        return None
    kind = _kind(rows, target)
    if kind == "ClassLabel":
        return tuple(rows.features[target].names)
    return tuple(sorted(set(_values(rows, target)) - {None})) if kind == "texts" else None


def refuse_gaps(column: Any, name: str) -> None:
    """Raise UsageError where a column of pyarrow's, or a list in it, holds a null or what float32 has no number for."""
    import pyarrow
    from pyarrow import compute

    before, gaps = 0, set()
    for chunk in column.chunks:
        values, rows = chunk, numpy.arange(before, before + len(chunk))
        before += len(chunk)
        while True:
            values = values.storage if isinstance(values, pyarrow.ExtensionArray) else values
            bad = values.is_null()
            if pyarrow.types.is_floating(values.type):
                finite = compute.is_finite(values.cast(pyarrow.float32(), safe=False))
                bad = compute.invert(compute.fill_null(finite, False))
            gaps.update(rows[bad.to_numpy(zero_copy_only=False)].tolist())
            kind = pyarrow.types
            if not (
                kind.is_list(values.type) or kind.is_large_list(values.type) or kind.is_fixed_size_list(values.type)
            ):
                break
            rows, values = rows[compute.list_parent_indices(values).to_numpy()], compute.list_flatten(values)
    if gaps:
        raise UsageError(
            f"data: the column {name!r} has no value, or none that is finite in float32, in "
            f"{counted(len(gaps), 'row')}; the first is row {min(gaps)}, counted from 0"
        )


def _values(rows: Any, name: str) -> Any:
    """A whole column."""
    if _kind(rows, name) == "texts":
        return rows.select_columns([name]).with_format("arrow")[:][name].to_pylist()
    return rows.select_columns([name]).with_format("numpy")[:][name]


def _tensor(value: Any) -> Tensor | None:
    """Numbers as a tensor; None where they are of unequal lengths, or no numbers."""
    array = numpy.asarray(value)
    if array.dtype.kind not in "biuf":
        return None
    tensor: Tensor = as_float32(torch.from_numpy(array.copy() if not array.flags.writeable else array))
    return tensor


def _source(
    rows: Any, names: tuple[str, ...], target: str | None, shape: Sequence[int], classes: tuple[str, ...] | None
) -> TensorSource | DatasetSource:
    """The rows in memory where all are of one shape and fit, else as they lie on disk."""
    targets = None if target is None else _targets(rows, target, classes)
    pictures = [name for name in names if _kind(rows, name) == "Image"]
    read = {name: _tensor(_values(rows, name)) for name in names if name not in pictures}
    columns = {name: tensor for name, tensor in read.items() if tensor is not None}
    if len(columns) == len(names):
        if targets is not None:
            columns["labels"] = targets
        return TensorSource(*columns.values(), classes=classes, names=list(columns) if len(names) > 1 else ())
    data = Rows(rows.select_columns(list(names)), names, pictures, targets, shape)
    if len(names) == 1 and pictures and targets is not None:
        return kept_in_memory(data, shape, targets, classes)
    return DatasetSource(data, classes=classes)


def _targets(rows: Any, name: str, classes: tuple[str, ...] | None) -> Tensor | None:
    """The column to learn: class labels int64, else numbers; None where they are of unequal lengths."""
    values = _values(rows, name)
    if classes is not None and _kind(rows, name) == "texts":
        number = {text: index for index, text in enumerate(classes)}
        if others := [text for text in values if text not in number]:
            raise UsageError(f"data.targets: {others[0]!r} of the column {name!r} is no class of the training rows")
        values = [number[text] for text in values]
    targets = _tensor(values)
    if targets is None:
        raise UsageError(f"data.targets: the column {name!r} holds no numbers, or lists of unequal lengths")
    return targets.long() if not targets.is_floating_point() else targets


class Rows(Dataset[Any]):
    """Rows with pictures or lists of unequal lengths, read when they are needed.

    A sample is ``(input, target)``, or a mapping of the inputs and ``labels`` where there are several.
    """

    def __init__(
        self, rows: Any, names: tuple[str, ...], pictures: Sequence[str], targets: Tensor | None, shape: Sequence[int]
    ):
        from datasets import Image

        for name in pictures:
            rows = rows.cast_column(name, Image(decode=False))
        self.rows, self.names, self.pictures = rows, names, tuple(pictures)
        self.targets, self.shape = targets, tuple(shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        inputs = {name: self._input(name, row[name], index) for name in self.names}
        target = None if self.targets is None else self.targets[index]
        if len(self.names) == 1:
            (only,) = inputs.values()
            return only if target is None else (only, target)
        return inputs if target is None else {**inputs, "labels": target}

    def _input(self, name: str, value: Any, index: int) -> Tensor:
        place = Path(f"{name} of row {index}")
        if name in self.pictures:
            if value is None:
                raise BadFile(place, "there is no picture")
            data = bytes_of(value["path"]) if value["bytes"] is None else value["bytes"]
            return torch.from_numpy(decode_picture(place, data, self.shape)[0].copy())
        tensor = _tensor(value)
        if tensor is None:
            raise UsageError(f"data: {place}: {shortened(repr(value))} is no number or list of numbers")
        return tensor
