"""Figures of each class from a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def by_class(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Samples, precision, recall and F1 of each class, and what it is mostly mistaken for; None for 0 of 0.

    >>> by_class(["cat", "dog"], [[3, 1], [0, 4]])[1]["recall"]
    1.0
    """
    rows = []
    for index, (name, row) in enumerate(zip(names, confusion, strict=True)):
        others = [0 if place == index else count for place, count in enumerate(row)]
        counts = of_counts(row[index], sum(each[index] for each in confusion), sum(row))
        rows.append(
            {"class": name, **counts, "mistaken_for": names[others.index(max(others))] if any(others) else None}
        )
    return rows


def of_counts(right: int, predicted: int, true: int) -> dict[str, Any]:
    """Samples, precision, recall and F1 of a class; None for 0 of 0."""
    return {
        "samples": true,
        "precision": right / predicted if predicted else None,
        "recall": right / true if true else None,
        "f1": 2 * right / (predicted + true) if predicted + true else None,
    }
