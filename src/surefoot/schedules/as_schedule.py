"""What `fit` is given as a schedule, as a Schedule: a bare scheduler is moved by the unit that is usual for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..arguments import Arguments
from ..errors import UsageError
from .accept import SCHEDULER_EXAMPLE, check_scheduler
from .composite import leaves
from .dampening import BaseWarmup
from .registry import EPOCH, SCHEDULERS, STEP
from .schedule import Schedule

# How long a scheduler is, in calls, by the attribute that says so.
_LENGTHS = ("total_steps", "T_max", "total_iters")


def as_schedule(
    given: Any,
    optimizer: Optimizer,
    *,
    epochs: int,
    steps_per_epoch: int | None,
    validates: bool,
    say: Callable[[str], None],
    begun_by: str | None = None,
) -> Schedule:
    """A Schedule over `optimizer` from what was given: None, a Schedule, a scheduler of torch's, or a warmup.

    A bare scheduler is moved as the run was begun (`begun_by`); else by step where its length is that of the run in
    steps, else by the unit that is usual for it (OneCycleLR and CyclicLR, also as a part, by step, the others by
    epoch); `say` receives a line that says which. Raises UsageError for one with a function of the user's, whose unit
    cannot be seen, and for anything else, with the line that works.
    """
    if given is None:
        return Schedule(optimizer)
    if isinstance(given, Schedule):
        if given.optimizer is not optimizer:
            raise UsageError("schedule: it was made for another optimizer; make it for the one that is trained with")
        if given.needs_step_metric:
            raise UsageError(
                f"schedule: ReduceLROnPlateau watches {given.monitor}, which is known once an epoch; leave by out"
            )
        return given
    if isinstance(given, BaseWarmup):
        return Schedule(optimizer, warmup=given)
    if isinstance(given, list | tuple):
        raise UsageError(
            "schedule: a list was given; join the schedulers in torch's SequentialLR or ChainedScheduler "
            "and give schedule=surefoot.Schedule(optimizer, joined)"
        )
    if isinstance(given, str | Mapping):
        raise UsageError(f"schedule: a {type(given).__name__} was given; give an object, e.g. {SCHEDULER_EXAMPLE}")
    if callable(given) and not inspect.isclass(given) and not hasattr(given, "step"):
        raise UsageError(
            "schedule: a function was given; give surefoot.Schedule(optimizer, "
            'torch.optim.lr_scheduler.LambdaLR(optimizer, function), by="epoch") or by="step"'
        )
    check = Arguments()
    check_scheduler(check, "schedule", given)
    check.done()
    if any(getattr(part, "lr_lambdas", None) for part in leaves(given)):
        raise UsageError(
            f"schedule: nobody can see whether the function of {type(given).__name__} counts steps (as the schedules "
            'of transformers do) or epochs; give surefoot.Schedule(optimizer, scheduler, by="step") or by="epoch"'
        )
    name, total = type(given).__name__, epochs * (steps_per_epoch or 0)
    names = {type(part).__name__ for part in leaves(given)}
    usual = [entry.facts["by"] for entry in SCHEDULERS if entry.name in names]
    by = STEP if STEP in usual or (total not in (0, epochs) and total in _lengths(given)) else EPOCH
    if begun_by in (EPOCH, STEP):  # of more epochs, the length of the run says something else
        by = begun_by
    split = "val" if validates else "train"
    monitor = f"{split}/{'accuracy' if getattr(given, 'mode', 'min') == 'max' else 'loss'}"
    watched = f", watching {monitor}" if isinstance(given, ReduceLROnPlateau) else ""
    say(
        f"schedule: {name} moves once a{'n epoch' if by == EPOCH else ' step'}{watched}; "
        # fmt: skip
        f'surefoot.Schedule(optimizer, scheduler, by="{STEP if by == EPOCH else EPOCH}") says it otherwise'
    )
    return Schedule(optimizer, given, by=by, monitor=monitor)


def _lengths(scheduler: Any) -> set[int]:
    """How many calls the arguments of a scheduler are made for; in a sequence the last part begins at a milestone."""
    parts = getattr(scheduler, "_schedulers", None)
    if parts is None:
        return {getattr(scheduler, length) for length in _LENGTHS if isinstance(getattr(scheduler, length, None), int)}
    milestones = getattr(scheduler, "_milestones", ())
    begin, parts = (milestones[-1], parts[-1:]) if milestones else (0, parts)
    return {begin + length for part in parts for length in _lengths(part)}
