"""The learning rate of every group at every step of a run, before the run: exactly what training will use.

torch's own scheduler is moved over an optimizer without weights, a few microseconds a call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch.optim import Optimizer
from torch.optim import lr_scheduler as t

from ..errors import UsageError
from ..text import counted
from .building import build_schedule
from .composite import advance, advance_plateaus
from .dampening import BaseWarmup
from .registry import STEP, SchedulerSpec, WarmupSpec
from .schedule import Schedule
from .stand_in import copied, stand_in_for, without_weights

NEVER, ALWAYS = "never", "always"
_MOST_STEPS = 200_000_000
_SHOWN = 20_000  # calls between two looks at how far a simulation is
Show = Callable[[int, int], None]  # receives how many calls of the scheduler are done, of how many


@dataclass(frozen=True)
class LaterGroup:
    """A param group that joins at the start of `epoch` (0-based), with its hyperparameters (``lr``, ``betas``...)."""

    epoch: int
    group: dict[str, Any]


@dataclass(frozen=True)
class Simulation:
    """The rates of a whole run of `epochs` times `steps_per_epoch` updates under `schedule`.

    `curves` are the different ones, float64 of shape (steps,); `curve_of` says which one each group follows;
    `names` are the groups' names. A group that joins later has NaN before. `undampened` is without the warmup.
    Where the scheduler itself fails (CyclicLR's triangular2 overflows after 1,024 cycles), the rates are NaN after
    the last good step, and `failure` is (step, message).
    """

    steps_per_epoch: int
    epochs: int
    names: list[str]
    curves: list[np.ndarray]
    undampened: list[np.ndarray]
    curve_of: list[int]
    schedule: Schedule = field(repr=False)
    failure: tuple[int, str] | None = None

    @property
    def steps(self) -> int:
        """Updates in the run."""
        return self.steps_per_epoch * self.epochs

    def rates(self, group: int = 0) -> np.ndarray:
        """The rate that each update uses in `group`: shape (steps,)."""
        return self.curves[self.curve_of[group]]

    def at(self, step: int) -> list[float]:
        """The rate of each group at `step`."""
        return [float(self.curves[index][step]) for index in self.curve_of]


def simulate(
    optimizer: Optimizer,
    scheduler: SchedulerSpec | None,
    warmup: WarmupSpec | None,
    steps_per_epoch: int,
    epochs: int,
    *,
    plateau: str = NEVER,
    later: Sequence[LaterGroup] = (),
) -> Simulation:
    """The rates of a run that `build_schedule` with these arguments would give; `optimizer` is not touched.

    `scheduler` and `warmup` are specs, the run has `epochs` of `steps_per_epoch` updates, `later` are groups that join.
    `plateau` says what ReduceLROnPlateau does: ``"never"`` reduce or ``"always"`` (the metric gets no better).

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> spec = SchedulerSpec("StepLR", {"step_size": 1, "gamma": 0.5})
    >>> run = simulate(optimizer, spec, WarmupSpec("LinearWarmup", {"warmup_period": 2}), 2, epochs=2)
    >>> run.rates().tolist()
    [0.5, 1.0, 0.5, 0.5]
    """
    stand_in = stand_in_for(optimizer)
    schedule = build_schedule(stand_in, scheduler, warmup, steps_per_epoch, epochs, refuse=False)
    return simulate_schedule(schedule, steps_per_epoch, epochs, plateau=plateau, later=later)


def simulate_schedule(
    schedule: Schedule,
    steps_per_epoch: int,
    epochs: int,
    *,
    plateau: str = NEVER,
    later: Sequence[LaterGroup] = (),
    show: Show = lambda done, calls: None,
) -> Simulation:
    """The rates of a run under a live `schedule` that has not begun; neither it nor its optimizer is touched.

    The run has `epochs` of `steps_per_epoch` updates; `plateau` and `later` are as for `simulate`.
    `show` is called now and then with how many calls of the scheduler are done, and how many there are.
    """
    if plateau not in (NEVER, ALWAYS):
        raise UsageError(f"plateau: {plateau!r} is neither 'never' nor 'always'")
    steps = steps_per_epoch * epochs
    if steps > _MOST_STEPS:
        raise UsageError(f"a plan of {steps} steps would not fit into memory; plan at most {_MOST_STEPS}")
    if schedule.steps or schedule.epochs:
        raise UsageError(f"the schedule has already taken {counted(schedule.steps, 'step')}; plan before training")
    twin = _twin(schedule)
    first = list(twin._dampener.lrs)
    later = sorted(later, key=lambda joining: joining.epoch)
    for joining in later:
        if not 0 <= joining.epoch < epochs:
            raise UsageError(f"a group joins at epoch {joining.epoch}, but the run has epochs 0 to {epochs - 1}")
        twin.optimizer.add_param_group(without_weights({"lr": twin.optimizer.defaults["lr"], **joining.group}))
    twin.adopt_groups()
    first += twin._dampener.lrs[len(first) :]
    joined = [0] * (len(first) - len(later)) + [joining.epoch for joining in later]
    groups = twin.optimizer.param_groups
    by_step = twin.by == STEP
    calls = steps if by_step else epochs
    undampened, failure = _undampened(twin, first, calls, steps_per_epoch, plateau == ALWAYS, show)
    warm_by_step = twin.warmup_by == STEP

    curves: dict[Any, int] = {}
    made: list[np.ndarray] = []
    bare: list[np.ndarray] = []
    curve_of = []
    for index, epoch in enumerate(joined):
        params = twin._dampener.warmup_params[index]
        key = (id(undampened[index]), tuple(sorted(params.items())), epoch)
        if key not in curves:
            rates = undampened[index]
            rates = rates[:steps] if by_step else np.repeat(rates[:epochs], steps_per_epoch)
            begin = epoch * steps_per_epoch
            warmed = rates
            if twin.warmup is not None:
                counts = (steps - begin) if warm_by_step else epochs - epoch
                factors = _factors(twin.warmup, params, counts)
                factors = factors if warm_by_step else np.repeat(factors, steps_per_epoch)
                warmed = np.concatenate((np.full(begin, np.nan), rates[begin:] * factors))
            elif begin:
                warmed = np.concatenate((np.full(begin, np.nan), rates[begin:]))
            curves[key] = len(made)
            made.append(warmed)
            bare.append(rates)
        curve_of.append(curves[key])
    names = [str(group.get("name", index)) for index, group in enumerate(groups)]
    if failure is not None:
        call, message = failure
        step = call if by_step else call * steps_per_epoch
        failure = (step, message) if step < steps else None
    return Simulation(steps_per_epoch, epochs, names, made, bare, curve_of, twin, failure)


def _twin(schedule: Schedule) -> Schedule:
    """The same schedule over a stand-in; functions are shared, all else is copied."""
    stand_in = stand_in_for(schedule.optimizer)
    for group, lr in zip(stand_in.param_groups, schedule._dampener.lrs, strict=True):
        group["lr"] = lr
    scheduler = copied(schedule.scheduler, schedule.optimizer, stand_in)
    warmed = None
    if schedule.warmup is not None:
        warmed = copy.copy(schedule.warmup)
        BaseWarmup.__init__(warmed, stand_in)
    return Schedule(
        stand_in, scheduler, warmed, by=schedule.by, warmup_by=schedule.warmup_by, monitor=schedule.monitor
    )  # fmt: skip


def _undampened(
    schedule: Schedule, first: list[float], calls: int, steps_per_epoch: int, always: bool, show: Show
) -> tuple[list[np.ndarray], tuple[int, str] | None]:
    """The rate of each group after 0, 1, ... `calls` calls of the scheduler, and where it fails, if it does.

    `schedule` is moved; equal groups share one array.
    """
    scheduler, groups = schedule.scheduler, schedule.optimizer.param_groups
    if scheduler is None:
        shared: dict[float, np.ndarray] = {}
        return [shared.setdefault(lr, np.full(calls, lr)) for lr in first], None
    for group, lr in zip(groups, first, strict=True):
        group["lr"] = lr
    # A plateau among parts that go by step is given its metric at each epoch's end.
    fed = schedule.by == STEP and schedule.needs_metric
    move = partial(advance, scheduler, 1.0, plateaus=always and not fed)
    if type(scheduler).__module__ == t.__name__ and not isinstance(scheduler, t.ReduceLROnPlateau):
        move = scheduler.step
    rates = np.full((calls + 1, len(groups)), np.nan)
    rates[0] = first
    failure = None
    for call in range(1, calls + 1):
        try:
            move()
        except (ArithmeticError, ValueError) as error:
            failure = (call, f"{type(error).__name__}: {error}")
            break
        if fed and always and call % steps_per_epoch == 0:
            advance_plateaus(scheduler, 1.0)
        rates[call] = [group["lr"] for group in groups]
        if call % _SHOWN == 0:
            show(call, calls)
    shared_rows: dict[bytes, np.ndarray] = {}
    return [shared_rows.setdefault(row.tobytes(), row) for row in np.ascontiguousarray(rates.T)], failure


def _factors(warmup: BaseWarmup, params: dict[str, Any], count: int) -> np.ndarray:
    """The factors of the first `count` steps."""
    factors = np.ones(count)
    for step in range(count):
        factors[step] = factor = warmup.warmup_factor(step, **params)
        if factor == 1.0 and warmup.stays_at_one:
            break
    return factors
