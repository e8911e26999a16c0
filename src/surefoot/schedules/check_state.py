"""Whether a saved schedule fits the one that goes on: same fields, same groups, same arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import SWALR

from ..errors import UsageError
from .composite import leaves

# What the length of the run decides; it may have changed, see `run_length`.
_LENGTHS = ("T_max", "total_steps", "_schedule_phases")
# Where a scheduler keeps arguments under other names.
_KEPT_AS = {
    CyclicLR: ("base_lrs", "max_lrs", "total_size", "step_ratio", "base_momentums", "max_momentums"),
    OneCycleLR: ("_schedule_phases", "_anneal_func_type"),
    ReduceLROnPlateau: ("min_lrs",),
    SWALR: ("_anneal_strategy", "anneal_func"),
}


def check_fields(mine: Mapping[str, Any], saved: Any, where: str) -> None:
    """Raise UsageError unless `saved` has the fields of `mine`, in the parts of a composite too.

    A scheduler's own `load_state_dict` takes whatever it is given: a missing field would go unnoticed, and one too
    many could replace a method.
    """
    if not isinstance(saved, Mapping):
        raise UsageError(f"the saved schedule is damaged: {where} is {repr(saved)[:60]} instead of a mapping")
    if set(mine) != set(saved):
        odd = ", ".join(sorted(map(str, set(mine) ^ set(saved))))
        raise UsageError(f"the saved schedule does not fit: {where} differs in the fields {odd}")
    parts, others = mine.get("_schedulers", ()), saved.get("_schedulers", ())
    if not isinstance(others, Sequence) or len(parts) != len(others):
        raise UsageError(f"the saved schedule is damaged: {where} does not have {len(parts)} parts")
    for index, (part, other) in enumerate(zip(parts, others, strict=True)):
        check_fields(part, other, f"{where}.{index}")


def arguments_of(scheduler: Any, *, lengths: bool) -> list[tuple[Any, dict[str, Any]]]:
    """Each of torch's schedulers in `scheduler`, with the constructor arguments that it keeps.

    Without `lengths`, those that the length of the run decides are left out.
    """
    return [
        (leaf, {name: vars(leaf)[name] for name in _names(leaf, lengths) if name in vars(leaf)})
        for leaf in (leaves(scheduler) if scheduler is not None else ())
        if isinstance(leaf, LRScheduler)
    ]


def changed_arguments(scheduler: Any, saved: Mapping[str, Any], *, lengths: bool) -> list[str]:
    """Constructor arguments that were others in the saved run. Loading would silently put the saved ones back."""
    children = getattr(scheduler, "_schedulers", None)
    if children is not None:
        inside = zip(children, saved["_schedulers"], strict=True)
        changed = [text for child, state in inside for text in changed_arguments(child, state, lengths=lengths)]
        before, now = saved.get("_milestones"), getattr(scheduler, "_milestones", None)
        return [*changed, *_changed(scheduler, "milestones", before, now)]
    if not isinstance(scheduler, LRScheduler):
        return []
    return [
        text
        for name in _names(scheduler, lengths)
        if name in saved
        for text in _changed(scheduler, name, saved[name], getattr(scheduler, name, None))
    ]


def _names(leaf: LRScheduler, lengths: bool) -> list[str]:
    names = [*inspect.signature(type(leaf).__init__).parameters]
    names += [name for kind, kept in _KEPT_AS.items() if isinstance(leaf, kind) for name in kept]
    return [n for n in names if n not in ("last_epoch", "optimizer") and (lengths or n not in _LENGTHS)]


def _changed(scheduler: Any, name: str, before: Any, now: Any) -> list[str]:
    if before == now:
        return []
    if name == "_schedule_phases":
        return [f"{type(scheduler).__name__}: pct_start or three_phase is another one"]
    return [f"{type(scheduler).__name__}.{name.lstrip('_')} was {_plain(before)} and is {_plain(now)}"]


def _plain(value: Any) -> Any:
    return sorted(value.elements()) if hasattr(value, "elements") else value
