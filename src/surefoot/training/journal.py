"""Journal: the records, TensorBoard and report of a loop of one's own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..arguments import Arguments, metric_values
from ..errors import SurefootError
from ..tracking import TOGETHER, Progress, RunRecords, write_report
from ..tracking.histograms import histograms_of
from ..tracking.journal import NOT_METRICS
from ..world import World
from .records import Recorder


class Journal:
    """Records what a hand-written loop measures in a run's directory, as fit does, and goes on with it exactly.

        journal = surefoot.Journal("runs/mine")
        with journal, surefoot.Checkpointer("runs/mine", journal=journal, ...) as saver:
            saver.resume()
            ...
                journal.step(saver.steps + 1, {"loss": loss}, epoch=loader.epoch, lr=schedule.lrs)
                saver.step()
            journal.epoch(loader.epoch - 1, {"val/loss": value}, step=saver.steps)
            saver.epoch({"val/loss": value})

    Writes ``metrics.jsonl`` and, with `tensorboard`, TensorBoard's events; when it is closed, ``report.html``. Write a
    record before the checkpointer counts its step or epoch: on resume, what came after the checkpoint is cut off, so
    that each point is there once. With ``tensorboard="together"`` both losses are drawn in one
    chart of the Scalars tab too. Nothing is made before the first record. Of the ranks of a `world`, only rank 0
    writes. Raises Problems for values that are no numbers, or that have the name of a field (`step`, `lr`).
    """

    def __init__(self, run: str | Path, *, tensorboard: bool | str = True, world: World | None = None):
        check = Arguments()
        check.path("run", run)
        self._tensorboard = tensorboard if tensorboard == TOGETHER else check.flag("tensorboard", tensorboard)
        check.done()
        self._mute = World.only(world).rank > 0
        self.run = Path(run)
        self._open: Recorder | None = None
        self._before = 0.0
        self._started = time.monotonic()

    def step(self, step: int, values: Mapping[str, Any], *, epoch: int = 0, lr: Iterable[float] = ()) -> None:
        """One record of update number `step` (1 is the first) in `epoch` (from 0).

        `values` are numbers by name (``loss``, ``train/loss``), `lr` the rate of each param group.
        """
        self._write("step", step, epoch, values, lr)

    def epoch(self, epoch: int, values: Mapping[str, Any], *, step: int, lr: Iterable[float] = ()) -> None:
        """The records of a whole `epoch` (from 0), after `step` updates: one for ``train/...``, one for ``val/...``."""
        self._write("epoch", step, epoch, values, lr)

    def histograms(self, model: nn.Module, *, step: int, epoch: int = 0) -> None:
        """Histograms of a model's weights and gradients after update number `step`, for TensorBoard.

        On every rank of a sharded model. Write them before the checkpointer counts the step.
        """
        found = histograms_of(model)
        if not self._mute:
            self._records.histograms(found, epoch, step, self.wall_s())

    def _write(self, kind: str, step: Any, epoch: Any, values: Any, lr: Any) -> None:
        check = Arguments("journal: ")
        step, epoch = check.whole("step", step, low=0), check.whole("epoch", epoch, low=0)
        rates = [check.number("lr", rate) for rate in (lr if hasattr(lr, "__iter__") else [lr])]
        check.done()
        splits: dict[str, dict[str, Any]] = {}
        for name, value in metric_values(values).items():
            split, _, key = name.rpartition("/")
            if key in NOT_METRICS:
                check.refuse(
                    repr(name), f"is what each record has by itself; leave it out, or call it otherwise, e.g. my_{key}"
                )
            splits.setdefault(split or "train", {})[key] = value
        check.done()
        for split, numbers in splits.items() if not self._mute else ():
            self._recorder.write(kind, split, epoch, step, numbers, rates, self.wall_s())

    def wall_s(self) -> float:
        """Seconds spent in this run, earlier sittings included."""
        return round(self._before + time.monotonic() - self._started, 3)

    # What a Checkpointer asks of its journal.

    @property
    def offset(self) -> int:
        """The journal's length in bytes."""
        return self._records.offset

    def marks(self) -> dict[str, Any]:
        """What a checkpoint keeps beside `offset`: checksums, and where TensorBoard's events stood."""
        return self._records.marks()

    def sync(self) -> None:
        """Wait until every record so far is on the disk."""
        self._records.sync()

    def truncate(self, offset: int, marks: Mapping[str, Any] | None = None) -> tuple[list[str], list[str]]:
        """Cut back to a checkpoint's length, TensorBoard's events too; what was mended, and what is damaged."""
        messages = self._records.truncate(offset, marks)
        self._before, self._started = self._records.wall_s, time.monotonic()
        return messages

    @property
    def _recorder(self) -> Recorder:
        if self._open is None:
            self.run.mkdir(parents=True, exist_ok=True)
            self._open = Recorder(self.run, tensorboard=self._tensorboard, progress=Progress())
        return self._open

    @property
    def _records(self) -> RunRecords:
        records = self._recorder.journal
        assert records is not None, "made with a directory"
        return records

    def close(self) -> None:
        """Close the files and write the report; a second call does nothing."""
        if self._open is not None:
            self.sync()
            self._open.close()
            self._open = None
            write_report(self.run)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(SurefootError):  # the first error is the one to tell
            self.close()
