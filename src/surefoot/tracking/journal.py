"""The journal of a run, `metrics.jsonl`: one JSON object a line, appended whole; the source of all its numbers.

Everything else that shows a run's numbers (TensorBoard, the report) is made again from this file. A line
that does not end in a newline was never finished and does not count. JSON knows no infinities: they and NaN
are written as the strings "NaN", "Infinity" and "-Infinity", and `read_records` gives them back as floats.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from json.scanner import make_scanner
from pathlib import Path
from typing import Any, cast

from .. import files
from ..errors import RunFailed, UsageError
from .mending import Sums, mend

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
NOT_METRICS = frozenset({"kind", "split", "epoch", "step", "lr", "wall_s"})
# Whole numbers from here on no float holds; JSON has them, and so may a journal of somebody's making.
OUT_OF_RANGE = 2**1023
_MOST_SECONDS = 1e15
_DECODER = json.JSONDecoder()
_scan = make_scanner(cast(Any, _DECODER))
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class JournalFile:
    """Appends records to the file at `path`, one write a record, and knows its size in bytes as `offset`.

    An unfinished last line (the writer was killed in the middle of it) does not count and is cut off by the first
    write. Raises UsageError if the file cannot be opened, RunFailed if a write fails; a record is in the file
    whole or not at all.

    >>> import tempfile
    >>> journal = JournalFile(tempfile.mkdtemp() + "/metrics.jsonl")
    >>> journal.append({"kind": "step", "step": 1, "loss": 0.1 + 0.2})
    >>> journal.offset
    57
    >>> journal.close()
    >>> list(read_records(journal.path))
    [{'kind': 'step', 'step': 1, 'loss': 0.30000000000000004}]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._writing = threading.Lock()  # a save in the background calls `sync` while training appends
        try:
            self._fd = os.open(self.path, _FLAGS | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(f"{self.path}: the journal cannot be opened: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OSError(errno.EINVAL, "Not a regular file")
            self.offset = end_of_last_line(self._fd)
            self._torn = self.offset != os.fstat(self._fd).st_size
        except OSError as error:
            self.close()
            raise UsageError(f"{self.path}: the journal cannot be read: {error.strerror}") from error
        # Checksums of the first `_summed` bytes; what was there before is read once, when it is first asked for.
        self._sums, self._summed = Sums(), 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record of plain values; on return the operating system has it (see `sync` for the disk).

        Floats are written so that reading gives the same bits back. Raises TypeError for a value that JSON
        has no form for (a tensor, say: take `.item()` first, where waiting for the device is due).
        """
        line = encode(record)
        try:
            with self._writing:
                if self._torn:
                    os.ftruncate(self._fd, self.offset)
                    self._torn = False
                left = line
                while left:  # a short write: a signal, or the last block of a full disk
                    left = left[os.write(self._fd, left) :]
        except OSError as error:
            self._cut_back()
            raise RunFailed(
                f"{self.path}: a record could not be written: {error.strerror}; {_advice(error)}", code="cannot-write"
            ) from error
        if self._summed == self.offset:
            self._sums.add(line)
            self._summed += len(line)
        self.offset += len(line)

    def marks(self) -> dict[str, Any]:
        """Checksums of all records so far, as plain values, for `truncate`."""
        self._sum_to(self.offset)
        return self._sums.plain()

    def truncate(self, offset: int, marks: Mapping[str, Any] | None = None) -> tuple[list[str], list[str]]:
        """Cut the journal back to its first `offset` bytes, durably: what a checkpoint knows of.

        With the `marks` of these bytes, damage is detected: one wrong byte is mended; more stays, and the lines that
        are no records are named. Returns messages of what was mended, and of what is damaged. Raises UsageError if the
        file is shorter than that or `offset` is not the end of a line: then it is not the file that the checkpoint was
        written beside.
        """
        mended: list[str] = []
        damaged: list[str] = []
        try:
            size = os.fstat(self._fd).st_size
            if size < offset:
                raise UsageError(
                    f"{self.path}: holds {size} bytes, but the checkpoint was written when it held {offset}: "
                    "records were lost; restore the file from a copy, or resume an older checkpoint"
                )
            self._sums, self._summed = Sums(), 0
            self._sum_to(max(offset, 0))
            holds = not marks or self._sums.plain() == marks
            if marks and not holds and (place := mend(self.path, offset, self._sums.plain(), marks)) is not None:
                mended.append(f"{self.path}: byte {place} was damaged and is mended: its checksum holds again")
                self._sums, self._summed = Sums(), 0
                self._sum_to(offset)
                holds = True
            if offset < 0 or (offset > 0 and os.pread(self._fd, 1, offset - 1) != b"\n"):
                raise UsageError(
                    f"{self.path}: no line ends at byte {offset}, where the checkpoint has one: the file was "
                    "edited or replaced; restore it from a copy, or resume an older checkpoint"
                )
            os.ftruncate(self._fd, offset)
            self._torn = False
            if not holds:
                damaged = self._broken()
            files.durable_fsync(self._fd)
        except OSError as error:
            raise RunFailed(
                f"{self.path}: cannot be cut back to {offset} bytes: {error.strerror}", code="cannot-write"
            ) from error
        self.offset = offset
        return mended, damaged

    def _broken(self) -> list[str]:
        """Messages about a journal whose checksum does not match and that cannot be mended."""
        lines: list[str] = []
        for _ in run_records(self.path, lines.append):
            pass
        return lines or [f"{self.path}: its checksum does not hold: a number in it may be wrong"]

    def _sum_to(self, offset: int) -> None:
        while self._summed < offset:
            piece = os.pread(self._fd, min(1 << 20, offset - self._summed), self._summed)
            if not piece:
                raise OSError(errno.EIO, "the file became shorter while it was read")
            self._sums.add(piece)
            self._summed += len(piece)

    def sync(self) -> None:
        """Wait until every record so far is on the disk: before a checkpoint that names `offset` is valid.

        A file that was removed meanwhile is made again.
        """
        try:
            with self._writing:
                if not self._there():
                    self._make_again()
            files.durable_fsync(self._fd)
        except OSError as error:
            # The kernel may have dropped the pages: a second fsync that succeeds would prove nothing.
            raise RunFailed(
                f"{self.path}: the disk did not take the records: {error.strerror}; {_advice(error)}",
                code="cannot-write",
            ) from error

    def _there(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _make_again(self) -> None:
        """Write the records to a new file: the old one has no name any more."""
        pieces = (os.pread(self._fd, 1 << 20, start) for start in range(0, os.fstat(self._fd).st_size, 1 << 20))
        files.replace_durably(self.path, pieces)
        new = os.open(self.path, _FLAGS)
        os.dup2(new, self._fd, inheritable=False)  # under the same number: another thread may be using it
        os.close(new)

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> JournalFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _cut_back(self) -> None:
        """Take half a record out again. If that fails too, the next writing does it."""
        self._torn = True
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.offset)
            self._torn = False


def read_records(
    path: str | os.PathLike[str],
    *,
    start: int = 0,
    damaged: Callable[[str], None] | None = None,
    only: bytes = b"",
    end: int | None = None,
) -> Iterator[dict[str, Any]]:
    """The records of the journal at `path` in the order written; an unfinished last line is left out.

    `start` is a byte at which a line begins, and `end` one after which no line is read. Lines without the bytes `only`
    are passed over unread. Raises UsageError, with the line's number, for a line that is not a JSON object, or calls
    `damaged` with the message and continues; and if the file cannot be read.
    """
    path = Path(path)
    try:
        with os.fdopen(files.open_regular(path), "rb") as file:
            file.seek(start)
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                if end is not None and (start := start + len(line)) > end:
                    return
                if only not in line:
                    continue
                try:
                    record = _decode(path, number, line)
                except UsageError as error:
                    if damaged is None:
                        raise
                    damaged(str(error))
                    continue
                yield record
    except OSError as error:
        raise UsageError(f"{path}: the journal cannot be read: {error.strerror}") from error


def run_records(
    path: str | os.PathLike[str],
    damaged: Callable[[str], None],
    *,
    start: int = 0,
    only: bytes = b"",
    end: int | None = None,
) -> Iterator[dict[str, Any]]:
    """`read_records` of a run: a line that is no record of a run is skipped, with a message to `damaged`."""
    number = 0

    def counted(message: str) -> None:
        nonlocal number
        number += 1
        damaged(message)

    begins_at_first_line = not start and not only
    for record in read_records(path, start=start, damaged=counted, only=only, end=end):
        number += 1
        if reason := not_a_record(record):
            where = f":{number}" if begins_at_first_line else ""
            damaged(f"{path}{where}: {reason}")
        else:
            yield record


def not_a_record(record: Mapping[str, Any]) -> str:
    """Why a JSON object is no record of a run; an empty text for one that is. Unknown fields are welcome.

    >>> not_a_record({"kind": "step", "split": "train", "epoch": 0, "step": 1})
    ''
    >>> not_a_record({"split": "val", "epoch": 0, "step": 1})
    "lacks 'kind', which is step or epoch"
    """
    get = record.get  # of every record of a run: nothing here makes an object
    if get("kind") not in ("step", "epoch"):
        return "lacks 'kind', which is step or epoch"
    if type(get("split")) is not str:
        return "lacks 'split', which is train or val"
    epoch, step, wall_s, rates = get("epoch"), get("step"), get("wall_s", 0.0), get("lr", ())
    if type(epoch) is not int or not 0 <= epoch < 2**63:
        return "lacks 'epoch', a whole number of 0 or more"
    if type(step) is not int or not 0 <= step < 2**63:
        return "lacks 'step', a whole number of 0 or more"
    if type(wall_s) not in (int, float) or not abs(wall_s) < _MOST_SECONDS:
        return "'wall_s' is no number of seconds"
    if rates != () and type(rates) is not list:
        return "'lr' is no list of numbers"
    for rate in rates:
        if type(rate) is not float and (type(rate) is not int or abs(rate) >= OUT_OF_RANGE):
            return "'lr' is no list of numbers"
    return ""


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a record by name: loss, accuracy and whatever else is a number that a float holds.

    >>> metrics_of({"kind": "epoch", "split": "val", "epoch": 0, "step": 9, "lr": [0.1], "loss": 0.5, "note": "x"})
    {'loss': 0.5}
    """
    return {
        key: value
        for key, value in record.items()
        if key not in NOT_METRICS
        and (isinstance(value, float) or (isinstance(value, int) and abs(value) < OUT_OF_RANGE))
    }


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
        text = line.decode()
        # `decode` would look for blanks at both ends, of which our lines have none.
        try:
            record, end = _scan(text, 0)
        except StopIteration:
            record, end = None, -1
        if end != len(text) - 1:
            record = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}:{number}: not a JSON record: {error}; the file was damaged") from error
    if not isinstance(record, dict):
        raise UsageError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
    if b'NaN"' in line or b'Infinity"' in line:
        for key, value in record.items():
            if isinstance(value, str):
                record[key] = _NOT_FINITE.get(value, value)
            elif isinstance(value, list):
                record[key] = [_NOT_FINITE.get(item, item) if isinstance(item, str) else item for item in value]
    return record


def end_of_last_line(fd: int) -> int:
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
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space, then resume the run"
    return "check the disk, then resume the run"
