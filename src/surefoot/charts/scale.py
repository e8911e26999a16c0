"""Axes: where a value lies between two ends, on a linear or logarithmic scale, and the round values to write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# An axis ends there: the width of a longer one, or the logarithm of a part of a shorter one, is no number.
MOST, LEAST = 1e300, 1e-300


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, linear or logarithmic (then both are above 0)."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], *, log: bool = False, margin: float = 0.0) -> Axis:
        """The axis from the lowest of finite `values` to the highest and a `margin`, a part of it, at both ends."""
        low, high = map(float, _shown(np.array([min(values), max(values)])))
        if log:
            low, high = math.log10(max(low, LEAST)), math.log10(max(high, LEAST))
        alike = high - low <= max(1e-12 * max(abs(low), abs(high)), LEAST)
        pad = (abs(low) * 0.05 or 0.5) if alike else (high - low) * margin
        return cls(10 ** max(low - pad, -305), 10 ** min(high + pad, 305), log) if log else cls(low - pad, high + pad)

    def place(self, value: np.ndarray) -> np.ndarray:
        """0 at the bottom, 1 at the top; what is outside is put on the edge."""
        value = np.clip(value, self.low, self.high)
        if self.log:
            value = np.log10(value)
            low, high = math.log10(self.low), math.log10(self.high)
        else:
            low, high = self.low, self.high
        return np.clip((value - low) / (high - low), 0.0, 1.0)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the axis, from low to high, at most about `most`.

        >>> Axis(0.0, 1.0).ticks(), Axis(0.02, 50.0, log=True).ticks()
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.1, 1.0, 10.0])
        """
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            powers = [10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first + 1) / most)))]
            # One power of ten is no scale; a round value may be 0, which a logarithmic axis does not have.
            return (
                powers if len(powers) > 1 else [value for value in Axis(self.low, self.high).ticks(most) if value > 0]
            )
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        # The nearest doubles of round decimals, where a product would give 0.30000000000000004.
        step = next(f * power for f in (1, 2, 5, 10, 20) if (self.high - self.low) / (f * power) <= most + 1e-9)
        digits = max(0, 2 - math.floor(math.log10(step)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, digits) for index in range(first, last + 1)]


def digits_of(values: Sequence[float]) -> int:
    """With how many digits to write the values of an axis: as many as tell them apart, and 4 at least.

    >>> digits_of([0.5, 1.0]), digits_of([12345.2, 12345.4])
    (4, 6)
    """
    return next((n for n in range(4, 17) if len({f"{value:.{n}g}" for value in values}) == len(values)), 17)


def axis_for(curves: Sequence[np.ndarray]) -> Axis:
    """An axis on which `curves` show: logarithmic where on a linear one most of the run would lie on the floor."""
    every = [_shown(curve) for curve in (curve[np.isfinite(curve)] for curve in curves) if len(curve)]
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


def _shown(values: np.ndarray) -> np.ndarray:
    """The values within what an axis has; what is nearly 0 as 0."""
    return np.where(np.abs(values) < LEAST, 0.0, np.clip(values, -MOST, MOST))
