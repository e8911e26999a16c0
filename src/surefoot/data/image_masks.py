"""Pictures and their masks: two folders with files of the same names, the class of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UsageError
from ..pictures import PICTURE_ENDINGS, decode_mask, decode_picture, files_below, shown_size
from ..safe_tensors import BadFile
from .augment import picture_shape
from .image_folder import bytes_of, kept_in_memory
from .orders import held_out
from .sources import DatasetSource, TensorSource
from .splits import DataSplits, image_preprocessing

# The value that drawing programs and many data sets give to pixels of no class; torch's losses leave out -100.
_VOID, _IGNORED = 255, -100


def image_masks(
    images: str,
    masks: str,
    size: int | Sequence[int] = 64,
    channels: int = 3,
    classes: Sequence[str] | None = None,
    val_share: float = 0.1,
    seed: int = 0,
) -> DataSplits:
    """Pictures under `images`, uint8 (N, channels, height, width), and the masks of the same names under `masks`.

    A mask is a grey or palette PNG whose values are the classes, int64 (N, height, width). 255 is a pixel of no class,
    which torch's losses leave out (-100); but where no mask has a value other than 0 and 255, it is the class 1. Masks
    are resized to the nearest pixel, pictures as in `image_folder`. `classes` names the values in order. A `val_share`
    of the pairs validates, drawn by `seed`.

    Raises UsageError for pictures without a mask, and the reverse, for files that cannot be read, and for a mask that
    lies across its picture.
    """
    shape = picture_shape(size, channels)
    pictures, wanted = (_by_name(key, folder) for key, folder in (("images", images), ("masks", masks)))
    if alone := sorted(set(pictures) ^ set(wanted)):
        lacks = "mask" if alone[0] in pictures else "picture"
        there = pictures.get(alone[0]) or wanted[alone[0]]
        more = f"; {len(alone)} files lack theirs" if len(alone) > 1 else ""
        raise UsageError(f"data.masks: {there} has no {lacks} of that name{more}")
    pairs = [(str(pictures[name]), str(wanted[name])) for name in pictures]
    with ThreadPoolExecutor(8) as pool:
        values = numpy.unique(numpy.concatenate(list(pool.map(_values, (mask for _, mask in pairs)))))
    table = torch.arange(256, device="cpu")
    table[_VOID] = 1 if set(values.tolist()) <= {0, _VOID} else _IGNORED
    count = int(table[torch.from_numpy(values).long()].max()) + 1
    names = tuple(map(str, range(count))) if classes is None else tuple(classes)
    if count > len(names):
        raise UsageError(f"data.classes: {len(names)} are named and the masks have values up to {count - 1}")
    train, val = (
        _source([pairs[k] for k in part.tolist()], table, shape, names) if len(part) else None
        for part in held_out(len(pairs), val_share, seed)
    )
    assert train is not None
    return DataSplits(train, val, names, image_preprocessing(), {"channels": channels, "size": list(shape[1:])})


def _by_name(key: str, folder: str) -> dict[str, Path]:
    """The files in a folder by their places in it, without their endings."""
    root = Path(folder).expanduser()
    by_name: dict[str, Path] = {}
    for path in files_below(root, PICTURE_ENDINGS):
        name = str(path.relative_to(root).with_suffix(""))
        if name in by_name:
            raise UsageError(f"data.{key}: {path} and {by_name[name]} have the same name; leave one out")
        by_name[name] = path
    if not by_name:
        raise UsageError(f"data.{key}: {root} is no directory with pictures in it ({', '.join(PICTURE_ENDINGS)})")
    return by_name


def _values(mask: str) -> numpy.ndarray:
    return numpy.unique(decode_mask(Path(mask), bytes_of(mask)))


def _source(
    pairs: Sequence[tuple[str, str]], table: Tensor, shape: tuple[int, int, int], classes: tuple[str, ...]
) -> TensorSource | DatasetSource:
    targets = torch.zeros((len(pairs), *shape[1:]), dtype=torch.int64, device="cpu")
    return kept_in_memory(Masked(pairs, table, shape), shape, targets, classes)


class Masked(Dataset[tuple[Tensor, Tensor]]):
    """Picture files with their masks': uint8 of `shape`, and int64 (height, width) of what `table` makes of values."""

    def __init__(self, pairs: Sequence[tuple[str, str]], table: Tensor, shape: tuple[int, int, int]):
        self.files, self.masks = map(list, zip(*pairs, strict=True))
        self.table, self.shape = table, shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        files = [Path(self.files[index]), Path(self.masks[index])]
        contents = list(map(bytes_of, files))
        (width, height), (across, down) = map(shown_size, files, contents)
        if (width, height) == (down, across) and width != height:
            raise BadFile(
                files[1],
                f"is {across}x{down} and its picture {width}x{height} (as EXIF data turn it); turn one of them",
            )
        pixels, _ = decode_picture(files[0], contents[0], self.shape)
        mask = decode_mask(files[1], contents[1], (self.shape[1], self.shape[2]))
        return torch.from_numpy(pixels.copy()), self.table[torch.from_numpy(mask.astype(numpy.int64))]
