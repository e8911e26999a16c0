"""The plan as text: chart, marks, numbers, groups, findings."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from ..charts.scale import Axis, axis_for
from ..charts.terminal import BOLD, framed, marker, painted
from ..text import counted, duration
from .events import Event
from .numbers import PlanNumbers

_MOST_LINES = 6
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MOST_MARKS = 8
_YELLOW, _RED = 33, 31


def rendered(report: PlanNumbers, width: int, unicode: bool, colour: bool) -> str:
    """The whole plan, one line for each line of the terminal."""
    width = max(60, width)
    blocks = [
        _head(report, width, unicode, colour),
        _chart(report, width, unicode, colour),
        _numbers(report, width, unicode),
        _groups(report, width, unicode),
        _findings(report, width, unicode, colour),
    ]
    text = "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks if block)
    return text if unicode else text.encode("ascii", "replace").decode()


def _head(report: PlanNumbers, width: int, unicode: bool, colour: bool) -> list[str]:
    dot = " \u00b7 " if unicode else " - "
    line = dot.join(part for part in (report.title, *report.parts) if part)
    lines = textwrap.wrap(line, width)
    return [painted(part, BOLD) for part in lines] if colour else lines


def _chart(report: PlanNumbers, width: int, unicode: bool, colour: bool) -> list[str]:
    lines = report.lines()
    shown = lines if len(lines) <= _MOST_LINES else _spread(lines)
    axis = axis_for([curve for _, curve in lines])
    run, marks = report.run, events_marked(report)
    out, margin = framed(
        [curve for _, curve in shown],
        axis,
        width,
        label="lr (log)" if axis.log else "lr",
        marks=[(event.step / run.steps, letter) for (event, _), letter in zip(marks, _LETTERS, strict=False)],
        scale=lambda columns: _scale(run.steps, run.epochs, columns),
        unicode=unicode,
        colour=colour,
    )
    out.append("")
    for index, (label, _) in enumerate(shown):
        if len(lines) > 1:
            out.append(f"{' ' * margin} {marker(index, unicode, colour)} {label}")
    if len(shown) < len(lines):
        out.append(f"{' ' * margin}      {len(lines) - len(shown)} more groups lie between")
    for letter, (event, text) in zip(_LETTERS, marks, strict=False):
        out += textwrap.wrap(
            f"{letter}  {when(event, run.steps_per_epoch)}: {text}",
            width,
            initial_indent=" " * (margin + 1),
            subsequent_indent=" " * (margin + 4),
        )
    return out


def _spread(lines: Sequence[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    last = len(lines) - 1
    return [lines[round(k * last / (_MOST_LINES - 1))] for k in range(_MOST_LINES)]


def events_marked(report: PlanNumbers) -> list[tuple[Event, str]]:
    """The events that are marked, each with its text; many of one kind share one line at the first."""
    kinds: dict[tuple[str, str], list[Event]] = {}
    crowded = len(report.events) > _MOST_MARKS
    for event in report.events:
        key = (event.kind, "" if crowded else event.label)
        kinds.setdefault(key, []).append(event)
    marks = []
    for same_kind in kinds.values():
        if not crowded or len(same_kind) == 1:
            marks += [(event, event.label) for event in same_kind]
            continue
        first = same_kind[0]
        same = len({event.label for event in same_kind}) == 1
        name = first.label if same else _PLURALS[first.kind]
        spe = report.run.steps_per_epoch
        by_epoch = all(event.step % spe == 0 for event in same_kind)
        places = [event.step // spe if by_epoch else event.step for event in same_kind]
        some = ", ".join(f"{place:,}" for place in places[1:5]) + (", ..." if len(places) > 5 else "")
        unit = "epoch" if by_epoch else "step"
        marks.append((first, f"{name}; again after {unit} {some} ({len(same_kind)} in all)"))
    return sorted(marks, key=lambda mark: mark[0].step)[: len(_LETTERS)]


_PLURALS = {
    "milestone": "milestone",
    "peak": "peak",
    "bottom": "lowest",
    "restart": "restart",
    "reduction": "reduction at the earliest",
    "switch": "next scheduler",
    "end": "end",
    "phase": "phase",
    "join": "a group joins",
    "warmup": "warmup done",
    "failure": "failure",
}


def when(event: Event, per_epoch: int) -> str:
    """The end of the epoch, or the step, at which `event` is."""
    # People count from 1: what happens between the second and the third epoch is after epoch 2.
    if event.step % per_epoch == 0:
        return f"after epoch {event.step // per_epoch:,}"
    return f"after step {event.step:,}"


def _scale(steps: int, epochs: int, columns: int) -> str:
    """Numbers under the chart: epochs where there are several, else steps."""
    count, unit = (epochs, "epochs") if epochs > 1 else (steps, "steps")
    line = [" "] * columns
    end = f"{count:,} {unit}"
    for value in Axis(0, count).ticks(max(2, columns // 12)):
        text = f"{value:,.0f}"
        place = int(value / count * columns)
        if value == int(value) and place + len(text) < columns - len(end) - 1:
            line[place : place + len(text)] = text
    line[columns - len(end) :] = end
    return "".join(line)


def _numbers(report: PlanNumbers, width: int, unicode: bool) -> list[str]:
    run = report.run
    times = "\u00d7" if unicode else "x"
    per_epoch, epochs = report.whole or (run.steps_per_epoch, run.epochs)
    rows = [("steps", f"{report.steps:,} = {counted(epochs, 'epoch')} {times} {per_epoch:,}")]
    if report.whole:
        rows.append(("planned", f"the first {counted(run.steps, 'step')}; a run of this length is not drawn whole"))
    if report.samples is not None:
        rows.append(("samples", f"{report.samples:,}"))
    rows.append(("parameters", f"{sum(group.elements for group in report.groups):,}"))
    if report.memory is not None:
        memory = report.memory
        parts = [("parameters", memory.parameters + memory.buffers), ("gradients", memory.gradients)]
        parts += [("optimizer", memory.optimizer), ("activations", memory.activations or 0), ("batch", memory.batch)]
        # Spaces that do not break, so that a number stays with its unit.
        inside = ", ".join(f"{name} {size(amount)}".replace(" ", "\u00a0") for name, amount in parts if amount)
        about = "" if memory.activations is not None else " without activations"
        rows.append(("memory", f"{size(memory.total)} a step{about} ({inside})"))
    if report.seconds is not None:
        rows.append(
            ("time", f"about {duration(report.seconds)} at {1e3 * report.seconds / report.steps:.3g} ms a step")
        )
    hang = " " * 14
    return [
        line for name, value in rows for line in textwrap.wrap(f"  {name:<11} {value}", width, subsequent_indent=hang)
    ]


def _groups(report: PlanNumbers, width: int, unicode: bool) -> list[str]:
    arrow = "\u2192" if unicode else "->"
    if len(report.groups) == 1:
        group = report.groups[0]
        line = f"{group.first_lr:.4g} {arrow} {group.highest_lr:.4g} {arrow} {group.last_lr:.4g}"
        return textwrap.wrap(f"  lr          {line}  (first, highest, last)", width, subsequent_indent=" " * 14)
    roomy = width >= 78
    longest = max(len(group.name) for group in report.groups)
    column = max(8, min(longest, width - (58 if roomy else 49)))
    tensors = f" {'tensors':>8}" if roomy else ""
    out = [f"  {'group':<{column}}{tensors} {'elements':>11}   lr: first {arrow} highest {arrow} last"]
    for group in report.groups:
        name = group.name if len(group.name) <= column else group.name[: column - 2] + ".."
        tensors = f" {group.tensors:>8,}" if roomy else ""
        rates = f" {arrow} ".join(f"{lr:.3g}" for lr in (group.first_lr, group.highest_lr, group.last_lr))
        joins = f"  (from epoch {group.from_epoch + 1} on)" if group.from_epoch else ""
        out.append(f"  {name:<{column}}{tensors} {group.elements:>11,}   {rates}{joins}"[:width])
    return out


def _findings(report: PlanNumbers, width: int, unicode: bool, colour: bool) -> list[str]:
    out = []
    for finding in report.findings:
        sign = ("\u2717" if unicode else "x") if finding.severity == "error" else "!"
        head = f"{sign} {finding.name}"
        out.append(painted(head, _RED if finding.severity == "error" else _YELLOW) if colour else head)
        out += textwrap.wrap(finding.message + ".", width - 2, initial_indent="  ", subsequent_indent="  ")
        out += textwrap.wrap(f"Fix: {finding.fix}.", width - 2, initial_indent="  ", subsequent_indent="  ")
    return out


def size(count: int) -> str:
    """Bytes for people.

    >>> size(44_426 * 4)
    '178 kB'
    """
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
