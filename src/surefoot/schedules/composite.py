"""SequentialLR and ChainedScheduler as torch has them, to the bit, and with ReduceLROnPlateau among their parts.

torch refuses a plateau there because its `step` needs the monitored value. Here `step` takes it too. A plateau
that a SequentialLR comes to starts, as every other scheduler does there, from the group's first rate.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..errors import UsageError

# Where the schedulers are defined whose state has always the same fields; one of somebody's own may have any.
OF_TORCH = ("torch.optim.lr_scheduler", "torch.optim.swa_utils", __name__)


def leaves(scheduler: Any) -> Iterator[Any]:
    """Every scheduler that is no composite, in order."""
    children = getattr(scheduler, "_schedulers", None)
    if children is None:
        yield scheduler
        return
    for child in children:
        yield from leaves(child)


def is_constant(scheduler: Any) -> bool:
    """Whether its arguments say that it never moves a rate: a factor or a gamma of 1, a power of 0."""
    t = torch_schedulers
    if isinstance(scheduler, t.StepLR | t.MultiStepLR | t.ExponentialLR):
        return bool(scheduler.gamma == 1)
    if isinstance(scheduler, t.LinearLR):
        return bool(scheduler.start_factor == scheduler.end_factor)
    if isinstance(scheduler, t.ConstantLR):
        return bool(scheduler.factor == 1)
    return isinstance(scheduler, t.PolynomialLR) and scheduler.power == 0


def has_plateau(scheduler: Any) -> bool:
    """Whether `step` needs the monitored value at some time."""
    return any(isinstance(leaf, ReduceLROnPlateau) for leaf in leaves(scheduler))


def advance(scheduler: Any, metric: float | None = None, *, plateaus: bool = True) -> None:
    """One call of `step`, with `metric` for whoever takes it; without `plateaus`, these are left as they are."""
    if isinstance(scheduler, ReduceLROnPlateau):
        if plateaus:
            scheduler.step(_needed(metric))
    elif isinstance(scheduler, SequentialLR | ChainedScheduler):
        scheduler.step(metric, plateaus=plateaus)
    else:
        scheduler.step()


def advance_plateaus(scheduler: Any, metric: float | None) -> None:
    """Give `metric` to the plateaus that are active now, and move nothing else."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(_needed(metric))
    elif isinstance(scheduler, SequentialLR):
        advance_plateaus(scheduler.active, metric)
    elif isinstance(scheduler, ChainedScheduler):
        for child in scheduler._schedulers:
            advance_plateaus(child, metric)


def _needed(metric: float | None) -> float:
    if metric is None:
        raise UsageError(
            "ReduceLROnPlateau needs the monitored value at each of its steps; give step(metric)", code="monitor"
        )
    return float(metric)


class SequentialLR(torch_schedulers.SequentialLR):
    """torch's SequentialLR of an `optimizer`: `schedulers` one after the other, ReduceLROnPlateau among them too.

    `milestones` count the calls of `step`; the part after a milestone starts from the groups' first rates.
    """

    def __init__(self, optimizer: Optimizer, schedulers: list[LRScheduler], milestones: list[int]):
        for index, part in enumerate(schedulers):
            if hasattr(part, "_schedulers") and (index > 0 or has_plateau(part)):
                raise UsageError(
                    f"SequentialLR: {type(part).__name__} can only be its first part, and without a plateau, since "
                    "torch cannot start it at a milestone; put its parts into the sequence instead"
                )
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # plateaus alone would leave none
        super().__init__(optimizer, _plateaus_hidden(schedulers), milestones)
        self._schedulers = list(schedulers)

    @property
    def active(self) -> LRScheduler:
        """The part whose turn it is."""
        return self._schedulers[bisect_right(self._milestones, self.last_epoch)]

    def step(self, metric: float | None = None, *, plateaus: bool = True) -> None:
        self.last_epoch += 1
        index = bisect_right(self._milestones, self.last_epoch)
        scheduler = self._schedulers[index]
        if index > 0 and self._milestones[index - 1] == self.last_epoch:
            _begin(scheduler)
        else:
            advance(scheduler, metric, plateaus=plateaus)
        self._last_lr = scheduler.get_last_lr()


class ChainedScheduler(torch_schedulers.ChainedScheduler):
    """torch's ChainedScheduler over `schedulers` of one `optimizer`, which may be ReduceLROnPlateau too."""

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None):
        super().__init__(_plateaus_hidden(schedulers), optimizer)
        self._schedulers = list(schedulers)

    def step(self, metric: float | None = None, *, plateaus: bool = True) -> None:
        for scheduler in self._schedulers:
            advance(scheduler, metric, plateaus=plateaus)
        self._last_lr = [float(group["lr"]) for group in self.optimizer.param_groups]


def _begin(scheduler: LRScheduler) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        for group in scheduler.optimizer.param_groups:
            torch_schedulers._update_param_group_val(group, "lr", group["initial_lr"])
        scheduler._last_lr = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
    else:
        scheduler._update_lr(0)


class _StandIn:
    """What torch's constructors see in a plateau's place: an optimizer, a rate, and no first step to take."""

    def __init__(self, plateau: ReduceLROnPlateau):
        self.optimizer = plateau.optimizer

    def _initial_step(self) -> None:
        """A plateau begins at the rate that is there."""

    def get_last_lr(self) -> list[Any]:
        return [group["lr"] for group in self.optimizer.param_groups]


def _plateaus_hidden(schedulers: Sequence[Any]) -> list[Any]:
    """`schedulers`, so that torch's own constructors with all that they check take them."""
    return [_StandIn(s) if isinstance(s, ReduceLROnPlateau) else s for s in schedulers]
