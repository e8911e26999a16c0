"""The zip files that torch writes (.pth), checked so strictly that no two readers can see two contents.

The directory is parsed by `zipfile`, which forgives much. What torch writes has one form, and only that one is taken
here: records stored and not compressed, in order, without gaps, each name once, the same in both of its headers.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..registry import not_there
from ..safe_tensors import BadFile

MAX_RECORDS = 200_000
MAX_DIRECTORY_BYTES = 64 * 1024 * 1024
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_BYTES = 20
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_M32 = 0xFFFFFFFF
_SIZES_FOLLOW, _UTF8 = 0x8, 0x800


@dataclass(frozen=True)
class Record:
    """Bytes that lie in a file as they are: where, how many, and their CRC-32 where the file has one."""

    name: str
    begin: int
    size: int
    crc: int | None = None

    def read_into(self, path: Path, file: io.BufferedReader, view: memoryview) -> None:
        """Fill `view`, of exactly this size, from the file `path`, and check the CRC-32. Raises `BadFile`."""
        file.seek(self.begin)
        crc, done = 0, 0
        while done < self.size:
            count = file.readinto(view[done : done + (1 << 24)])
            if not count:
                raise BadFile(path, "was cut while it was read")
            if self.crc is not None:
                crc = zlib.crc32(view[done : done + count], crc)
            done += count
        if self.size and self.crc not in (None, crc):
            raise BadFile(path, f"{self.name} is damaged: its CRC-32 is {crc:08x}, not {self.crc:08x}")


@dataclass(frozen=True)
class Archive:
    """A checked archive; `records` by name without the folder that torch puts around them all."""

    path: Path
    file: io.BufferedReader
    records: dict[str, Record]

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a record of at most `limit` bytes. Raises `BadFile`."""
        record = self.records.get(name)
        if record is None:
            raise BadFile(self.path, f"lacks its record {name}")
        if record.size > limit:
            raise BadFile(self.path, f"{name} holds {record.size} bytes; at most {limit} are read")
        data = bytearray(record.size)
        record.read_into(self.path, self.file, memoryview(data))
        return bytes(data)


def names_in(file: io.BufferedReader) -> list[str]:
    """The names in a zip archive's directory, to tell what kind of file it is; nothing else of it is checked."""
    try:
        return [entry.orig_filename for entry in _directory(Path("?"), file)[0]]
    except BadFile:
        return []


def archive_in(path: Path, file: io.BufferedReader) -> Archive:
    """The checked archive in an open file; `path` is how messages call it. Raises `BadFile`."""
    entries, directory = _directory(path, file)
    records: dict[str, Record] = {}
    root, position = None, 0
    ends = [entry.header_offset for entry in entries[1:]] + [directory]
    summed = any(entry.CRC for entry in entries)  # torch leaves all out under set_crc32_options(False)
    for entry, end in zip(entries, ends, strict=True):
        name = entry.orig_filename
        if entry.header_offset != position:
            raise _bad(path, f"{name[:80]} does not follow the record before it")
        if entry.flag_bits & ~(_SIZES_FOLLOW | _UTF8):
            raise _bad(path, f"{name[:80]} is encrypted or marked in a way that torch does not write")
        if entry.compress_type or entry.compress_size != entry.file_size:
            raise _bad(path, f"{name[:80]} is compressed; torch stores its records as they are")
        folder, _, rest = name.partition("/")
        root = folder if root is None else root
        unsafe = any(part in ("", ".", "..") for part in rest.split("/")) or set(rest) & {"\\", "\0", ":"}
        if folder != root or unsafe:
            raise _bad(path, f"{name[:80]!r} is not a name inside its folder {root[:80]!r}")
        if rest in records:
            raise _bad(path, f"{name[:80]} is there twice")
        begin = _begin(path, file, entry, end)
        records[rest] = Record(rest, begin, entry.file_size, entry.CRC if summed else None)
        position = end
    if not entries:
        raise _bad(path, "it is empty")
    return Archive(path, file, records)


@contextmanager
def open_file(path: str | Path) -> Iterator[io.BufferedReader]:
    """A regular file that the user named, opened for reading; a link that the user named is followed."""
    try:
        descriptor = files.open_regular(os.path.realpath(path))
    except FileNotFoundError:
        raise BadFile(path, not_there(Path(path))) from None
    except OSError as error:
        raise BadFile(path, error.strerror or str(error)) from error
    with os.fdopen(descriptor, "rb") as file:
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


