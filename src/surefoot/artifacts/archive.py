"""The zip files that torch writes (.pth, .pt2), parsed so strictly that no two readers can see two contents.

Python's zipfile and torch's own reader differ on unusual archives; a file that the check reads one way and
torch another would pass the check. What torch writes has one form, and only that one is taken: records are
stored and not compressed, in order, without gaps, each name once, the same in both of its headers.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .. import files
from ..safe_tensors import BadFile

MAX_RECORDS = 200_000
MAX_DIRECTORY_BYTES = 64 * 1024 * 1024
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_M16, _M32 = 0xFFFF, 0xFFFFFFFF
_SIZES_FOLLOW, _UTF8 = 0x8, 0x800


@dataclass(frozen=True)
class Record:
    """One stored record: where its bytes lie in the file, and their CRC-32."""

    name: str
    begin: int
    size: int
    crc: int


@dataclass(frozen=True)
class Archive:
    """A checked archive; `records` by name without the folder that torch puts around them all."""

    path: Path
    file: BinaryIO
    records: dict[str, Record]

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a record of at most `limit` bytes. Raises `BadFile`."""
        record = self.records.get(name)
        if record is None:
            raise BadFile(self.path, f"lacks its record {name}")
        if record.size > limit:
            raise BadFile(self.path, f"{name} holds {record.size} bytes; at most {limit} are read")
        data = bytearray(record.size)
        self.read_into(record, memoryview(data))
        return bytes(data)

    def read_into(self, record: Record, view: memoryview) -> None:
        """Fill `view` (of exactly the record's size) and check the CRC-32. Raises `BadFile`."""
        if not record.size:
            return
        self.file.seek(record.begin)
        crc, done = 0, 0
        while done < record.size:
            count = self.file.readinto(view[done : done + (1 << 24)])
            if not count:
                raise BadFile(self.path, "was cut while it was read")
            crc = zlib.crc32(view[done : done + count], crc)
            done += count
        self._compare(record, crc)

    def _compare(self, record: Record, crc: int) -> None:
        if crc != record.crc:
            raise BadFile(self.path, f"{record.name} is damaged: its CRC-32 is {crc:08x}, not {record.crc:08x}")


def names_in(file: BinaryIO) -> list[str]:
    """The names in a zip archive's directory, to tell what kind of file it is; nothing else of it is checked."""
    try:
        reader = _Reader(Path("?"), file)
        count, directory, size = _end(reader)
        if count > MAX_RECORDS or size > MAX_DIRECTORY_BYTES:
            return []
        data, at, names = reader.at(directory, size), 0, []
        for _ in range(count):
            head = _CENTRAL.unpack_from(data, at)
            at += _CENTRAL.size
            names.append(data[at : at + head[10]].decode("utf-8", "replace"))
            at += sum(head[10:13])
        return names
    except (BadFile, struct.error):
        return []


def archive_in(path: Path, file: BinaryIO) -> Archive:
    """The checked archive in an open file; `path` is how messages call it. Raises `BadFile`."""
    return Archive(path, file, _records(path, file))


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file that the user named, opened for reading; a link that the user named is followed."""
    try:
        descriptor = files.open_regular(os.path.realpath(path))
    except FileNotFoundError:
        raise BadFile(path, "does not exist") from None
    except OSError as error:
        raise BadFile(path, error.strerror or str(error)) from error
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield file


def read_whole(path: str | Path, limit: int) -> bytes:
    """The bytes of a regular file that the user named, if they are at most `limit`. Raises `BadFile`."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise BadFile(path, f"holds {size} bytes; at most {limit} are read")
        data = file.read(size + 1)
        if len(data) != size:
            raise BadFile(path, "was cut or grew while it was read")
    return data


