"""Long series in little memory: a curve by its lowest and highest points, epochs by an even selection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Point = tuple[float, float]


class Curve:
    """At most `most` points (x, y) of a line, taken in one by one; what lies between is told by its extremes.

    A point that is not finite stays as a gap.

    >>> curve = Curve(most=4)
    >>> for x in range(8):
    ...     curve.add(x, 9.0 if x == 5 else 1.0)
    >>> curve.points()
    [(0, 1.0), (4, 1.0), (5, 9.0)]
    """

    def __init__(self, most: int = 800):
        self._most = most
        self._size = 1  # points in a full bucket
        # Of each bucket: the number of its points, the lowest, the highest, whether something was not finite.
        self._buckets: list[tuple[int, Point | None, Point | None, Point | None]] = []

    @classmethod
    def of(cls, points: Iterable[Point]) -> Curve:
        """The curve of points that are there."""
        curve = cls()
        for x, y in points:
            curve.add(x, y)
        return curve

    def add(self, x: float, y: float) -> None:
        """Take in the next point."""
        point = (x, y)
        new = (1, point, point, None) if math.isfinite(y) else (1, None, None, point)
        if self._buckets and self._buckets[-1][0] < self._size:
            self._buckets[-1] = _merged(self._buckets[-1], new)
        else:
            self._buckets.append(new)
        if len(self._buckets) > (self._most if self._size == 1 else self._most // 2):
            self._size *= 2
            pairs = [self._buckets[i : i + 2] for i in range(0, len(self._buckets), 2)]
            self._buckets = [_merged(*pair) if len(pair) == 2 else pair[0] for pair in pairs]

    def points(self) -> list[Point]:
        """What was kept, in order of x; NaN where there is a gap."""
        found: list[Point] = []
        for _, low, high, gap in self._buckets:
            if low is not None and high is not None:
                found += sorted({low, high})
            if gap is not None:
                found.append((gap[0], math.nan))
        return found


def _merged(one, other):
    lows = [low for _, low, _, _ in (one, other) if low is not None]
    highs = [high for _, _, high, _ in (one, other) if high is not None]
    return (
        one[0] + other[0],
        min(lows, key=lambda p: p[1], default=None),
        max(highs, key=lambda p: p[1], default=None),
        one[3] or other[3],
    )


class Epochs:
    """The records of at most about `most` epochs, evenly spread, and of the last: a function of the records alone."""

    def __init__(self, most: int = 500):
        self._most = most
        self.stride = 1
        self._kept: dict[int, list[Mapping[str, Any]]] = {}
        self._last: tuple[int, list[Mapping[str, Any]]] | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in a record; those of steps are left out."""
        if record["kind"] != "epoch":
            return
        epoch = record["epoch"]
        if self._last is None or epoch != self._last[0]:
            self._last = (epoch, self._kept.get(epoch, []))
            if epoch % self.stride == 0:
                self._kept[epoch] = self._last[1]
        self._last[1].append(record)
        while len(self._kept) > self._most:
            self.stride *= 2
            self._kept = {kept: found for kept, found in self._kept.items() if kept % self.stride == 0}

    def kept(self) -> list[tuple[int, list[Mapping[str, Any]]]]:
        """Epochs and their records, in order."""
        last = {} if self._last is None else dict([self._last])
        return sorted({**self._kept, **last}.items())
