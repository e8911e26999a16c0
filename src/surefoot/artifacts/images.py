"""Files of samples to raw batches, for `surefoot predict`: PNG, JPEG, .npy, .npz, idx, checked before they are read."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..errors import Problems
from ..pictures import PICTURE_ENDINGS, PICTURE_STARTS, decode_picture, files_below
from ..safe_tensors import BadFile
from .archive import read_whole
from .info import ModelInfo

MAX_FILE_BYTES = 2**30
MAX_BATCH_BYTES = 4 * 2**30
_PIXEL_DTYPES = ("uint8", "float32", "float64")
_IDX_DTYPES = {0x08: "uint8", 0x09: "int8", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def takes_pictures(info: ModelInfo) -> bool:
    """Whether a picture can be made into a sample of this model."""
    shape = info.input_shape
    return shape is not None and len(shape) == 3 and shape[0] in (1, 3) and takes_pixels(info)


def takes_pixels(info: ModelInfo) -> bool:
    """Whether raw data are pixels of 0 to 255; floats that the model does not scale were on a scale of their own."""
    scaled = info.preprocessing is not None and info.preprocessing.scale is not None
    return info.input_dtype in (None, "uint8") or (scaled and info.input_dtype in _PIXEL_DTYPES)


@dataclass(frozen=True)
class Images:
    """A raw batch (N, ...), each sample's file and row in it, and what was done to make the files fit, a line each."""

    batch: torch.Tensor = field(repr=False)
    paths: tuple[str, ...]
    rows: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each sample: its file, with the row where the file holds several."""
        several = {path for path, row in zip(self.paths, self.rows, strict=True) if row}
        return tuple(
            f"{path}[{row}]" if path in several else path for path, row in zip(self.paths, self.rows, strict=True)
        )


def files_in(path: str | Path, more_endings: tuple[str, ...] = ()) -> list[Path]:
    """The file `path` as it is; of a folder all files that can be read (by their endings and `more_endings`),
    sorted."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    inside = files_below(path, (*PICTURE_ENDINGS, ".npy", ".npz", *more_endings))
    if not inside:
        raise Problems([f"{path}: holds no files that can be read (PNG, JPEG, .npy, .npz)"])
    return inside


def read_images(
    paths: Sequence[str | Path],
    input_shape: Sequence[int] | None,
    input_dtype: str | None = "uint8",
    *,
    pixels: bool = True,
) -> Images:
    """The samples of all `paths`, in order, as a model with `input_shape` (without N) and `input_dtype` takes them.

    Without a shape, arrays are taken as they are, (N, ...), and pictures are refused; so they are without `pixels`,
    where the model was trained on numbers of another scale than 0 to 255.

    - PNG and JPEG: made grey where the model takes one channel and RGB where it takes three, resized where the
      size differs; never inverted. Fashion-MNIST is white on black: a photo on a white ground is not like it.
    - ``.npy``, and ``.npz`` of one array: one sample or many; ``(H, W)`` and ``(N, H, W)`` will do for one channel.
    - idx files, as MNIST's, raw or ``.gz``.

    The notes say what was changed. Raises `Problems` with every file that cannot be used.
    """
    shape = None if input_shape is None else tuple(input_shape)
    dtype = input_dtype or (None if shape is None else "uint8")
    batches: list[np.ndarray] = []
    places: list[tuple[str, int]] = []
    notes, problems = [], []
    total = 0
    for path in map(Path, paths):
        try:
            array, note = _read(path, shape, dtype, pixels)
        except BadFile as error:
            problems.append(str(error))
            continue
        if batches and (array.shape[1:], array.dtype) != (batches[0].shape[1:], batches[0].dtype):
            problems.append(
                f"{path}: its samples differ from those of {paths[0]} in shape or dtype; give one at a time"
            )
            continue
        total += array.nbytes
        if total > MAX_BATCH_BYTES:
            problems.append(f"{path}: with this file the batch is above {MAX_BATCH_BYTES} bytes; give fewer files")
            break
        batches.append(array)
        places += [(str(path), row) for row in range(len(array))]
        notes += [f"{path}: {note}"] if note else []
    if not paths:
        problems.append("no files were given")
    if problems:
        raise Problems(problems)
    tensor = torch.from_numpy(np.ascontiguousarray(np.concatenate(batches)))
    return Images(tensor, tuple(path for path, _ in places), tuple(row for _, row in places), tuple(notes))


