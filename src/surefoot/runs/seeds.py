"""Runs that differ in nothing but their seed: groups with mean and spread, and whether two groups differ by more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """The values of runs that differ in their seeds only."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None of one value."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """How far two means lie apart: the difference, its 95 % interval, and Welch's two-sided `p`."""

    value: float
    low: float
    high: float
    p: float

    @property
    def beyond_seeds(self) -> bool:
        """Whether the difference is larger than seeds make: 0 lies outside of the interval."""
        return self.p < 0.05


def difference(one: Sequence[float], other: Sequence[float]) -> Difference | None:
    """Welch's t-test of two groups of values; None where a group has one value only, which says nothing of seeds.

    >>> difference([0.91, 0.92, 0.93], [0.81, 0.80, 0.82]).beyond_seeds
    True
    """
    if min(len(one), len(other)) < 2:
        return None
    a, b = np.asarray(one, float), np.asarray(other, float)
    apart = float(a.mean() - b.mean())
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = math.sqrt(sum(parts))
    if error == 0:
        return Difference(apart, apart, apart, 1.0 if apart == 0 else 0.0)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    p = _beyond(abs(apart) / error, freedom)
    half = _quantile(freedom) * error
    return Difference(apart, apart - half, apart + half, p)


def _beyond(t: float, freedom: float) -> float:
    """The part of Student's distribution beyond -t and t: its density under x = tan(a), summed over equal angles."""
    angles = np.linspace(0.0, math.pi / 2, 20_001)[:-1]
    scaled = angles + (math.pi / 4) / 20_000
    density = np.cos(scaled) ** (freedom - 1)
    return float(density[scaled > math.atan(t / math.sqrt(freedom))].sum() / density.sum())


def _quantile(freedom: float) -> float:
    """The t beyond which, on both sides, 5 % lie."""
    low, high = 0.0, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beyond(middle, freedom) > 0.05 else (low, middle)
    return high
