"""TensorBoard's event files, made from the journal's records: one run, one point a tag and step.

| record | tags | x |
|---|---|---|
| epoch, train | `loss/train`, `accuracy/train`, ... (means over the epoch's samples) | updates done |
| epoch, val | `loss/val`, `accuracy/val`, ... | updates done |
| step, train | `loss/train_step`, ... and `lr/0`, `lr/1`, ... (one a param group) | updates done |

So no tag mixes means over an epoch with those over a few steps, and "Training vs. Validation Loss" (a
custom scalars chart) draws `loss/train` against `loss/val` without the sub-runs that `add_scalars` would
make. An epoch's train record adds its `lr` only where no step record has given one for that step.

Events are written with TensorBoard's own protobufs; its writers are not used because importing them (or
torch.utils.tensorboard) costs 0.2 to 1.3 s and a thread, and a run is to begin at once.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import RunFailed, UsageError

CHART = "Training vs. Validation Loss"
_NOT_SERIES = frozenset({"kind", "split", "epoch", "step", "lr", "wall_s"})


class TensorBoard:
    """Writes the records of one run as TensorBoard events under `directory`.

    `started` (seconds since 1970) is the run's beginning: an event's time is `started` plus its record's
    `wall_s`. Left out, it is what the first event file in `directory` says, or now. Every record reaches
    the operating system at once, so nothing is lost with the process. Raises UsageError if the directory
    cannot be made, RunFailed if a write fails.

    >>> import tempfile
    >>> board = TensorBoard(tempfile.mkdtemp())
    >>> board.write({"kind": "epoch", "split": "val", "epoch": 0, "step": 90, "loss": 0.7, "wall_s": 2.5})
    >>> board.close()
    """

    def __init__(self, directory: str | os.PathLike[str], *, started: float | None = None):
        self.directory = Path(directory)
        self._fd = -1
        self._lr_step = -1
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            earlier = min(map(_started_of, self._event_files()), default=0)
        except OSError as error:
            raise UsageError(f"{self.directory}: cannot be made: {error.strerror}") from error
        self._started = started if started is not None else earlier or time.time()

    def write(self, record: Mapping[str, Any]) -> None:
        """Add the points of one record of the journal."""
        self._append(self._frame_of(record))

    def rebuild(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Start over with `records`: what a resumed run does, so that no point appears twice."""
        self.close()
        try:
            *older, newest = [None, *self._event_files()]
            for path in filter(None, older):
                path.unlink()
            if newest is not None:
                # Emptied, not removed: a TensorBoard that is reading it would never go on to the next file.
                os.truncate(newest, 0)
        except OSError as error:
            raise RunFailed(f"{self.directory}: old events cannot be removed: {error.strerror}") from error
        self._lr_step = -1
        self._open()
        frames: list[bytes] = []
        for record in records:
            frames.append(self._frame_of(record))
            if len(frames) == 4096:
                self._append(b"".join(frames))
                frames.clear()
        self._append(b"".join(frames))

    def flush(self) -> None:
        """Wait until the events are on the disk. Never needed for exactness: they can be made again."""
        if self._fd >= 0:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise RunFailed(f"{self.directory}: events could not be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the event file; a later `write` goes on in a new one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _event_files(self) -> list[Path]:
        return sorted(self.directory.glob("events.out.tfevents.*"))

    def _open(self) -> None:
        number = max((_number_of(path) + 1 for path in self._event_files()), default=0)
        # TensorBoard reads files in the order of their names and never returns to an earlier one.
        path = self.directory / f"events.out.tfevents.{int(self._started):010d}.surefoot.{number:06d}"
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise RunFailed(f"{path}: events cannot be written: {error.strerror}") from error
        self._append(_opening(self._started))

    def _append(self, data: bytes) -> None:
        if self._fd < 0:
            self._open()
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise RunFailed(
                f"{self.directory}: events could not be written: {error.strerror}; "
                "make room (or set tensorboard: false), then resume the run"
            ) from error

    def _frame_of(self, record: Mapping[str, Any]) -> bytes:
        """One framed event that holds every point of `record`; nothing for a record without points."""
        from tensorboard.compat.proto.event_pb2 import Event

        step = int(record["step"])
        event = Event(wall_time=self._started + float(record.get("wall_s", 0.0)), step=step)
        split, per_step = record["split"], record["kind"] == "step"
        for key, value in record.items():
            if key not in _NOT_SERIES and isinstance(value, (int, float)):
                tag = f"{key}/{split}_step" if per_step else f"{key}/{split}"
                event.summary.value.add(tag=tag, simple_value=value)
        if split == "train" and step > self._lr_step and "lr" in record:
            self._lr_step = step
            for index, rate in enumerate(record["lr"]):
                event.summary.value.add(tag=f"lr/{index}", simple_value=rate)
        return _framed(event.SerializeToString()) if event.summary.value else b""


def _number_of(path: Path) -> int:
    """The running number at the end of an event file's name; 0 for files of other writers."""
    last = path.name.rpartition(".")[2]
    return int(last) if last.isdigit() else 0


def _started_of(path: Path) -> float:
    """The seconds since 1970 in an event file's name; 0 if it holds none."""
    parts = path.name.split(".")
    return float(parts[3]) if len(parts) > 3 and parts[3].isdigit() else 0.0


def _opening(wall_time: float) -> bytes:
    """What a file begins with: version, a START at which a watching TensorBoard drops older points, chart."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    layout = Layout()
    chart = layout.category.add(title="loss").chart.add(title=CHART)
    chart.multiline.tag.extend([r"^loss/train$", r"^loss/val$"])
    charts = Event(wall_time=wall_time, step=0)
    value = charts.summary.value.add(tag="custom_scalars__config__")
    value.metadata.plugin_data.plugin_name = "custom_scalars"
    value.tensor.dtype = DT_STRING
    value.tensor.string_val.append(layout.SerializeToString())
    events = (
        Event(wall_time=wall_time, file_version="brain.Event:2"),
        Event(wall_time=wall_time, step=0, session_log=SessionLog(status=SessionLog.START)),
        charts,
    )
    return b"".join(_framed(event.SerializeToString()) for event in events)


def _framed(data: bytes) -> bytes:
    """`data` as one record of a TFRecord file: length, its checksum, data, its checksum (little endian)."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC_TABLE = _crc_table()


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
