"""Every scheduler of torch and every warmup by its name, and what a recipe says of them; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..registry import ArgumentProblem, Entry, Range, Registry, describe

EPOCH, STEP = "epoch", "step"
COMPOSITES = ("SequentialLR", "ChainedScheduler")

_POSITIVE = Range(low=1, hint="give a whole number of 1 or more")
_RATE = Range(low=0, high_open=True)
_FACTOR = Range(low=0, high=1, high_open=True)
_LIMITS = {
    "StepLR": {"step_size": _POSITIVE, "gamma": _RATE},
    "MultiStepLR": {"gamma": _RATE},
    "ExponentialLR": {"gamma": _RATE},
    "ReduceLROnPlateau": {
        "factor": Range(low=0, high=1, high_open=True, hint="a plateau multiplies the rate, e.g. 0.1"),
        "patience": Range(low=0),
        "threshold": Range(low=0),
        "cooldown": Range(low=0),
        "min_lr": _RATE,
        "eps": Range(low=0),
    },
    "CosineAnnealingLR": {"T_max": _POSITIVE, "eta_min": _RATE},
    "CyclicLR": {"base_lr": _RATE, "max_lr": _RATE, "step_size_up": _POSITIVE, "step_size_down": _POSITIVE},
    "OneCycleLR": {
        "max_lr": _RATE,
        "total_steps": _POSITIVE,
        "epochs": _POSITIVE,
        "steps_per_epoch": _POSITIVE,
        "pct_start": Range(low=0, high=1),
        "div_factor": Range(low=0, low_open=True),
        "final_div_factor": Range(low=0, low_open=True),
    },
    "ConstantLR": {"factor": Range(low=0, high=1), "total_iters": Range(low=0)},
    "LinearLR": {
        "start_factor": Range(low=0, high=1, low_open=True),
        "end_factor": Range(low=0, high=1),
        "total_iters": _POSITIVE,
    },
    "PolynomialLR": {"total_iters": _POSITIVE},
    "CosineAnnealingWarmRestarts": {"T_0": _POSITIVE, "T_mult": _POSITIVE, "eta_min": _RATE},
    "SWALR": {"swa_lr": _RATE, "anneal_epochs": Range(low=0)},
}


_VERBOSE = "torch's schedulers have no verbose any more; leave it out: each epoch's line and the journal tell the rate"


@dataclass(frozen=True)
class _SchedulerEntry(Entry):
    """An entry with the checks that torch's annotations do not carry, and without those that the run answers."""

    def problems(self, arguments: Mapping[str, Any]) -> list[ArgumentProblem]:
        filled = FILLED_IN.get(self.name, ())
        problems = super().problems(arguments)
        problems = [p for p in problems if not (p.argument is None and any(f"{n!r}" in p.message for n in filled))]
        problems = [replace(p, message=_VERBOSE) if p.argument == "verbose" else p for p in problems]
        return problems + _milestone_problems(arguments)


def _scheduler(name: str, summary: str, unit: str = EPOCH, module: str = "torch.optim.lr_scheduler") -> Entry:
    return _SchedulerEntry(
        name,
        f"{module}:{name}",
        summary,
        # Resuming is the schedule's own work, so nobody sets last_epoch.
        provided=("optimizer", "schedulers", "last_epoch"),
        limits=_LIMITS.get(name, {}),
        facts={"by": unit},
    )


def _milestone_problems(arguments: Mapping[str, Any]) -> list[ArgumentProblem]:
    milestones = arguments.get("milestones")
    if milestones is None:
        return []
    whole = isinstance(milestones, list | tuple) and all(
        isinstance(m, int) and not isinstance(m, bool) and m > 0 for m in milestones
    )
    if not whole:
        message = f"{describe(milestones)} is not a list of whole numbers above 0"
    elif sorted(milestones) != list(milestones):
        message = f"{describe(milestones)} is not in rising order"
    else:
        return []
    return [ArgumentProblem("milestones", message)]


# Arguments that torch insists on and that the length of the run answers.
FILLED_IN: dict[str, tuple[str, ...]] = {"CosineAnnealingLR": ("T_max",), "OneCycleLR": ("total_steps",)}

