"""What a person sees while a run goes on: a live bar on a terminal, plain flushed lines anywhere else.

Fed with the journal's records, so nothing here runs per step, and no thread is started. A reader that goes
away (`surefoot train | head`) silences the progress, never the run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from ..text import counted, duration, printable

_BAR_SECONDS = 0.1  # a terminal is redrawn at most this often
_BESIDE_FIGURES = 28  # columns of the bar (at least 12), the percentage, the time left and the gaps
_LINE_SECONDS = 10.0  # off a terminal, lines between two epochs come at most this often


@dataclass(frozen=True)
class RunInfo:
    """What is about to run.

    `first_step` counts the updates that were done before (a resumed run), `samples_per_step` is for the
    rate shown, `details` are said in the first line.
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
    """What a run ended with: rows of a table, and the next commands to try, each with what it does."""

    title: str
    rows: Mapping[str, Any] = field(default_factory=dict)
    next_commands: Sequence[tuple[str, str]] = ()


class Progress:
    """Follows a run and tells nothing: for a `fit` that is to be quiet, and the base of the others."""

    def __init__(self) -> None:
        self.info = RunInfo("", 0, 0)
        self._epoch_records: dict[str, Mapping[str, Any]] = {}
        self._pace = (0, 0.0)  # step and wall_s of the last step record
        self._samples_per_s: float | None = None

    def start(self, info: RunInfo) -> None:
        """The run begins."""
        self.info = info

    def record(self, record: Mapping[str, Any]) -> None:
        """A record of the journal was written."""
        if record["kind"] == "epoch":
            self._epoch_records[record["split"]] = record
            return
        step, wall_s = self._pace
        if record["step"] > step and record["wall_s"] > wall_s and step:
            samples = (record["step"] - step) * self.info.samples_per_step
            self._samples_per_s = samples / (record["wall_s"] - wall_s)
        self._pace = (record["step"], record["wall_s"])
        self._show_step(record)

    def epoch_done(self, values: Mapping[str, float] | None = None, *, note: str = "") -> None:
        """The epoch whose records were given is over; `note` is a word such as "best"."""
        train, val = self._epoch_records.pop("train", None), self._epoch_records.pop("val", None)
        if train is not None or val is not None:
            self._show_epoch(train, val, note)

    def message(self, text: str) -> None:
        """Say something that stays on the screen: a finding, a checkpoint that was stepped over."""

    def finish(self, summary: Summary) -> None:
        """The run is over: show what was reached."""

    def close(self) -> None:
        """Leave the terminal as it was, also after an exception; may be called twice."""

    def _show_step(self, record: Mapping[str, Any]) -> None:
        """Show a step record."""

    def _show_epoch(self, train: Mapping[str, Any] | None, val: Mapping[str, Any] | None, note: str) -> None:
        """Show the records of an epoch."""


