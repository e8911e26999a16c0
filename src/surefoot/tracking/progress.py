"""Progress of a run: a bar that is redrawn on a terminal, plain flushed lines anywhere else.

Fed with the journal's records, so nothing here runs per step, and no thread is started. A reader that goes
away (`surefoot train | head`) silences the progress, never the run.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from ..charts.terminal import BOLD, painted
from ..text import counted, duration, figure, printable, say
from .journal import metrics_of

_BAR_SECONDS = 0.1  # a terminal is redrawn at most this often
_LINE_SECONDS = 10.0  # off a terminal, lines between two epochs come at most this often
_WIDEST_BAR, _NARROWEST_BAR = 40, 10
_MOST_LOSSES = 24  # of the curve beside the bar
_HEIGHTS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_DIM, _CYAN = 2, 36


@dataclass(frozen=True)
class RunInfo:
    """What is about to run, for `epochs`, by the `name` of its recipe or model.

    `steps_per_epoch` is 0 where nobody knows it. `first_step` counts the updates that were done before (a resumed
    run), `samples_per_step` is for the rate shown, `details` are shown in the first line.
    """

    name: str
    epochs: int
    steps_per_epoch: int
    first_step: int = 0
    samples_per_step: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """All updates of the run."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Summary:
    """What a run ended with: a `title`, rows of a table, and `next_commands` to try, each with what it does."""

    title: str
    rows: Mapping[str, Any] = field(default_factory=dict)
    next_commands: Sequence[tuple[str, str]] = ()


class Progress:
    """Follows a run and shows nothing: for a `fit` that is to be quiet, and the base of the others."""

    def __init__(self) -> None:
        self.info = RunInfo("", 0, 0)
        self._epoch_records: dict[str, Mapping[str, Any]] = {}
        self._first = (0, 0.0)  # step and wall_s of the first step record
        self._seconds_per_step = 0.0
        self._recent: deque[float] = deque(maxlen=_MOST_LOSSES)

    def start(self, info: RunInfo) -> None:
        """The run begins."""
        self.info = info

    def record(self, record: Mapping[str, Any]) -> None:
        """A record of the journal was written."""
        if record["kind"] == "epoch":
            self._epoch_records[record["split"]] = record
            return
        step, wall_s = self._first
        if not step:
            self._first = (record["step"], record["wall_s"])
        elif record["step"] > step:
            self._seconds_per_step = (record["wall_s"] - wall_s) / (record["step"] - step)
        self._recent.append(record.get("loss", math.nan))
        self._show_step(record)

    def epoch_done(self) -> None:
        """The epoch of the last records is over."""
        train, val = self._epoch_records.pop("train", None), self._epoch_records.pop("val", None)
        if train is not None or val is not None:
            self._show_epoch(train, val)

    def message(self, text: str) -> None:
        """Say something that stays on the screen: a finding, a damaged checkpoint that is skipped."""

    def finish(self, summary: Summary) -> None:
        """The run is over: show what was reached."""

    def close(self) -> None:
        """Leave the terminal as it was, also after an exception; may be called twice."""

    def _show_step(self, record: Mapping[str, Any]) -> None:
        """Show a step record."""

    def _show_epoch(self, train: Mapping[str, Any] | None, val: Mapping[str, Any] | None) -> None:
        """Show the records of an epoch."""

    def _live_figures(self, record: Mapping[str, Any]) -> list[str]:
        """The changing figures of a run, in the order shown."""
        parts = [f"loss {figure('loss', record['loss'])}"] if "loss" in record else []
        if record.get("lr"):
            parts.append("lr " + _rates(record["lr"]))
        if self._seconds_per_step > 0:
            parts.append(f"{self.info.samples_per_step / self._seconds_per_step:,.0f} samples/s")
        return parts