class _Reader:
    """Exact reads with one kind of error."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.size = file.seek(0, os.SEEK_END)

    def at(self, offset: int, count: int) -> bytes:
        if offset < 0 or offset + count > self.size:
            raise self.bad("it was cut, or points outside itself")
        self.file.seek(offset)
        data = bytearray()
        while len(data) < count:
            piece = self.file.read(count - len(data))
            if not piece:
                raise self.bad("it was cut while it was read")
            data += piece
        return bytes(data)

    def bad(self, reason: str) -> BadFile:
        return BadFile(self.path, f"not a zip archive as torch writes it: {reason}")


def _records(path: Path, file: BinaryIO) -> dict[str, Record]:
    reader = _Reader(path, file)
    count, directory, directory_size = _end(reader)
    if count > MAX_RECORDS or directory_size > MAX_DIRECTORY_BYTES:
        raise reader.bad(f"{count} records in a directory of {directory_size} bytes are more than are read")
    entries = _central(reader, reader.at(directory, directory_size), count)
    records: dict[str, Record] = {}
    root = None
    position = 0
    for index, (name, offset, size, crc, flags) in enumerate(entries):
        following = entries[index + 1][1] if index + 1 < len(entries) else directory
        if offset != position:
            raise reader.bad(f"{name} does not follow the record before it")
        begin = _local(reader, name, offset, size, crc, flags)
        if begin + size > following:
            raise reader.bad(f"{name} overlaps what follows it")
        _gap(reader, name, begin + size, following, size, crc, flags)
        position = following
        folder, _, rest = name.partition("/")
        root = folder if root is None else root
        if folder != root or not _safe(rest):
            raise reader.bad(f"{name[:80]!r} is not a name inside its folder {root[:80]!r}")
        if rest in records:
            raise reader.bad(f"{name} is there twice")
        records[rest] = Record(rest, begin, size, crc)
    if not entries:
        raise reader.bad("it is empty")
    return records


def _end(reader: _Reader) -> tuple[int, int, int]:
    """Count of records, offset and size of the central directory."""
    if reader.size < _END.size:
        raise reader.bad("it is too short")
    if reader.at(0, 4) != b"PK\x03\x04":
        raise reader.bad("it does not begin with a record")
    end_at = reader.size - _END.size
    magic, disk, start_disk, here, count, size, offset, comment = _END.unpack(reader.at(end_at, _END.size))
    if magic != b"PK\x05\x06" or comment:
        raise reader.bad("its end is missing: it was cut, or has something after its end")
    if disk or start_disk or here != count:
        raise reader.bad("it spans several disks")
    directory_end = end_at
    locator_at = end_at - _LOCATOR.size
    if locator_at >= 0 and reader.at(locator_at, 4) == b"PK\x06\x07":
        _, disk, end64_at, disks = _LOCATOR.unpack(reader.at(locator_at, _LOCATOR.size))
        if disk or disks != 1 or end64_at != locator_at - _END64.size:
            raise reader.bad("its zip64 end is not where it should be")
        magic, length, _, _, disk, start_disk, here64, count64, size64, offset64 = _END64.unpack(
            reader.at(end64_at, _END64.size)
        )
        if magic != b"PK\x06\x06" or length != _END64.size - 12 or disk or start_disk or here64 != count64:
            raise reader.bad("its zip64 end is damaged")
        short_and_long = ((count, count64, _M16), (size, size64, _M32), (offset, offset64, _M32))
        if any(short not in (long, mark) for short, long, mark in short_and_long):
            raise reader.bad("its two ends tell two stories")
        count, size, offset, directory_end = count64, size64, offset64, end64_at
    if offset + size != directory_end:
        raise reader.bad("its directory is not where its end says")
    return count, offset, size


def _central(reader: _Reader, data: bytes, count: int) -> list[tuple[str, int, int, int, int]]:
    entries = []
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(data):
            raise reader.bad("its directory is too short")
        head = _CENTRAL.unpack_from(data, at)
        magic, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, disk = head[:14]
        offset = head[16]
        at += _CENTRAL.size
        if magic != b"PK\x01\x02" or at + n_name + n_extra + n_comment > len(data) or disk:
            raise reader.bad("its directory is damaged")
        try:
            name = data[at : at + n_name].decode("utf-8")
        except UnicodeDecodeError:
            raise reader.bad("a name is not UTF-8") from None
        extra = data[at + n_name : at + n_name + n_extra]
        at += n_name + n_extra + n_comment
        size, packed, offset = _long_numbers(reader, name, extra, size, packed, offset)
        if flags & ~(_SIZES_FOLLOW | _UTF8):
            raise reader.bad(f"{name[:80]} is encrypted or marked in a way that torch does not write")
        if method or packed != size:
            raise reader.bad(f"{name[:80]} is compressed; torch stores its records as they are")
        entries.append((name, offset, size, crc, flags))
    if at != len(data):
        raise reader.bad("its directory holds more than its records")
    return sorted(entries, key=lambda entry: entry[1])


def _long_numbers(reader: _Reader, name: str, extra: bytes, *numbers: int) -> list[int]:
    """Size, packed size and offset, taken from the zip64 field where 32 bits did not hold them."""
    long: list[int] = []
    at = 0
    while at < len(extra):
        if at + 4 > len(extra):
            raise reader.bad(f"the extra field of {name[:80]} is damaged")
        kind, length = struct.unpack_from("<HH", extra, at)
        at += 4
        if at + length > len(extra):
            raise reader.bad(f"the extra field of {name[:80]} is damaged")
        if kind == 1:
            if long or length % 8:
                raise reader.bad(f"the zip64 field of {name[:80]} is damaged")
            long = list(struct.unpack_from(f"<{length // 8}Q", extra, at))
        at += length
    if len(long) != numbers.count(_M32):
        raise reader.bad(f"the zip64 field of {name[:80]} does not go with its sizes")
    return [long.pop(0) if number == _M32 else number for number in numbers]


def _local(reader: _Reader, name: str, offset: int, size: int, crc: int, flags: int) -> int:
    """Compare a record's own header with the directory's; returns where its bytes begin."""
    head = _LOCAL.unpack(reader.at(offset, _LOCAL.size))
    magic, _, own_flags, method, _, _, own_crc, packed, own_size, n_name, n_extra = head
    own_name = reader.at(offset + _LOCAL.size, n_name)
    if magic != b"PK\x03\x04" or own_name != name.encode() or method or own_flags != flags:
        raise reader.bad(f"{name[:80]} is told differently in its two headers")
    told = (own_crc, packed, own_size)
    if told not in ((0, 0, 0), (crc, size, size), (crc, _M32, _M32)):
        raise reader.bad(f"{name[:80]} has two sizes")
    if told == (0, 0, 0) and size and not flags & _SIZES_FOLLOW:
        raise reader.bad(f"{name[:80]} has two sizes")
    return offset + _LOCAL.size + n_name + n_extra


def _gap(reader: _Reader, name: str, begin: int, end: int, size: int, crc: int, flags: int) -> None:
    """Between a record and the next lies its data descriptor where its flags say so, and nothing else."""
    found = reader.at(begin, end - begin) if end - begin <= 24 else None
    allowed = [b"PK\x07\x08" + struct.pack("<IQQ", crc, size, size)]
    if size < 2**32:
        allowed.append(b"PK\x07\x08" + struct.pack("<III", crc, size, size))
    if found not in (allowed if flags & _SIZES_FOLLOW else [b""]):
        raise reader.bad(f"something unknown lies behind {name[:80]}")


def _safe(name: str) -> bool:
    parts = name.split("/")
    return all(part not in ("", ".", "..") for part in parts) and not set(name) & {"\\", "\0", ":"}
