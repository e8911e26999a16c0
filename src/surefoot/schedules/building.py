"""A run's schedule from names: what the run's length answers is filled in, what cannot work is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from ..errors import Problems, UsageError
from ..registry import argument_problems, as_given
from ..text import counted
from .registry import COMPOSITES, EPOCH, FILLED_IN, SCHEDULERS, STEP, WARMUPS, SchedulerSpec, WarmupSpec
from .run_length import horizons, too_short
from .schedule import Schedule


def build_schedule(
    optimizer: Optimizer,
    scheduler: SchedulerSpec | None,
    warmup: WarmupSpec | None,
    steps_per_epoch: int,
    epochs: int,
    *,
    refuse: bool = True,
) -> Schedule:
    """The schedule of a run of `epochs` times `steps_per_epoch` updates, by specs of a scheduler and a `warmup`.

    OneCycleLR's ``total_steps`` and CosineAnnealingLR's ``T_max`` are the run's length where absent, in the
    scheduler's unit (inside a SequentialLR: the length of their part). Raises UsageError for bad arguments and,
    if `refuse`, for what would fail in the midst of the run.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> spec = SchedulerSpec("CosineAnnealingLR")
    >>> build_schedule(optimizer, spec, None, steps_per_epoch=10, epochs=4).scheduler.T_max
    4
    """
    if steps_per_epoch < 1 or epochs < 1:
        raise UsageError(
            f"a run of {counted(epochs, 'epoch')} of {counted(steps_per_epoch, 'step')} has nothing to schedule"
        )
    if scheduler is not None:
        _check_arguments(scheduler)
    unit = scheduler.unit if scheduler is not None else EPOCH
    calls = epochs if unit == EPOCH else epochs * steps_per_epoch
    homes = [group["lr"] for group in optimizer.param_groups]
    given = [float(home) for home in homes]
    for group, lr in zip(optimizer.param_groups, given, strict=True):
        group["lr"] = lr  # first rates as float64, whatever the tensors round to
    try:
        made = None
        if scheduler is not None:
            if warmup is not None and warmup.then is not None:
                scheduler = delayed(scheduler, _calls_before(warmup, unit, steps_per_epoch))
            scheduler = filled_in(scheduler, calls)
            if refuse:
                _refuse_too_short(scheduler, calls, unit)
            made = _built(scheduler, optimizer)
        warmed = _make(WARMUPS, warmup.name, warmup.args, optimizer) if warmup is not None else None
        schedule = Schedule(
            optimizer,
            made,
            warmed,
            by=unit,
            warmup_by=warmup.by if warmup is not None else STEP,
            monitor=scheduler.monitor if scheduler is not None else "val/loss",
        )
    finally:
        for group, home in zip(optimizer.param_groups, homes, strict=True):
            if isinstance(home, torch.Tensor):
                group["lr"] = home
    schedule.restore()
    schedule.given_rates = given
    schedule.horizon = {"by": unit, "steps_per_epoch": steps_per_epoch, "epochs": epochs, "lengths": horizons(made)}
    return schedule


def _check_arguments(spec: SchedulerSpec) -> None:
    """Raise Problems for arguments that the length of the run is about to be added to."""
    if isinstance(spec.name, str) and (problems := SCHEDULERS.problems(spec.name, spec.args)):
        raise Problems([*map(str, problems)])
    for part in spec.children:
        _check_arguments(part)


def delayed(spec: SchedulerSpec, calls: int) -> SchedulerSpec:
    """`spec` after `calls` calls in which the rate stays as it is.

    >>> delayed(SchedulerSpec("ExponentialLR", {"gamma": 0.9}), 8).args
    {'milestones': [8]}
    """
    if calls < 1:
        return spec
    parts: tuple[SchedulerSpec, ...] = (spec,)
    milestones: list[int] = []
    if spec.known == "SequentialLR":
        parts, milestones = spec.children, [calls + m for m in spec.args.get("milestones") or ()]
    if any(part.children for part in parts):
        raise UsageError(
            "warmup: `then: scheduler` cannot delay a ChainedScheduler, since torch cannot start one at a milestone; "
            "leave then out, or give one scheduler or a SequentialLR"
        )
    still = SchedulerSpec("ConstantLR", {"factor": 1.0, "total_iters": 0})
    args = {"milestones": [calls, *milestones]}
    return SchedulerSpec("SequentialLR", args, spec.unit, spec.monitor, (still, *parts))


def _calls_before(warmup: WarmupSpec, unit: str, steps_per_epoch: int) -> int:
    """How many calls of the scheduler, in its `unit`, the warmup leaves out: those before its period is over."""
    period = warmup.args.get("warmup_period")
    if isinstance(period, list | tuple) and period:
        period = max(period)
    if not isinstance(period, int):
        raise UsageError(
            f"{warmup.title}: `then: scheduler` needs a warmup with a warmup_period; give LinearWarmup one"
        )
    if warmup.by == EPOCH and unit == STEP:
        period *= steps_per_epoch
    elif warmup.by == STEP and unit == EPOCH:
        period = -(-period // steps_per_epoch)
    return period - 1


def filled_in(spec: SchedulerSpec, calls: int) -> SchedulerSpec:
    """`spec` with the arguments that the number of `calls` answers, its parts' too."""
    args = dict(spec.args)
    for argument in FILLED_IN.get(spec.known, ()):
        is_given = argument in args or (argument == "total_steps" and {"epochs", "steps_per_epoch"} <= set(args))
        if not is_given:
            args[argument] = max(1, calls)
    children = tuple(filled_in(child, part) for child, part in zip(spec.children, _parts(spec, calls), strict=True))
    return SchedulerSpec(spec.name, args, spec.by, spec.monitor, children)


