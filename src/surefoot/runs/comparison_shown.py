"""A comparison of runs for people: text for a terminal, and a page of HTML that needs no network."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ..charts.interactive import chart
from ..charts.scale import Axis
from ..charts.svg import Line
from ..charts.terminal import framed, marker
from ..text import duration, figure, printable, shortened
from ..tracking.page import html_table, page, section
from .comparison import Comparison
from .record import shown_time
from .table import Column, in_stripes

_MOST_CHARTS = 12
_MOST_LINES = 6  # of a chart in a terminal
_MOST_ROWS = 60
_LONGEST_VALUE = 40


def as_text(comparison: Comparison, width: int, unicode: bool, colour: bool, *, seeds: bool) -> str:
    """The comparison, a line of the terminal each; the runs have numbers, in the order in which they were named."""
    blocks = [
        [f"{index + 1}  {printable(run.path)}" for index, run in enumerate(comparison.runs)],
        _chart(comparison, max(width, 40), unicode, colour),
        *(
            [title, *in_stripes([Column(heads[0]), *(Column(head, right=True) for head in heads[1:])], rows, width)]
            for title, heads, rows in _tables(comparison, seeds)
            if rows
        ),
        [line for text in comparison.verdict(seeds) for line in textwrap.wrap(printable(text), width)],
    ]
    text = "\n\n".join("\n".join(block) for block in blocks if block)
    return text if unicode else text.encode("ascii", "replace").decode()


def as_page(comparison: Comparison, *, seeds: bool) -> str:
    """One self-contained page; the same runs give the same page."""
    names = [str(run.path) for run in comparison.runs]
    charts = []
    for metric in comparison.metrics()[:_MOST_CHARTS]:
        lines = [
            Line(f"{index + 1} {names[index]}"[:80], curves[metric], index, marks=True)
            for index, curves in enumerate(comparison.curves)
            if curves.get(metric)
        ]
        drawn = chart(lines, x_label="epoch", y_label=metric, percent=metric.endswith("accuracy"))
        charts.append(f"<h3>{escape(metric)}</h3>{drawn}")
    sections = [
        f"<h1>{len(names)} runs compared</h1>",
        '<p class="dim">by ' + escape(f"{comparison.metric}, {_direction(comparison)} is better") + "</p>",
        "".join(f"<p>{escape(line)}</p>" for line in comparison.verdict(seeds)),
        html_table(["", "run", "begun", "status"], _runs(comparison)),
        *(section(title, html_table(heads, rows) if rows else "") for title, heads, rows in _tables(comparison, seeds)),
        section("Curves", "".join(charts)),
    ]
    return page("runs compared", sections)


def _runs(comparison: Comparison) -> list[list[str]]:
    return [
        [str(index + 1), str(run.path), shown_time(run.content.created), run.status]
        for index, run in enumerate(comparison.runs)
    ]


def _direction(comparison: Comparison) -> str:
    return "lower" if comparison.mode == "min" else "higher"


def _tables(comparison: Comparison, seeds: bool) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, heads and rows of each table, for both forms."""
    numbers = [str(index + 1) for index in range(len(comparison.runs))]
    tables = [("What differs", ["", *numbers], _differences(comparison))]
    reached = [
        [name, *("" if value is None else figure(name, value) for value in comparison.values(name))]
        for name in comparison.metrics()[:_MOST_ROWS]
    ]
    steps = [run.content.step_s for run in comparison.runs]
    reached.append(["epochs", *(str(run.content.epochs) for run in comparison.runs)])
    reached.append(["step", *("" if step is None else duration(step) for step in steps)])
    reached.append(["training", *(duration(run.content.wall_s) for run in comparison.runs)])
    tables.append(("Best of each", ["", *numbers], reached))
    classes = [
        [name, *("" if value is None else f"{100 * value:.1f} %" for value in values)]
        for name, values in comparison.by_class()[:_MOST_ROWS]
    ]
    tables.append(("Recall by class, what differs most first", ["class", *numbers], classes))
    if seeds:
        tables.append(("Seeds", ["runs", "seeds", comparison.metric, "spread"], _groups(comparison)))
    return tables


def _differences(comparison: Comparison) -> list[list[str]]:
    rows = comparison.differences()
    shown = [[row.key, *map(_value, row.values)] for row in rows[:_MOST_ROWS]]
    return shown + ([[f"and {len(rows) - _MOST_ROWS} more", *[""] * len(comparison.runs)]] if rows[_MOST_ROWS:] else [])


def _groups(comparison: Comparison) -> list[list[str]]:
    rows = []
    for group in comparison.groups():
        deviation = group.spread.deviation
        spread = "" if deviation is None else figure(comparison.metric, deviation)
        members = ", ".join(str(index + 1) for index in group.runs)
        rows.append([members, str(len(group.runs)), figure(comparison.metric, group.spread.mean), spread])
    return rows


def _value(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:8]
    return shortened(text, _LONGEST_VALUE)


def _chart(comparison: Comparison, width: int, unicode: bool, colour: bool) -> list[str]:
    """The curves of the metric over each other; of many runs the best ones."""
    metric = comparison.metric
    chosen = sorted(i for i in comparison.order()[:_MOST_LINES] if len(comparison.curves[i].get(metric, [])) > 1)
    if not chosen:
        return []
    last = max(comparison.curves[index][metric][-1][0] for index in chosen)
    across = np.linspace(1, last, 2 * width)
    lines = [_over(comparison.curves[index][metric], across) for index in chosen]
    finite = np.concatenate([line[np.isfinite(line)] for line in lines])
    if not len(finite):
        return []

    def scale(columns: int) -> str:
        end = f"epoch {last:g}"
        return "1" + end.rjust(columns - 1)

    out, margin = framed(
        lines, Axis.around(finite.tolist()), width, label=metric, marks=(), scale=scale, unicode=unicode, colour=colour
    )
    keys = [
        f"{' ' * margin} {marker(place, unicode, colour)} {printable(comparison.runs[index].path)}"
        for place, index in enumerate(chosen)
    ]
    return [*out, "", *keys]


def _over(points: Sequence[tuple[float, float]], across: np.ndarray) -> np.ndarray:
    """A curve's values at each of `across`; NaN before its first point and after its last."""
    xs, ys = np.array(points, float).T
    values: np.ndarray = np.interp(across, xs, ys, left=np.nan, right=np.nan)
    return values
