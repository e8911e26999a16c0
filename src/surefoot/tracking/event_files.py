"""TensorBoard's event files in one directory: appended to, cut back to a mark, checked before they are kept."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import files
from ..errors import RunFailed, UsageError
from .mending import crc_table


class EventFiles:
    """Appends framed events; a new file for each process, since TensorBoard never returns to an earlier one.

    `started` (seconds since 1970) is the start of the run; by default the time in the first file's name, or now.
    `first` are serialized events that stand at the start of each file. Raises UsageError if the directory
    cannot be made, RunFailed if a write fails.
    """

    def __init__(self, directory: Path, *, started: float | None = None, first: tuple[Any, ...] = ()):
        self.directory = directory
        self._first = first
        self._fd = -1
        self._bytes, self._crc = 0, 0
        self._opens_at = 0
        try:
            if directory.is_symlink():
                raise OSError(errno.ELOOP, "it is a symbolic link")
            directory.mkdir(parents=True, exist_ok=True)
            earlier = min(map(_started_of, self._paths()), default=0)
        except OSError as error:
            raise UsageError(f"{directory}: cannot be made: {error.strerror}") from error
        self.started = started if started is not None else earlier or time.time()

    def append(self, frames: bytes) -> None:
        """Write whole frames; the operating system has them on return."""
        if self._fd < 0:
            self._open()
        left = frames
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise RunFailed(
                f"{self.directory}: events could not be written: {error.strerror}; "
                "make room (or set tensorboard: false), then resume the run"
            ) from error
        self._bytes += len(frames)
        self._crc = zlib.crc32(frames, self._crc)

    def mark(self) -> list[int]:
        """This place: the bytes so far, over all files in order, and their CRC-32."""
        return [self._bytes, self._crc]

    def begin(self) -> None:
        """Open a file where none is open, so that a mark stands behind its opening events."""
        if self._fd < 0:
            self._open()

    def cut(self, begin: Any, end: Any, step: int) -> bool:
        """Keep what stood there at the mark `end`, if all of it is whole; False, and untouched, if not.

        What stands between the marks `begin` and `end` is written anew, into the next file: an event before it makes a
        TensorBoard that watches, or reads later, drop the points from `step` on that it has read.
        """
        if not (_is_mark(begin) and _is_mark(end)):
            return False  # not written here
        paths = self._paths()
        sizes, head, tail, crc = [0] * len(paths), begin[0], bytearray(), 0
        try:
            for number, piece in _pieces(paths, end[0]):
                kept = piece[:head]
                sizes[number] += len(kept)
                head -= len(kept)
                tail += piece[len(kept) :]
                crc = zlib.crc32(piece, crc)
        except OSError:
            return False
        if head or begin[0] + len(tail) != end[0] or not crc == end[1] == zlib.crc32(tail, begin[1]):
            return False
        self._begin_after(paths, sizes, step)
        self._bytes, self._crc = begin
        if tail:  # it may begin with what a cut before this one wrote at its start
            self.append(bytes(tail).removeprefix(self._opening()))
        return True

    def restart(self) -> None:
        """Drop all events: they are written again."""
        paths = self._paths()
        self._begin_after(paths, [0] * len(paths), 0)
        self._bytes, self._crc = 0, 0

    def close(self) -> None:
        """Close the event file; a later `append` opens a new one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _paths(self) -> list[Path]:
        # Not those of other writers, which are theirs.
        return sorted(self.directory.glob("events.out.tfevents.*.surefoot.*"))

    def _begin_after(self, paths: list[Path], sizes: list[int], step: int) -> None:
        self.close()
        self._opens_at = step
        try:
            for path, size in zip(paths, sizes, strict=True):
                if not size and path != paths[-1]:
                    path.unlink()
                else:
                    # The newest is emptied, not removed: a TensorBoard that reads it would never go on to the next.
                    _cut_file(path, size)
        except OSError as error:
            raise RunFailed(f"{self.directory}: old events cannot be removed: {error.strerror}") from error

    def _open(self) -> None:
        number = max((_number_of(path) + 1 for path in self._paths()), default=0)
        path = self.directory / f"events.out.tfevents.{int(self.started):010d}.surefoot.{number:06d}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise RunFailed(f"{path}: events cannot be written: {error.strerror}") from error
        self.append(self._opening())

    def _opening(self) -> bytes:
        """The start of a file: version, and a START at which a TensorBoard drops points of that step and later."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        events = [
            Event(wall_time=self.started, file_version="brain.Event:2"),
            Event(wall_time=self.started, step=self._opens_at, session_log=start),
        ]
        # A layout has step 0: in a later file it would stand behind later steps.
        events += self._first if not self._bytes else ()
        return b"".join(framed(event.SerializeToString()) for event in events)


def _is_mark(mark: Any) -> bool:
    return isinstance(mark, list) and len(mark) == 2 and all(type(n) is int and n >= 0 for n in mark)


def _pieces(paths: list[Path], left: int) -> Iterator[tuple[int, bytes]]:
    """The first `left` bytes of the files, one file after the other, each piece with the number of its file."""
    for number, path in enumerate(paths):
        with os.fdopen(files.open_regular(path), "rb", buffering=0) as file:
            while left and (piece := file.read(min(left, 1 << 20))):
                yield number, piece
                left -= len(piece)


def _cut_file(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    with contextlib.closing(os.fdopen(descriptor, "wb", buffering=0)) as file:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(file.fileno(), size)


def _number_of(path: Path) -> int:
    """The running number at the end of an event file's name; 0 where it has none."""
    last = path.name.rpartition(".")[2]
    return int(last) if last.isdigit() else 0


def _started_of(path: Path) -> float:
    """The seconds since 1970 in an event file's name; 0 if it holds none."""
    parts = path.name.split(".")
    return float(parts[3]) if len(parts) > 3 and parts[3].isdigit() else 0.0


def framed(data: bytes) -> bytes:
    """`data` as one record of a TFRecord file: length, its checksum, data, its checksum (little endian)."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


_CRC_TABLE = tuple(crc_table(0x82F63B78))


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of `data`, RFC 3720 B.4.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
