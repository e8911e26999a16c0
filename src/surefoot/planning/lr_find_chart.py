"""The range test drawn: loss over learning rate, in the terminal and as a picture."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..charts.terminal import Axis, drawn, painted
from .figure import GREY, GRID, INK, LINES, written

if TYPE_CHECKING:
    from .lr_find import LrFind

_ROWS = 14
_BOLD = 1


def rendered(found: LrFind, width: int, unicode: bool, colour: bool) -> str:
    """Chart, scale and suggestion, one line for each line of the terminal."""
    width = max(60, width)
    smoothed = np.array(found.smoothed, float)
    axis = _loss_axis(smoothed)
    labels = {_ROWS - 1 - int(round(float(axis.place(np.array([tick]))[0]) * (_ROWS - 1))): f"{tick:.4g}"
              for tick in axis.ticks(5)}  # fmt: skip
    margin = max(map(len, labels.values())) + 1
    columns = width - margin - 1
    bar, tee, corner, floor, up = "│┤└─┬" if unicode else "|++-+"
    body = drawn([smoothed], axis, columns, _ROWS, unicode=unicode, colour=colour)
    out = [painted("loss over learning rate", _BOLD) if colour else "loss over learning rate", ""]
    out += [f"{labels.get(row, ''):>{margin}}{tee if row in labels else bar}{line}" for row, line in enumerate(body)]
    ruler, below = [floor] * columns, [" "] * columns
    for mark, rate in (("s", found.suggestion), ("h", found.highest)):
        if rate is not None:
            place = min(columns - 1, int(_along(found, rate) * columns))
            ruler[place], below[place] = up, mark
    out += [" " * margin + corner + "".join(ruler), " " * (margin + 1) + "".join(below)]
    out += [" " * (margin + 1) + _scale(found, columns), ""]
    out += [line for text in conclusion(found) for line in textwrap.wrap(text, width, subsequent_indent="     ")]
    text = "\n".join(line.rstrip() for line in out)
    return text if unicode else text.encode("ascii", "replace").decode()


def conclusion(found: LrFind) -> list[str]:
    """What the test says, in sentences."""
    told = []
    if found.suggestion is None or found.highest is None:
        told.append(
            f"  No suggestion: between {found.rates[0]:.2g} and {found.rates[-1]:.2g} the loss does not clearly fall. "
            "Try other ends, more steps, or check the first batch with `surefoot check`."
        )
    else:
        told.append(f"  s  suggested rate {found.suggestion:.2g}: the loss falls, and there is room to the highest")
        told.append(f"  h  highest rate {found.highest:.2g}: the loss is lowest here; beyond, training is unsafe")
    if found.stopped:
        told.append(f"  The test ended early: {found.stopped}.")
    return told


def saved(found: LrFind, path: Path, kind: str, dpi: int) -> None:
    """Draw the test into `path`."""
    written(lambda figure: _draw(found, figure), path, kind, dpi)


def _draw(found: LrFind, figure: Any) -> None:
    axes = figure.add_subplot()
    smoothed = np.array(found.smoothed, float)
    axis = _loss_axis(smoothed)
    axes.plot(found.rates, found.losses, color=GREY, linewidth=0.8, alpha=0.6, label="loss of each batch")
    axes.plot(found.rates[: len(smoothed)], smoothed, color=LINES[0], linewidth=2, label="smoothed")
    axes.set_xscale("log")
    axes.set_ylim(axis.low, axis.high)
    axes.set_xlabel("learning rate", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.grid(True, color=GRID, linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for rate, colour, name in (
        (found.suggestion, LINES[1], "suggested"),
        (found.highest, LINES[2], "highest"),
    ):
        if rate is not None:
            axes.axvline(rate, color=colour, linewidth=1.2, linestyle=(0, (4, 2)), label=f"{name} {rate:.2g}")
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("Learning rate range test", loc="left", fontsize=13, fontweight="bold", color=INK, pad=12)


def _loss_axis(smoothed: np.ndarray) -> Axis:
    """An axis that the end, where the loss explodes, does not flatten."""
    known = smoothed[np.isfinite(smoothed)]
    if not len(known):
        return Axis(0.0, 1.0)
    low, first = float(known.min()), float(known[0])
    high = min(float(known.max()), first + 0.5 * (first - low))
    high = max(high, low + 1e-9 * max(1.0, abs(low)))
    room = 0.05 * (high - low)
    return Axis(low - room, high + room)


def _along(found: LrFind, rate: float) -> float:
    """Where `rate` lies between the first and the last, 0 to 1, by its logarithm."""
    first, last = math.log(found.rates[0]), math.log(found.rates[-1])
    return (math.log(rate) - first) / (last - first) if last > first else 0.0


def _scale(found: LrFind, columns: int) -> str:
    line = [" "] * (columns + 8)
    end = -1
    for power in range(
        math.ceil(math.log10(found.rates[0]) - 1e-9), math.floor(math.log10(found.rates[-1]) + 1e-9) + 1
    ):
        text = f"1e{power:d}" if abs(power) > 2 else f"{10.0**power:g}"
        place = int(_along(found, 10.0**power) * columns)
        if place > end + 1 and place + len(text) <= columns:
            line[place : place + len(text)] = text
            end = place + len(text)
    return "".join(line)[:columns]
