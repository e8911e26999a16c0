"""A line chart in text: braille dots where the terminal can, plain ASCII where not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The dots of a braille cell by (row, column), as bits above U+2800.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_MARKERS = "*+ox#%"
COLOURS = (36, 33, 35, 32, 34, 31)  # ANSI: cyan, yellow, magenta, green, blue, red


@dataclass(frozen=True)
class Axis:
    """A vertical axis from `low` to `high`, linear or logarithmic (then both are above 0)."""

    low: float
    high: float
    log: bool = False

    def place(self, value: np.ndarray) -> np.ndarray:
        """0 at the bottom, 1 at the top; what is outside is put on the edge."""
        if self.log:
            value = np.log10(np.maximum(value, self.low))
            low, high = math.log10(self.low), math.log10(self.high)
        else:
            low, high = self.low, self.high
        return np.clip((value - low) / (high - low), 0.0, 1.0)

    def ticks(self, most: int) -> list[float]:
        """Round values within the axis, from low to high, at most about `most`."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            stride = max(1, math.ceil((last - first + 1) / most))
            found = [10.0**power for power in range(first, last + 1, stride)]
            return found if len(found) > 1 else [self.low, self.high]
        rough = (self.high - self.low) / max(1, most - 1)
        power = 10.0 ** math.floor(math.log10(rough))
        size = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
        first = math.ceil(self.low / size - 1e-9)
        return [k * size for k in range(first, math.floor(self.high / size + 1e-9) + 1)]


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


def axis_for(curves: Sequence[np.ndarray]) -> Axis:
    """An axis on which `curves` show: logarithmic where on a linear one most of the run would lie on the floor."""
    finite = [curve[np.isfinite(curve)] for curve in curves]
    every = [curve for curve in finite if len(curve)]
    top = max((float(curve.max()) for curve in every), default=1.0)
    bottom = min((float(curve.min()) for curve in every), default=0.0)
    if top <= 0 or not every:
        return Axis(min(bottom, 0.0), top if top > 0 else -0.05 * bottom or 1e-12)
    hidden = max((float(np.mean(curve < 0.02 * curve.max())) for curve in every if curve.max() > 0), default=0.0)
    # Curves of different groups can be orders apart too.
    apart = min(float(curve.max()) for curve in every) < 0.02 * top
    positive = [curve[curve > 0] for curve in every]
    if bottom >= 0 and (hidden > 1 / 3 or apart):
        low = max(min(float(curve.min()) for curve in positive if len(curve)), 1e-7 * top)
        return Axis(min(low, top / 10), top * 1.05, log=True)
    return Axis(min(0.0, bottom), top * 1.04)


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
    found: dict[tuple[int, int], str] = {}
    for index, own in enumerate(heights):
        gaps = [np.abs(own - other) for number, other in enumerate(heights) if number != index]
        # Where a curve is alone (others have not joined), it is as far as can be.
        room = np.min(np.nan_to_num(gaps, nan=1.0), axis=0)
        room[np.isnan(own)] = -1.0
        column = int(np.argmax(room))
        if room[column] > 1 / rows:
            row = rows - 1 - int(round(float(own[column]) * (rows * 4 - 1))) // 4
            found[row, column] = str(index + 1)
    return found


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
