"""The plan of a run: its learning rates, numbers and likely mistakes, before it begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..charts.figure import Figure, image
from ..charts.thinning import extremes
from ..schedules.composite import has_plateau
from ..schedules.schedule import Schedule
from ..schedules.simulation import ALWAYS, NEVER, LaterGroup, Show, Simulation, simulate_schedule
from .cost import memory_of, seconds_a_step
from .events import events
from .mistakes import checked, findings_in, mistakes
from .numbers import GroupPlan, PlanNumbers
from .pictures import drawn, save
from .terminal import rendered

_MOST_POINTS = 500
LONGEST_DRAWN = 5_000_000  # steps; of a longer run the beginning is planned


@dataclass(frozen=True)
class PlanReport(PlanNumbers):
    """The numbers of a run before it begins, as text, as a picture and as plain data.

    `title`, `groups` (their rates), `events` (what happens when), `findings` (likely mistakes) and further `parts`."""

    def render_terminal(self, width: int = 80, unicode: bool = True, colour: bool = False) -> str:
        """The plan as text of at most `width` columns; without `unicode`, in ASCII."""
        return rendered(self, width, unicode, colour)

    def save_svg(self, path: str | Path) -> None:
        """Draw the chart into an SVG file; equal plans are equal files. Raises UsageError if it cannot be written."""
        save(Path(path), drawn(self))

    def __repr__(self) -> str:
        return self.render_terminal()

    def _repr_svg_(self) -> str:
        return drawn(self)

    def _repr_html_(self) -> str:
        return image(Figure(drawn(self)), self.title or "the learning rate of the run")

    def to_json(self) -> dict[str, Any]:
        """Plain data: the numbers, and of each curve at most some hundreds of (step, rate) points."""
        return {
            "title": self.title,
            "steps": self.steps,
            "epochs": self.whole[1] if self.whole else self.run.epochs,
            "steps_per_epoch": self.whole[0] if self.whole else self.run.steps_per_epoch,
            "steps_drawn": self.run.steps,
            "samples": self.samples,
            "groups": [{k: _finite(v) for k, v in asdict(group).items()} for group in self.groups],
            "curves": [{"label": label, "lr": _points(curve)} for label, curve in self.lines()],
            "events": [asdict(event) for event in self.events],
            "findings": [{**asdict(finding), "doc": finding.doc} for finding in self.findings],
            "memory": None if self.memory is None else self.memory.plain(),
            "seconds": self.seconds,
        }


def plan_report(
    schedule: Schedule,
    steps_per_epoch: int,
    epochs: int,
    *,
    title: str = "",
    model: nn.Module | None = None,
    batch: tuple[Any, ...] | None = None,
    apply: Callable[[nn.Module, tuple[Any, ...]], torch.Tensor] | None = None,
    samples_per_epoch: int | None = None,
    step: Callable[[], Any] | None = None,
    later: Sequence[LaterGroup] = (),
    show: Show = lambda done, calls: None,
) -> PlanReport:
    """The plan of a run of `epochs` times `steps_per_epoch` updates under a `schedule` that has not begun.

    `title` stands above it, `samples_per_epoch` gives the samples a second. With `model`, memory is estimated; with
    `batch` and ``apply(model, batch)`` (the loss) its activations too. `step` is called a few times to measure its
    time; it must work on a copy. `later` are the groups that join. `show` receives how many calls of the scheduler are
    done, of how many. Nothing live is changed: parameters, buffers, optimizer, schedule and random number generators
    stay as they are.
    """
    whole = steps_per_epoch, epochs = checked(schedule, steps_per_epoch, epochs)
    steps_per_epoch = min(steps_per_epoch, LONGEST_DRAWN)
    epochs = min(epochs, max(1, LONGEST_DRAWN // steps_per_epoch))
    later = [joins for joins in later if joins.epoch < epochs]
    run = simulate_schedule(schedule, steps_per_epoch, epochs, plateau=NEVER, later=later, show=show)
    always = None
    if schedule.scheduler is not None and has_plateau(schedule.scheduler):
        always = simulate_schedule(schedule, steps_per_epoch, epochs, plateau=ALWAYS, later=later, show=show)
    return PlanReport(
        title=title,
        run=run,
        always=always,
        groups=_groups(run, schedule, later),
        events=events(run, always),
        findings=list(findings_in(run, schedule)) if whole == (steps_per_epoch, epochs) else mistakes(schedule, *whole),
        samples=None if samples_per_epoch is None else samples_per_epoch * whole[1],
        memory=None if model is None else memory_of(model, schedule.optimizer, batch, apply),
        seconds=None if step is None else seconds_a_step(step) * whole[0] * whole[1],
        parts=described(schedule),
        whole=None if whole == (steps_per_epoch, epochs) else whole,
    )


def described(schedule: Schedule) -> tuple[str, ...]:
    """Optimizer, scheduler and warmup.

    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> described(Schedule(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)))
    ('SGD', 'StepLR by epoch')
    """
    parts = [type(schedule.optimizer).__name__]
    if schedule.scheduler is not None:
        parts.append(f"{_named(schedule.scheduler)} by {schedule.by}")
    if schedule.warmup is not None:
        parts.append(f"{type(schedule.warmup).__name__} by {schedule.warmup_by}")
    return tuple(parts)


def _named(scheduler: Any) -> str:
    parts = getattr(scheduler, "_schedulers", None)
    name = type(scheduler).__name__
    return name if parts is None else f"{name}({', '.join(_named(part) for part in parts)})"


def _groups(run: Simulation, schedule: Schedule, later: Sequence[LaterGroup]) -> list[GroupPlan]:
    live = [group["params"] for group in schedule.optimizer.param_groups]
    joining = [list(joined.group.get("params", ())) for joined in sorted(later, key=lambda joined: joined.epoch)]
    lines = []
    for index, members in enumerate(live + joining):
        rates = run.rates(index)
        finite = rates[np.isfinite(rates)]
        begin = int(np.argmax(np.isfinite(rates)))
        numbers = (finite[0], finite.max(), finite[-1]) if len(finite) else (np.nan,) * 3
        elements = sum((p[1] if isinstance(p, tuple) else p).numel() for p in members)
        learns_from = begin // run.steps_per_epoch
        lines.append(GroupPlan(run.names[index], len(members), elements, learns_from, *map(float, numbers)))
    return lines


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _points(curve: np.ndarray) -> list[list[float]]:
    """Points enough to draw `curve`: the lowest and highest of each stretch, ends included."""
    return [[int(k), float(curve[k])] for k in extremes(curve, _MOST_POINTS) if np.isfinite(curve[k])]
