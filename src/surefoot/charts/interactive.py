"""Charts for a page that a browser shows: a picture, and its points for the script that makes it one to point into.

The script is uPlot (MIT, `embedded/uPlot.LICENSE`), whole in each page, so that it needs no network.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .scale import Axis
from .svg import Line, Mark, line_chart
from .thinning import Curve

# Of a line, for who zooms in; the picture has fewer.
MOST_POINTS, _MOST_DRAWN = 2000, 400
_FOLDER = Path(__file__).with_name("embedded")


def chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_axis: Axis | None = None,
    y_axis: Axis | None = None,
    log: bool = False,
    percent: bool = False,
    marks: Sequence[Mark] = (),
) -> str:
    """`lines` as an element of HTML for a page with `scripts`; without scripts it is the picture of `line_chart`."""
    drawn = line_chart(
        lines,
        x_label=x_label,
        y_label=y_label,
        x_axis=x_axis,
        y_axis=y_axis,
        log=log,
        percent=percent,
        marks=marks,
        most=_MOST_DRAWN,
    )
    if not drawn.startswith("<svg"):
        return drawn
    spec = {
        "x": x_label,
        "y": y_label,
        "log": log,
        "percent": percent,
        "across": None if x_axis is None else [x_axis.low, x_axis.high],
        "up": None if y_axis is None else [y_axis.low, y_axis.high],
        "marks": [[mark.x, mark.label] for mark in marks],
        "lines": [_plain(line) for line in lines],
    }
    return f'<figure data-chart="{escape(json.dumps(spec, separators=(",", ":")))}">{drawn}</figure>'


def _plain(line: Line) -> dict[str, Any]:
    points = Curve.of(line.points, MOST_POINTS).points() if line.form == "line" else list(line.points)
    return {
        "label": line.label,
        "colour": line.colour % 8,
        "form": "dots" if line.marks else line.form,
        "faint": line.faint,
        "dashed": line.dashed,
        "x": [_short(x) for x, _ in points],
        "y": [_short(y) for _, y in points],
    }


def _short(value: float) -> float | None:
    """As few digits as show; None for what is not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 2**53 else float(f"{value:.7g}")


@functools.cache
def style() -> str:
    """What the charts of a page need of CSS."""
    return _read("uPlot.min.css").strip() + "\n" + _read("page.css")


@functools.cache
def scripts() -> tuple[str, ...]:
    """The scripts of a page with charts or a confusion matrix, in order."""
    return _read("uPlot.iife.min.js").strip(), _read("page.js").strip()


@functools.cache
def licence() -> str:
    """Under which terms the embedded library is passed on, for a comment of the page."""
    return _read("uPlot.LICENSE").strip()


def source_hashes() -> str:
    """The scripts as a Content-Security-Policy names them: no other may run."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts())
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
