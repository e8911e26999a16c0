"""What compared runs measured epoch by epoch, and whom they took for whom: read in one pass and little memory."""

from __future__ import annotations

from pathlib import Path

from ..charts.thinning import Curve, Point
from ..checkpoint.run import JOURNAL
from ..errors import UsageError
from ..tracking.confusion import class_names
from ..tracking.journal import metrics_of, run_records
from ..tracking.validation import read_validation

_MOST_METRICS = 60


def epoch_curves(run: Path) -> dict[str, list[Point]]:
    """The points (epoch from 1, value) of each metric of a run; {} where its journal cannot be read."""
    curves: dict[str, Curve] = {}
    try:
        for record in run_records(run / JOURNAL, lambda message: None, only=b'"kind": "epoch"'):
            for name, value in metrics_of(record).items():
                name = f"{record['split']}/{name}"[:100]
                if name in curves or len(curves) < _MOST_METRICS:
                    curves.setdefault(name, Curve()).add(record["epoch"] + 1, float(value))
    except UsageError:
        return {}
    return {name: curve.points() for name, curve in curves.items()}


def last_confusion(run: Path) -> tuple[list[str], list[list[int]]] | None:
    """The classes and the confusion matrix (true classes as rows) of the last validation."""
    found = read_validation(run)
    counts, names = found.get("confusion"), found.get("classes") or []
    return None if counts is None else (class_names(counts, names), counts)
