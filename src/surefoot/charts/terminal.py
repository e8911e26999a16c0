"""A line chart in text: braille dots where the terminal can, plain ASCII where not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .scale import Axis, digits_of

# The dots of a braille cell by (row, column), as bits above U+2800.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_ROWS = 14
_MARKERS = "*+ox#%"
BOLD = 1
COLOURS = (36, 33, 35, 32, 34, 31)  # ANSI: cyan, yellow, magenta, green, blue, red


def envelope(rates: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest rate in each of `columns` equal stretches of the run; NaN where there is none."""
    count = len(rates)
    edges = np.linspace(0, count, columns + 1)
    low, high = np.full(columns, np.nan), np.full(columns, np.nan)
    for column in range(columns):
        begin = min(int(edges[column]), count - 1)
        piece = rates[begin : max(begin + 1, math.ceil(edges[column + 1]))]
        piece = piece[np.isfinite(piece)]
        if len(piece):
            low[column], high[column] = piece.min(), piece.max()
    return low, high


def framed(
    curves: Sequence[np.ndarray],
    axis: Axis,
    width: int,
    *,
    label: str,
    marks: Sequence[tuple[float, str]],
    scale: Callable[[int], str],
    unicode: bool,
    colour: bool,
) -> tuple[list[str], int]:
    """`curves` in a frame `width` wide: the axis with its `label`, `marks` and the `scale` below; and its left margin.

    A mark is its place from left to right, 0 to 1, and a letter; ``scale(columns)`` is the text under the chart.
    """
    tall = _ROWS * (4 if unicode else 1)
    ticks = axis.ticks(5)
    rows = (axis.place(np.array(ticks)) * (tall - 1)).round().astype(int) * _ROWS // tall
    digits = digits_of(ticks)
    labels = {_ROWS - 1 - int(row): f"{tick:.{digits}g}" for row, tick in zip(rows, ticks, strict=True)}
    margin = max(map(len, labels.values()), default=1) + 1
    columns = width - margin - 1
    bar, tee, corner, floor, up = "\u2502\u2524\u2514\u2500\u252c" if unicode else "|++-+"
    body = drawn(curves, axis, columns, _ROWS, unicode=unicode, colour=colour)
    out = [f"{label:>{margin}}"]
    out += [f"{labels.get(row, ''):>{margin}}{tee if row in labels else bar}{line}" for row, line in enumerate(body)]
    ruler, letters = [floor] * columns, [" "] * columns
    for place, letter in marks:
        column = min(columns - 1, int(place * columns))
        ruler[column] = up
        letters[column] = letter if letters[column] == " " else "+"
    out.append(" " * margin + corner + "".join(ruler))
    if marks:
        out.append(" " * (margin + 1) + "".join(letters))
    return [*out, " " * (margin + 1) + scale(columns)], margin


def drawn(
    curves: Sequence[np.ndarray], axis: Axis, columns: int, rows: int, *, unicode: bool, colour: bool
) -> list[str]:
    """`rows` lines of `columns` characters, from top to bottom; later curves lie over earlier ones."""
    wide, tall = (2, 4) if unicode else (1, 1)
    width, height = columns * wide, rows * tall
    cells = np.zeros((rows, columns), int)
    owner = np.full((rows, columns), -1)
    for index, curve in enumerate(curves):
        low, high = envelope(curve, width)
        bottom = np.round(axis.place(low) * (height - 1))
        top = np.round(axis.place(high) * (height - 1))
        before: tuple[float, float] | None = None
        for x in range(width):
            if math.isnan(low[x]):
                before = None
                continue
            begin, end = bottom[x], top[x]
            if before is not None:  # close the gap to the column before, so that a jump is a line
                begin, end = min(begin, before[1]), max(end, before[0])
            before = (bottom[x], top[x])
            for y in range(int(begin), int(end) + 1):
                row, column = rows - 1 - y // tall, x // wide
                cells[row, column] |= _DOTS[tall - 1 - y % tall][x % wide] if unicode else 1
                owner[row, column] = index
    labels = _labels(curves, axis, columns, rows) if len(curves) > 1 else {}
    return [
        "".join(
            labels.get((row, column)) or _cell(cells[row, column], int(owner[row, column]), unicode, colour)
            for column in range(columns)
        )
        for row in range(rows)
    ]


def _labels(curves: Sequence[np.ndarray], axis: Axis, columns: int, rows: int) -> dict[tuple[int, int], str]:
    """The number of each curve at the place where it is farthest from all others."""
    heights = []
    for curve in curves:
        low, high = envelope(curve, columns)
        heights.append(axis.place((low + high) / 2))
    labels: dict[tuple[int, int], str] = {}
    for index, own in enumerate(heights):
        gaps = [np.abs(own - other) for number, other in enumerate(heights) if number != index]
        # Where a curve is alone (others have not joined), it is as far as can be.
        room = np.min(np.nan_to_num(gaps, nan=1.0), axis=0)
        room[np.isnan(own)] = -1.0
        column = int(np.argmax(room))
        if room[column] > 1 / rows:
            row = rows - 1 - int(round(float(own[column]) * (rows * 4 - 1))) // 4
            labels[row, column] = str(index + 1)
    return labels


def marker(index: int, unicode: bool, colour: bool) -> str:
    """The sign of a curve in the legend: its number in the chart, and how it is drawn."""
    sign = f"{index + 1} " + ("\u2501\u2501" if unicode else _MARKERS[index % len(_MARKERS)] * 2)
    return painted(sign, COLOURS[index % len(COLOURS)]) if colour else sign


def painted(text: str, code: int) -> str:
    """`text` in an ANSI colour."""
    return f"\x1b[{code}m{text}\x1b[0m"


def _cell(bits: int, owner: int, unicode: bool, colour: bool) -> str:
    if not bits:
        return " "
    sign = chr(0x2800 + int(bits)) if unicode else _MARKERS[owner % len(_MARKERS)]
    return painted(sign, COLOURS[owner % len(COLOURS)]) if colour else sign
