"""The learning rate of every group at every step of a run, before the run: exactly what training will use.

A short run is driven through the real scheduler on an optimizer without weight. A long one is computed by `kernels`,
then checked against the installed torch at its start and at points all over it; where a bit differs (another
version of torch, a scheduler of one's own), the real scheduler is driven all the way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ReduceLROnPlateau

from ..errors import UsageError
from .building import build_schedule
from .catalogue import STEP, SchedulerSpec, WarmupSpec
from .composite import advance, advance_plateaus, leaves
from .dampening import MARK, BaseWarmup, Undampened
from .kernels import Unknown
from .replaying import kernel_of
from .schedule import Schedule
from .warmup import ExponentialWarmup, LinearWarmup, UntunedExponentialWarmup, UntunedLinearWarmup

NEVER, ALWAYS = "never", "always"
# Up to here the real scheduler costs less than a blink.
_DRIVEN = 2000
_PREFIX = 200
_PROBES = 64
_MOST_STEPS = 200_000_000


@dataclass(frozen=True)
class LaterGroup:
    """A param group that joins at the start of `epoch` (0-based), with its hyperparameters (``lr``, ``betas``...)."""

    epoch: int
    group: dict[str, Any]


@dataclass(frozen=True)
class Simulation:
    """The rates of a whole run.

    `curves` are the different ones, float64 of shape (steps,); `curve_of` says which one each group follows;
    `names` are the groups' names. A group that joins later has NaN before. `undampened` is without the warmup.
    Where the scheduler itself fails (CyclicLR's triangular2 overflows after 1,024 cycles), the rates are NaN after
    the last good step, and `failure` is (step, message).
    """

    steps_per_epoch: int
    epochs: int
    names: list[str]
    curves: list[np.ndarray]
    undampened: list[np.ndarray]
    curve_of: list[int]
    schedule: Schedule = field(repr=False)
    failure: tuple[int, str] | None = None

    @property
    def steps(self) -> int:
        """Updates in the run."""
        return self.steps_per_epoch * self.epochs

    def rates(self, group: int = 0) -> np.ndarray:
        """The rate that each update uses in `group`: shape (steps,)."""
        return self.curves[self.curve_of[group]]

    def at(self, step: int) -> list[float]:
        """The rate of each group at `step`."""
        return [float(self.curves[index][step]) for index in self.curve_of]


def simulate(
    optimizer: Optimizer,
    scheduler: SchedulerSpec | None,
    warmup: WarmupSpec | None,
    steps_per_epoch: int,
    epochs: int,
    *,
    plateau: str = NEVER,
    later: Sequence[LaterGroup] = (),
) -> Simulation:
    """The rates of a run that `build_schedule` with these arguments would give; `optimizer` is not touched.

    `plateau` says what ReduceLROnPlateau does: ``"never"`` reduce or ``"always"`` (the metric gets no better).

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> spec = SchedulerSpec("StepLR", {"step_size": 1, "gamma": 0.5})
    >>> run = simulate(optimizer, spec, WarmupSpec("LinearWarmup", {"warmup_period": 2}), 2, epochs=2)
    >>> run.rates().tolist()
    [0.5, 1.0, 0.5, 0.5]
    """
    stub = stub_of(optimizer)
    schedule = build_schedule(stub, scheduler, warmup, steps_per_epoch, epochs, refuse=False)
    return simulate_schedule(schedule, steps_per_epoch, epochs, plateau=plateau, later=later)


def simulate_schedule(
    schedule: Schedule,
    steps_per_epoch: int,
    epochs: int,
    *,
    plateau: str = NEVER,
    later: Sequence[LaterGroup] = (),
) -> Simulation:
    """The rates of a run under a live `schedule` that has not begun; neither it nor its optimizer is touched."""
    if plateau not in (NEVER, ALWAYS):
        raise UsageError(f"plateau: {plateau!r} is neither 'never' nor 'always'")
    steps = steps_per_epoch * epochs
    if steps > _MOST_STEPS:
        raise UsageError(f"a plan of {steps} steps would not fit into memory; plan at most {_MOST_STEPS}")
    if schedule.steps or schedule.epochs:
        raise UsageError(f"the schedule has already taken {schedule.steps} steps; plan before training")
    twin = _twin(schedule)
    first = list(twin._dampener.lrs)
    later = sorted(later, key=lambda joining: joining.epoch)
    for joining in later:
        if not 0 <= joining.epoch < epochs:
            raise UsageError(f"a group joins at epoch {joining.epoch}, but the run has epochs 0 to {epochs - 1}")
        twin.optimizer.add_param_group(_bare({"lr": twin.optimizer.defaults["lr"], **joining.group}))
    twin.adopt_groups()
    first += twin._dampener.lrs[len(first) :]
    joined = [0] * (len(first) - len(later)) + [joining.epoch for joining in later]
    groups = twin.optimizer.param_groups
    by_step = twin.by == STEP
    calls = steps if by_step else epochs
    undampened, failure = _undampened(twin, first, calls, steps_per_epoch, plateau)
    warm_by_step = twin.warmup_by == STEP

    curves: dict[Any, int] = {}
    made: list[np.ndarray] = []
    bare: list[np.ndarray] = []
    curve_of = []
    for index, epoch in enumerate(joined):
        params = twin._dampener.warmup_params[index]
        key = (id(undampened[index]), tuple(sorted(params.items())), epoch)
        if key not in curves:
            rates = undampened[index]
            rates = rates[:steps] if by_step else np.repeat(rates[:epochs], steps_per_epoch)
            begin = epoch * steps_per_epoch
            warmed = rates
            if twin.warmup is not None:
                counts = (steps - begin) if warm_by_step else epochs - epoch
                factors = _factors(twin.warmup, params, counts)
                factors = factors if warm_by_step else np.repeat(factors, steps_per_epoch)
                warmed = np.concatenate((np.full(begin, np.nan), rates[begin:] * factors))
            elif begin:
                warmed = np.concatenate((np.full(begin, np.nan), rates[begin:]))
            curves[key] = len(made)
            made.append(warmed)
            bare.append(rates)
        curve_of.append(curves[key])
    names = [str(group.get("name", index)) for index, group in enumerate(groups)]
    if failure is not None:
        call, message = failure
        step = call if by_step else call * steps_per_epoch
        failure = (step, message) if step < steps else None
    return Simulation(steps_per_epoch, epochs, names, made, bare, curve_of, twin, failure)


def stub_of(optimizer: Optimizer) -> Optimizer:
    """An optimizer with the same groups and defaults and parameters of one number each, which does nothing."""
    return _Stub([_bare(group) for group in optimizer.param_groups], dict(optimizer.defaults))


class _Stub(Optimizer):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing to update."""

    # torch's schedulers wrap `step` to see whether it was called; here it need not be.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def _bare(group: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in group.items() if k not in ("params", "param_names", MARK)}
    kept["lr"] = float(kept["lr"])
    return {"params": [torch.nn.Parameter(torch.zeros(1))], **kept}


def _twin(schedule: Schedule) -> Schedule:
    """The same schedule over a stub; functions are shared, all else is copied."""
    stub = stub_of(schedule.optimizer)
    for group, lr in zip(stub.param_groups, schedule._dampener.lrs, strict=True):
        group["lr"] = lr
    memo: dict[int, Any] = {id(schedule.optimizer): stub}
    scheduler = copy.deepcopy(schedule.scheduler, memo)
    warmup = schedule.warmup
    warmed = None
    if warmup is not None:
        warmed = copy.copy(warmup)
        BaseWarmup.__init__(warmed, stub)
    return Schedule(
        stub, scheduler, warmed, by=schedule.by, warmup_by=schedule.warmup_by, monitor=schedule.monitor
    )  # fmt: skip


def _undampened(
    schedule: Schedule, first: list[float], calls: int, steps_per_epoch: int, plateau: str
) -> tuple[list[np.ndarray], tuple[int, str] | None]:
    """The rate of each group after 0, 1, ... `calls` calls of the scheduler, and where it fails, if it does.

    Equal groups share one array.
    """
    scheduler = schedule.scheduler
    if scheduler is None:
        shared: dict[float, np.ndarray] = {}
        return [shared.setdefault(lr, np.full(calls, lr)) for lr in first], None
    run = _Run(schedule, first, calls, steps_per_epoch, plateau)
    return run.rates(), run.failure


class _Run:
    """The scheduler's own rates over a run."""

    def __init__(self, schedule: Schedule, first: list[float], calls: int, per_epoch: int, plateau: str):
        self.schedule, self.scheduler, self.first = schedule, schedule.scheduler, first
        self.calls, self.per_epoch, self.plateau = calls, per_epoch, plateau
        # A plateau among parts that go by step is told at each epoch's end.
        self.fed = schedule.by == STEP and schedule.needs_metric
        self.failure: tuple[int, str] | None = None

    def rates(self) -> list[np.ndarray]:
        if self.calls <= _DRIVEN:
            return self.driven(self.calls)
        try:
            computed = self.computed()
        except Unknown:
            return self.driven(self.calls)
        except (ArithmeticError, ValueError) as error:
            return self.driven(self.calls) if self.fed else self._until_it_fails(error)
        begun = self.driven(min(_PREFIX, self.calls))
        agrees = all(np.array_equal(a[: len(b)], b) for a, b in zip(computed, begun, strict=True))
        return computed if agrees and self.probed(computed) else self.driven(self.calls)

    def driven(self, calls: int) -> list[np.ndarray]:
        """By the real scheduler."""
        twin = _twin(self.schedule)
        scheduler, groups = twin.scheduler, twin.optimizer.param_groups
        for group, lr in zip(groups, self.first, strict=True):
            group["lr"] = lr
        twin.optimizer._opt_called = True  # type: ignore[attr-defined]
        told = self.plateau == ALWAYS
        rates = np.full((len(groups), calls + 1), np.nan)
        rates[:, 0] = self.first
        for call in range(1, calls + 1):
            try:
                advance(scheduler, 1.0, plateaus=told and not self.fed)
            except (ArithmeticError, ValueError) as error:
                self.failure = (call, f"{type(error).__name__}: {error}")
                break
            if told and self.fed and call % self.per_epoch == 0:
                advance_plateaus(scheduler, 1.0)
            rates[:, call] = [float(group["lr"]) for group in groups]
        return _shared(list(rates))

    def computed(self) -> list[np.ndarray]:
        """By arithmetic."""
        made: dict[Any, np.ndarray] = {}
        found = []
        for index, lr in enumerate(self.first):
            key = (lr, *_signature(self.scheduler, self.schedule.optimizer.param_groups[index], index))
            if key not in made:
                made[key] = self._one(index, lr)
            found.append(made[key])
        return found

    def _until_it_fails(self, error: Exception) -> list[np.ndarray]:
        """The rates up to the call that raises `error`, which is searched for by halves."""
        whole = bad = self.calls
        self.calls = good = 0
        found = self.computed()
        while bad - good > 1:
            self.calls = (good + bad) // 2
            try:
                found = self.computed()
                good = self.calls
            except (ArithmeticError, ValueError) as earlier:
                error, bad = earlier, self.calls
        self.calls = whole
        self.failure = (bad, f"{type(error).__name__}: {error}")
        padding = np.full(whole - good, np.nan)
        kept = {id(rates): np.concatenate((rates[: good + 1], padding)) for rates in found}
        return [kept[id(rates)] for rates in found]

    def _one(self, index: int, lr: float) -> np.ndarray:
        plateaus = [leaf for leaf in leaves(self.scheduler) if isinstance(leaf, ReduceLROnPlateau)]
        scripts = {id(p): _NoBetter(p) for p in plateaus} if self.plateau == ALWAYS else {}
        group = self.schedule.optimizer.param_groups[index]
        kernel = kernel_of(self.scheduler, group, index, scripts=scripts, fed=self.fed)
        if not self.fed:
            return np.concatenate(([lr], kernel.run(lr, self.calls)))
        pieces = [np.array([lr])]
        for begin in range(0, self.calls, self.per_epoch):
            piece = kernel.run(float(pieces[-1][-1]), min(self.per_epoch, self.calls - begin))
            piece[-1] = kernel.feed(float(piece[-1]))
            pieces.append(piece)
        return np.concatenate(pieces)

    def probed(self, computed: list[np.ndarray]) -> bool:
        """Whether torch's scheduler, put at points all over the run, makes the next rate as computed."""
        scheduler = self.scheduler
        if type(scheduler).__module__ != "torch.optim.lr_scheduler" or isinstance(
            scheduler, ReduceLROnPlateau | CosineAnnealingWarmRestarts
        ):
            return True  # their state is more than a count and a rate
        twin = _twin(self.schedule)
        twin.optimizer._opt_called = True  # type: ignore[attr-defined]
        groups = twin.optimizer.param_groups
        spread = {int(x) for x in np.linspace(0, self.calls - 1, _PROBES)}
        jumps = np.flatnonzero(np.diff(computed[0]) != 0)
        spread |= {int(x) for x in jumps[:: max(1, len(jumps) // _PROBES)]}
        for call in sorted(spread):
            twin.scheduler.last_epoch = call
            twin.scheduler._step_count = call + 1
            for group, rates in zip(groups, computed, strict=True):
                group["lr"] = float(rates[call])
            twin.scheduler.step()
            if any(group["lr"] != rates[call + 1] for group, rates in zip(groups, computed, strict=True)):
                return False
        return True


class _NoBetter:
    """At which of its calls a plateau reduces when the metric never gets better than at the first."""

    def __init__(self, plateau: ReduceLROnPlateau):
        self.patience, self.cooldown = plateau.patience, plateau.cooldown

    def __call__(self, call: int) -> bool:
        if call == 1:
            self.bad = self.resting = 0
            return False
        self.bad += 1
        if self.resting > 0:
            self.resting -= 1
            self.bad = 0
        if self.bad <= self.patience:
            return False
        self.bad, self.resting = 0, self.cooldown
        return True


_KEYS = ("initial_lr", "max_lr", "min_lr", "swa_lr")
_LISTS = ("base_lrs", "max_lrs", "min_lrs", "lr_lambdas")


def _signature(scheduler: Any, group: dict[str, Any], index: int) -> tuple[Any, ...]:
    """All that tells two groups apart for a scheduler."""
    told: list[Any] = [group.get(key) for key in _KEYS]
    for leaf in leaves(scheduler):
        for name in _LISTS:
            values = getattr(leaf, name, None)
            if isinstance(values, list) and values:
                told.append(values[min(index, len(values) - 1)])
    return tuple(told)


def _shared(rates: list[np.ndarray]) -> list[np.ndarray]:
    seen: dict[bytes, np.ndarray] = {}
    return [seen.setdefault(row.tobytes(), row) for row in rates]


def _factors(warmup: BaseWarmup, params: dict[str, Any], count: int) -> np.ndarray:
    """The factors of the first `count` steps."""
    factor: Callable[..., float] = warmup.warmup_factor
    if isinstance(warmup, Undampened) or count <= 0:
        return np.ones(max(count, 0))
    rising = count
    if type(warmup) in (ExponentialWarmup, UntunedExponentialWarmup):
        # 1 - exp(-x) is 1.0 from x = 37.43 on: half of 2**-53 is gone.
        rising = min(count, math.ceil(38 * params["warmup_period"]))
    elif type(warmup) in (LinearWarmup, UntunedLinearWarmup):
        rising = min(count, params["warmup_period"])
    found = np.ones(count)
    found[:rising] = np.fromiter((factor(k, **params) for k in range(rising)), float, rising)
    return found
