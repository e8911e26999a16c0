"""The journal of a run, `metrics.jsonl`: one JSON object a line, appended whole; the truth about its numbers.

Everything else that shows a run's numbers (TensorBoard, the report) is made again from this file. A line
that does not end in a newline was never finished and does not count. JSON knows no infinities: they and NaN
are written as the strings "NaN", "Infinity" and "-Infinity", and `read_records` gives them back as floats.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import RunFailed, UsageError

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Journal:
    """Appends records to the file at `path`, one write a record, and knows its size in bytes as `offset`.

    An unfinished last line (the writer was killed in the middle of it) is cut off on opening. Raises
    UsageError if the file cannot be opened, RunFailed if a write fails; a record is in the file whole or
    not at all.

    >>> import tempfile
    >>> journal = Journal(tempfile.mkdtemp() + "/metrics.jsonl")
    >>> journal.append({"kind": "step", "step": 1, "loss": 0.1 + 0.2})
    >>> journal.offset
    57
    >>> journal.close()
    >>> list(read_records(journal.path))
    [{'kind': 'step', 'step': 1, 'loss': 0.30000000000000004}]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UsageError(f"{self.path}: the journal cannot be opened: {error.strerror}") from error
        try:
            self.offset = _end_of_last_line(self._fd)
            if self.offset != os.fstat(self._fd).st_size:
                os.ftruncate(self._fd, self.offset)
        except OSError as error:
            self.close()
            raise UsageError(f"{self.path}: the journal cannot be read: {error.strerror}") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record of plain values; on return the operating system has it (see `sync` for the disk).

        Floats are written so that reading gives the same bits back. Raises TypeError for a value that JSON
        has no form for (a tensor, say: take `.item()` first, where waiting for the device is due).
        """
        line = encode(record)
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a short write: a signal, or the last block of a full disk
                written += os.write(self._fd, line[written:])
        except OSError as error:
            self._cut_back()
            raise RunFailed(
                f"{self.path}: a record could not be written: {error.strerror}; {_advice(error)}"
            ) from error
        self.offset += len(line)

    def truncate(self, offset: int) -> None:
        """Cut the journal back to its first `offset` bytes, durably: what a checkpoint knows of.

        Raises UsageError if the file is shorter than that or `offset` is not the end of a line: then it is
        not the file that the checkpoint was written beside.
        """
        try:
            size = os.fstat(self._fd).st_size
            if size < offset:
                raise UsageError(
                    f"{self.path}: holds {size} bytes, but the checkpoint was written when it held {offset}: "
                    "records were lost; restore the file from a copy, or resume an older checkpoint"
                )
            if offset < 0 or (offset > 0 and os.pread(self._fd, 1, offset - 1) != b"\n"):
                raise UsageError(
                    f"{self.path}: no line ends at byte {offset}, where the checkpoint has one: the file was "
                    "edited or replaced; restore it from a copy, or resume an older checkpoint"
                )
            os.ftruncate(self._fd, offset)
            os.fsync(self._fd)
        except OSError as error:
            raise RunFailed(f"{self.path}: cannot be cut back to {offset} bytes: {error.strerror}") from error
        self.offset = offset

    def sync(self) -> None:
        """Wait until every record so far is on the disk: before a checkpoint that names `offset` is valid."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            # The kernel may have dropped the pages: a second fsync that succeeds would prove nothing.
            raise RunFailed(
                f"{self.path}: the disk did not take the records: {error.strerror}; {_advice(error)}"
            ) from error

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _cut_back(self) -> None:
        """Take half a record out again. If that fails too, the next opening does it."""
        try:
            os.ftruncate(self._fd, self.offset)
        except OSError:
            return


def read_records(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The records of a journal in the order written; an unfinished last line is left out.

    Raises UsageError, with the line's number, for a line that is not a JSON object, and if the file cannot
    be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                yield _decode(path, number, line)
    except OSError as error:
        raise UsageError(f"{path}: the journal cannot be read: {error.strerror}") from error


def encode(record: Mapping[str, Any]) -> bytes:
    r"""The line that stands for `record`, newline included.

    >>> encode({"loss": float("inf"), "lr": [0.1]})
    b'{"loss": "Infinity", "lr": [0.1]}\n'
    """
    try:
        text = json.dumps(record, allow_nan=False)
    except ValueError:
        text = json.dumps(_with_names(record), allow_nan=False)
    return text.encode() + b"\n"


def _with_names(value: Any) -> Any:
    """`value` with each float that JSON cannot hold replaced by its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _with_names(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_names(item) for item in value]
    return value


def _decode(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}:{number}: not a JSON record: {error}; the file was damaged") from error
    if not isinstance(record, dict):
        raise UsageError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
    for key, value in record.items():
        if isinstance(value, str):
            record[key] = _NOT_FINITE.get(value, value)
        elif isinstance(value, list):
            record[key] = [_NOT_FINITE.get(item, item) if isinstance(item, str) else item for item in value]
    return record


def _end_of_last_line(fd: int) -> int:
    """The number of bytes up to and with the last newline."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _advice(error: OSError) -> str:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space, then resume the run"
    return "check the disk, then resume the run"
