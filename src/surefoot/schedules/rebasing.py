"""New first rates for a run that goes on: what its schedule has made of the old ones is done to the new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR
from torch.optim.swa_utils import SWALR

from .composite import leaves
from .dampening import set_rate


def owns_rates(scheduler: Any) -> str | None:
    """The name of a scheduler in `scheduler` whose rates are its own arguments, whatever the optimizer's rate is."""
    parts = leaves(scheduler) if scheduler is not None else ()
    return next((type(part).__name__ for part in parts if isinstance(part, OneCycleLR | CyclicLR | SWALR)), None)


def own_rates(optimizer: torch.optim.Optimizer, scheduler: Any) -> list[dict[str, Any]]:
    """What OneCycleLR and SWALR keep of their arguments in each param group, where loading would put it back."""
    keys: set[str] = set()
    for part in leaves(scheduler) if scheduler is not None else ():
        if isinstance(part, OneCycleLR):
            keys |= {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"}
        elif isinstance(part, SWALR):
            keys.add("swa_lr")
    return [{key: group[key] for key in sorted(keys) if key in group} for group in optimizer.param_groups]


def overwritten(scheduler: Any) -> tuple[str, ...]:
    """The options of an optimizer that `scheduler` sets by its own arguments, so that other values have no effect."""
    if owns_rates(scheduler) is None:
        return ()
    momentum = any(getattr(part, "cycle_momentum", False) for part in leaves(scheduler))
    return ("lr", "momentum", "betas") if momentum else ("lr",)


def cycled(scheduler: Any) -> tuple[str, ...]:
    """The options that OneCycleLR and CyclicLR write over when they are made, so that none was the user's."""
    made = any(isinstance(part, OneCycleLR | CyclicLR) for part in leaves(scheduler))
    return overwritten(scheduler) if made else ()


def rebase(
    optimizer: torch.optim.Optimizer, schedule: Any, schedulers: Iterable[Any], rates: Mapping[int, tuple[float, float]]
) -> None:
    """Give param groups other first rates: `rates` maps a group to what it began with and what it shall begin with.

    `schedule` is a Schedule of the optimizer or None, `schedulers` what else moves its rates. Called once everything is
    loaded. Groups that joined later move as the first one does.
    """
    was, now = rates.get(0, next(iter(rates.values())))
    scheduler = schedule.scheduler if schedule is not None else None
    moved = [scheduler] if scheduler is not None else [s for s in schedulers if s is not schedule]
    if any(owns_rates(part) for part in moved):
        return
    count = max(rates) + 1
    ratios = []
    for index, group in enumerate(optimizer.param_groups):
        before, after = rates.get(index, (was, now) if index >= count else (1.0, 1.0))
        ratio = after / before if before else None
        ratios.append(ratio)
        if "initial_lr" in group:
            group["initial_lr"] = after if index in rates else group["initial_lr"] * (ratio or 1.0)
        if schedule is None:
            set_rate(group, after if ratio is None else float(group["lr"]) * ratio)
    for part in (p for top in moved for p in (top, *leaves(top))):
        bases = getattr(part, "base_lrs", None)
        if isinstance(bases, list):
            part.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups[: len(bases)]]
    if schedule is not None:
        schedule.rebase([1.0 if ratio is None else ratio for ratio in ratios])
