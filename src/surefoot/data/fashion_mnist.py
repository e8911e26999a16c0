"""Fashion-MNIST from its four original files: found, verified, read into memory, downloaded when absent.

Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms", https://github.com/zalandoresearch/fashion-mnist.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from ..arguments import Arguments
from ..errors import UsageError
from ..files import read_bounded
from ..places import user_directory
from .download import DownloadFailed, Progress, download
from .sources import TensorSource
from .splits import DataSplits, image_preprocessing

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)

# Where torchvision puts the files under its root, and shorter habits.
FOLDERS = ("FashionMNIST/raw", "FashionMNIST", "raw", "")


@dataclass(frozen=True)
class DataFile:
    """One of the four files: what it is called, how large it is and its MD5, packed (.gz) and unpacked.

    The MD5s of the packed files are those that torchvision publishes; the unpacked ones were taken from files
    that have these.
    """

    name: str
    shape: tuple[int, ...]
    packed_size: int
    packed_md5: str
    size: int
    md5: str

    @property
    def header(self) -> bytes:
        """The IDX header: two zero bytes, 8 for unsigned bytes, the number of dimensions, and each of them."""
        return bytes((0, 0, 8, len(self.shape))) + b"".join(n.to_bytes(4, "big") for n in self.shape)


FILES: Mapping[str, DataFile] = {
    "train_images": DataFile(
        "train-images-idx3-ubyte", (60_000, 28, 28),
        26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    ),
    "train_labels": DataFile(
        "train-labels-idx1-ubyte", (60_000,),
        29_515, "25c81989df183df01b3e8a0aad5dffbe", 60_008, "9018921c3c673c538a1fc5bad174d6f9",
    ),
    "val_images": DataFile(
        "t10k-images-idx3-ubyte", (10_000, 28, 28),
        4_422_102, "bef4ecab320f06d8554ea6380940ec79", 7_840_016, "8181f5470baa50b63fa0f6fddb340f0a",
    ),
    "val_labels": DataFile(
        "t10k-labels-idx1-ubyte", (10_000,),
        5_148, "bb300cfdad3c16e7a12a480ee83cd310", 10_008, "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}  # fmt: skip


def fashion_mnist(
    train_size: int | None = None,
    val_size: int | None = None,
    dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: Progress | None = None,
) -> DataSplits:
    """60,000 images to train and 10,000 to validate, uint8 (N, 1, 28, 28), labels int64, ten classes.

    The four files, packed (.gz) or not, are looked for in `dir`, or in $SUREFOOT_DATA, or in the user's cache
    directory: in torchvision's folder FashionMNIST/raw, in raw, or directly. Missing ones are downloaded to it
    unless `download` is false. `train_size` and `val_size` take the first so many images. Every file is verified;
    a damaged or missing one raises UsageError, which says what to do.
    """
    checked = Arguments()
    for name, given in (("train_size", train_size), ("val_size", val_size)):
        checked.whole(name, given, low=1, none=True)
    checked.path("dir", dir or None, none=True)
    checked.done()
    arrays = load_arrays(data_directory(dir), may_download=download, progress=progress)
    splits = {}
    for split, size in (("train", train_size), ("val", val_size)):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if size is not None and not 1 <= size <= len(labels):
            raise UsageError(
                f"data.{split}_size: {size} is not between 1 and the {len(labels):,} that there are", code="data-split"
            )
        splits[split] = TensorSource(images[:size, None], labels[:size].astype(numpy.int64), classes=CLASSES)
    return DataSplits(splits["train"], splits["val"], CLASSES, image_preprocessing())


def data_directory(dir: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets are kept: `dir`, else $SUREFOOT_DATA, else the user's cache directory."""
    if dir or os.environ.get("SUREFOOT_DATA"):
        return Path(os.path.expanduser(dir or os.environ["SUREFOOT_DATA"]))
    return user_directory("cache")