class PlainProgress(Progress):
    """One flushed line an epoch, and one every few seconds between; no control codes.

    >>> import sys
    >>> progress = PlainProgress(sys.stdout)
    >>> progress.start(RunInfo("quickstart", epochs=2, steps_per_epoch=100, details={"model": "LeNet5"}))
    quickstart: 2 epochs of 100 steps (model LeNet5)
    >>> progress.record({"kind": "epoch", "split": "train", "epoch": 0, "step": 100,
    ...                  "loss": 0.5, "accuracy": 0.8, "lr": [0.1], "wall_s": 3.2})
    >>> progress.epoch_done()
    epoch 1/2  train loss 0.5000 accuracy 80.00 %  lr 0.1  3.2 s
    """

    _seconds_between = _LINE_SECONDS

    def __init__(self, stream: TextIO):
        super().__init__()
        self._stream: TextIO | None = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._shown_at = time.monotonic()

    def start(self, info: RunInfo) -> None:
        """Say what runs."""
        super().start(info)
        self._shown_at = time.monotonic()
        self._line(info.name, BOLD, headline(info)[len(info.name) :])

    def _show_step(self, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._shown_at >= self._seconds_between:
            self._shown_at = now
            self._show_position(position(self.info, record), record)

    def _show_position(self, where: str, record: Mapping[str, Any]) -> None:
        self._line("  ".join([where, *self._live_figures(record)]))

    def _show_epoch(self, train: Mapping[str, Any] | None, val: Mapping[str, Any] | None) -> None:
        self._shown_at = time.monotonic()
        self._line(epoch_line(self.info, train, val))

    def message(self, text: str) -> None:
        """Print `text`."""
        self._line(text)

    def finish(self, summary: Summary) -> None:
        """Print the summary, a row a line."""
        self.close()
        self._line("")
        self._line(summary.title, BOLD)
        width = max((len(key) for key in summary.rows), default=0)
        for key, value in summary.rows.items():
            self._line(f"  {key:<{width}}", _DIM, f"  {value}")
        if summary.next_commands:
            self._line("next:", BOLD)
            width = max(len(command) for command, _ in summary.next_commands)
            for command, does in summary.next_commands:
                self._line(f"  {command:<{width}}", _CYAN, f"  # {does}")

    def _line(self, text: str, colour: int = 0, rest: str = "") -> None:
        """A line of `text`, in a colour where there are colours, and the `rest`."""
        self._write(printable(text, lines=True) + printable(rest, lines=True) + "\n")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text.encode(self._encoding, "backslashreplace").decode(self._encoding))
            self._stream.flush()
        except (OSError, ValueError):  # the reader left, the disk is full, the stream is closed
            _silence(self._stream)
            self._stream = None


