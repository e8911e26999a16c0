"""Checksums of a file's first bytes, by which one wrong byte is located and corrected."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import durable_fsync

# Looking for the wrong byte takes about 0.2 s a megabyte.
MOST_BYTES = 64 * 1024 * 1024


class Sums:
    """A CRC-32, which locates a wrong byte, and a SHA-256, which confirms the correction.

    >>> sums = Sums()
    >>> sums.add(b"abc")
    >>> sums.plain()["crc32"]
    891568578
    """

    def __init__(self) -> None:
        self._crc, self._sha = 0, hashlib.sha256()

    def add(self, data: bytes) -> None:
        """Add the bytes that follow."""
        self._crc = zlib.crc32(data, self._crc)
        self._sha.update(data)

    def plain(self) -> dict[str, Any]:
        """Both as plain values."""
        return {"crc32": self._crc, "sha256": self._sha.hexdigest()}


def mend(path: Path, size: int, actual: Mapping[str, Any], right: Mapping[str, Any]) -> int | None:
    """Correct the one wrong byte of a file of `size` bytes; returns its place, or None where the damage is another."""
    crc = right.get("crc32")
    if size > MOST_BYTES or type(crc) is not int or not 0 <= crc < 2**32:
        return None
    data = bytearray(path.read_bytes()[:size])
    for place, difference in _single_byte_errors(actual["crc32"] ^ crc, size):
        data[place] ^= difference
        if hashlib.sha256(data).hexdigest() == right.get("sha256"):
            put(path, place, bytes(data[place : place + 1]))
            return place
        data[place] ^= difference
    return None


def put(path: Path, place: int, data: bytes) -> None:
    """Write over some bytes of a file (through a descriptor that does not append)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        os.pwrite(descriptor, data, place)
        durable_fsync(descriptor)
    finally:
        os.close(descriptor)


def crc_table(polynomial: int) -> list[int]:
    """What a CRC of this reversed polynomial makes of each single byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (polynomial if byte & 1 else 0)
        table.append(byte)
    return table


def _single_byte_errors(syndrome: int, size: int) -> Iterator[tuple[int, int]]:
    """Places and differences of one byte that change a CRC-32 by `syndrome`, from the end of the file to its start.

    The CRC is linear: a difference `d` in one byte gives table[d] after that byte, and each byte after it moves
    that on by one step of the register, whatever the byte is. Here the steps are taken back.

    >>> a, b = b"a journal", b"a Journal"
    >>> list(_single_byte_errors(zlib.crc32(a) ^ zlib.crc32(b), len(a))) == [(2, ord("j") ^ ord("J"))]
    True
    """
    table = crc_table(0xEDB88320)
    by_top = [0] * 256
    for index, value in enumerate(table):
        by_top[value >> 24] = index
    for place in range(size - 1, -1, -1):
        index = by_top[syndrome >> 24]
        syndrome = ((syndrome ^ table[index]) << 8 | index) & 0xFFFFFFFF
        if 0 < syndrome < 256:
            yield place, syndrome
