"""Mistakes in a schedule that show before the run: each with its name, the evidence and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.optim import RAdam
from torch.optim import lr_scheduler as t

from ..arguments import Arguments
from ..finding import Finding
from ..schedules.composite import is_constant, leaves
from ..schedules.registry import STEP
from ..schedules.schedule import Schedule
from ..schedules.simulation import NEVER, LaterGroup, Simulation, simulate_schedule
from ..text import counted
from .events import warm_after

# Each name has a section in explanations/schedules.md.
MISTAKES = {
    "warmup-longer-than-run": "the warmup does not end before the run does",
    "warmup-redundant": "a warmup over an optimizer that has its own",
    "onecycle-total-steps": "OneCycleLR's cycle and the run have different lengths",
    "per-step-scheduler-by-epoch": "a scheduler that is made to go by step goes by epoch",
    "rises-again": "CosineAnnealingLR passes T_max, and the rate rises again",
    "cosine-unfinished": "the run ends long before T_max",
    "milestones-past-end": "milestones that the run does not reach",
    "step-size-past-end": "StepLR's step_size is longer than the run",
    "unfinished": "a scheduler that has not done its total_iters when the run ends",
    "no-restart": "the first period of CosineAnnealingWarmRestarts is longer than the run",
    "ends-after-restart": "the run ends at a high rate, right after a restart",
    "plateau-cannot-trigger": "ReduceLROnPlateau's patience is longer than the run",
    "rate-vanishes": "the rate is too small to change anything for much of the run",
    "rate-negative": "the rate is below zero",
    "groups-flattened": "one max_lr for groups that were given different rates",
    "scheduler-fails": "the scheduler raises an error in the midst of the run",
}
MOST_CALLS = 50_000  # of a scheduler or warmup, to compute the rates: at most half a second
_MOST_STEPS = 5_000_000
_TINY = 1e-8
_MUCH = 0.1  # of the run, where the rate stays there
_MOST = 0.5  # of the run, in all


def mistakes(
    schedule: Schedule, steps_per_epoch: int, epochs: int, *, later: Sequence[LaterGroup] = ()
) -> list[Finding]:
    """What is likely wrong with a schedule that has not begun, over `epochs` of `steps_per_epoch`; nothing is touched.

    `later` are the groups that join, as for `simulate`. Where a scheduler is called more than 50,000 times, only
    arguments are checked, since training must not wait; `plan_report` then computes the rates all the same and finds
    rate-vanishes, rate-negative and scheduler-fails.
    """
    steps_per_epoch, epochs = checked(schedule, steps_per_epoch, epochs)
    steps = steps_per_epoch * epochs
    by_step = (schedule.scheduler is not None and schedule.by == STEP) or (
        schedule.warmup is not None and schedule.warmup_by == STEP and not schedule.warmup.stays_at_one
    )
    if steps > _MOST_STEPS or (steps if by_step else epochs) > MOST_CALLS:
        run = Simulation(steps_per_epoch, epochs, [], [], [], [], schedule)
    else:
        run = simulate_schedule(schedule, steps_per_epoch, epochs, plateau=NEVER, later=later)
    return list(findings_in(run, schedule))


def checked(schedule: Schedule, steps_per_epoch: int, epochs: int) -> tuple[int, int]:
    """The length of a run as plain numbers. Raises Problems for what is none, and for no Schedule."""
    check = Arguments("plan: ")
    check.instance("schedule", schedule, Schedule, "Schedule(optimizer, scheduler, warmup)")
    length = check.whole("steps_per_epoch", steps_per_epoch, low=1), check.whole("epochs", epochs, low=1)
    check.done()
    return length


def findings_in(run: Simulation, schedule: Schedule) -> Iterator[Finding]:
    """The mistakes in a simulated run of `schedule`."""
    yield from _of_warmup(run, schedule.optimizer)
    if schedule.scheduler is not None:
        by_step = schedule.by == "step"
        yield from _of_scheduler(schedule.scheduler, run.steps if by_step else run.epochs, schedule.by, True)
        yield from _of_groups(schedule)
    yield from _of_rates(run)


def _warn(name: str, message: str, fix: str) -> Finding:
    assert name in MISTAKES, name
    return Finding(name, "warning", message, fix)


def _of_warmup(run: Simulation, optimizer: Any) -> Iterator[Finding]:
    warmup, unit = run.schedule.warmup, run.schedule.warmup_by
    if warmup is None:
        return
    title = type(warmup).__name__
    counts = run.steps if unit == "step" else run.epochs
    for group, params in enumerate(warmup.warmup_params[:1]):
        done = warm_after(run, group)
        if done is None or done >= counts:
            reached = warmup.warmup_factor(counts - 1, **params)
            yield _warn(
                "warmup-longer-than-run",
                f"{title} is not done when the run ends after {counted(counts, unit)}: the last factor is {reached:.2g}"
                + (f" (warmup_period {params['warmup_period']})" if "warmup_period" in params else ""),
                (f"give a warmup_period below {counts}, or " if counts > 1 else "")
                + ("train for more steps" if unit == "step" else "count it by step"),
            )
    if isinstance(optimizer, RAdam):
        yield _warn(
            "warmup-redundant", f"RAdam has its own warmup, and {title} dampens it again", "leave one of them out"
        )


def _of_scheduler(scheduler: Any, calls: int, by: str, whole: bool) -> Iterator[Finding]:
    """`calls` is what this scheduler gets of the run; `whole` says that it runs from its first step to its last."""
    name = type(scheduler).__name__
    if is_constant(scheduler):
        return

    def too_long(finding: str, argument: str, outcome: str, fix: str, only: str = "") -> Finding:
        number = getattr(scheduler, argument)
        called = f"it is called {only}{counted(calls, by)}"
        return _warn(finding, f"{name}: {argument} is {number}, but {called}: {outcome}", fix + _other_unit(by, number))

    if isinstance(scheduler, t.SequentialLR):
        late = [m for m in scheduler._milestones if m >= calls]
        if late:
            parts = ", ".join(type(p).__name__ for p in scheduler._schedulers[-len(late) :])
            yield _past_end("SequentialLR", late, calls, by, f"{parts} never has its turn")
        edges = [0, *(min(m, calls) for m in scheduler._milestones), calls]
        for part, begin, end in zip(scheduler._schedulers, edges, edges[1:], strict=False):
            if end > begin:
                yield from _of_scheduler(part, end - begin, by, end == calls)
    elif isinstance(scheduler, t.ChainedScheduler):
        for part in scheduler._schedulers:
            yield from _of_scheduler(part, calls, by, whole)
    elif isinstance(scheduler, t.StepLR) and scheduler.step_size >= calls and whole:
        yield too_long("step-size-past-end", "step_size", "the rate never changes", f"give a step_size below {calls}")
    elif isinstance(scheduler, t.MultiStepLR):
        late = sorted(m for m in scheduler.milestones.elements() if m >= calls)
        if late and whole:
            yield _past_end("MultiStepLR", late, calls, by, "the rate does not change there")
    elif isinstance(scheduler, t.CosineAnnealingLR):
        if calls - 1 > scheduler.T_max:
            yield _warn(
                "rises-again",
                f"CosineAnnealingLR: T_max is {scheduler.T_max}, but it is called {counted(calls, by)}: after "
                f"{by} {scheduler.T_max} the rate rises again",
                f"leave T_max out (it is then {calls}), or take CosineAnnealingWarmRestarts if cycles are meant",
            )
        elif scheduler.T_max > 1.05 * calls + 1 and whole:
            outcome = "the rate does not come down to eta_min"
            yield too_long("cosine-unfinished", "T_max", outcome, f"leave T_max out (it is then {calls})", "only ")
    elif isinstance(scheduler, t.OneCycleLR) and scheduler.total_steps != calls and whole:
        total = scheduler.total_steps
        stops = f"torch stops with an error after {total}"
        ending = stops if total < calls else "the run ends before the rate is down"
        yield Finding(
            "onecycle-total-steps",
            "error" if total < calls else "warning",
            f"OneCycleLR: total_steps is {total}, but it is called {counted(calls, by)}: {ending}",
            f"leave total_steps out (it is then {calls})",
        )
    elif isinstance(scheduler, t.CosineAnnealingWarmRestarts) and calls <= scheduler.T_0 and whole:
        yield too_long(
            "no-restart", "T_0", "there is no restart", f"give a T_0 below {calls}, or take CosineAnnealingLR"
        )
    elif isinstance(scheduler, t.LinearLR | t.PolynomialLR | t.ConstantLR) and scheduler.total_iters > calls and whole:
        yield too_long("unfinished", "total_iters", "it does not finish", f"give a total_iters of at most {calls}")
    elif isinstance(scheduler, t.ReduceLROnPlateau) and scheduler.patience + 2 > calls - 1 and whole and by == "epoch":
        # The first value is the best so far; patience + 1 worse ones follow; the cut is seen one epoch later.
        yield _warn(
            "plateau-cannot-trigger",
            f"ReduceLROnPlateau: with patience {scheduler.patience} the first lower rate would come in epoch "
            f"{scheduler.patience + 3}, and the run has {counted(calls, 'epoch')}",
            f"give a patience of at most {max(0, calls - 3)}, or leave the scheduler out",
        )
    if isinstance(scheduler, t.OneCycleLR | t.CyclicLR) and by == "epoch":
        yield _warn(
            "per-step-scheduler-by-epoch",
            f"{name} is made to move after each step, and goes by epoch: the rate takes only {counted(calls, 'value')}",
            "set by: step" + ("" if name == "OneCycleLR" else " and count its sizes in steps"),
        )
    if isinstance(scheduler, t.CosineAnnealingWarmRestarts) and whole and calls > scheduler.T_0:
        length, begin = scheduler.T_0, 0
        while begin + length < calls:
            begin += length
            length *= scheduler.T_mult
        share = (calls - begin) / length
        if begin and share < 0.25:
            yield _warn(
                "ends-after-restart",
                f"CosineAnnealingWarmRestarts: the last restart is at {by} {begin} and the run ends at {calls}, "
                f"{share:.0%} into that period: it ends at a high rate",
                f"let the run end with a period, e.g. after {begin} {by}s, or change T_0",
            )


def _past_end(name: str, late: list[int], calls: int, by: str, outcome: str) -> Finding:
    which = "milestones " + ", ".join(map(str, late)) + " are" if len(late) > 1 else f"milestone {late[0]} is"
    return _warn(
        "milestones-past-end",
        f"{name}: {which} not reached in {counted(calls, by)}; {outcome}",
        f"give milestones below {calls}" + _other_unit(by, min(late)),
    )


def _of_groups(schedule: Schedule) -> Iterator[Finding]:
    first_rates = schedule.given_rates
    if first_rates is None or len(set(first_rates)) < 2:
        return
    for leaf in leaves(schedule.scheduler):
        if isinstance(leaf, t.OneCycleLR):
            tops = [group.get("max_lr") for group in schedule.optimizer.param_groups]
        elif isinstance(leaf, t.CyclicLR):
            tops = list(leaf.max_lrs)
        else:
            continue
        if len(set(tops)) == 1:
            rates = ", ".join(f"{lr:g}" for lr in dict.fromkeys(first_rates))
            yield _warn(
                "groups-flattened",
                f"{type(leaf).__name__} gives every group the same max_lr {tops[0]:g}; the groups' own rates ({rates}) "
                "are lost",
                "give max_lr as a list, one for each group",
            )


def _of_rates(run: Simulation) -> Iterator[Finding]:
    if run.failure is not None:
        step, message = run.failure
        yield Finding(
            "scheduler-fails",
            "error",
            f"{type(run.schedule.scheduler).__name__} raises an error after step {step}: {message}",
            "change its arguments or shorten the run",
        )
    for index, rates in enumerate(run.curves):
        names = [name for name, curve in zip(run.names, run.curve_of, strict=True) if curve == index]
        top = np.nanmax(rates) if not np.all(np.isnan(rates)) else 0.0
        negative = np.flatnonzero(rates < 0)
        if len(negative):
            yield Finding(
                "rate-negative",
                "error",
                f"the rate of {names[0]} is {rates[negative[0]]:.3g} in step {negative[0] + 1}: the loss is driven up",
                "change the scheduler's arguments",
            )
        else:
            small = np.flatnonzero(rates <= _TINY * top)
            # A schedule may touch 0 in one value, as torch's cosine does at T_max: that is its lowest point, no
            # mistake.
            value = 1 if run.schedule.by == "step" else run.steps_per_epoch
            longest = max(map(len, np.split(small, np.flatnonzero(np.diff(small) > 1) + 1)))
            if len(small) >= _MOST * run.steps or (longest > value and len(small) > _MUCH * run.steps):
                yield _warn(
                    "rate-vanishes",
                    f"the rate of {names[0]} is at most {rates[small].max():.3g} in {len(small)} of {run.steps} steps, "
                    f"the first of them step {small[0] + 1}: nothing is learned there",
                    "make the run shorter or the scheduler slower"
                    + (" (by: epoch instead of by: step?)" if run.schedule.by == "step" else ""),
                )


def _other_unit(by: str, number: int) -> str:
    return f"; if {number} counts steps, set by: step" if by == "epoch" and number > 30 else ""
