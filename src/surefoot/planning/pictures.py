"""Pictures as SVG, written whole or not at all: the rates of the run with what happens in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .. import files
from ..charts.scale import Axis, axis_for
from ..charts.svg import Line, Mark, line_chart, picture, stepped
from ..charts.thinning import extremes
from ..errors import UsageError
from ..text import counted
from .numbers import PlanNumbers
from .terminal import events_marked, when

_MOST_POINTS = 1200


def drawn(report: PlanNumbers) -> str:
    """The text of an SVG file; equal plans are equal texts."""
    run, courses = report.run, report.lines()
    per_epoch = run.steps_per_epoch if run.epochs > 1 else 1
    axis = axis_for([curve for _, curve in courses])
    if axis.log:  # the lowest rate lies a little above the edge
        axis = replace(axis, low=axis.low / 1.3, high=axis.high * 1.1)
    lines = []
    for index, (label, curve) in enumerate(courses):
        kept = [(int(k), float(curve[k])) for k in extremes(curve, _MOST_POINTS)]
        corners = [(step / per_epoch, rate) for step, rate in stepped([*kept, (run.steps, float(curve[-1]))])]
        name = label if len(courses) > 1 else "learning rate"
        lines.append(Line(name, corners, index, dashed=label.endswith("always reduces")))
    return picture(
        line_chart(
            lines,
            x_label="epoch" if run.epochs > 1 else "step",
            y_label="learning rate",
            x_axis=Axis(0, run.steps / per_epoch),
            y_axis=axis,
            marks=[
                Mark(event.step / per_epoch, f"{text.partition(';')[0]} ({when(event, run.steps_per_epoch)})")
                for event, text in events_marked(report)
            ],
            most=2 * _MOST_POINTS + 5,
            title=report.title or "The learning rate of the run",
            subtitle=", ".join((*report.parts, f"{counted(run.steps, 'step')}")),
        )
    )


def picture_path(text: str | Path) -> Path:
    """The path of the picture that `text` asks for; raises UsageError where it cannot be one, before anything is
    drawn."""
    path = Path(text)
    if path.is_dir():
        raise UsageError(f"{path}: is a directory; give a file's name")
    if path.suffix.lower() != ".svg":
        raise UsageError(f"{path}: pictures are written as SVG; give {path.with_suffix('.svg')}")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the directory {path.parent} does not exist")
    return path


def save(path: Path, text: str) -> None:
    """Write the SVG `text`; raises UsageError where it cannot be written."""
    try:
        files.write_atomically(picture_path(path), text.encode())
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}; give another file") from error
