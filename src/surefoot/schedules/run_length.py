"""What of a schedule depends on the length of the run, and what becomes of it when a resumed run is longer."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, OneCycleLR

from ..errors import UsageError
from ..text import counted
from .composite import leaves

KEEP, STRETCH = "keep", "stretch"


def horizons(scheduler: Any) -> dict[str, int]:
    """``{"OneCycleLR.total_steps": 400}``: each length that torch's constructor was given, by its name.

    A scheduler that comes twice has its place in the sequence appended.
    """
    lengths: dict[str, int] = {}
    for index, leaf in enumerate(leaves(scheduler) if scheduler is not None else ()):
        for kind, attribute in ((OneCycleLR, "total_steps"), (CosineAnnealingLR, "T_max")):
            if isinstance(leaf, kind):
                name = f"{kind.__name__}.{attribute}"
                lengths[f"{name}#{index}" if name in lengths else name] = getattr(leaf, attribute)
    return lengths


def asked(saved: dict[str, Any], mine: dict[str, Any], choice: str | None) -> bool:
    """Whether a horizon changed; raises UsageError where it did and nothing was chosen, for nobody can guess it."""
    if calls_of(saved) == calls_of(mine) or not saved["lengths"]:
        return False
    if choice not in (KEEP, STRETCH):
        names = ", ".join(saved["lengths"])
        raise UsageError(
            f"the run had {counted(saved['epochs'], 'epoch')} of {counted(saved['steps_per_epoch'], 'step')} and now "
            f"has {mine['epochs']} of {mine['steps_per_epoch']}, and {names} depends on it; choose the horizon: "
            "--horizon keep (the old curve to its end, then its last rate) or --horizon stretch (the curve over the "
            "new length, from here on); in Python, schedule.on_horizon"
        )
    return True


def calls_of(horizon: dict[str, Any]) -> int:
    """How often the scheduler is called in such a run."""
    return int(horizon["epochs"] * (horizon["steps_per_epoch"] if horizon["by"] == "step" else 1))


def refuse_too_short(scheduler: Any, calls: int, unit: str) -> None:
    """Raise UsageError where torch would stop a OneCycleLR with an error within so many more `calls`.

    Parts of a SequentialLR are not looked at: when each is called is its affair.
    """
    if isinstance(scheduler, ChainedScheduler):
        for part in scheduler._schedulers:
            refuse_too_short(part, calls, unit)
    if isinstance(scheduler, OneCycleLR) and (needed := scheduler.last_epoch + calls) > scheduler.total_steps:
        raise too_short(scheduler.total_steps, needed, unit, f"give total_steps={needed}, or fewer epochs")


def too_short(total: int, calls: int, unit: str, advice: str) -> UsageError:
    """What to raise for a OneCycleLR of `total` calls in a run that makes more."""
    return UsageError(
        f"OneCycleLR: total_steps is {total}, but the run calls it {counted(calls, 'time')} (by {unit}), and "
        f"torch stops it with an error after {total}; {advice}"
    )


def stretch(scheduler: Any, built: dict[str, int], before: dict[str, int], ratio: float) -> None:
    """Give each scheduler of a resumed run its new length.

    `built` is what this process built it with, for the new run, and `before` what the saved run did. A length that
    was given by hand is the same in both, so the present one is scaled by `ratio`, new run to old.
    """
    saved = horizons(scheduler)
    parts = [leaf for leaf in leaves(scheduler) if isinstance(leaf, OneCycleLR | CosineAnnealingLR)]
    for leaf, name in zip(parts, saved, strict=True):
        length = built[name] if built[name] != before.get(name) else max(1, round(saved[name] * ratio))
        if isinstance(leaf, CosineAnnealingLR):
            leaf.T_max = length
        else:
            _stretch_one_cycle(leaf, length)


def _stretch_one_cycle(leaf: OneCycleLR, length: int) -> None:
    ratio = length / leaf.total_steps
    last = len(leaf._schedule_phases) - 1
    for index, phase in enumerate(leaf._schedule_phases):
        # torch ends phase i at (i + 1) * pct_start * total_steps - (i + 1), and the last at total_steps - 1.
        phase["end_step"] = length - 1 if index == last else (phase["end_step"] + index + 1) * ratio - index - 1
    leaf.total_steps = length
