"""Pictures in folders, one folder a class: kept in memory where they fit, else decoded as they are needed."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import Problems, UsageError
from ..files import read_bounded
from ..pictures import PICTURE_ENDINGS, decode_picture, files_below
from ..registry import did_you_mean
from ..safe_tensors import BadFile
from ..text import counted, shortened
from .augment import picture_shape
from .orders import held_out
from .sources import DatasetSource, TensorSource
from .splits import DataSplits, image_preprocessing

MAX_FILE_BYTES = 1 << 28
# All pictures of a split are decoded once and kept where they take at most this much, and a quarter of the memory.
MEMORY_BYTES = 2 << 30
_PROBLEMS_SHOWN = 10
# Folders of these names alone are parts of a data set, and no classes.
_SPLITS = {"train", "val", "valid", "validation", "dev", "test"}


def image_folder(
    dir: str, size: int | Sequence[int] = 64, channels: int = 3, val_share: float = 0.1, seed: int = 0
) -> DataSplits:
    """PNG and JPEG files under `dir`, uint8 (N, channels, height, width); each folder's name is a class.

    With the folders ``train`` and ``val`` in `dir`, the classes are in these; ``test`` beside them is not read. Else a
    `val_share` of each class validates, at least one picture of each, drawn by `seed`; 0 for no validation. `size` is
    height and width, or one number for both; `channels` is 3, or 1 for grey. Pictures are resized as `surefoot predict`
    does it. Other files, and those whose names begin with a dot, are left out.

    Raises UsageError for a folder without pictures, classes that differ between ``train`` and ``val``, and, naming
    the files, for pictures that cannot be read.
    """
    shape = picture_shape(size, channels)
    root = Path(os.path.expanduser(dir))
    if not root.is_dir():
        raise UsageError(f"data.dir: {root} is no directory; give the one whose folders are the classes")
    if _is_split(root):
        train, val = _files(root / "train"), _files(root / "val")
        if unknown := sorted(set(val) - set(train)):
            raise UsageError(f"{root / 'val'}: there is no folder {unknown[0]!r} in {root / 'train'}")
    else:
        train, val = _files(root), {}
        for number, (name, files) in enumerate(train.items()):
            parts = held_out(len(files), val_share, seed, number)
            train[name], val[name] = ([files[k] for k in part.tolist()] for part in parts)
    classes = tuple(train)
    return DataSplits(
        _source(train, classes, shape),
        _source(val, classes, shape) if any(val.values()) else None,
        classes,
        image_preprocessing(),
        {"channels": channels, "size": list(shape[1:])},
    )


def labelled_pictures(
    dir: str, classes: tuple[str, ...], shape: tuple[int, ...], split: str
) -> TensorSource | DatasetSource:
    """The pictures of a folder for a model of these `classes` and this input; of ``train`` and ``val`` one `split`.

    Raises UsageError as `image_folder` does, and for a folder that is none of the classes.
    """
    root = Path(os.path.expanduser(dir))
    root = root / split if _is_split(root) else root
    files = _files(root)
    for name in files:
        if name not in classes:
            others = did_you_mean(name, classes) or f": {shortened(', '.join(classes))}"
            raise UsageError(
                f"{root}: the folder {name!r} is none of the model's {counted(len(classes), 'class')}{others}"
            )
    channels, height, width = shape
    return _source(files, classes, (channels, height, width))


def _is_split(root: Path) -> bool:
    """Whether a folder holds ``train`` and ``val``. Raises UsageError for parts of a data set of other names."""
    names = {folder.name for folder in _folders(root)}
    if {"train", "val"} <= names <= _SPLITS:
        return True
    if "train" in names and names <= _SPLITS:
        raise UsageError(
            f"data.dir: {root} has the folders {', '.join(sorted(names))}, which are no classes; call the two to "
            f"use train and val, or give the one whose folders are the classes: {root / 'train'}"
        )
    return False


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(root: Path) -> dict[str, list[Path]]:
    """The pictures of each class, sorted by name."""
    files = {}
    for folder in _folders(root):
        files[folder.name] = files_below(folder, PICTURE_ENDINGS)
    empty = next((name for name, paths in files.items() if not paths), None)
    if not files or empty is not None:
        where = root if empty is None else root / empty
        what = "has no folders: each class is one, with its pictures in it" if empty is None else "has no pictures"
        raise UsageError(f"data.dir: {where} {what} ({', '.join(PICTURE_ENDINGS)})")
    return files


def _source(
    files: dict[str, list[Path]], classes: tuple[str, ...], shape: tuple[int, int, int]
) -> TensorSource | DatasetSource:
    paths = [path for name in classes for path in files.get(name, ())]
    labels = [label for label, name in enumerate(classes) for _ in files.get(name, ())]
    return kept_in_memory(Pictures(paths, labels, shape), shape, torch.tensor(labels, device="cpu"), classes)


def kept_in_memory(
    pictures: Dataset[tuple[Tensor, Any]], shape: Sequence[int], targets: Tensor, classes: Sequence[str] | None
) -> TensorSource | DatasetSource:
    """All pictures decoded, uint8 (N, *shape), where they fit in memory; else a source that reads each when needed.

    `targets` (N, ...) are those of the samples, or are filled with them. Raises Problems with the pictures that cannot
    be read.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if len(targets) * math.prod(shape) + targets.nbytes > min(MEMORY_BYTES, memory // 4):
        return DatasetSource(pictures, classes=classes)
    images = torch.empty((len(targets), *shape), dtype=torch.uint8, device="cpu")
    problems: list[str] = []

    def read(index: int) -> None:
        try:
            images[index], targets[index] = pictures[index]
        except BadFile as error:
            problems.append(str(error))

    # Pillow lets other threads run while it decodes.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(read, range(len(targets))))
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        rest = [f"and {counted(more, 'more picture')} that cannot be read"] if more > 0 else []
        raise Problems([*sorted(problems)[:_PROBLEMS_SHOWN], *rest])
    return TensorSource(images, targets, classes=classes)


class Pictures(Dataset[tuple[Tensor, int]]):
    """Picture files with their labels, decoded when they are read: uint8 of `shape`, and an int."""

    def __init__(self, files: Sequence[Path], targets: Sequence[int], shape: tuple[int, int, int]):
        self.files = [str(path) for path in files]
        self.targets = list(targets)
        self.shape = shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return picture_in(self.files[index], self.shape), self.targets[index]


def picture_in(file: str | Path, shape: tuple[int, ...]) -> Tensor:
    """The picture in a file, uint8 of `shape`."""
    return torch.from_numpy(decode_picture(Path(file), bytes_of(file), shape)[0].copy())  # in the order of its shape


def bytes_of(file: str | Path) -> bytes:
    """What a file of a data set holds. Raises `BadFile`."""
    try:
        return read_bounded(file, MAX_FILE_BYTES, follow=True)
    except OSError as error:
        raise BadFile(file, f"cannot be read: {error.strerror or error}") from error
