"""What a user gives as a schedule: schedulers, warmups and the functions that they hold, taken or refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..arguments import Arguments
from ..errors import UsageError
from ..monitor import contradiction
from .composite import leaves
from .dampening import BaseWarmup, check_rates
from .registry import EPOCH, STEP

_WARMUPS = "surefoot.LinearWarmup(optimizer, warmup_period=500)"
SCHEDULER_EXAMPLE = "torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)"


def check_parts(optimizer: Any, scheduler: Any, warmup: Any, *, by: Any, warmup_by: Any, monitor: Any) -> None:
    """Raise UsageError for what a Schedule cannot be made of, all of it at once."""
    check = Arguments()
    check_optimizer(check, optimizer)
    check.choice("by", by, (EPOCH, STEP))
    check.choice("warmup_by", warmup_by, (EPOCH, STEP))
    check.text("monitor", monitor)
    if scheduler is not None:
        check_scheduler(check, "scheduler", scheduler)
    if warmup is not None and not isinstance(warmup, BaseWarmup):
        check.instance("warmup", warmup, BaseWarmup, f"{_WARMUPS}{_instead(warmup)}")
    check.done()
    for part in (scheduler, warmup):
        if part is not None and getattr(part, "optimizer", optimizer) is not optimizer:
            raise UsageError(f"{type(part).__name__} belongs to another optimizer than the schedule")
    if by == STEP and isinstance(scheduler, ReduceLROnPlateau):
        return  # it is given a metric of the caller's at each step
    for part in leaves(scheduler) if scheduler is not None else ():
        if isinstance(part, ReduceLROnPlateau) and contradiction(monitor, part.mode):
            right = "max" if part.mode == "min" else "min"
            raise UsageError(
                f"scheduler: ReduceLROnPlateau with mode {part.mode!r} would take the worst {monitor} for the best; "
                f"give it mode={right!r}, or let the schedule monitor another metric"
            )


def check_optimizer(check: Arguments, optimizer: Any) -> None:
    """Note what is wrong with an optimizer: a class, a list of them, or something else."""
    like = "torch.optim.SGD(model.parameters(), lr=0.1)"
    if isinstance(optimizer, list | tuple) and optimizer and all(hasattr(o, "param_groups") for o in optimizer):
        check.refuse(
            "optimizer",
            f"a list of {len(optimizer)} optimizers was given and one is trained with; give one of several param "
            "groups (surefoot.optimizers.param_groups), or keep your own loop and give each by name to "
            "surefoot.Checkpointer",
        )
    elif not isinstance(optimizer, Optimizer):
        check.instance("optimizer", optimizer, Optimizer, like)
    else:
        check_rates(check, optimizer)


def check_scheduler(check: Arguments, name: str, scheduler: Any) -> None:
    """Note what is wrong with a scheduler: a warmup, a class, or something else."""
    moves = all(callable(getattr(scheduler, n, None)) for n in ("step", "state_dict", "load_state_dict"))
    if isinstance(scheduler, BaseWarmup) or _instead(scheduler):
        instead = f"give surefoot.Schedule(optimizer, warmup={_WARMUPS}){_instead(scheduler)}"
        check.refuse(name, f"{type(scheduler).__name__} is a warmup; {instead}")
    elif inspect.isclass(scheduler) or not moves or isinstance(scheduler, Optimizer):
        check.instance(name, scheduler, LRScheduler, SCHEDULER_EXAMPLE)


def _instead(warmup: Any) -> str:
    """What to say of a warmup of the package pytorch_warmup, whose names and arguments the own ones have."""
    if type(warmup).__module__.partition(".")[0] != "pytorch_warmup":
        return ""
    return " with a new optimizer (pytorch_warmup has already lowered this one's rate)"


def saveable_callables(scheduler: Any) -> None:
    """Let torch's `state_dict` find what the functions of a scheduler remember.

    torch saves the `__dict__` of whatever is no plain function. A builtin, a function of NumPy's or a cached one has
    none that means anything, and a method's is not that of its object.
    """
    for part in leaves(scheduler) if scheduler is not None else ():
        functions = getattr(part, "lr_lambdas", None)
        if isinstance(functions, list):
            part.lr_lambdas = [_saveable(function) for function in functions]
        if getattr(part, "_scale_fn_custom", None) is not None:
            part._scale_fn_custom = _saveable(part._scale_fn_custom)


def _saveable(function: Callable[[int], float]) -> Callable[[int], float]:
    if inspect.isfunction(function):
        return function
    if inspect.ismethod(function):
        # An object without attributes, or with some that cannot be saved, is believed to be no part of the schedule.
        if _is_plain(getattr(function.__self__, "__dict__", object())):
            return _Method(function)
        return lambda count: function(count)
    if not hasattr(function, "__dict__") or hasattr(function, "__wrapped__"):
        return lambda count: function(count)
    return function


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str | int) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float | np.generic | torch.Tensor)


class _Method:
    """A method whose `__dict__` is that of its object."""

    __slots__ = ("__dict__", "_function")

    def __init__(self, function: Any):
        self._function = function
        self.__dict__ = vars(function.__self__)

    def __call__(self, count: int) -> float:
        return float(self._function(count))