class PlainProgress(Progress):
    """One flushed line an epoch, and one every few seconds between; no control codes.

    >>> progress = PlainProgress(sys.stdout)
    >>> progress.start(RunInfo("quickstart", epochs=2, steps_per_epoch=100, details={"model": "LeNet5"}))
    quickstart: 2 epochs of 100 steps (model LeNet5)
    >>> progress.record({"kind": "epoch", "split": "train", "epoch": 0, "step": 100,
    ...                  "loss": 0.5, "accuracy": 0.8, "lr": [0.1], "wall_s": 3.2})
    >>> progress.epoch_done()
    epoch 1/2  train loss 0.5000 accuracy 80.00 %  lr 0.1  3.2 s
    """

    def __init__(self, stream: TextIO):
        super().__init__()
        self._stream: TextIO | None = stream
        self._told = time.monotonic()

    def start(self, info: RunInfo) -> None:
        """Say what runs."""
        super().start(info)
        self._told = time.monotonic()
        self._line(headline(info))

    def _show_step(self, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._told < _LINE_SECONDS:
            return
        self._told = now
        self._line(f"{position(self.info, record)}  " + "  ".join(live_figures(record, self._samples_per_s)))

    def _show_epoch(self, train: Mapping[str, Any] | None, val: Mapping[str, Any] | None, note: str) -> None:
        self._told = time.monotonic()
        self._line(epoch_line(self.info, train, val, note))

    def message(self, text: str) -> None:
        """Print `text`."""
        self._line(text)

    def finish(self, summary: Summary) -> None:
        """Print the summary, a row a line."""
        self._line("")
        self._line(summary.title)
        width = max((len(key) for key in summary.rows), default=0)
        for key, value in summary.rows.items():
            self._line(f"  {key:<{width}}  {value}")
        if summary.next_commands:
            self._line("next:")
            width = max(len(command) for command, _ in summary.next_commands)
            for command, does in summary.next_commands:
                self._line(f"  {command:<{width}}  # {does}")

    def _line(self, text: str) -> None:
        if self._stream is None:
            return
        text = printable(text, lines=True)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the reader left, the disk is full, the stream is closed
            _silence(self._stream)
            self._stream = None


class RichProgress(Progress):
    """A live bar with rich: epoch, step, loss, learning rate, samples a second, time left."""

    def __init__(self, stream: TextIO):
        super().__init__()
        self._console = _console(stream)
        self._bar: Any = None
        self._task: Any = None
        self._drawn = 0.0

    def start(self, info: RunInfo) -> None:
        """Say what runs and draw the empty bar."""
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        super().start(info)
        self._print(f"[bold]{_escaped(info.name)}[/bold]" + _escaped(headline(info)[len(info.name) :]))
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            auto_refresh=False,  # rich's own thread would take the interpreter from the step
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
            transient=True,
        )
        epoch = min(info.first_step // max(info.steps_per_epoch, 1), max(info.epochs - 1, 0))
        where = position(info, {"epoch": epoch, "step": info.first_step})
        self._task = self._bar.add_task(where, total=info.steps, completed=info.first_step, figures="")
        self._quietly(self._bar.start)
        self._quietly(self._bar.refresh)

    def _show_step(self, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if self._bar is None or now - self._drawn < _BAR_SECONDS:
            return
        self._drawn = now
        where = position(self.info, record)
        shown = live_figures(record, self._samples_per_s)
        room = self._console.width - len(where) - _BESIDE_FIGURES
        while shown and len("  ".join(shown)) > room:  # a narrow terminal keeps its bar; the last figures go first
            shown.pop()
        self._bar.update(self._task, completed=record["step"], description=where, figures="  ".join(shown))
        self._quietly(self._bar.refresh)

    def _show_epoch(self, train: Mapping[str, Any] | None, val: Mapping[str, Any] | None, note: str) -> None:
        record = train if train is not None else val
        if self._bar is not None and record is not None:
            self._bar.update(self._task, completed=record["step"], description=position(self.info, record))
        line = _escaped(epoch_line(self.info, train, val, ""))
        self._print(line + (f"  [green]{_escaped(note)}[/green]" if note else ""))

    def message(self, text: str) -> None:
        """Print `text` above the bar."""
        self._print(_escaped(text))

    def finish(self, summary: Summary) -> None:
        """Take the bar away and print the summary as a table."""
        from rich.table import Table

        self.close()
        table = Table(show_header=False, box=None, padding=(0, 2))
        for key, value in summary.rows.items():
            table.add_row(f"[dim]{_escaped(key)}[/dim]", _escaped(str(value)))
        self._print(f"\n[bold]{_escaped(summary.title)}[/bold]")
        self._print(table)
        if summary.next_commands:
            self._print("[bold]next[/bold]")
            width = max(len(command) for command, _ in summary.next_commands)
            for command, does in summary.next_commands:
                # soft_wrap: a command that is broken over two lines cannot be copied.
                typed = _escaped(command.ljust(width))
                self._print(f"  [cyan]{typed}[/cyan]  [dim]# {_escaped(does)}[/dim]", soft_wrap=True)

    def close(self) -> None:
        """Take the bar away and show the cursor again."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            self._quietly(bar.stop)

    def _print(self, thing: Any, **how: Any) -> None:
        self._quietly(self._console.print, thing, **how)

    def _quietly(self, call: Any, *arguments: Any, **named: Any) -> None:
        """Call, and go on without a terminal if it has gone away."""
        try:
            call(*arguments, **named)
        except (OSError, ValueError):  # ValueError: the stream is closed
            self._console.quiet = True


def make_progress(stream: TextIO | None = None) -> Progress:
    """A live bar if `stream` (default: standard output) is a terminal that can draw one, plain lines if not.

    `NO_COLOR` takes the colours away, `TERM=dumb` the bar too.
    """
    stream = sys.stdout if stream is None else stream
    try:
        terminal = stream.isatty()
    except ValueError:  # closed
        terminal = False
    if terminal and os.environ.get("TERM", "") not in ("", "dumb"):
        return RichProgress(stream)
    return PlainProgress(stream)


def headline(info: RunInfo) -> str:
    """The first line of a run.

    >>> headline(RunInfo("mine", epochs=3, steps_per_epoch=10, first_step=15))
    'mine: 3 epochs of 10 steps, on from step 15'
    """
    text = f"{info.name}: {counted(info.epochs, 'epoch')} of {counted(info.steps_per_epoch, 'step')}"
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
    return f"epoch {int(record['epoch']) + 1}/{info.epochs}  step {record['step']}/{info.steps}"


def epoch_line(info: RunInfo, train: Mapping[str, Any] | None, val: Mapping[str, Any] | None, note: str = "") -> str:
    """One line for an epoch's records (one of the two may be missing)."""
    last = val if val is not None else train
    assert last is not None, "an epoch without a record"
    parts = [f"epoch {int(last['epoch']) + 1}/{info.epochs}"]
    for name, record in (("train", train), ("val", val)):
        if record is not None:
            parts.append(f"{name} {_figures(record)}")
    if last.get("lr"):
        parts.append("lr " + _rates((train or last)["lr"]))
    if "wall_s" in last:
        parts.append(duration(float(last["wall_s"])))
    if note:
        parts.append(note)
    return "  ".join(parts)


def live_figures(record: Mapping[str, Any], samples_per_s: float | None) -> list[str]:
    """The changing figures of a run, in the order shown.

    >>> live_figures({"loss": 0.51234, "lr": [0.1, 0.01]}, 1234.5)
    ['loss 0.5123', 'lr 0.1 0.01', '1,234 samples/s']
    """
    parts = []
    if "loss" in record:
        parts.append(f"loss {record['loss']:.4f}")
    if record.get("lr"):
        parts.append("lr " + _rates(record["lr"]))
    if samples_per_s:
        parts.append(f"{samples_per_s:,.0f} samples/s")
    return parts


def _figures(record: Mapping[str, Any]) -> str:
    hidden = {"kind", "split", "epoch", "step", "lr", "wall_s"}
    parts = []
    for key, value in record.items():
        if key in hidden or not isinstance(value, (int, float)):
            continue
        parts.append(f"{key} {100 * value:.2f} %" if key == "accuracy" else f"{key} {value:.4f}")
    return " ".join(parts)


def _rates(rates: Sequence[float]) -> str:
    """Up to three different rates; a model with a rate a layer would fill the line."""
    shown = [f"{rate:.3g}" for rate in dict.fromkeys(rates)]
    return " ".join(shown[:3]) + (" ..." if len(shown) > 3 else "")


def _console(stream: TextIO) -> Any:
    """A rich console that falls silent when its reader leaves, where rich's own would end the process."""
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            _silence(stream)

    return Patient(file=stream, highlight=False)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text, lines=True))


def _silence(stream: TextIO) -> None:
    """Point a broken standard output at nothing, so that the interpreter's last flush succeeds too."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        return
