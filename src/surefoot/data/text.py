"""A text as tokens: windows with the token that follows each of theirs, all views of one tensor."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy
import torch
from torch import Tensor

from ..arguments import Arguments
from ..errors import UsageError
from ..files import read_bounded
from ..fingerprint import hash_bytes
from ..registry import Range
from ..text import counted
from .sources import TensorSource
from .splits import DataSplits

MAX_FILE_BYTES = 1 << 32
# What a byte is called as a class: itself where it is printable ASCII.
BYTE_NAMES = tuple(chr(byte) if 0x20 <= byte < 0x7F else f"0x{byte:02x}" for byte in range(256))


class TokenWindows(TensorSource):
    """Windows of `tokens` (L,), a window every `stride` tokens: inputs (N, length), targets the same one token later.

    All are views of `tokens`, which stay as small as they are (uint8, int32); those of a batch are int64. `classes`
    are the tokens' names. Raises UsageError for fewer tokens than a window and the token after it.
    """

    batch_dtype = torch.int64

    def __init__(self, tokens: Tensor, length: int, stride: int | None = None, classes: Sequence[str] | None = None):
        if len(tokens) <= length:
            raise UsageError(
                f"{counted(len(tokens), 'token')} are too few: a window of {length} and the token after it need "
                f"{length + 1}; give a longer text or a shorter length"
            )
        self.tokens, self.length, self.stride = tokens, length, length if stride is None else stride
        # Not by TensorSource's constructor: it would make the windows contiguous, which copies the text many times.
        self.tensors = tuple(part.unfold(0, length, self.stride) for part in (tokens[:-1], tokens[1:]))
        self.classes = None if classes is None else tuple(classes)
        self.aside, self._fingerprint = {}, None

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            form = [str(self.tokens.dtype), len(self.tokens), self.length, self.stride, self.classes]
            digest = hashlib.sha256(json.dumps(form).encode())
            hash_bytes(digest, self.tokens)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def text(
    path: str | os.PathLike[str] | Sequence[str] | None = None,
    tokens: Literal["characters", "bytes"] = "characters",
    length: int = 64,
    stride: int | None = None,
    val_share: float = 0.1,
) -> DataSplits:
    """The text of a file, or of several one after another, in windows of `length` tokens, to predict the next token.

    Without a `path` it is the language reference that comes with Python (pydoc's topics, 0.5 MB). A token is a
    character of the UTF-8 file, numbered in Unicode's order among those that occur, or a byte. A training window
    begins every `stride` tokens (by default `length`: each token is a target once). The last `val_share` of the text
    validates, in windows that do not overlap; 0 for no validation. The classes are the tokens.

    Raises UsageError for a path that is no file, a file that is empty or not UTF-8, and a text shorter than a window.
    """
    check = Arguments("data.")
    check.choice("tokens", tokens, ("characters", "bytes"))
    length = check.whole("length", length, low=1)
    stride = check.whole("stride", stride, low=1, none=True)
    val_share = check.number("val_share", val_share, Range(low=0, high=1, high_open=True))
    check.done()
    paths = [path] if isinstance(path, str | os.PathLike) else path
    if paths is not None and not paths:
        raise UsageError("data.path: an empty list; give at least one file")
    as_bytes = tokens == "bytes"
    try:
        if paths is None:
            from pydoc_data.topics import topics

            data = "\n\n".join(topics[name] for name in sorted(topics)).encode()
        else:
            data = b"".join(_read(path, as_bytes) for path in paths)
    except UsageError as error:
        raise UsageError(f"data.path: {error}") from error
    names = BYTE_NAMES if as_bytes else tuple(map(chr, numpy.flatnonzero(numpy.bincount(_code_points(data))).tolist()))
    codes = _numbered(data, names)
    count = len(codes) - round(val_share * len(codes))
    try:
        train = TokenWindows(codes[:count], length, stride, names)
        val = TokenWindows(codes[count:], length, None, names) if val_share else None
    except UsageError as error:
        part = f"of the {counted(len(codes), 'token')}, {count} are to train on and the rest to validate with"
        raise UsageError(f"data.length: {part}: {error}") from error
    return DataSplits(train, val, names, None, {"length": length})


def encoded(path: str | Path, classes: Sequence[str]) -> Tensor:
    """The tokens (L,) of a file by the vocabulary of a model, its `classes`.

    Raises UsageError for a file that cannot be read, and for a character that is none of them.
    """
    return _numbered(_read(path, tuple(classes) == BYTE_NAMES), tuple(classes), path)


def _read(path: str | os.PathLike[str], as_bytes: bool) -> bytes:
    path = Path(path).expanduser()
    if path.is_dir():
        raise UsageError(f"{path} is a directory; give its files, e.g. [{path / 'a.txt'}, ...]")
    try:
        data = read_bounded(path, MAX_FILE_BYTES, follow=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise UsageError(f"{path} is empty; give a file with text")
    try:
        return data if as_bytes else data.decode().encode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}: byte {error.start} (line {line}) is 0x{data[error.start]:02x}, which is not UTF-8; "
            f"convert the file (iconv -f latin1 -t utf-8 {path}), or give tokens: bytes"
        ) from error


def _code_points(data: bytes) -> numpy.ndarray:
    return numpy.frombuffer(data.decode().encode("utf-32-le"), dtype=numpy.uint32)


def _numbered(data: bytes, names: tuple[str, ...], where: str | Path = "") -> Tensor:
    """A text as the numbers of its tokens among `names`, which are all bytes' or characters."""
    if names == BYTE_NAMES:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)
    codes = _code_points(data)
    known = numpy.array(list(map(ord, names)), dtype=numpy.uint32)
    numbers = numpy.full(int(max(known.max(), codes.max())) + 1, -1, dtype=numpy.int32)
    numbers[known] = numpy.arange(len(known))
    if len(unknown := numpy.flatnonzero(numbers[codes] < 0)):
        first = int(unknown[0])
        raise UsageError(
            f"{where}: character {first} is {chr(codes[first])!r}, which is none of the model's {len(names)} tokens; "
            f"{len(unknown)} of {len(codes)} characters are such"
        )
    return torch.from_numpy((numbers.astype(numpy.uint8) if len(names) <= 256 else numbers)[codes])
