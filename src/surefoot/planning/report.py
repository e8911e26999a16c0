"""The plan of a run: its learning rates, numbers and likely mistakes, before it begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..finding import Finding
from ..schedules.composite import has_plateau
from ..schedules.schedule import Schedule
from ..schedules.simulation import ALWAYS, NEVER, LaterGroup, Simulation, simulate_schedule
from .cost import Memory, memory_of, seconds_a_step
from .events import Event, events
from .mistakes import found_in, mistakes

_MOST_POINTS = 500
LONGEST_DRAWN = 5_000_000  # steps; of a longer run the beginning is planned


@dataclass(frozen=True)
class GroupPlan:
    """A param group: its name, its numbers of tensors and of elements, the epoch from which it learns, its rates."""

    name: str
    tensors: int
    elements: int
    from_epoch: int
    first_lr: float
    highest_lr: float
    last_lr: float


@dataclass(frozen=True)
class PlanReport:
    """Everything that is known of a run before it begins.

    `run` holds the rates; `always` those with every plateau reducing as early as it can, where there is one.
    `whole` is (steps per epoch, epochs) of a run so long that `run` is only its beginning. `samples` is per run, `seconds` the time expected, `memory` that of one step; each None where not known.
    """

    title: str
    run: Simulation
    always: Simulation | None
    groups: list[GroupPlan]
    events: list[Event]
    findings: list[Finding]
    by: str
    samples: int | None = None
    memory: Memory | None = None
    seconds: float | None = None
    parts: tuple[str, ...] = ()
    whole: tuple[int, int] | None = None

    @property
    def steps(self) -> int:
        """Updates in the whole run."""
        return self.whole[0] * self.whole[1] if self.whole else self.run.steps

    def lines(self) -> list[tuple[str, np.ndarray]]:
        """(label, rates of shape (steps,)) of each different curve, the plateau's two included."""
        found = []
        for index, curve in enumerate(self.run.curves):
            names = [name for name, own in zip(self.run.names, self.run.curve_of, strict=True) if own == index]
            label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
            if self.always is None:
                found.append((label, curve))
                continue
            label = f"{label}, " if len(self.run.curves) > 1 else ""
            found.append((f"{label}plateau never reduces", curve))
            member = self.run.curve_of.index(index)
            found.append((f"{label}plateau always reduces", self.always.rates(member)))
        return found

    def render_terminal(self, width: int = 80, unicode: bool = True, colour: bool = False) -> str:
        """The plan as text of at most `width` columns; without `unicode`, in ASCII."""
        from .terminal import rendered

        return rendered(self, width, unicode, colour)

    def save_png(self, path: str | Path, dpi: int = 144) -> None:
        """Draw the chart into a PNG file."""
        from .figure import saved

        saved(self, Path(path), "png", dpi)

    def save_svg(self, path: str | Path) -> None:
        """Draw the chart into an SVG file."""
        from .figure import saved

        saved(self, Path(path), "svg", 72)

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
) -> PlanReport:
    """The plan of a run of `epochs` times `steps_per_epoch` updates under a `schedule` that has not begun.

    With `model`, memory is told; with `batch` and ``apply(model, batch)`` (the loss) its activations too. `step`
    is called a few times to tell the time; it must work on a copy. `later` are the groups that join. Nothing
    live is changed: parameters, buffers, optimizer, schedule and random number generators stay as they are.
    """
    whole = (steps_per_epoch, epochs)
    steps_per_epoch = min(steps_per_epoch, LONGEST_DRAWN)
    epochs = min(epochs, max(1, LONGEST_DRAWN // steps_per_epoch))
    later = [joins for joins in later if joins.epoch < epochs]
    run = simulate_schedule(schedule, steps_per_epoch, epochs, plateau=NEVER, later=later)
    always = None
    if schedule.scheduler is not None and has_plateau(schedule.scheduler):
        always = simulate_schedule(schedule, steps_per_epoch, epochs, plateau=ALWAYS, later=later)
    return PlanReport(
        title=title,
        run=run,
        always=always,
        groups=_groups(run, schedule, later),
        events=events(run, always),
        findings=list(found_in(run, schedule)) if whole == (steps_per_epoch, epochs) else mistakes(schedule, *whole),
        by=schedule.by,
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
    told = [type(schedule.optimizer).__name__]
    if schedule.scheduler is not None:
        told.append(f"{_named(schedule.scheduler)} by {schedule.by}")
    if schedule.warmup is not None:
        told.append(f"{type(schedule.warmup).__name__} by {schedule.warmup_by}")
    return tuple(told)


def _named(scheduler: Any) -> str:
    parts = getattr(scheduler, "_schedulers", None)
    name = type(scheduler).__name__
    return name if parts is None else f"{name}({', '.join(_named(part) for part in parts)})"


def _groups(run: Simulation, schedule: Schedule, later: Sequence[LaterGroup]) -> list[GroupPlan]:
    live = [group["params"] for group in schedule.optimizer.param_groups]
    joining = [list(joined.group.get("params", ())) for joined in sorted(later, key=lambda joined: joined.epoch)]
    told = []
    for index, members in enumerate(live + joining):
        rates = run.rates(index)
        known = rates[np.isfinite(rates)]
        begin = int(np.argmax(np.isfinite(rates)))
        told.append(
            GroupPlan(
                run.names[index],
                len(members),
                sum((p[1] if isinstance(p, tuple) else p).numel() for p in members),
                begin // run.steps_per_epoch,
                float(known[0]) if len(known) else float("nan"),
                float(known.max()) if len(known) else float("nan"),
                float(known[-1]) if len(known) else float("nan"),
            )
        )
    return told


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _points(curve: np.ndarray) -> list[list[float]]:
    """Points enough to draw `curve`: the lowest and highest of each stretch, ends included."""
    count = len(curve)
    if count <= _MOST_POINTS:
        chosen = np.arange(count)
    else:
        picked = [0, count - 1]
        edges = np.linspace(0, count, _MOST_POINTS // 2 + 1).astype(int)
        for begin, end in zip(edges, edges[1:], strict=False):
            piece = curve[begin:end]
            if np.isfinite(piece).any():
                picked += [begin + int(np.nanargmin(piece)), begin + int(np.nanargmax(piece))]
        chosen = np.unique(picked)
    return [[int(k), float(curve[k])] for k in chosen if np.isfinite(curve[k])]