def _parts(spec: SchedulerSpec, calls: int) -> list[int]:
    """How many calls each part of a composite gets."""
    if spec.known != "SequentialLR":
        return [calls] * len(spec.children)
    edges = [0, *(spec.args.get("milestones") or ()), calls]
    lengths = [max(1, b - a) for a, b in zip(edges, edges[1:], strict=False)]
    return (lengths + [calls] * len(spec.children))[: len(spec.children)]


def _refuse_too_short(spec: SchedulerSpec, calls: int, unit: str) -> None:
    if spec.known == "OneCycleLR":
        args = spec.args
        total = args.get("total_steps") or (args.get("epochs") or 0) * (args.get("steps_per_epoch") or 0)
        if isinstance(total, int) and 0 < total < calls:
            raise too_short(total, calls, unit, f"leave total_steps out, then it is {calls}")
    for child, part in zip(spec.children, _parts(spec, calls), strict=True):
        _refuse_too_short(child, part, unit)


def _built(spec: SchedulerSpec, optimizer: Optimizer) -> Any:
    if spec.known in COMPOSITES:
        if not spec.children:
            raise UsageError(f"{spec.title} needs 'schedulers', the list of its parts")
        parts = [_built(child, optimizer) for child in spec.children]
        return SCHEDULERS.build(spec.title, spec.args, optimizer=optimizer, schedulers=parts)
    if spec.children:
        raise UsageError(f"{spec.title} takes no 'schedulers'; only {' and '.join(COMPOSITES)} do")
    return _make(SCHEDULERS, spec.name, spec.args, optimizer)


def _make(registry: Any, name: str | Callable[..., Any], args: Mapping[str, Any], optimizer: Optimizer) -> Any:
    if isinstance(name, str):
        return registry.build(name, args, optimizer=optimizer)
    title = getattr(name, "__name__", str(name))
    hidden = {"optimizer", "self", "last_epoch", "last_step"}
    parameters = {n: p for n, p in inspect.signature(name).parameters.items() if n not in hidden}
    problems = argument_problems(title, name, args, parameters)
    if problems:
        raise Problems([p.message for p in problems])
    return name(optimizer, **as_given(args, name))