def _read(path: Path, shape: tuple[int, ...] | None, dtype: str | None, pixels: bool) -> tuple[np.ndarray, str]:
    data = read_whole(path, MAX_FILE_BYTES)
    if data.startswith(PICTURE_STARTS):
        if shape is not None and not pixels:
            raise BadFile(
                path,
                f"holds pixels of 0 to 255; the model was trained on {dtype} as its data set gave them, on a scale "
                "that is not known here; give such numbers as .npy (or train on uint8 with data.normalize)",
            )
        return _read_picture(path, data, shape, dtype)
    if data.startswith(b"\x93NUMPY"):
        return _fitted(path, _read_npy(path, data), shape, dtype), ""
    if data.startswith(b"PK"):
        return _fitted(path, _read_npz(path, data), shape, dtype), ""
    if data.startswith(b"\x1f\x8b"):
        try:
            return _fitted(path, _read_idx(path, gzip.GzipFile(fileobj=io.BytesIO(data))), shape, dtype), ""
        except (OSError, EOFError, zlib.error) as error:
            raise BadFile(path, f"its gzip data is damaged or was cut: {error}") from error
    if data[:2] == b"\0\0" and data[2:3] and data[2] in _IDX_DTYPES:
        return _fitted(path, _read_idx(path, io.BytesIO(data)), shape, dtype), ""
    raise BadFile(path, "is no image or array that can be read (PNG, JPEG, .npy, .npz, or idx as MNIST's, raw or .gz)")


def _read_picture(path: Path, data: bytes, shape: tuple[int, ...] | None, dtype: str | None) -> tuple[np.ndarray, str]:
    if shape is None:
        raise BadFile(
            path, "is a picture, and the model does not say the shape of its input; give a .npy array (N, ...)"
        )
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise BadFile(path, f"is a picture; the model takes {list(shape)}, not (1 or 3, height, width)")
    array, notes = decode_picture(path, data, shape)
    if dtype not in _PIXEL_DTYPES:
        raise BadFile(path, f"holds pixels; the model takes {dtype}")
    return array[None].astype(dtype), ", ".join(notes)


def _read_npy(path: Path, data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = reader(file)
    except Exception as error:  # numpy parses the header as Python literals; many kinds for one damaged header
        raise BadFile(
            path, "its .npy header cannot be read: it is damaged, or longer than 10,000 characters"
        ) from error
    if dtype.hasobject or dtype.kind not in "uifb":
        raise BadFile(path, f"holds {dtype}, not numbers; objects (pickle) are never loaded")
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        there = len(data) - file.tell()
        raise BadFile(path, f"shape {list(shape)} of {dtype} does not go with its {there} bytes")
    flat = np.frombuffer(data, dtype=dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def _read_npz(path: Path, data: bytes) -> np.ndarray:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(names) != 1:
                held = ", ".join(name.removesuffix(".npy") for name in names[:6])
                raise BadFile(path, f"holds {len(names)} arrays ({held}); give one of them as .npy")
            with archive.open(names[0]) as file:
                array = file.read(MAX_FILE_BYTES + 1)
    except BadFile:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged file
        raise BadFile(path, f"cannot be read as .npz: {error}") from error
    if len(array) > MAX_FILE_BYTES:
        raise BadFile(path, f"unpacks to more than {MAX_FILE_BYTES} bytes")
    return _read_npy(path, array)


def _read_idx(path: Path, file: BinaryIO | gzip.GzipFile) -> np.ndarray:
    """An idx file, which may be packed: what it unpacks to is bounded by what its header asks for."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_DTYPES or not 1 <= head[3] <= 4:
        raise BadFile(path, "is not an idx file of images")
    sizes = file.read(4 * head[3])
    if len(sizes) != 4 * head[3]:
        raise BadFile(path, "its idx header was cut")
    shape = struct.unpack(f">{head[3]}I", sizes)
    dtype = np.dtype(_IDX_DTYPES[head[2]])
    expected = math.prod(shape) * dtype.itemsize
    if expected > MAX_FILE_BYTES:
        raise BadFile(path, f"tells of {expected} bytes of images; at most {MAX_FILE_BYTES} are read")
    data = file.read(expected)
    if len(data) != expected or file.read(1):
        held = "more" if len(data) == expected else str(len(data))
        raise BadFile(path, f"tells of {expected} bytes of images ({list(shape)}) and holds {held}")
    return np.frombuffer(data, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _fitted(path: Path, array: np.ndarray, shape: tuple[int, ...] | None, dtype: str | None) -> np.ndarray:
    """The array as (N, *shape): one sample or many, the channel left out where there is one."""
    if shape is None:
        if not array.ndim:
            raise BadFile(path, "holds one number; give an array (N, ...)")
        shape = array.shape[1:]
    options = [shape, shape[1:]] if shape[:1] == (1,) and len(shape) > 1 else [shape]
    for option in options:
        if array.shape == option:
            array = array.reshape(1, *shape)
            break
        if array.shape[1:] == option and array.ndim == len(option) + 1:
            array = array.reshape(-1, *shape)
            break
    else:
        raise BadFile(path, f"holds the shape {list(array.shape)}; the model takes {list(shape)}, or (N, ...) of it")
    if not len(array):
        raise BadFile(path, "holds no sample")
    if dtype is not None and str(array.dtype) != dtype:
        if not (array.dtype == np.float64 and dtype == "float32"):
            raise BadFile(path, f"holds {array.dtype}; the model takes raw data of {dtype}")
        array = array.astype(np.float32)
    return array
