"""A chart as the value of a notebook's cell: curves by name, shown as SVG."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from .scale import Axis
from .svg import Line, Mark, line_chart, picture, stepped
from .thinning import Point

__all__ = ["Figure", "figure", "image"]


@dataclass(frozen=True)
class Figure:
    """The text `svg` of an SVG file; a notebook shows it, `save` writes it. `alt` says in words what it shows."""

    svg: str = field(repr=False)
    alt: str = "a chart"

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:  # SVG alone is text in a notebook that is not trusted
        return image(self, self.alt)

    def save(self, path: str | Path) -> None:
        """Write the SVG file at `path`."""
        Path(path).write_text(self.svg, encoding="utf-8")


def figure(
    curves: Mapping[str, Sequence[float] | Sequence[Point]],
    *,
    x: str,
    y: str,
    title: str = "",
    subtitle: str = "",
    log: bool = False,
    marks: Mapping[str, float] | None = None,
    dots: bool = False,
    steps: bool = False,
    across: tuple[float, float] | None = None,
) -> Figure:
    """A line for each of `curves`: its heights at 0, 1, 2, ..., or its points (x, y), which need no order.

    `title` and `subtitle` stand above it, `x` and `y` name the axes, `log` makes the y axis logarithmic, `marks` are
    dotted lines at an x, by what they say; `dots` puts a dot on each point of a line of at most 60, `steps` keeps each
    height until the next point, `across` are the ends of the x axis (default: the first and the last point).

    >>> figure({"loss": [3.0, 2.0, 1.5]}, x="epoch", y="loss").svg[:4]
    '<svg'
    """
    lines = []
    for index, (name, values) in enumerate(curves.items()):
        points: list[Point] = []
        for at, value in enumerate(values):
            points.append(value if isinstance(value, tuple) else (at, value))
        lines.append(Line(name, stepped(points) if steps else points, index, marks=dots))
    signs = [Mark(at, label) for label, at in (marks or {}).items()]
    ends = None if across is None else Axis(*across)
    chart = line_chart(lines, x_label=x, y_label=y, x_axis=ends, log=log, marks=signs, title=title, subtitle=subtitle)
    return Figure(picture(chart), title or f"{y} over {x}: {', '.join(curves)}")


def image(chart: Figure, alt: str) -> str:
    """`chart` as an image of HTML, so that its style is its own; `alt` says in words what it shows."""
    data = base64.b64encode(chart.svg.encode()).decode()
    return f"<img alt='{escape(alt)}' style='max-width:100%' src='data:image/svg+xml;base64,{data}'>"
