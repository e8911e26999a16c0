"""An optimizer without weights for a schedule to move, and a scheduler copied onto one or put back to its start."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .composite import leaves
from .dampening import MARK


class _StandIn(Optimizer):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing to update."""

    # torch's schedulers wrap `step` to see whether it was called; here it need not be.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def stand_in_for(optimizer: Optimizer) -> Optimizer:
    """An optimizer with the same groups and defaults and parameters of one number each, which does nothing."""
    made = _StandIn([without_weights(group) for group in optimizer.param_groups], dict(optimizer.defaults))
    made._opt_called = True  # type: ignore[attr-defined]
    return made


def without_weights(group: dict[str, Any]) -> dict[str, Any]:
    """A param group with the same hyperparameters and one parameter of one number."""
    kept = {k: v for k, v in group.items() if k not in ("params", "param_names", MARK)}
    kept["lr"] = float(kept["lr"])
    return {"params": [torch.nn.Parameter(torch.zeros(1, device="cpu"))], **kept}


def copied(scheduler: Any, optimizer: Optimizer, stand_in: Optimizer) -> Any:
    """`scheduler` of `optimizer`, copied onto `stand_in`."""
    return copy.deepcopy(scheduler, {id(optimizer): stand_in})


def rewind(scheduler: Any) -> None:
    """Put one of torch's schedulers and its groups where they stood when it was made, by what its constructor calls."""
    for group in scheduler.optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    _begin(scheduler)


def _begin(scheduler: Any) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.last_epoch = 0
        scheduler._reset()
        return
    parts = getattr(scheduler, "_schedulers", None)
    if parts is None:
        scheduler.last_epoch = -1
        scheduler._initial_step()
        return
    for part in parts:
        _begin(part)
    if isinstance(scheduler, torch_schedulers.SequentialLR):
        for group in scheduler.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        for leaf in leaves(scheduler):
            if not isinstance(leaf, ReduceLROnPlateau):
                leaf.last_epoch -= 1
        scheduler.last_epoch = 0
        first = parts[sum(milestone <= 0 for milestone in scheduler._milestones)]
        if not isinstance(first, ReduceLROnPlateau):
            first._initial_step()