class LiveProgress(PlainProgress):
    """A last line that is redrawn: epoch, step, a bar, loss and its curve, rate, samples a second, time left, memory.

    Not by `rich`: its bar needs adapters as long as this one for what matters here (no thread beside the training,
    no exit where the reader leaves, commands that are never broken over two lines).
    """

    _seconds_between = _BAR_SECONDS

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self._coloured = "NO_COLOR" not in os.environ
        self._bar = ""

    def start(self, info: RunInfo) -> None:
        """Say what runs and draw the bar."""
        super().start(info)
        epoch = min(info.first_step // max(info.steps_per_epoch, 1), max(info.epochs - 1, 0))
        record = {"epoch": epoch, "step": info.first_step}
        self._show_position(position(info, record), record)

    def _show_position(self, where: str, record: Mapping[str, Any]) -> None:
        steps = self.info.steps
        part = record["step"] / steps if steps else record["epoch"] / self.info.epochs
        # In the order shown; a narrow terminal keeps its bar, and of the figures those that it needs most.
        unicode = "utf" in self._encoding.lower()
        shown = dict(zip(("loss", "lr", "speed"), self._live_figures(record), strict=False))
        shown = {"loss": shown.pop("loss", ""), "curve": sparkline(self._recent) if unicode else "", **shown}
        if self._seconds_per_step > 0 and steps:
            shown["left"] = f"{duration((steps - record['step']) * self._seconds_per_step)} left"
        shown["memory"] = memory_in_use()
        # The last column stays empty: some terminals begin a new line there.
        room = shutil.get_terminal_size().columns - 1 - len(f"{where}    100 %")
        for name in ("memory", "curve", "lr", "speed", "left", "loss", ""):
            figures = [text for text in shown.values() if text]
            if len("  ".join(["", *figures])) <= room - _NARROWEST_BAR:
                break
            shown.pop(name, None)
        wide = max(min(room - len("  ".join(["", *figures])), _WIDEST_BAR), 0)
        full, rest = ("\u2501", "\u2574") if unicode else ("#", "-")
        done = round(part * wide)
        bar = self._painted(full * done, _CYAN) + self._painted(rest * (wide - done), _DIM)
        self._bar = "  ".join([where, f"{bar} {100 * part:3.0f} %", *figures])
        self._write(f"\r\x1b[2K{self._bar}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar = ""
            self._write("\r\x1b[2K")

    def _line(self, text: str, colour: int = 0, rest: str = "") -> None:
        shown = self._painted(printable(text, lines=True), colour) + printable(rest, lines=True)
        self._write(f"\r\x1b[2K{shown}\n{self._bar}" if self._bar else f"{shown}\n")

    def _painted(self, text: str, colour: int) -> str:
        return painted(text, colour) if self._coloured and colour and text else text


class QuietProgress(Progress):
    """Shows nothing but messages (findings, what is skipped), on standard error."""

    def message(self, text: str) -> None:
        """Print `text`."""
        say(text, error=True)


def sparkline(values: Sequence[float]) -> str:
    """A curve of one line of text; a value that is not finite is a blank.

    >>> sparkline([4.0, 2.0, 1.0, float("nan"), 0.0])
    '\u2588\u2585\u2583 \u2581'
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if len(finite) < 2 or high == low:
        return ""
    scale = (len(_HEIGHTS) - 1) / (high - low)
    return "".join(_HEIGHTS[round((v - low) * scale)] if math.isfinite(v) else " " for v in values)


def memory_in_use() -> str:
    """What this process holds: of the GPU where torch uses one, else of the machine's memory; "" where unknown."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"{torch.cuda.memory_allocated() / 1e9:.1f} GB on the GPU"
    try:
        with open("/proc/self/statm", "rb") as file:
            return f"{int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"
    except (OSError, ValueError, IndexError):  # macOS
        return ""


def headline(info: RunInfo) -> str:
    """The first line of a run.

    >>> headline(RunInfo("mine", epochs=3, steps_per_epoch=10, first_step=15))
    'mine: 3 epochs of 10 steps, on from step 15'
    """
    text = f"{info.name}: {counted(info.epochs, 'epoch')}"
    if info.steps:
        text += f" of {counted(info.steps_per_epoch, 'step')}"
    if info.first_step:
        text += f", on from step {info.first_step}"
    if info.details:
        text += " (" + ", ".join(f"{key} {value}" for key, value in info.details.items()) + ")"
    return text


def position(info: RunInfo, record: Mapping[str, Any]) -> str:
    """Where a run is.

    >>> position(RunInfo("mine", epochs=3, steps_per_epoch=10), {"epoch": 1, "step": 15})
    'epoch 2/3  step 15/30'
    """
    of_steps = f"/{info.steps}" if info.steps else ""
    return f"epoch {int(record['epoch']) + 1}/{info.epochs}  step {record['step']}{of_steps}"


def epoch_line(info: RunInfo, train: Mapping[str, Any] | None, val: Mapping[str, Any] | None) -> str:
    """One line for an epoch's records (one of the two may be missing)."""
    last = val if val is not None else train
    assert last is not None, "an epoch without a record"
    parts = [f"epoch {int(last['epoch']) + 1}/{info.epochs}"]
    for name, record in (("train", train), ("val", val)):
        if record is not None:
            figures = " ".join(f"{key} {figure(key, value)}" for key, value in metrics_of(record).items())
            parts.append(f"{name} {figures}")
    if last.get("lr"):
        parts.append("lr " + _rates((train or last)["lr"]))
    if "wall_s" in last:
        parts.append(duration(float(last["wall_s"])))
    return "  ".join(parts)


def _rates(rates: Sequence[float]) -> str:
    """Up to three different rates; a model with a rate a layer would fill the line."""
    shown = [f"{rate:.3g}" for rate in dict.fromkeys(rates)]
    return " ".join(shown[:3]) + (" ..." if len(shown) > 3 else "")


def _silence(stream: TextIO) -> None:
    """Point a broken standard output at nothing, so that the interpreter's last flush succeeds too."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        return
