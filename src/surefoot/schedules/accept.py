"""What a user gives as a schedule: schedulers, warmups and the functions that they hold, taken or refused by name."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..arguments import Arguments
from ..errors import UsageError
from ..monitor import contradiction
from .catalogue import EPOCH, SCHEDULERS, STEP
from .composite import leaves
from .dampening import BaseWarmup
from .state import encode

if TYPE_CHECKING:
    from .schedule import Schedule

_WARMUPS = "surefoot.LinearWarmup(optimizer, warmup_period=500)"
_SCHEDULERS = "torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)"
# How long a scheduler is, in calls, by the attribute that says so.
_LENGTHS = ("total_steps", "T_max", "total_iters")


def as_schedule(
    given: Any,
    optimizer: Optimizer,
    *,
    epochs: int,
    steps_per_epoch: int,
    validates: bool,
    say: Callable[[str], None],
) -> Schedule:
    """A Schedule over `optimizer` from what was given: None, a Schedule, a scheduler of torch's, or a warmup.

    A bare scheduler is moved by step where its length is that of the run in steps, else by the unit that is usual for
    it (OneCycleLR and CyclicLR by step, the others by epoch); `say` receives a line that says which. Raises UsageError
    for one with a function of the user's, whose unit cannot be seen, and for anything else, with the line that works.
    """
    from .schedule import Schedule

    if given is None:
        return Schedule(optimizer)
    if isinstance(given, Schedule):
        if given.optimizer is not optimizer:
            raise UsageError("schedule: it was made for another optimizer; make it for the one that is trained with")
        return given
    if isinstance(given, BaseWarmup):
        return Schedule(optimizer, warmup=given)
    if isinstance(given, list | tuple):
        raise UsageError(
            "schedule: a list was given; join the schedulers in torch's SequentialLR or ChainedScheduler "
            "and give schedule=surefoot.Schedule(optimizer, joined)"
        )
    if isinstance(given, str | Mapping):
        raise UsageError(f"schedule: a {type(given).__name__} was given; give an object, e.g. {_SCHEDULERS}")
    if callable(given) and not inspect.isclass(given) and not hasattr(given, "step"):
        raise UsageError(
            "schedule: a function was given; give surefoot.Schedule(optimizer, "
            'torch.optim.lr_scheduler.LambdaLR(optimizer, function), by="epoch") or by="step"'
        )
    check = Arguments()
    _check_scheduler(check, "schedule", given)
    check.done()
    if any(getattr(part, "lr_lambdas", None) for part in leaves(given)):
        raise UsageError(
            f"schedule: nobody can see whether the function of {type(given).__name__} counts steps (as the schedules of "
            'transformers do) or epochs; give surefoot.Schedule(optimizer, scheduler, by="step") or by="epoch"'
        )
    name, total = type(given).__name__, epochs * steps_per_epoch
    by = SCHEDULERS[name].facts["by"] if name in SCHEDULERS else EPOCH
    if any(getattr(given, length, None) == total != epochs for length in _LENGTHS):
        by = STEP
    split = "val" if validates else "train"
    monitor = f"{split}/{'accuracy' if getattr(given, 'mode', 'min') == 'max' else 'loss'}"
    watched = f", watching {monitor}" if isinstance(given, ReduceLROnPlateau) else ""
    say(f"schedule: {name} moves once a{'n epoch' if by == EPOCH else ' step'}{watched}; "
        f"surefoot.Schedule(optimizer, scheduler, by=\"{STEP if by == EPOCH else EPOCH}\") says it otherwise")  # fmt: skip
    return Schedule(optimizer, given, by=by, monitor=monitor)


def check_parts(optimizer: Any, scheduler: Any, warmup: Any, *, by: Any, warmup_by: Any, monitor: Any) -> None:
    """Raise UsageError for what a Schedule cannot be made of, all of it at once."""
    check = Arguments()
    check_optimizer(check, optimizer)
    check.choice("by", by, (EPOCH, STEP))
    check.choice("warmup_by", warmup_by, (EPOCH, STEP))
    check.text("monitor", monitor)
    if scheduler is not None:
        _check_scheduler(check, "scheduler", scheduler)
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
    elif not isinstance(optimizer, Optimizer) and (
        inspect.isclass(optimizer) or not all(hasattr(optimizer, n) for n in ("param_groups", "step", "state_dict"))
    ):
        check.instance("optimizer", optimizer, Optimizer, like)


def _check_scheduler(check: Arguments, name: str, scheduler: Any) -> None:
    moves = all(callable(getattr(scheduler, n, None)) for n in ("step", "state_dict", "load_state_dict"))
    if isinstance(scheduler, BaseWarmup) or _instead(scheduler):
        check.refuse(name, f"{type(scheduler).__name__} is a warmup; give surefoot.Schedule(optimizer, warmup={_WARMUPS})"
                           f"{_instead(scheduler)}")  # fmt: skip
    elif inspect.isclass(scheduler) or not moves or isinstance(scheduler, Optimizer):
        check.instance(name, scheduler, LRScheduler, _SCHEDULERS)


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
        with contextlib.suppress(UsageError, TypeError):
            encode(vars(function.__self__))  # what cannot be saved is believed to be no part of the schedule
            return _Method(function)
        return lambda count: function(count)
    if not hasattr(function, "__dict__") or hasattr(function, "__wrapped__"):
        return lambda count: function(count)
    return function


class _Method:
    """A method whose `__dict__` is that of its object."""

    __slots__ = ("__dict__", "_function")

    def __init__(self, function: Any):
        self._function = function
        self.__dict__ = vars(function.__self__)

    def __call__(self, count: int) -> float:
        return self._function(count)
