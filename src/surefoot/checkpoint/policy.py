"""When to save and what to keep: pure decisions, no disk."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..arguments import Arguments
from ..errors import UsageError
from ..limits import WHEN_BUSY
from ..monitor import AUTO, settled

_UNITS = {
    "step": ("steps", 1.0),
    "epoch": ("epochs", 1.0),
    "s": ("seconds", 1.0),
    "sec": ("seconds", 1.0),
    "second": ("seconds", 1.0),
    "min": ("seconds", 60.0),
    "minute": ("seconds", 60.0),
    "h": ("seconds", 3600.0),
    "hour": ("seconds", 3600.0),
}


def check_when_busy(value: object) -> None:
    """Raise `UsageError` for what is not one of WHEN_BUSY."""
    if value not in WHEN_BUSY:
        raise UsageError(f"when_busy: {value!r} is not one of {', '.join(WHEN_BUSY)}")


@dataclass(frozen=True)
class Every:
    """How often to save: `amount` of "steps", "epochs" or "seconds".

    >>> Every.parse("500 steps"), Every.parse("10 min")
    (Every(amount=500, unit='steps'), Every(amount=600.0, unit='seconds'))
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Every:
        """From "1 epoch", "500 steps", "10 min", "30 s" or "2 h". Raises `UsageError`."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text) if isinstance(text, str) else None
        word = match[2] if match else ""
        unit, factor = _UNITS.get(word) or _UNITS.get(word.removesuffix("s")) or (None, 0.0)
        amount = float(match[1]) if match else 0.0
        if unit is None or amount <= 0 or (unit != "seconds" and amount != int(amount)):
            raise UsageError(f'every: {text!r} is not an interval; write "1 epoch", "500 steps" or "10 min"')
        return cls(amount * factor, unit) if unit == "seconds" else cls(int(amount), unit)

    def after_step(self, step: int, seconds: float) -> bool:
        """Whether a save is due after `step` updates and `seconds` since the last save began."""
        if self.unit == "steps":
            return step % self.amount == 0
        return self._after(seconds)

    def after_epoch(self, epoch: int, seconds: float) -> bool:
        """Whether a save is due after `epoch` whole epochs."""
        return (self.unit == "epochs" and epoch % self.amount == 0) or self._after(seconds)

    def _after(self, seconds: float) -> bool:
        return self.unit == "seconds" and seconds >= self.amount


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest `last` (None: all), and the best by the metric named `best`.

    `mode` is "min", "max" or "auto" (as the metric's name says). Raises `UsageError` for anything else.
    """

    last: int | None = 3
    best: str | None = None
    mode: str = AUTO

    def __post_init__(self) -> None:
        check = Arguments()
        object.__setattr__(self, "last", check.whole("keep_last", self.last, low=1, none=True))
        check.done()
        object.__setattr__(self, "mode", settled(self.mode, self.best, "keep_best"))

    def better(self, value: Any, than: Any) -> bool:
        """Whether a metric beats another; NaN and None beat nothing, anything else beats them."""
        if not _counts(value):
            return False
        if not _counts(than):
            return True
        return bool(value < than if self.mode == "min" else value > than)

    def best_of(self, metrics: Sequence[dict[str, Any]]) -> int | None:
        """Index of the best entry, the earliest of equals; None when no entry has the metric.

        >>> Keep(best="val/loss").best_of([{"val/loss": 2.0}, {"val/loss": float("nan")}, {"val/loss": 1.0}, {}])
        2
        """
        best = None
        if self.best is not None:
            for i, values in enumerate(metrics):
                if self.better(values.get(self.best), None if best is None else metrics[best].get(self.best)):
                    best = i
        return best

    def surplus(self, steps: Sequence[int], metrics: Sequence[dict[str, Any]]) -> list[int]:
        """Indices that may go, of checkpoints in order from oldest to newest; never the newest, never the best.

        Of several at one step only the latest counts: it holds what came after the others, a validation say.

        >>> Keep(last=1, best="v", mode="min").surplus([1, 2, 3], [{"v": 3}, {"v": 1}, {"v": 2}])
        [0]
        """
        if self.last is None:
            return []
        latest = {step: i for i, step in enumerate(steps)}
        kept = {*sorted(latest.values())[-self.last :], self.best_of(metrics)}
        return [i for i in range(len(steps)) if i not in kept]


def _counts(value: Any) -> bool:
    return isinstance(value, (int, float)) and not math.isnan(value)
