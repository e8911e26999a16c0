"""What happens to the learning rate, and when: warmup's end, milestones, peaks, restarts, reductions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch.optim import lr_scheduler as t
from torch.optim.swa_utils import SWALR

from ..schedules.composite import is_constant
from ..schedules.simulation import Simulation

# A warmup that only comes near to 1 is over, for a reader, from here on.
WARM_ENOUGH = 0.99
_MOST_EDGES = 10_000


@dataclass(frozen=True)
class Event:
    """An event of the plan: at the start of `step` (0-based), of a `kind`, described by `label`.

    Kinds: ``warmup``, ``milestone``, ``peak``, ``bottom``, ``restart``, ``phase``, ``end``, ``switch``,
    ``reduction``, ``join``, ``failure``.
    """

    step: int
    kind: str
    label: str


def events(run: Simulation, always: Simulation | None = None) -> list[Event]:
    """Every event of the run in the order of steps; `always` is the run in which plateaus always reduce."""
    schedule = run.schedule
    marked = list(_warmup(run))
    if schedule.scheduler is not None:
        by_step = schedule.by == "step"
        calls = run.steps if by_step else run.epochs
        for call, kind, label in _scheduler(schedule.scheduler, 0, calls):
            call = math.ceil(call)  # lengths may be fractions in Python: T_max=len(loader) / 2
            if 0 < call < calls:
                marked.append(Event(call if by_step else call * run.steps_per_epoch, kind, label))
    if always is not None:
        marked += _reductions(run, always)
    for name, index in zip(run.names, run.curve_of, strict=True):
        rates = run.curves[index]
        if math.isnan(rates[0]):
            joined = int(np.argmin(np.isnan(rates)))
            marked.append(Event(joined, "join", f"{name} joins"))
    if run.failure is not None:
        marked.append(Event(run.failure[0], "failure", "the scheduler fails"))
    return sorted(dict.fromkeys(marked), key=lambda event: event.step)


def warm_after(run: Simulation, group: int = 0) -> int | None:
    """How many counts of the warmup's unit it takes until its factor is 1 (or 0.99 where it never is); None: never.

    The first count with the full factor is reported, so a LinearWarmup over 10 gives 9.
    """
    warmup = run.schedule.warmup
    if warmup is None:
        return 0
    params = warmup.warmup_params[group]
    period = params.get("warmup_period")
    limit = 100 * period if period else 10_000_000
    # Factors only rise, so the first warm count is found by halves.
    low, high = -1, limit
    while high - low > 1:
        middle = (low + high) // 2
        if warmup.warmup_factor(middle, **params) >= (1.0 if _reaches_one(warmup) else WARM_ENOUGH):
            high = middle
        else:
            low = middle
    return None if high == limit else high


def _reaches_one(warmup: Any) -> bool:
    return "Linear" in type(warmup).__name__


def _warmup(run: Simulation) -> Iterator[Event]:
    warmup = run.schedule.warmup
    if warmup is None:
        return
    for group in sorted(
        {tuple(sorted(p.items())): i for i, p in reversed(list(enumerate(warmup.warmup_params)))}.values()
    ):
        count = warm_after(run, group)
        if count is None:
            continue
        step = count if run.schedule.warmup_by == "step" else count * run.steps_per_epoch
        if 0 < step < run.steps:
            full = "" if _reaches_one(warmup) else f" ({WARM_ENOUGH:.0%})"
            several = len({tuple(p.items()) for p in warmup.warmup_params}) > 1
            yield Event(step, "warmup", f"warmup done{full}" + (f" in {run.names[group]}" if several else ""))


def _scheduler(scheduler: Any, begin: int, calls: int) -> Iterator[tuple[float, str, str]]:
    """(call, kind, label) of what a scheduler does that starts at call `begin` of a run of `calls`."""
    left = calls - begin
    if is_constant(scheduler):
        return
    if isinstance(scheduler, t.SequentialLR):
        edges = [0, *scheduler._milestones, left]
        for index, part in enumerate(scheduler._schedulers):
            if index:
                yield begin + edges[index], "switch", f"on to {type(part).__name__}"
            end = begin + min(edges[index + 1], left)
            yield from ((c, k, w) for c, k, w in _scheduler(part, begin + edges[index], calls) if c < end)
    elif isinstance(scheduler, t.ChainedScheduler):
        for part in scheduler._schedulers:
            yield from _scheduler(part, begin, calls)
    elif isinstance(scheduler, t.StepLR):
        # A fraction is met where its multiple is a whole number.
        size = Fraction(scheduler.step_size).numerator
        for call in range(size, min(left, _MOST_EDGES * size), size):
            yield begin + call, "milestone", f"x {scheduler.gamma:g}"
    elif isinstance(scheduler, t.MultiStepLR):
        for call, times in scheduler.milestones.items():
            yield begin + call, "milestone", f"x {scheduler.gamma**times:g}"
    elif isinstance(scheduler, t.CosineAnnealingLR):
        for turn in range(1, int(min(left // scheduler.T_max, _MOST_EDGES)) + 1):
            kind = "bottom" if turn % 2 else "peak"
            yield begin + turn * scheduler.T_max, kind, "eta_min" if turn % 2 else "the first rate again"
    elif isinstance(scheduler, t.CosineAnnealingWarmRestarts):
        length, call = scheduler.T_0, scheduler.T_0
        while call < left:
            yield begin + call, "restart", "restart"
            length *= scheduler.T_mult
            call += length
    elif isinstance(scheduler, t.CyclicLR):
        size, up = scheduler.total_size, scheduler.total_size * scheduler.step_ratio
        for cycle in range(min(math.ceil(left / size), _MOST_EDGES)):
            yield begin + round(cycle * size + up), "peak", "max_lr"
            yield begin + round((cycle + 1) * size), "bottom", "base_lr"
    elif isinstance(scheduler, t.OneCycleLR):
        ends = [round(phase["end_step"]) for phase in scheduler._schedule_phases]
        yield begin + ends[0], "peak", "max_lr"
        for end in ends[1:-1]:
            yield begin + end, "phase", "back at the first rate"
        if ends[-1] < left - 1:
            yield begin + ends[-1], "end", "the cycle ends"
    elif isinstance(scheduler, t.LinearLR | t.PolynomialLR | t.ConstantLR):
        yield begin + scheduler.total_iters, "end", f"{type(scheduler).__name__} ends"
    elif isinstance(scheduler, SWALR):
        yield begin + scheduler.anneal_epochs, "end", "swa_lr"


def _reductions(run: Simulation, always: Simulation) -> Iterator[Event]:
    never, lowered = run.undampened[0], always.undampened[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(never > 0, lowered / never, 1.0)
    for step in np.flatnonzero(np.diff(ratio) < -1e-9)[:_MOST_EDGES] + 1:
        yield Event(int(step), "reduction", f"x {ratio[step] / ratio[step - 1]:.3g}, at the earliest")