def _bad(path: Path, reason: str) -> BadFile:
    return BadFile(path, f"not a zip archive as torch writes it: {reason}")


def _directory(path: Path, file: io.BufferedReader) -> tuple[list[zipfile.ZipInfo], int]:
    """The records that the directory lists, in the order of their bytes, and where the directory begins."""
    count = _checked_end(path, file)
    try:
        with zipfile.ZipFile(file) as listing:
            entries = sorted(listing.infolist(), key=lambda entry: entry.header_offset)
            directory = listing.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise _bad(path, f"its directory is damaged ({error})") from None
    if len(entries) != count:
        raise _bad(path, f"its directory lists {len(entries)} records and its end claims {count}")
    return entries, directory


def _checked_end(path: Path, file: io.BufferedReader) -> int:
    """How many records the end of the file claims, in a directory of bounded size that lies just before it."""
    size = file.seek(0, os.SEEK_END)
    if size < _END.size:
        raise _bad(path, "it is too short")
    at = size - _END.size
    magic, disk, start_disk, here, count, length, offset, comment = _END.unpack(_bytes_at(path, file, at, _END.size))
    if magic != b"PK\x05\x06" or comment:
        raise _bad(path, "its end is missing: it was cut, or has something after its end")
    if disk or start_disk or here != count:
        raise _bad(path, "it spans several disks")
    at64 = at - _LOCATOR_BYTES - _END64.size
    end64 = _bytes_at(path, file, at64, _END64.size) if at64 >= 0 else b""
    if end64[:4] == b"PK\x06\x06":
        at, (count, length, offset) = at64, _END64.unpack(end64)[-3:]
    if offset + length != at:
        raise _bad(path, "its directory is not where its end says")
    if count > MAX_RECORDS or length > MAX_DIRECTORY_BYTES:
        raise _bad(path, f"{count} records in a directory of {length} bytes are more than are read")
    return int(count)


def _begin(path: Path, file: io.BufferedReader, entry: zipfile.ZipInfo, end: int) -> int:
    """Where a record's bytes begin: its own header agrees with the directory's, and nothing else lies before `end`."""
    name, size, crc, flags = entry.orig_filename, entry.file_size, entry.CRC, entry.flag_bits
    head = _LOCAL.unpack(_bytes_at(path, file, entry.header_offset, _LOCAL.size))
    magic, _, own_flags, method, _, _, own_crc, packed, own_size = head[:9]
    n_name, n_extra = map(int, head[9:])
    own_name = _bytes_at(path, file, entry.header_offset + _LOCAL.size, n_name)
    encoded = name.encode("utf-8" if flags & _UTF8 else "cp437")
    if magic != b"PK\x03\x04" or own_name != encoded or method or own_flags != flags:
        raise _bad(path, f"{name[:80]} is described differently in its two headers")
    later = flags & _SIZES_FOLLOW or not size
    if (own_crc, packed, own_size) not in ((crc, size, size), (crc, _M32, _M32), (0, 0, 0) if later else ()):
        raise _bad(path, f"{name[:80]} has two sizes")
    begin = int(entry.header_offset) + _LOCAL.size + n_name + n_extra
    if begin + size > end:
        raise _bad(path, f"{name[:80]} overlaps what follows it")
    # Between a record and the next lies its data descriptor where its flags say so, and nothing else.
    between = _bytes_at(path, file, begin + size, end - begin - size) if end - begin - size <= 24 else None
    allowed = [b"PK\x07\x08" + struct.pack("<IQQ", crc, size, size)]
    if size < 2**32:
        allowed.append(b"PK\x07\x08" + struct.pack("<III", crc, size, size))
    if between not in (allowed if flags & _SIZES_FOLLOW else [b""]):
        raise _bad(path, f"something unknown lies behind {name[:80]}")
    return begin


def _bytes_at(path: Path, file: io.BufferedReader, offset: int, count: int) -> bytes:
    file.seek(offset)
    data = file.read(count)
    if len(data) != count:
        raise _bad(path, "it was cut, or points outside itself")
    return data
