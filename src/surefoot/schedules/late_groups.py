"""Param groups that come later: what a scheduler must know of them; and any group's rate, from the start again."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import CyclicLR, LambdaLR, MultiplicativeLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import SWALR

from .composite import OF_TORCH, advance, leaves
from .stand_in import copied, rewind, stand_in_for

# What OneCycleLR, CyclicLR and SWALR keep in the param groups themselves.
_GROUP_KEYS = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr")


def enter(scheduler: Any, added: list[dict[str, Any]], first: list[float]) -> None:
    """Make groups, whose first rates are `first`, part of `scheduler` and its parts."""
    model = scheduler.optimizer.param_groups[0]
    for group, lr in zip(added, first, strict=True):
        _enter_group(scheduler, group, lr, model)
        for leaf in leaves(scheduler):
            _extend(leaf, group, lr)


def replay(scheduler: Any, *, calls: int, reductions: list[list[list[int]]], fed: bool) -> Any:
    """A copy of torch's `scheduler` over a stand-in, after `calls` calls with all its groups there from the start.

    The calls are taken again, some microseconds each. `reductions` holds for each plateau its
    ``[own call, call of the schedule]`` at each reduction; `fed` says that plateaus go by epoch while the rest goes by
    step. None for a scheduler of one's own, which nobody can put back to its start.
    """
    if any(type(part).__module__ not in OF_TORCH for part in (scheduler, *leaves(scheduler))):
        return None
    again = copied(scheduler, scheduler.optimizer, stand_in_for(scheduler.optimizer))
    rewind(again)
    plateaus = [leaf for leaf in leaves(again) if isinstance(leaf, ReduceLROnPlateau)]
    due: dict[int, list[ReduceLROnPlateau]] = {}
    for plateau, times in zip(plateaus, reductions, strict=True):
        plateau.__class__ = _Replayed
        vars(plateau)["reduces"] = {own for own, _ in times}
        for _, call in times if fed else ():
            due.setdefault(call, []).append(plateau)
    for call in range(calls + 1):
        if call:
            advance(again, 0.0, plateaus=not fed)
        for plateau in due.get(call, ()):
            plateau._reduce_lr(call)
    return again


def take_counts(scheduler: Any, again: Any) -> None:
    """Give `scheduler` and its parts the counts of `again`, its replayed copy; plateaus count what they were given."""
    if not isinstance(scheduler, ReduceLROnPlateau) and hasattr(again, "last_epoch"):
        scheduler.last_epoch = again.last_epoch
    for part, other in zip(getattr(scheduler, "_schedulers", ()), getattr(again, "_schedulers", ()), strict=True):
        take_counts(part, other)


def cycled_options(scheduler: Any) -> list[dict[str, Any]]:
    """What OneCycleLR and CyclicLR have set in each param group beside its rate: ``momentum`` or ``betas``."""
    keys = ("momentum", "betas") if any(getattr(leaf, "cycle_momentum", False) for leaf in leaves(scheduler)) else ()
    return [{key: group[key] for key in keys if key in group} for group in scheduler.optimizer.param_groups]


def in_proportion(model: dict[str, Any], now: float, lr: float) -> float:
    """The rate of a group whose first one is `lr`, scaled as that of `model`, which is at `now`, has been."""
    first = float(model.get("initial_lr", 0.0))
    return lr * now / first if first else lr


class _Replayed(ReduceLROnPlateau):
    """Reduces at the calls at which the run's plateau has reduced."""

    reduces: set[int]

    def step(self, metrics: Any, epoch: Any = None) -> None:  # type: ignore[override]
        self.last_epoch += 1
        if self.last_epoch in self.reduces:
            self._reduce_lr(self.last_epoch)


def _enter_group(scheduler: Any, group: dict[str, Any], lr: float, model: dict[str, Any]) -> None:
    if "initial_lr" in model:
        group.setdefault("initial_lr", lr)
    for leaf in leaves(scheduler):
        if isinstance(leaf, OneCycleLR | CyclicLR | SWALR):
            # These have their own rates; a later group gets those of the first.
            for key in _GROUP_KEYS:
                if key in model and (key != "initial_lr" or isinstance(leaf, OneCycleLR)):
                    group[key] = model[key]
            if getattr(leaf, "cycle_momentum", False):
                for key in ("momentum", "betas"):
                    if key in model:
                        group[key] = model[key]


def _extend(leaf: Any, group: dict[str, Any], lr: float) -> None:
    lists: tuple[str, ...] = ("_last_lr",)
    if isinstance(leaf, CyclicLR):
        lists = ("base_lrs", "max_lrs", "base_momentums", "max_momentums", "_last_lr")
    elif isinstance(leaf, LambdaLR | MultiplicativeLR):
        lists = ("lr_lambdas", "_last_lr")
    elif isinstance(leaf, ReduceLROnPlateau):
        lists = ("min_lrs", "_last_lr")
    for name in lists:
        values = getattr(leaf, name, None)
        if isinstance(values, list) and values:
            values.append(values[-1])
    bases = getattr(leaf, "base_lrs", None)
    if isinstance(bases, list) and "base_lrs" not in lists:
        bases.append(group.get("initial_lr", lr))
