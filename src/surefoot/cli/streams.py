"""The command's standard streams: never an exception where nobody reads, and any text in any encoding.

A write that fails (a closed descriptor, a full disk, a reader that has gone) is noted and not raised, so that it never
ends a training; the command says so at its end.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Patient(io.FileIO):
    """A descriptor for writing; `lost` is the first error of a write, which is not raised."""

    lost: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """All of `data` is taken, whether or not the system took it."""
        view = memoryview(data).cast("B")
        rest = view
        while rest.nbytes and self.lost is None:
            try:
                rest = rest[super().write(rest) or 0 :]
            except OSError as error:
                self.lost = error
        return view.nbytes


@contextlib.contextmanager
def patient() -> Iterator[Patient | None]:
    """Put patient streams in place of this process's own, for the time of the block; yields standard output's.

    Yields None where somebody has replaced sys.stdout already (a test, a notebook): it is theirs.
    """
    hold_closed()
    before = sys.stdin, sys.stdout, sys.stderr
    for stream in before[1:]:
        if stream is not None:
            stream.flush()
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    out = err = None
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        out = Patient(1, "w", closefd=False)
        sys.stdout = _text(out, sys.__stdout__)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        err = Patient(2, "w", closefd=False)
        sys.stderr = _text(err, sys.__stderr__)
    try:
        yield out
    finally:
        for mine, stream in ((out, sys.stdout), (err, sys.stderr)):
            if mine is not None and stream is not None:
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def hold_closed() -> None:
    """Give the standard descriptors that the caller closed to /dev/null: no file of a run may get their numbers.

    Standard output is opened such that a write fails, as it would have.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free


def _text(raw: Patient, before: io.TextIOWrapper | None) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    # Whatever a terminal's encoding cannot show is written as Python would write it in a string.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty(), write_through=False
    )
