"""The records of a run directory and TensorBoard's events, which go back to a checkpoint together."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .epochs import Epochs
from .histograms import Histogram
from .journal import JournalFile, run_records
from .tensorboard import TensorBoard
from .validation import read_validation

TOGETHER = "together"


class RunRecords:
    """``metrics.jsonl`` and ``tensorboard/`` of the directory `run_dir`, which is made where it is not there.

    Given to a `Checkpointer` as its journal, they go back with it: each record and each point is there once, and only
    what comes after the checkpoint is cut off. `tensorboard` is True, False, or "together": then the mean losses of
    both splits stand in one chart of the Scalars tab too. Raises UsageError where the directory cannot be used,
    RunFailed where a write fails.
    """

    def __init__(self, run_dir: str | os.PathLike[str], *, tensorboard: bool | str = True):
        self.run_dir = Path(run_dir)
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise UsageError(
                "tensorboard: true, but TensorBoard is not installed; pip install tensorboard, or set false",
                code="package-missing",
            )
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.run_dir}: cannot be made: {error.strerror}") from error
        self._file = JournalFile(self.run_dir / "metrics.jsonl")
        self._tensorboard = tensorboard
        self._board: TensorBoard | None = None
        # Where the records of the newest step start: an unfinished step is cut off and written again as a whole.
        self._newest: dict[str, Any] = {}
        self._history: Epochs | None = None
        # Seconds that the run had taken by the checkpoint that it went back to.
        self.wall_s = 0.0

    @property
    def path(self) -> Path:
        """The file of the records."""
        return self._file.path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one whole record."""
        board = self._at(record["step"], record["epoch"])
        self._file.append(record)
        if board is not None:
            board.write(record)
        if self._history is not None:
            self._history.add(record)

    def histograms(self, found: Mapping[str, Histogram], epoch: int, step: int, wall_s: float) -> None:
        """Add histograms to TensorBoard's events."""
        if (board := self._at(step, epoch)) is not None:
            board.write_histograms(found, step, wall_s)

    def _at(self, step: int, epoch: int) -> TensorBoard | None:
        """TensorBoard's events, of which what comes next is of `step`."""
        board = self._opened_board()
        if step != self._newest.get("step"):
            self._newest = {"step": step, "epoch": epoch, "offset": self._file.offset}
            if board is not None:
                self._newest["board"] = board.begin()
        return board

    def _opened_board(self) -> TensorBoard | None:
        if self._board is None and self._tensorboard:
            self._board = TensorBoard(self.run_dir / "tensorboard", together=self._tensorboard == TOGETHER)
        return self._board

    def end(self, conditions: Mapping[str, Any], step: int, wall_s: float) -> None:
        """The run has reached its end: TensorBoard gets its settings and the pictures that it got most wrong."""
        if (board := self._opened_board()) is not None:
            from .wrong_pictures import wrong_pictures

            board.write_settings(settings_of(conditions), step, wall_s)
            board.write_pictures(wrong_pictures(read_validation(self.run_dir)), step, wall_s)

    # ----------------------------------------------------------------------- what a Checkpointer asks for

    @property
    def offset(self) -> int:
        """The size of the records in bytes."""
        return self._file.offset

    def marks(self) -> dict[str, Any]:
        """What a checkpoint holds beside `offset`, so that `truncate` can check and needs to read little."""
        board = {} if self._board is None else {"board": self._board.mark()}
        return {"sums": self._file.marks(), "newest": self._newest, **board}

    def sync(self) -> None:
        """Wait until every record is on the disk; a file that was removed meanwhile is made again."""
        self._file.sync()

    def truncate(self, offset: int, marks: Mapping[str, Any] | None = None) -> tuple[list[str], list[str]]:
        """Go back to a checkpoint, TensorBoard's events too. Returns messages of what was mended and is damaged."""
        marks = marks or {}
        sums = marks.get("sums")
        mended, damaged = self._file.truncate(offset, sums if isinstance(sums, dict) else None)
        more: list[str] = []
        self._newest, self._history = _newest(marks.get("newest"), offset), None
        start = self._newest.get("offset", 0)
        board = self._opened_board()
        if board is not None:
            begin, end = self._newest.get("board"), marks.get("board")
            at = (self._newest["step"], self._newest["epoch"]) if begin else (0, 0)
            if begin and isinstance(end, dict) and board.cut(begin, end, *at):
                pass
            elif begin and board.cut(begin, begin, *at):  # a kill between cutting and writing the newest step anew
                for record in run_records(self.path, more.append, start=start):
                    board.write(record)
            else:
                self._newest = {}
                board.rebuild(run_records(self.path, more.append))
        for record in run_records(self.path, lambda text: None, start=start) if offset else ():
            self.wall_s = record.get("wall_s", self.wall_s)
        return mended, list(dict.fromkeys([*damaged, *more]))

    # ----------------------------------------------------------------------- what is made from the records

    def history(self) -> list[Mapping[str, Any]]:
        """The epochs' records, of a long run an even selection; read once, then kept up to date."""
        if self._history is None:
            self._history = Epochs()
            for record in run_records(self.path, lambda text: None, only=b'"kind": "epoch"'):
                self._history.add(record)
        return [record for _, records in self._history.kept() for record in records]

    def close(self) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()
        self._file.close()


def settings_of(conditions: Mapping[str, Any]) -> dict[str, int | float | str | bool]:
    """The settings of a run as plain values by dotted key: its recipe's, else those of fit and the optimizer.

    >>> settings_of({"recipe.optimizer.lr": 0.1, "recipe.data.augment": [], "recipe.model": "LeNet5", "threads": 2})
    {'optimizer.lr': 0.1, 'model': 'LeNet5'}
    """
    recipe = {name.removeprefix("recipe."): v for name, v in conditions.items() if name.startswith("recipe.")}
    settings = recipe or {name: v for name, v in conditions.items() if name.startswith(("fit.", "optimizer.", "loss"))}
    return {name: value for name, value in settings.items() if isinstance(value, int | float | str)}


def _newest(mark: Any, offset: int) -> dict[str, Any]:
    """A checkpoint's mark of the newest step, if it is valid."""
    if not isinstance(mark, dict) or not isinstance(mark.get("board", {}), dict):
        return {}
    if any(type(mark.get(key)) is not int or mark[key] < 0 for key in ("step", "epoch", "offset")):
        return {}
    return dict(mark) if mark["offset"] <= offset else {}