def load_arrays(
    directory: Path,
    *,
    may_download: bool = True,
    progress: Progress | None = None,
    files: Mapping[str, DataFile] = FILES,
    mirrors: Sequence[str] = MIRRORS,
    timeout_s: float | None = None,
) -> dict[str, numpy.ndarray]:
    """The contents of `files`, uint8 in their shapes, found under `directory` or fetched to it."""
    paths = {key: path for key, file in files.items() if (path := _find(directory, file)) is not None}
    missing = [file for key, file in files.items() if key not in paths]
    if missing:
        if not may_download:
            raise UsageError(f"data: {_not_here(directory, missing)}\n{_by_hand(directory, missing)}")
        # What is missing goes where the others are.
        folder = next(iter(paths.values())).parent if paths else directory / FOLDERS[0]
        _download_all(directory, folder, missing, mirrors, progress, timeout_s)
        paths = {key: folder / f"{file.name}.gz" for key, file in files.items()} | paths
    return {key: _read(paths[key], file) for key, file in files.items()}


def _find(directory: Path, file: DataFile) -> Path | None:
    """The file under one of its usual names; unpacked before packed, because it is read faster."""
    for name in (file.name, f"{file.name}.gz"):
        for folder in FOLDERS:
            path = directory / folder / name
            if path.is_file():
                return path
    return None


def _download_all(
    directory: Path,
    folder: Path,
    missing: Sequence[DataFile],
    mirrors: Sequence[str],
    progress: Progress | None,
    timeout_s: float | None,
) -> None:
    limit = {} if timeout_s is None else {"timeout_s": timeout_s}
    for file in missing:
        name = f"{file.name}.gz"
        urls = [f"{mirror.rstrip('/')}/{name}" for mirror in mirrors]
        try:
            download(urls, folder / name, size=file.packed_size, md5=file.packed_md5, progress=progress, **limit)
        except DownloadFailed as failure:
            tried = "\n".join(f"  {line}" for line in failure.tried)
            raise UsageError(
                f"data: {_not_here(directory, [file])}, and no mirror gave it:\n{tried}\n{_by_hand(directory, missing)}"
            ) from failure


def _not_here(directory: Path, missing: Sequence[DataFile]) -> str:
    names = ", ".join(f"{file.name}[.gz]" for file in missing)
    return f"{names} not found in {directory}, nor in its folders {', '.join(reversed(FOLDERS[:-1]))}"


def _by_hand(directory: Path, missing: Sequence[DataFile]) -> str:
    names = "\n".join(f"  {file.name}.gz (MD5 {file.packed_md5})" for file in missing)
    return (
        f"to go on, put these files into {directory} by hand, or name the directory that has them with data.dir or "
        f"SUREFOOT_DATA:\n{names}\nor use data.name=garments, which needs no files"
    )


def _read(path: Path, file: DataFile) -> numpy.ndarray:
    packed = path.suffix == ".gz"
    size, md5 = (file.packed_size, file.packed_md5) if packed else (file.size, file.md5)
    try:
        data = read_bounded(path, 1 << 28, follow=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise UsageError(
            f"{path}: {_what_is_wrong(data, file, size, packed)}; found {len(data):,} bytes with MD5 {digest}, "
            f"expected {size:,} bytes with MD5 {md5}; delete the file, and it is downloaded again, or put the original "
            "there"
        )
    if packed:
        data = gzip.decompress(data)
    return numpy.frombuffer(bytearray(data), dtype=numpy.uint8, offset=len(file.header)).reshape(file.shape)


def _what_is_wrong(data: bytes, file: DataFile, size: int, packed: bool) -> str:
    """The likeliest cause."""
    if not data:
        return "the file is empty"
    if packed:
        if data[:2] != b"\x1f\x8b":
            return f"this is no gzip file: it begins with {data[:8]!r}"
        try:
            start = zlib.decompressobj(wbits=31).decompress(data, 64)
        except zlib.error:
            start = b""
    else:
        start = data
    header = start[: len(file.header)]
    if len(header) == len(file.header) and header != file.header:
        if header[:4] != file.header[:4]:
            return f"wrong magic number 0x{header[:4].hex()}, expected 0x{file.header[:4].hex()}"
        sizes = [int.from_bytes(header[k : k + 4], "big") for k in range(4, len(header), 4)]
        return f"its header says {'x'.join(map(str, sizes))}, expected {'x'.join(map(str, file.shape))}"
    if len(data) < size:
        return "the file is cut short"
    return "the file is longer than it should be" if len(data) > size else "the file is damaged"
