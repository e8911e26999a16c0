"""What happened, told once: each record goes to the journal, to TensorBoard and to the screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tracking import Journal, TensorBoard, read_records


class Recorder:
    """Writes records to `run_dir` (``metrics.jsonl``, ``tensorboard/``) and shows them on `progress`.

    Without a directory they are only shown. The journal is the truth: after a resume it has been cut back to the
    checkpoint, and TensorBoard's events are written again from it.
    """

    def __init__(self, run_dir: Path | None, *, tensorboard: bool, progress: Any):
        self.progress = progress
        self.journal = Journal(run_dir / "metrics.jsonl") if run_dir else None
        self.board = TensorBoard(run_dir / "tensorboard") if run_dir and tensorboard else None

    def rebuild(self) -> None:
        """Write TensorBoard's events again from the journal, so that every point appears once."""
        if self.journal is not None and self.board is not None:
            self.board.rebuild(read_records(self.journal.path))

    def write(
        self, kind: str, split: str, epoch: int, step: int, values: Mapping[str, float], lr: list[float], wall_s: float
    ) -> dict[str, Any]:
        """One record: means over samples in `values`, the rate of each param group, seconds since the run began."""
        record = {"kind": kind, "split": split, "epoch": epoch, "step": step, **values, "lr": lr, "wall_s": wall_s}
        if self.journal is not None:
            self.journal.append(record)
        if self.board is not None:
            self.board.write(record)
        self.progress.record(record)
        return record

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and let go of the files."""
        if self.board is not None:
            self.board.close()
        if self.journal is not None:
            self.journal.close()
