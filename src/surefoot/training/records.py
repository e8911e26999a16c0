"""The records of a run: each goes to the journal, to TensorBoard and to the screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..tracking import RunRecords
from ..tracking.histograms import histograms_of


class Recorder:
    """Writes records to the RunRecords of `run_dir` and shows them on `progress`; without a directory only shows."""

    def __init__(self, run_dir: Path | None, *, tensorboard: bool | str, progress: Any):
        self.progress = progress
        self.journal = RunRecords(run_dir, tensorboard=tensorboard) if run_dir else None

    def write(
        self, kind: str, split: str, epoch: int, step: int, values: Mapping[str, float], lr: list[float], wall_s: float
    ) -> dict[str, Any]:
        """One record: means over samples in `values`, the rate of each param group, seconds since the run began."""
        record = {"kind": kind, "split": split, "epoch": epoch, "step": step, **values, "lr": lr, "wall_s": wall_s}
        if self.journal is not None:
            self.journal.append(record)
        self.progress.record(record)
        return record

    def histograms(self, model: nn.Module, epoch: int, step: int, wall_s: float) -> None:
        """Histograms of the weights, and of the gradients of the last update, for TensorBoard."""
        found = histograms_of(model)  # on every rank: a sharded model is put together for it
        if self.journal is not None:
            self.journal.histograms(found, epoch, step, wall_s)

    def end(self, conditions: Mapping[str, Any], step: int, wall_s: float) -> None:
        """The run has reached its end."""
        if self.journal is not None:
            self.journal.end(conditions, step, wall_s)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        if self.journal is not None:
            self.journal.close()