SCHEDULERS = Registry(
    "scheduler",
    "schedulers",
    [
        _scheduler("StepLR", "Multiply by gamma every step_size"),
        _scheduler("MultiStepLR", "Multiply by gamma at each milestone"),
        _scheduler("ExponentialLR", "Multiply by gamma each time"),
        _scheduler("ReduceLROnPlateau", "Multiply by factor when the monitored value stops getting better"),
        _scheduler("CosineAnnealingLR", "Half a cosine down to eta_min; T_max is the run's length where absent"),
        _scheduler("CyclicLR", "Up and down between base_lr and max_lr", STEP),
        _scheduler("OneCycleLR", "Up to max_lr, then down to almost nothing, once over the run", STEP),
        _scheduler("LambdaLR", "The first rate times a function of the count"),
        _scheduler("MultiplicativeLR", "The rate before times a function of the count"),
        _scheduler("ConstantLR", "A constant factor until total_iters"),
        _scheduler("LinearLR", "A factor that moves linearly until total_iters"),
        _scheduler("PolynomialLR", "Down to zero as a polynomial until total_iters"),
        _scheduler("CosineAnnealingWarmRestarts", "Cosines that start again, each T_mult times longer"),
        _scheduler("SequentialLR", "One scheduler after another, from milestone to milestone",
                   module="surefoot.schedules.composite"),
        _scheduler("ChainedScheduler", "Several schedulers at once, each upon the other's rate",
                   module="surefoot.schedules.composite"),
        _scheduler("SWALR", "Anneal to swa_lr and stay there", module="torch.optim.swa_utils"),
    ],
)  # fmt: skip


def _warmup(name: str, summary: str) -> Entry:
    return Entry(
        name,
        f"surefoot.schedules.warmup:{name}",
        summary,
        provided=("optimizer", "last_step"),
        limits={"warmup_period": _POSITIVE},
        facts={"source": "arxiv.org/abs/1910.04209"},
    )


WARMUPS = Registry(
    "warmup",
    "warmups",
    [
        _warmup("LinearWarmup", "min(1, (t + 1) / warmup_period)"),
        _warmup("ExponentialWarmup", "1 - exp(-(t + 1) / warmup_period)"),
        _warmup("UntunedLinearWarmup", "LinearWarmup over 2 / (1 - beta2), for Adam and its kin"),
        _warmup("UntunedExponentialWarmup", "ExponentialWarmup over 1 / (1 - beta2), for Adam and its kin"),
        _warmup("RAdamWarmup", "RAdam's rectification as a factor, for Adam and its kin"),
    ],
)


def _title(name: str | Callable[..., Any]) -> str:
    return name if isinstance(name, str) else getattr(name, "__name__", str(name))


@dataclass(frozen=True)
class SchedulerSpec:
    """A scheduler as a recipe names it: `name` of `SCHEDULERS` or a class, and `args`; `by` is None for torch's unit.

    `children` are the parts of a SequentialLR or a ChainedScheduler; `monitor` is what a plateau watches.
    """

    name: str | Callable[..., Any]
    args: Mapping[str, Any] = field(default_factory=dict)
    by: str | None = None
    monitor: str = "val/loss"
    children: tuple[SchedulerSpec, ...] = ()

    @property
    def title(self) -> str:
        """The scheduler's name in messages."""
        return _title(self.name)

    @property
    def known(self) -> str:
        """The name in `SCHEDULERS`; "" for a class of one's own, which may be called so too."""
        theirs = isinstance(self.name, str) or str(getattr(self.name, "__module__", "")).startswith(
            ("torch.", __package__)
        )
        return self.title if theirs else ""

    @property
    def unit(self) -> str:
        """``"step"`` or ``"epoch"``: `by`, or what is usual for this scheduler (for a composite: its parts)."""
        if self.by is not None:
            return self.by
        if self.children and self.known in COMPOSITES:
            return STEP if any(child.unit == STEP for child in self.children) else EPOCH
        return SCHEDULERS[self.known].facts["by"] if self.known in SCHEDULERS else EPOCH


@dataclass(frozen=True)
class WarmupSpec:
    """A warmup as a recipe names it: `name`, arguments `args`, counted `by` ``"step"`` or ``"epoch"``.

    `then` is ``"scheduler"`` where the scheduler waits until the period is over; None: it runs from the first step.
    """

    name: str | Callable[..., Any]
    args: Mapping[str, Any] = field(default_factory=dict)
    by: str = STEP
    then: str | None = None

    @property
    def title(self) -> str:
        """The warmup's name in messages."""
        return _title(self.name)
