"""Long series in few points, the lowest and the highest of each stretch among them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

Point = tuple[float, float]
_Bucket = tuple[Point | None, Point | None, Point | None]  # the lowest, the highest, and one that is not finite


class Curve:
    """At most `most` points (x, y) of a line, added one by one: the extremes of each stretch.

    A point that is not finite stays as a gap.

    >>> curve = Curve(most=4)
    >>> for x in range(8):
    ...     curve.add(x, 9.0 if x == 5 else 1.0)
    >>> curve.points()
    [(0, 1.0), (4, 1.0), (5, 9.0), (7, 1.0)]
    """

    def __init__(self, most: int = 800):
        self._most = most
        self._size = 1  # points in a full bucket
        self._buckets: list[_Bucket] = []
        self._count = 0
        self._low: Point | None = None
        self._high: Point | None = None
        self._gap: Point | None = None

    @classmethod
    def of(cls, points: Iterable[Point], most: int = 800) -> Curve:
        """The curve of points that are there."""
        curve = cls(most)
        for x, y in points:
            curve.add(x, y)
        return curve

    def add(self, x: float, y: float) -> None:
        """Add the next point."""
        # For every number of every record of a run: no call, no tuple that is not kept.
        if y - y != 0:
            self._gap = self._gap or (x, y)
        elif self._low is None or self._high is None:
            self._low = self._high = (x, y)
        elif y < self._low[1]:
            self._low = (x, y)
        elif y > self._high[1]:
            self._high = (x, y)
        self._count += 1
        if self._count == self._size:
            self._end_bucket()

    def _end_bucket(self) -> None:
        self._buckets.append((self._low, self._high, self._gap))
        self._count, self._low, self._high, self._gap = 0, None, None, None
        if len(self._buckets) > (self._most if self._size == 1 else self._most // 2):
            self._size *= 2
            pairs = [self._buckets[i : i + 2] for i in range(0, len(self._buckets), 2)]
            self._buckets = [_merged(*pair) if len(pair) == 2 else pair[0] for pair in pairs]

    def points(self) -> list[Point]:
        """What was kept, in order of x; NaN where there is a gap."""
        points: list[Point] = []
        for low, high, gap in [*self._buckets, (self._low, self._high, self._gap)]:
            kept = {low, high} if low is not None and high is not None else set()
            points += sorted({*kept, *([(gap[0], math.nan)] if gap is not None else [])}, key=lambda point: point[0])
        return points


def _merged(one: _Bucket, other: _Bucket) -> _Bucket:
    lows = [bucket[0] for bucket in (one, other) if bucket[0] is not None]
    highs = [bucket[1] for bucket in (one, other) if bucket[1] is not None]
    return (
        min(lows, key=lambda p: p[1], default=None),
        max(highs, key=lambda p: p[1], default=None),
        one[2] or other[2],
    )


def extremes(values: np.ndarray, most: int) -> np.ndarray:
    """Indices of about `most` of `values` (N,) to draw, in order: of each stretch the lowest and highest, and the ends.

    Of a stretch without a finite value, its first.

    >>> extremes(np.array([1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 0.0, 1.0]), 4).tolist()
    [0, 3, 4, 6, 7]
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    picked = [0, count - 1]
    edges = np.linspace(0, count, most // 2 + 1).astype(int)
    for begin, end in itertools.pairwise(edges):
        piece = values[begin:end]
        if np.isfinite(piece).any():
            picked += [begin + int(np.nanargmin(piece)), begin + int(np.nanargmax(piece))]
        else:
            picked.append(begin)
    return np.unique(picked)
