"""Line charts as SVG, inline in a page or as a file: no script, no request; equal charts are equal text."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from .scale import Axis, digits_of
from .thinning import Curve, Point

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM, _TITLE, _ROW = 64, 14, 12, 44, 24, 18

# Each colour on a light page and on a dark one.
_COLOURS = (
    ("#2166c4", "#6ba7ff"), ("#d0590b", "#ffa25c"), ("#23863b", "#66cc80"), ("#8a45c4", "#c79bff"),
    ("#ad1a72", "#f07fc0"), ("#7a5c00", "#d9bb55"), ("#0f7b8c", "#5cc8d8"), ("#c02626", "#ff8a80"),
)  # fmt: skip
_GREYS = (
    {"back": "#fff", "text": "#1d2228", "dim": "#6a7280", "line": "#e3e6ea"},
    {"back": "#14171b", "text": "#e4e7eb", "dim": "#98a1ad", "line": "#2b3038"},
)
_RULES = """
svg.chart { font: 12px system-ui, sans-serif; }
svg.chart text { fill: var(--dim); }
svg.chart .grid { stroke: var(--line); stroke-width: 1; }
svg.chart .axis { stroke: var(--dim); stroke-width: 1; }
svg.chart .mark { stroke: var(--dim); stroke-width: 1; stroke-dasharray: 1 3; }
svg.chart polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg.chart polyline.faint { stroke-width: 1; opacity: .45; }
svg.chart .dashed { stroke-dasharray: 6 4; }
svg.chart text.key { fill: var(--text); } svg.chart text.title { font-size: 15px; font-weight: bold; fill: var(--text) }
""" + "".join(f".c{i} {{ stroke: var(--c{i}); fill: var(--c{i}); }}\n" for i in range(len(_COLOURS)))


def _variables(dark: bool) -> str:
    return ":root { " + "".join(f"--c{i}: {pair[dark]}; " for i, pair in enumerate(_COLOURS)) + "}"


# For a page that has charts inline, and itself the variables --text, --dim and --line.
STYLE = (
    f"{_variables(False)}\n@media (prefers-color-scheme: dark) {{ {_variables(True)} }}{_RULES}"
    "svg.chart { width: 100%; min-width: 34rem; height: auto; display: block; }\n"
)


@dataclass(frozen=True)
class Line:
    """A line of a chart: `points` (x, y) in the order of x; `marks` puts a dot on each, `faint` is thin.

    Its `form` is ``"line"``, ``"steps"`` (each height holds until the next point) or ``"points"`` (no line at all).
    """

    label: str
    points: Sequence[Point]
    colour: int = 0
    marks: bool = False
    faint: bool = False
    dashed: bool = False
    form: str = "line"


@dataclass(frozen=True)
class Mark:
    """A dotted line over the whole height at `x`; its label stands beside it where there is room."""

    x: float
    label: str


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_axis: Axis | None = None,
    y_axis: Axis | None = None,
    log: bool = False,
    percent: bool = False,
    marks: Sequence[Mark] = (),
    most: int = 800,
    title: str | None = None,
    subtitle: str = "",
) -> str:
    """An SVG element with `lines`, a legend and axes; points that are not finite leave a gap.

    The axes fit the points unless given; `log` asks for a logarithmic y axis (points at or below 0 then
    leave a gap), `percent` shows y times 100. A line is thinned to `most` points. With a `title`, even an
    empty one, it has a head too: title, subtitle, y label.
    """
    drawable = [(x, y) for line in lines for x, y in line.points if _fits(y, log)]
    if not drawable and (x_axis is None or y_axis is None):
        return "<p>Nothing to draw.</p>"
    across = x_axis or Axis.around([x for x, _ in drawable])
    up = y_axis or Axis.around([y for _, y in drawable], log=log, margin=0.04)
    top = _TOP if title is None else _TOP + _ROW + (_TITLE if title else 0) + (_ROW if subtitle else 0)
    base = top + HEIGHT - _TOP - _BOTTOM
    keys, rows = _legend(lines, base + 32)
    height = base + _BOTTOM + _ROW * (rows - 1)

    def places(points: Sequence[Point]) -> np.ndarray:
        x, y = np.array(points, float).T
        return np.stack((_LEFT + across.place(x) * (WIDTH - _LEFT - _RIGHT), base - up.place(y) * (base - top)), axis=1)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title or y_label)}">']
    if title:
        parts.append(f'<text class="title" x="{_LEFT}" y="24">{escape(title)}</text>')
    if subtitle:
        parts.append(f'<text x="{_LEFT}" y="42">{escape(subtitle)}</text>')
    if title is not None:
        parts.append(f'<text x="4" y="{top - 11}">{escape(y_label)}</text>')
    heights = up.ticks()
    digits = digits_of([100 * value for value in heights] if percent else heights)
    for value in heights:
        at = base - float(up.place(np.array(value))) * (base - top)
        text = f"{100 * value:.{digits}g} %" if percent else _number(value, digits)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    steps = across.ticks(8)
    for value in steps:
        at = _LEFT + float(across.place(np.array(value))) * (WIDTH - _LEFT - _RIGHT)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{base + 18}" text-anchor="middle">{_number(value, digits_of(steps))}</text>'
        )
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{base + 36}" text-anchor="end">{escape(x_label)}</text>')
    parts += _marked(marks, lines, across, up, top, base)
    for line in lines:
        style = f"c{line.colour % len(_COLOURS)}"
        if line.form == "points":
            for left, down in places([point for point in line.points if _fits(point[1], log)] or [(0, math.nan)]):
                parts.append(f'<circle class="{style}" cx="{left:.1f}" cy="{down:.1f}" r="2" fill-opacity=".5"/>')
            continue
        points = stepped(line.points) if line.form == "steps" else Curve.of(line.points, most).points()
        for stretch in _stretches(points, log):
            spots = " ".join(f"{x:.1f},{y:.1f}" for x, y in places(stretch))
            styles = f"{style}{' faint' if line.faint else ''}{' dashed' if line.dashed else ''}"
            parts.append(f'<polyline class="{styles}" style="fill:none" points="{spots}"/>')
            if len(stretch) == 1 and not line.marks:  # a line of one point is not seen
                left, down = places(stretch)[0]
                parts.append(f'<circle class="{style}" cx="{left:.1f}" cy="{down:.1f}" r="2"/>')
            if line.marks and len(stretch) <= 60:
                for (x, y), (left, down) in zip(stretch, places(stretch), strict=True):
                    shown = f"{100 * y:.2f} %" if percent else _number(y, digits=5)
                    label = f"{line.label}: {shown} at {x_label} {_number(x)}"
                    parts.append(
                        f'<circle class="{style}" cx="{left:.1f}" cy="{down:.1f}" r="3.5">'
                        f"<title>{escape(label)}</title></circle>"
                    )
    return "\n".join([*parts, *keys, "</svg>"])


def picture(chart: str) -> str:
    """The text of a file of its own for a chart of `line_chart`: with a ground, and with what a page's style would add.

    It is dark where what shows it is (CSS `color-scheme`), and else light.
    """
    if not chart.startswith("<svg"):  # no point was finite
        text = '<text x="4" y="24">Nothing to draw.</text>'
        chart = f'<svg class="chart" viewBox="0 0 {WIDTH} {_BOTTOM}" role="img">\n{text}</svg>'
    head, _, rest = chart.partition("\n")
    size = head.partition('viewBox="0 0 ')[2].partition('"')[0].split()
    attributes = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}"'  # in a page unwanted
    style = f"{_ruled(dark=False)}@media (prefers-color-scheme: dark) {{ {_ruled(dark=True)} }}"
    ground = '<rect class="back" width="100%" height="100%"/>'
    return f"{head.replace('<svg', attributes, 1)}\n<style>{style}</style>\n{ground}\n{rest}\n"


def _ruled(dark: bool) -> str:
    """The rules of charts without variables, which only browsers know."""
    rules = _RULES + "svg.chart .back { fill: var(--back); }\n"
    for name, colour in {**_GREYS[dark], **{f"c{i}": pair[dark] for i, pair in enumerate(_COLOURS)}}.items():
        rules = rules.replace(f"var(--{name})", colour)
    return rules


def stepped(points: Sequence[Point]) -> list[Point]:
    """The corners of a line that keeps the height of each point until the next.

    >>> stepped([(0, 1.0), (5, 2.0)])
    [(0, 1.0), (5, 1.0), (5, 2.0)]
    """
    corners = [
        corner
        for (_, y), (x, following) in zip(points, points[1:], strict=False)
        for corner in ((x, y), (x, following))
    ]
    return [*points[:1], *corners]


def _marked(
    marks: Sequence[Mark], lines: Sequence[Line], across: Axis, up: Axis, top: float, base: float
) -> Iterator[str]:
    """Dotted lines; labels beside them, where they lie neither over one another nor over the first line."""
    finite = [(x, y) for x, y in lines[0].points if math.isfinite(y)]
    xs, ys = np.array(finite or [(0.0, 0.0)], float).T
    taken = -math.inf
    for mark in marks:
        at = _LEFT + float(across.place(np.array(mark.x))) * (WIDTH - _LEFT - _RIGHT)
        yield f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{base}"/>'
        if not mark.label or at - taken < 15:
            continue
        taken = at
        high = float(up.place(np.interp(mark.x, xs, ys))) > 0.5
        x, y = (at - 4 if at > WIDTH - _RIGHT - 14 else at + 11), (base - 4 if high else top + 4)
        yield (
            f'<text font-size="10" transform="translate({x:.1f} {y:.1f}) rotate(-90)" '
            f'text-anchor="{"start" if high else "end"}">{escape(mark.label)}</text>'
        )


def _fits(y: float, log: bool) -> bool:
    return math.isfinite(y) and (y > 0 or not log)


def _stretches(points: Sequence[Point], log: bool) -> Iterator[list[Point]]:
    """The points between two gaps."""
    stretch: list[Point] = []
    for point in points:
        if _fits(point[1], log):
            stretch.append(point)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _legend(lines: Sequence[Line], y: float) -> tuple[list[str], int]:
    """Keys under the x axis, left, in as many rows as they need; and how many those are."""
    parts: list[str] = []
    at, rows = _LEFT, 1
    for line in lines:
        wide = 42 + sum(13 if unicodedata.east_asian_width(c) in "WF" else 7 for c in line.label)
        if at > _LEFT and at + wide > WIDTH - 80:
            at, y, rows = _LEFT, y + _ROW, rows + 1
        style = f"c{line.colour % len(_COLOURS)}{' dashed' if line.dashed else ''}"
        faint = ' style="opacity:.45"' if line.faint else ""
        parts.append(f'<line class="{style}" stroke-width="3" x1="{at}" x2="{at + 18}" y1="{y}" y2="{y}"{faint}/>')
        parts.append(f'<text class="key" x="{at + 24}" y="{y + 4}">{escape(line.label)}</text>')
        at += wide
    return parts, rows


def _number(value: float, digits: int = 4) -> str:
    """A value for an axis.

    >>> [_number(v) for v in (12000.0, 0.05, 1e-05)]
    ['12,000', '0.05', '1e-05']
    """
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"
