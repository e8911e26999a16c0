"""The reliability diagram: how often answers are right against how sure they are; the expected calibration error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..charts.interactive import chart
from ..charts.scale import Axis
from ..charts.svg import Line
from .page import html_table


def calibration_error(reliability: Mapping[str, Sequence[Any]]) -> float:
    """The mean distance between confidence and accuracy over the samples (ECE, Guo et al. 2017).

    >>> calibration_error({"samples": [2, 2], "right": [1, 2], "confidence": [0.4, 0.9]})
    0.1
    """
    rows = list(zip(*(reliability[key] for key in ("samples", "right", "confidence")), strict=True))
    total = sum(samples for samples, _, _ in rows)
    apart = sum(samples * abs(right / samples - confidence) for samples, right, confidence in rows if samples)
    return float(f"{apart / total:.12g}") if total else 0.0


def diagram(reliability: Mapping[str, Sequence[Any]]) -> str:
    """The diagram with its table folded away, as HTML."""
    bins = len(reliability["samples"])
    rows = list(zip(*(reliability[key] for key in ("samples", "right", "confidence")), strict=True))
    points = [(confidence, right / samples) for samples, right, confidence in rows if samples]
    unit = Axis(0.0, 1.0)
    drawn = chart(
        [Line("as sure as right", [(0.0, 0.0), (1.0, 1.0)], 3, dashed=True), Line("validation", points, 1, marks=True)],
        x_label="confidence",
        y_label="accuracy",
        x_axis=unit,
        y_axis=unit,
        percent=True,
    )
    note = f"Expected calibration error {100 * calibration_error(reliability):.2f} %, in {bins} parts."
    table = html_table(
        ["confidence", "samples", "right", "mean confidence"],
        [
            [f"{100 * i / bins:.0f} to {100 * (i + 1) / bins:.0f} %", f"{samples:,}"]
            + [f"{100 * right / samples:.2f} %", f"{100 * confidence:.2f} %"]
            for i, (samples, right, confidence) in enumerate(rows)
            if samples
        ],
    )
    shown = f"{drawn}<details><summary>Numbers</summary>{table}</details>"
    return f'<p class="dim">{escape(note)}</p>{shown}'
