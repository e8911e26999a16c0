"""What compared runs measured epoch by epoch, and whom they took for whom: read in one pass and little memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import safe_tensors
from ..charts.thinning import Curve, Point
from ..checkpoint import store
from ..checkpoint.run import CHECKPOINTS, JOURNAL
from ..errors import UsageError
from ..tracking.journal import metrics_of, run_records

_MOST_METRICS = 60
_MOST_CLASSES = 1000


def epoch_curves(run: Path) -> dict[str, list[Point]]:
    """The points (epoch from 1, value) of each metric of a run; {} where its journal cannot be read."""
    curves: dict[str, Curve] = {}
    try:
        for record in run_records(run / JOURNAL, lambda message: None, only=b'"kind": "epoch"'):
            for name, value in metrics_of(record).items():
                name = f"{record['split']}/{name}"[:100]
                if name in curves or len(curves) < _MOST_METRICS:
                    curves.setdefault(name, Curve()).add(record["epoch"] + 1, float(value))
    except (UsageError, OverflowError):
        return {}
    return {name: curve.points() for name, curve in curves.items()}


def last_confusion(run: Path) -> tuple[list[str], list[list[int]]] | None:
    """The classes and the confusion matrix (true classes as rows) of the last validation that a checkpoint holds."""
    try:
        newest = store.listed(run / CHECKPOINTS)[-1].path / store.STATE
        state = safe_tensors.read_json(newest, max_bytes=store.MAX_STATE_BYTES, max_containers=2_000_000)
        counts = state["objects"]["progress"]["confusion"]
    except (UsageError, OSError, LookupError, TypeError):
        return None
    if not _is_matrix(counts):
        return None
    return _class_names(run, len(counts)), counts


def _is_matrix(counts: Any) -> bool:
    return (
        isinstance(counts, list)
        and 0 < len(counts) <= _MOST_CLASSES
        and all(isinstance(row, list) and len(row) == len(counts) for row in counts)
        and all(type(cell) is int and 0 <= cell < 2**53 for row in counts for cell in row)
    )


def _class_names(run: Path, number: int) -> list[str]:
    try:
        names: Sequence[Any] = safe_tensors.read_json(run / "model" / "model.json", max_bytes=1 << 22)["classes"]
        if len(names) == number and all(isinstance(name, str) for name in names):
            return [name[:80] for name in names]
    except (UsageError, OSError, LookupError, TypeError):
        pass
    return [str(index) for index in range(number)]
