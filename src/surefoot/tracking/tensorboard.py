"""TensorBoard's points, made from the journal's records: one run, one point a tag and step.

| record | tags | x |
|---|---|---|
| epoch, train | `loss/train`, `accuracy/train`, ... (means over the epoch's samples) | updates done |
| epoch, val | `loss/val`, `accuracy/val`, ... | updates done |
| step, train | `loss/train_step`, ..., `lr/0`, ... (one a param group), at times `steps_per_s/train` | updates done |

So no tag mixes means over an epoch with those over a few steps, and "Training vs. Validation Loss" (a
custom scalars chart) draws `loss/train` against `loss/val` without the sub-runs that `add_scalars` would
make; `together` makes them. An epoch's train record adds its `lr` only where no step record has it. Histograms,
pictures and settings stand in the events only: they are lost where these are written again from the records.

Events are written with TensorBoard's own protobufs; its writers are not used because importing them (or
torch.utils.tensorboard) takes 0.2 to 1.3 s and a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .event_files import EventFiles, framed
from .histograms import Histogram
from .journal import metrics_of

if TYPE_CHECKING:
    from .wrong_pictures import Captioned

CHART, SPEED = "Training vs. Validation Loss", "steps_per_s/train"
WRONG = "wrong answers"
_MOST_SETTINGS, _LONGEST_SETTING = 200, 200
_RECORDS_TIMED = 10
_SUCCESS, _DT_FLOAT, _RGB = 1, 1, 3  # of TensorBoard's protobufs
_SUB_RUNS = {"train": "Training", "val": "Validation"}


class TensorBoard:
    """Writes the records of one run as TensorBoard events under `directory`.

    `started` (seconds since 1970) is the start of the run: an event's time is `started` plus its record's
    `wall_s`. The default is the time in the name of the first event file in `directory`, or now. Every record reaches
    the operating system at once, so nothing is lost with the process. With `together` the mean losses of both splits
    are written once more under one tag, as two sub-runs `Training` and `Validation`: one chart of the Scalars tab,
    by epoch counted from 1, as `add_scalars` makes it. Raises UsageError if the directory cannot be made, RunFailed
    if a write fails.

    >>> import tempfile
    >>> board = TensorBoard(tempfile.mkdtemp())
    >>> board.write({"kind": "epoch", "split": "val", "epoch": 0, "step": 90, "loss": 0.7, "wall_s": 2.5})
    >>> board.close()
    """

    def __init__(self, directory: str | os.PathLike[str], *, started: float | None = None, together: bool = False):
        self.directory = Path(directory)
        self._points = EventFiles(self.directory, started=started, first=(_layout(),))
        self._sub_runs = {
            split: EventFiles(self.directory / name, started=self._points.started)
            for split, name in (_SUB_RUNS.items() if together else ())
        }
        self._lr_step = -1
        # Step and time from which speed is measured, and step records since.
        self._clock: tuple[int, float, int] = (0, 0.0, 0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add the points of one record of the journal."""
        self._points.append(self._frame_of(record))
        if record["kind"] == "epoch" and record["split"] in self._sub_runs and "loss" in metrics_of(record):
            event = self._event(record, int(record["epoch"]) + 1)
            event.summary.value.add(tag=CHART, simple_value=record["loss"])
            self._sub_runs[record["split"]].append(framed(event.SerializeToString()))

    def write_histograms(self, histograms: Mapping[str, Histogram], step: int, wall_s: float) -> None:
        """Add histograms by tag."""
        event = self._event({"wall_s": wall_s}, step)
        for tag, each in histograms.items():
            shown = event.summary.value.add(tag=tag).histo
            shown.min, shown.max, shown.num = each.low, each.high, each.number
            shown.sum, shown.sum_squares = each.total, each.squares
            shown.bucket_limit.extend(each.limits())
            shown.bucket.extend(each.counts)
        self._points.append(framed(event.SerializeToString()))

    def write_pictures(self, pictures: Sequence[Captioned], step: int, wall_s: float) -> None:
        """Add pictures, each under its caption, in one group."""
        event = self._event({"wall_s": wall_s}, step)
        for each in pictures:
            value = event.summary.value.add(tag=f"{WRONG}/{each.caption}")
            value.image.encoded_image_string = each.data
            value.image.width, value.image.height, value.image.colorspace = each.width, each.height, _RGB
        if pictures:
            self._points.append(framed(event.SerializeToString()))

    def write_settings(self, settings: Mapping[str, Any], step: int, wall_s: float) -> None:
        """Add a run's settings for the HParams tab, whose table shows them beside the last value of each scalar.

        Numbers, texts and flags only; written once a run has ended, since a later event of the kind would be ignored.
        """
        self._points.append(framed(_hparams(settings, step, self._points.started, wall_s).SerializeToString()))

    def rebuild(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Start over with `records`."""
        for events in self._all().values():
            events.restart()
        self._lr_step, self._clock = -1, (0, 0.0, 0)
        self._points.append(b"")
        for record in records:
            self.write(record)

    def begin(self) -> dict[str, Any]:
        """The place where the next points will stand, for `cut`: plain values."""
        for events in self._all().values():
            events.begin()
        return self.mark()

    def mark(self) -> dict[str, Any]:
        """This place, for `cut`: plain values."""
        places = {name: events.mark() for name, events in self._all().items()}
        return {"lr_step": self._lr_step, "clock": list(self._clock), **places}

    def cut(self, begin: Mapping[str, Any], end: Mapping[str, Any], step: int, epoch: int) -> bool:
        """Go back to the mark `end`; False where what stood there is not whole.

        `begin` is the mark before all points of `step`, the newest then, which is of `epoch`. The events must be
        rebuilt, or cut back to an earlier mark, where this is False.
        """
        parts = self._all()
        if any(set(mark) != {"lr_step", "clock", *parts} for mark in (begin, end)):
            return False
        lr_step, clock = end["lr_step"], end["clock"]
        if type(lr_step) is not int or not (isinstance(clock, list) and [*map(type, clock)] == [int, float, int]):
            return False
        for name, events in parts.items():
            if not events.cut(begin[name], end[name], step if events is self._points else epoch + 1):
                return False
        self._lr_step, self._clock = lr_step, (clock[0], clock[1], clock[2])
        return True

    def close(self) -> None:
        """Close the event files; a later `write` opens new ones."""
        for events in self._all().values():
            events.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _all(self) -> dict[str, EventFiles]:
        return {"points": self._points, **self._sub_runs}

    def _event(self, record: Mapping[str, Any], x: int) -> Any:
        from tensorboard.compat.proto.event_pb2 import Event

        return Event(wall_time=self._points.started + float(record.get("wall_s", 0.0)), step=x)

    def _frame_of(self, record: Mapping[str, Any]) -> bytes:
        """One framed event that holds every point of `record`; nothing for a record without points."""
        step = int(record["step"])
        event = self._event(record, step)
        split, per_step = record["split"], record["kind"] == "step"
        for key, value in metrics_of(record).items():
            tag = f"{key}/{split}_step" if per_step else f"{key}/{split}"
            event.summary.value.add(tag=tag, simple_value=value)
        if split == "train" and step > self._lr_step and "lr" in record:
            self._lr_step = step
            for index, rate in enumerate(record["lr"]):
                event.summary.value.add(tag=f"lr/{index}", simple_value=rate)
        if (speed := self._speed(record)) is not None:
            event.summary.value.add(tag=SPEED, simple_value=speed)
        return framed(event.SerializeToString()) if event.summary.value else b""

    def _speed(self, record: Mapping[str, Any]) -> float | None:
        """Updates a second since the last such point or validation: over some records, since times are in whole ms."""
        before, at, timed = self._clock
        step, wall_s, whole = record["step"], float(record.get("wall_s", 0.0)), record["kind"] == "epoch"
        if not whole and timed + 1 < _RECORDS_TIMED:
            self._clock = before, at, timed + 1
            return None
        self._clock = step, wall_s, 0
        # Before the first point lies what a process does once: it measures, compiles.
        known = record["split"] == "train" and before and step > before and wall_s > at
        return (step - before) / (wall_s - at) if known else None


def _hparams(settings: Mapping[str, Any], step: int, started: float, wall_s: float) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    begin, end = HParamsPluginData(version=0), HParamsPluginData(version=0)
    begin.session_start_info.start_time_secs = started
    for name, value in list(settings.items())[:_MOST_SETTINGS]:
        kept = begin.session_start_info.hparams[name]
        if isinstance(value, bool):
            kept.bool_value = value
        elif isinstance(value, str):
            kept.string_value = value[:_LONGEST_SETTING]
        else:
            kept.number_value = value
    end.session_end_info.status = _SUCCESS
    end.session_end_info.end_time_secs = started + wall_s
    event = Event(wall_time=started + wall_s, step=step)
    for tag, data in (("_hparams_/session_start_info", begin), ("_hparams_/session_end_info", end)):
        value = event.summary.value.add(tag=tag)
        value.metadata.plugin_data.plugin_name = "hparams"
        value.metadata.plugin_data.content = data.SerializeToString()
        # TensorBoard takes metadata from a value that has a tensor only.
        value.tensor.dtype = _DT_FLOAT
        value.tensor.tensor_shape.SetInParent()
        value.tensor.float_val.append(0.0)
    return event


def _layout() -> Any:
    """The custom scalars chart of both losses."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    layout = Layout()
    chart = layout.category.add(title="loss").chart.add(title=CHART)
    chart.multiline.tag.extend([r"^loss/train$", r"^loss/val$"])
    event = Event(step=0)
    value = event.summary.value.add(tag="custom_scalars__config__")
    value.metadata.plugin_data.plugin_name = "custom_scalars"
    value.tensor.dtype = DT_STRING
    value.tensor.string_val.append(layout.SerializeToString())
    return event
