"""Line charts as inline SVG: no script, no request, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from .thinning import Curve

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 12, 44

STYLE = """
svg.chart { width: 100%; min-width: 34rem; height: auto; display: block; font: 12px system-ui, sans-serif; }
svg.chart text { fill: var(--dim); }
svg.chart .grid { stroke: var(--line); stroke-width: 1; }
svg.chart .axis { stroke: var(--dim); stroke-width: 1; }
svg.chart polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg.chart polyline.faint { stroke-width: 1; opacity: .45; }
.c0 { stroke: var(--c0); fill: var(--c0); } .c1 { stroke: var(--c1); fill: var(--c1); }
.c2 { stroke: var(--c2); fill: var(--c2); } .c3 { stroke: var(--c3); fill: var(--c3); }
svg.chart text.key { fill: var(--text); }
"""


@dataclass(frozen=True)
class Line:
    """A line of a chart: `points` (x, y) in the order of x; `marks` puts a dot on each, `faint` is thin."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    marks: bool = False
    faint: bool = False


def line_chart(
    lines: Sequence[Line], *, x_label: str, y_label: str, log: bool = False, percent: bool = False
) -> str:
    """An SVG element with `lines`, a legend and axes; points that are not finite leave a gap.

    `log` asks for a logarithmic y axis (points at or below 0 then leave a gap), `percent` shows y times 100.
    """
    drawable = [(x, y) for line in lines for x, y in line.points if _fits(y, log)]
    if not drawable:
        return "<p>Nothing to draw.</p>"
    x_low, x_high = _span([x for x, _ in drawable])
    ys = [math.log10(y) if log else y for _, y in drawable]
    y_low, y_high = _span(ys, margin=0.04)

    def to_x(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def to_y(y: float) -> float:
        y = math.log10(y) if log else y
        return HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    for value in _log_ticks(y_low, y_high) if log else ticks(y_low, y_high):
        at = to_y(value)
        text = f"{100 * value:.4g} %" if percent else _number(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    base = HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    for value in ticks(x_low, x_high, most=8):
        at = to_x(value)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{at:.1f}" y="{base + 18}" text-anchor="middle">{_number(value)}</text>')
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{escape(x_label)}</text>')
    for line in lines:
        for stretch in _stretches(Curve.of(line.points).points(), log):
            spots = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in stretch)
            faint = " faint" if line.faint else ""
            parts.append(f'<polyline class="c{line.colour % 4}{faint}" style="fill:none" points="{spots}"/>')
            if line.marks and len(stretch) <= 60:
                for x, y in stretch:
                    shown = f"{100 * y:.2f} %" if percent else _number(y, digits=5)
                    told = f"{line.label}: {shown} at {x_label} {_number(x)}"
                    parts.append(
                        f'<circle class="c{line.colour % 4}" cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="3.5">'
                        f"<title>{escape(told)}</title></circle>"
                    )
    parts.append(_legend(lines))
    parts.append("</svg>")
    return "\n".join(parts)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values between `low` and `high`, at most about `most`.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(f * power for f in (1, 2, 5, 10, 20) if (high - low) / (f * power) <= most + 1e-9)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two exponents; round values where there are fewer than two powers."""
    powers = [10.0**exponent for exponent in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    if len(powers) > 1:
        return powers[:: math.ceil(len(powers) / 7)]
    return [value for value in ticks(10**low, 10**high, most=5) if value > 0]


def _fits(y: float, log: bool) -> bool:
    return math.isfinite(y) and (y > 0 or not log)


def _span(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    """The lowest and the highest value, a little apart even where they are one."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        pad = abs(low) * 0.05 or 0.5
        return low - pad, high + pad
    pad = (high - low) * margin
    return low - pad, high + pad


def _stretches(points: Sequence[tuple[float, float]], log: bool) -> Iterator[list[tuple[float, float]]]:
    """The points between two gaps."""
    stretch: list[tuple[float, float]] = []
    for point in points:
        if _fits(point[1], log):
            stretch.append(point)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _legend(lines: Sequence[Line]) -> str:
    """Keys in one row under the x axis, left."""
    parts, at = [], _LEFT
    for line in lines:
        y = HEIGHT - 12
        faint = ' style="opacity:.45"' if line.faint else ""
        key = f'<line class="c{line.colour % 4}" stroke-width="3" x1="{at}" x2="{at + 18}"'
        parts.append(f'{key} y1="{y}" y2="{y}"{faint}/>')
        parts.append(f'<text class="key" x="{at + 24}" y="{y + 4}">{escape(line.label)}</text>')
        at += 42 + 7 * len(line.label)
    return "\n".join(parts)


def _number(value: float, digits: int = 4) -> str:
    """A value for an axis.

    >>> [_number(v) for v in (12000.0, 0.05, 1e-05)]
    ['12,000', '0.05', '1e-05']
    """
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"
