"""What a range test found: loss over learning rate, as numbers, in the terminal and as a picture."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..charts.scale import Axis
from ..charts.svg import Line, Mark, line_chart, picture
from ..charts.terminal import BOLD, framed, painted
from .pictures import save


@dataclass(frozen=True)
class LrFind:
    """What a range test saw: at each of `rates` the loss before that step's update (`losses`), and the loss smoothed.

    `highest` is the rate at which the smoothed loss is lowest, about the last that is still safe. `suggestion` is the
    rate at which it falls steepest over the logarithm of the rate, but at most a quarter of `highest`: a real run stays
    at its rate for longer than one step. Both are None where the loss never clearly fell. `stopped` says why the
    test ended before its last rate, if it did.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    highest: float | None
    stopped: str | None

    def render_terminal(self, width: int = 80, unicode: bool = True, colour: bool = False) -> str:
        """The chart and the suggestion as text of at most `width` columns; without `unicode`, in ASCII."""
        width, smoothed, title = max(60, width), np.array(self.smoothed, float), "loss over learning rate"
        marks = [
            (self._along(rate), mark)
            for mark, rate in (("s", self.suggestion), ("h", self.highest))
            if rate is not None
        ]
        chart, _ = framed(
            [smoothed], _loss_axis(smoothed), width, label="", marks=marks, scale=self._scale,
            unicode=unicode, colour=colour,
        )  # fmt: skip
        out = [painted(title, BOLD) if colour else title, *chart, ""]
        out += [line for text in conclusion(self) for line in textwrap.wrap(text, width, subsequent_indent="     ")]
        text = "\n".join(line.rstrip() for line in out)
        return text if unicode else text.encode("ascii", "replace").decode()

    def save_svg(self, path: str | Path) -> None:
        """Draw the chart into an SVG file; raises UsageError where it cannot be written."""
        marks = (("suggested", self.suggestion), ("highest", self.highest))
        chart = line_chart(
            [
                Line("loss of each batch", list(zip(self.rates, self.losses, strict=True)), 0, faint=True),
                Line("smoothed", list(zip(self.rates, self.smoothed, strict=False)), 0),
            ],
            x_label="learning rate",
            y_label="loss",
            x_axis=Axis(self.rates[0], max(self.rates[-1], self.rates[0] * 1.01), log=True),
            y_axis=_loss_axis(np.array(self.smoothed, float)),
            marks=[Mark(rate, f"{name} {rate:.2g}") for name, rate in marks if rate is not None],
            title="Learning rate range test",
            subtitle="loss over learning rate",
        )
        save(Path(path), picture(chart))

    def to_json(self) -> dict[str, Any]:
        """Plain data; a loss that is not finite is null."""
        plain = dict(vars(self))
        for name in ("losses", "smoothed"):
            plain[name] = [loss if math.isfinite(loss) else None for loss in plain[name]]
        return plain

    def _along(self, rate: float) -> float:
        """Where `rate` lies between the first and the last, 0 to 1, by its logarithm."""
        first, last = math.log(self.rates[0]), math.log(self.rates[-1])
        return (math.log(rate) - first) / (last - first) if last > first else 0.0

    def _scale(self, columns: int) -> str:
        line = [" "] * (columns + 8)
        end = -1
        low, high = math.log10(self.rates[0]) - 1e-9, math.log10(self.rates[-1]) + 1e-9
        for power in range(math.ceil(low), math.floor(high) + 1):
            text = f"1e{power:d}" if abs(power) > 2 else f"{10.0**power:g}"
            place = int(self._along(10.0**power) * columns)
            if place > end + 1 and place + len(text) <= columns:
                line[place : place + len(text)] = text
                end = place + len(text)
        return "".join(line)[:columns]


def conclusion(result: LrFind) -> list[str]:
    """What the test says, in sentences."""
    lines = []
    if result.suggestion is None or result.highest is None:
        lines.append(
            f"  No suggestion: between {result.rates[0]:.2g} and {result.rates[-1]:.2g} the loss does not clearly "
            "fall. Try other ends, more steps, or check the first batch with `surefoot check`."
        )
    else:
        lines.append(f"  s  suggested rate {result.suggestion:.2g}: the loss falls, and there is room to the highest")
        lines.append(f"  h  highest rate {result.highest:.2g}: the loss is lowest here; beyond, training is unsafe")
    if result.stopped:
        lines.append(f"  The test ended early: {result.stopped}.")
    return lines


def _loss_axis(smoothed: np.ndarray) -> Axis:
    """An axis that the end, where the loss explodes, does not flatten."""
    finite = smoothed[np.isfinite(smoothed)]
    if not len(finite):
        return Axis(0.0, 1.0)
    low, first = float(finite.min()), float(finite[0])
    high = min(float(finite.max()), first + 0.5 * (first - low))
    high = max(high, low + 1e-9 * max(1.0, abs(low)))
    room = 0.05 * (high - low)
    return Axis(low - room, high + room)
