"""The plan as a picture, PNG or SVG; matplotlib is imported only here and only when asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..charts.terminal import Axis, axis_for
from .terminal import _marks, _when

if TYPE_CHECKING:
    from .report import PlanReport

LINES = ("#0b6e99", "#d9730d", "#6940a5", "#0f7b6c", "#ad1a72", "#64473a", "#dfab01", "#e03e3e")
INK, GREY, GRID = "#222222", "#8a8a8a", "#e6e6e6"
_MOST_POINTS = 4000
_FURTHER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "PingFang SC", "Hiragino Sans GB", "Heiti TC", "Arial Unicode MS", "Noto Sans",
)  # fmt: skip


def saved(report: PlanReport, path: Path, kind: str, dpi: int) -> None:
    """Draw `report` into `path`."""
    written(lambda figure: _draw(report, figure), path, kind, dpi)


def written(draw: Callable[[Any], None], path: Path, kind: str, dpi: int) -> None:
    """A picture of `kind` in `path`, on which `draw` has drawn; equal drawings are equal files.

    Raises UsageError where the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.font_manager import fontManager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Text as paths would bloat an SVG, and without a fixed salt its names are drawn at random.
    # A title may be in any script: fonts of this machine that have it follow the usual one.
    here = {entry.name for entry in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(font for font in _FURTHER_FONTS if font in here)]
    with warnings.catch_warnings(), rc_context({"font.family": fonts, "svg.fonttype": "none", "svg.hashsalt": "surefoot", "font.size": 10}):
        # In an SVG the reader's own fonts show what none here has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(10, 5), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        try:
            figure.savefig(path, format=kind, dpi=dpi, facecolor="white", metadata=metadata)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror or error}; give another file") from error


def _draw(report: PlanReport, figure: Any) -> None:
    axes = figure.add_subplot()
    run = report.run
    lines = report.lines()
    scale: Axis = axis_for([curve for _, curve in lines])
    # On a logarithmic axis a zero would fall out of the picture; it is drawn on the floor, as in the terminal.
    several = len(lines) > 1
    for index, (label, curve) in enumerate(lines):
        x, y = _thinned(np.maximum(curve, scale.low) if scale.log else curve)
        style = {"linestyle": (0, (5, 2))} if label.endswith("always reduces") else {}
        colour = LINES[index % len(LINES)]
        axes.step(x, y, where="post", color=colour, linewidth=1.8, label=label, solid_joinstyle="round", **style)
    if scale.log:
        axes.set_yscale("log")
    low, high = (scale.low / 1.3, scale.high * 1.2) if scale.log else (scale.low, scale.high)
    axes.set_ylim(low, high if high > low else low + 1)
    axes.set_xlim(0, run.steps)
    axes.set_ylabel("learning rate", color=INK)
    axes.set_xlabel("step", color=INK)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(which="both", color=GREY, labelcolor=INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    if run.epochs > 1:
        epochs = axes.secondary_xaxis(
            "top", functions=(lambda s: s / run.steps_per_epoch, lambda e: e * run.steps_per_epoch)
        )
        epochs.set_xlabel("epoch", color=GREY, fontsize=9)
        epochs.tick_params(colors=GREY, labelsize=9)
        epochs.spines["top"].set_visible(False)
        epochs.xaxis.get_major_locator().set_params(integer=True)
    _draw_marks(report, axes, lines[0][1], scale)
    title = report.title or "The learning rate of the run"
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=12)
    subtitle = ", ".join((*report.parts, f"{run.steps:,} steps"))
    axes.set_title(subtitle, loc="right", fontsize=9, color=GREY, pad=12)
    if several:
        legend = axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, loc="best")
        legend.set_zorder(5)


def _draw_marks(report: PlanReport, axes: Any, curve: np.ndarray, scale: Axis) -> None:
    """Dotted lines at the events; labels beside them, where they lie neither over one another nor over `curve`."""
    run = report.run
    for event in report.events[:200]:
        axes.axvline(event.step, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    taken = -1.0
    for event, text in _marks(report):
        place = event.step / run.steps
        if place - taken < 0.022:
            continue
        taken = place
        right = place > 0.97
        beside = curve[event.step : event.step + max(1, run.steps // 50)]
        high = bool(np.nanmean(scale.place(beside)) > 0.5) if np.isfinite(beside).any() else True
        axes.annotate(
            f"{text.partition(';')[0]} ({_when(event, run.steps_per_epoch)})",
            (event.step, 0.02 if high else 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if right else 3, 0),
            textcoords="offset points",
            rotation=90,
            va="bottom" if high else "top",
            ha="right" if right else "left",
            fontsize=7.5,
            color="#5a5a5a",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
            zorder=1.5,  # under the curves
        )


def _thinned(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Few enough points to draw, with the lowest and highest of each stretch among them."""
    count = len(curve)
    if count <= _MOST_POINTS:
        x = np.arange(count + 1)
        return x, np.append(curve, curve[-1])
    edges = np.linspace(0, count, _MOST_POINTS // 2 + 1).astype(int)
    picked = [0, count - 1]
    for begin, end in zip(edges, edges[1:], strict=False):
        piece = curve[begin:end]
        if np.isfinite(piece).any():
            picked += [begin + int(np.nanargmin(piece)), begin + int(np.nanargmax(piece))]
        else:
            picked.append(begin)
    x = np.unique(picked)
    return x, curve[x]
