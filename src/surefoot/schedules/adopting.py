"""Param groups that come later: what a scheduler must know of them; and any group's rate, from the start again."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.optim.lr_scheduler import CyclicLR, LambdaLR, MultiplicativeLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import SWALR

from .composite import leaves
from .kernels import Unknown
from .replaying import kernel_of

# What OneCycleLR, CyclicLR and SWALR keep in the param groups themselves.
_GROUP_KEYS = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr")


def enter(scheduler: Any, added: list[dict[str, Any]], first: list[float]) -> None:
    """Make groups, whose first rates are `first`, known to `scheduler` and its parts."""
    model = scheduler.optimizer.param_groups[0]
    for group, lr in zip(added, first, strict=True):
        _enter_group(scheduler, group, lr, model)
        for leaf in leaves(scheduler):
            _extend(leaf, group, lr)


def replay(
    scheduler: Any,
    groups: list[dict[str, Any]],
    start: int = 0,
    *,
    calls: int,
    reductions: list[list[list[int]]],
    fed: bool,
    undampened: float,
) -> list[float]:
    """The rates of ``groups[start:]`` after `calls` calls, as if they had been there from the start.

    `reductions` holds for each plateau its ``[own call, call of the schedule]`` at each reduction; `fed` says that
    plateaus go by epoch while the rest goes by step. A scheduler of one's own scales a group as it has scaled the
    first one, which is at `undampened` now.
    """
    rates = []
    for index, group in enumerate(groups[start:], start):
        lr = float(group.get("initial_lr", group["lr"]))
        try:
            rates.append(_replayed(scheduler, group, index, lr, calls, reductions, fed))
        except Unknown:
            rates.append(_in_proportion(groups[0], undampened, lr))
    return rates


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
    if isinstance(leaf, CyclicLR):
        lists = ("base_lrs", "max_lrs", "base_momentums", "max_momentums", "_last_lr")
    elif isinstance(leaf, LambdaLR | MultiplicativeLR):
        lists = ("lr_lambdas", "_last_lr")
    elif isinstance(leaf, ReduceLROnPlateau):
        lists = ("min_lrs", "_last_lr")
    else:
        lists = ("_last_lr",)
    for name in lists:
        values = getattr(leaf, name, None)
        if isinstance(values, list) and values:
            values.append(values[-1])
    bases = getattr(leaf, "base_lrs", None)
    if isinstance(bases, list) and "base_lrs" not in lists:
        bases.append(group.get("initial_lr", lr))


def _replayed(
    scheduler: Any, group: dict[str, Any], index: int, lr: float, calls: int, reductions: list[list[list[int]]],
    fed: bool,
) -> float:  # fmt: skip
    plateaus = [leaf for leaf in leaves(scheduler) if isinstance(leaf, ReduceLROnPlateau)]
    due: set[int] = set()
    scripts = {}
    for plateau, times in zip(plateaus, reductions, strict=True):
        own = {count for count, _ in times}
        scripts[id(plateau)] = partial(_is_due, due, id(plateau)) if fed else own.__contains__
    kernel = kernel_of(scheduler, group, index, scripts=scripts, fed=fed)
    rate, done = kernel.initial(lr), 0
    events = [(call, id(p)) for p, times in zip(plateaus, reductions, strict=True) for _, call in times] if fed else []
    for call, plateau in sorted(events):
        if call > done:
            rate, done = float(kernel.run(rate, call - done)[-1]), call
        due.clear()
        due.add(plateau)
        rate = kernel.feed(rate)
    return float(kernel.run(rate, calls - done)[-1]) if calls > done else rate


def _is_due(due: set[int], plateau: int, _: int) -> bool:
    return plateau in due


def _in_proportion(model: dict[str, Any], now: float, lr: float) -> float:
    first = float(model.get("initial_lr", 0.0))
    return lr * now / first if first else lr
