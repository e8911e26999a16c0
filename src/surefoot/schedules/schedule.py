"""One schedule for a run: a scheduler by step or by epoch, under a warmup by step or by epoch."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..arguments import as_metric
from ..errors import UsageError
from .accept import check_parts, saveable_callables
from .check_state import arguments_of, changed_arguments, check_fields
from .composite import OF_TORCH, advance, advance_plateaus, leaves
from .dampening import BaseWarmup, Undampened, check_groups, watch
from .late_groups import cycled_options, enter, in_proportion, replay, take_counts
from .rebasing import own_rates
from .registry import EPOCH, STEP
from .run_length import STRETCH, asked, calls_of, horizons, stretch

_FORMAT = 2
# What torch keeps as tensors where the optimizer's rate is one; here the rates are float64 until they are written.
_RATE_LISTS = ("base_lrs", "max_lrs", "_last_lr", "base_momentums", "max_momentums")


class Schedule:
    """The learning rates of a run: `step()` after each update, `epoch(metric)` after each epoch.

    `scheduler` is any scheduler of torch (or one with `step`, `state_dict` and `load_state_dict`), moved `by`
    ``"epoch"`` or ``"step"``; `warmup` any of `WARMUPS`, counted by `warmup_by`. Make the scheduler first, then the
    warmup. ReduceLROnPlateau watches the metric given to `epoch`, in `fit` the one called `monitor`; where it goes by
    step, `step` takes the metric.
    An update that was skipped (a GradScaler's) simply has no `step()`.

    Groups added to the optimizer later are scheduled as if they had been there from the start (their ``lr`` is
    their first rate) and warmed from their own first step; see `adopt_groups`.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    >>> from surefoot.schedules import LinearWarmup
    >>> schedule = Schedule(optimizer, scheduler, LinearWarmup(optimizer, warmup_period=2))
    >>> rates = []
    >>> for epoch in range(2):
    ...     for _ in range(2):
    ...         rates += schedule.lrs
    ...         _ = optimizer.step()
    ...         schedule.step()
    ...     schedule.epoch()
    >>> rates
    [0.5, 1.0, 0.5, 0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scheduler: Any = None,
        warmup: BaseWarmup | None = None,
        *,
        by: str = EPOCH,
        warmup_by: str = STEP,
        monitor: str = "val/loss",
    ):
        check_parts(optimizer, scheduler, warmup, by=by, warmup_by=warmup_by, monitor=monitor)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.warmup = warmup
        self.by = by
        self.warmup_by = warmup_by
        self.monitor = monitor
        self.steps = 0
        self.epochs = 0
        self.calls = 0
        self.hold_after: int | None = None
        self.horizon: dict[str, Any] | None = None
        self.on_horizon: str | None = None
        self.accept_changes = False
        self.given_rates: list[float] | None = None
        self._rewrite = False
        self._cycled: list[dict[str, Any]] = []
        self._moved = False
        _as_float64(optimizer, scheduler)
        saveable_callables(scheduler)
        self._dampener = warmup if warmup is not None else Undampened(optimizer)
        self._dampener.stop_watching()
        parts = list(leaves(scheduler)) if scheduler is not None else []
        self._plateaus = [part for part in parts if isinstance(part, ReduceLROnPlateau)]
        self._simple = scheduler is not None and len(parts) == 1 and parts[0] is scheduler and not self._plateaus
        self._reductions: list[list[list[int]]] = [[] for _ in self._plateaus]
        self._own_rates = own_rates(optimizer, scheduler)
        self._watch = watch(optimizer, weakref.WeakMethod(self.adopt_groups))

    def _repr_html_(self) -> str:
        parts = [
            f"{type(part).__name__} by {unit}"
            for part, unit in ((self.scheduler, self.by), (self.warmup, self.warmup_by))
            if part is not None
        ]
        rates = ", ".join(f"{rate:.4g}" for rate in self.lrs)
        done = f"{self.steps} steps, {self.epochs} epochs"
        return f"<b>{' under '.join(parts) or 'a constant rate'}</b><br>lr {rates} after {done}"

    @property
    def lrs(self) -> list[float]:
        """The rate that each param group has now, dampening included (reading a tensor rate on a GPU waits for it)."""
        if self._rewrite:
            self.restore()
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def undampened_lrs(self) -> list[float]:
        """The rate that each group would have without the warmup."""
        return list(self._dampener.lrs)

    @property
    def needs_metric(self) -> bool:
        """Whether `epoch` must be given the monitored value."""
        return bool(self._plateaus) and not self.needs_step_metric

    @property
    def needs_step_metric(self) -> bool:
        """Whether `step` must be given the monitored value: a plateau of its own, by step."""
        return self.by == STEP and isinstance(self.scheduler, ReduceLROnPlateau)

    def step(self, metric: float | None = None) -> None:
        """After each update. Raises UsageError for a `metric` that is no number."""
        if metric is not None:
            metric = self._number(metric)
        turn = self.warmup is not None and self.warmup_by == STEP
        self.steps += 1
        if self.scheduler is not None and self.by == STEP:
            self._move(metric, plateaus=self.needs_step_metric, turn=turn)
        elif turn:
            self._warm()

    def epoch(self, metric: float | None = None) -> None:
        """After each epoch, with the monitored value where `needs_metric`; raises UsageError where it is missing."""
        if self.needs_metric and metric is None:
            raise UsageError(
                f"ReduceLROnPlateau watches {self.monitor!r}, but the epoch ended without it; "
                "validate each epoch or set the scheduler's monitor to something that is measured",
                code="monitor",
            )
        if metric is not None:
            metric = self._number(metric)
        turn = self.warmup is not None and self.warmup_by == EPOCH
        self.epochs += 1
        if self.scheduler is not None and self.by == EPOCH:
            self._move(metric, plateaus=True, turn=turn)
        elif self.needs_metric:
            self._undampened(partial(advance_plateaus, self.scheduler, metric), turn)
        elif turn:
            self._warm()

    def _number(self, metric: Any) -> Any:
        if not self._plateaus:
            return metric
        number = as_metric(metric)
        if number is None:
            raise UsageError(f"schedule: the metric is {metric!r:.60}, which is no number", code="monitor")
        return number

    def adopt_groups(self) -> None:
        """Take in groups that were added to the optimizer: schedule, then warm them.

        A new group's ``lr`` is its first rate: it gets the rate that it would have now, had it been there from the
        start; its warmup begins now. Called before each ``optimizer.step()`` and in `step` and `epoch`, so only a loop
        that updates parameters without ``optimizer.step()`` must call it, after adding groups or loading.
        """
        if self._rewrite:
            self.restore()
            self._rewrite, self._cycled = False, []
        count = len(self._dampener.lrs)
        added = self.optimizer.param_groups[count:]
        if not added:
            return
        first = [float(group["lr"]) for group in added]
        now = first
        if self.scheduler is not None:
            enter(self.scheduler, added, first)
            self._own_rates += [dict(self._own_rates[0]) for _ in added]
            now = self._replayed(count)
        self._dampener.adopt_groups(now)

    def restore(self) -> None:
        """Write the present rates into the param groups, whatever they hold."""
        for group, own in zip(self.optimizer.param_groups, self._own_rates, strict=False):
            group.update(own)
        for group, options in zip(self.optimizer.param_groups, self._cycled, strict=False):
            group.update(options)
        self._dampener.restore()

    def state_dict(self) -> dict[str, Any]:
        """Plain data: the scheduler's own state and the counts of this class."""
        return {
            "format": _FORMAT,
            "kind": self._kind(),
            "steps": self.steps,
            "epochs": self.epochs,
            "calls": self.calls,
            "hold_after": self.hold_after,
            "moved": self._moved,
            "horizon": self.horizon,
            "reductions": [[list(pair) for pair in times] for times in self._reductions],
            "own_rates": copy.deepcopy(self._own_rates),
            "scheduler": {} if self.scheduler is None else copy.deepcopy(self.scheduler.state_dict()),
            "rates": self._dampener.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, and set the groups' rates.

        Load the optimizer's state first or after: both work. Where the run's length has changed under a scheduler
        that depends on it (OneCycleLR, CosineAnnealingLR), `on_horizon` must be ``"keep"`` or ``"stretch"``; the
        rates are then written again before the next update, since those of the optimizer's state are the old ones.

        Raises UsageError, before anything changes, where the state is damaged or of another schedule: other scheduler,
        arguments, warmup, units or groups. With `accept_changes` other arguments are taken, and count from here on.
        """
        moved = self._check(state)
        built = horizons(self.scheduler)
        before, now = state["horizon"], self.horizon
        if self.scheduler is not None:
            lengths = not (moved or state["moved"])
            accepted = arguments_of(self.scheduler, lengths=lengths) if self.accept_changes else []
            self.scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
            for leaf, arguments in accepted:
                vars(leaf).update(arguments)
        self.steps, self.epochs, self.calls = state["steps"], state["epochs"], state["calls"]
        self.hold_after, self.horizon = state["hold_after"], now or before
        self._moved = moved or state["moved"]
        self._cycled = []
        self._reductions = [[list(pair) for pair in times] for times in state["reductions"]]
        rates = dict(state["rates"])
        if self.accept_changes:
            rates["warmup_params"] = self._dampener.state_dict()["warmup_params"]
        if moved:
            if self.on_horizon == STRETCH:
                assert now is not None
                # A curve that was kept is still as long as the run that it was made for.
                length = calls_of(before) if self.hold_after is None else self.hold_after + 1
                stretch(self.scheduler, built, before["lengths"], calls_of(now) / length)
                self.hold_after = None
            elif self.hold_after is None:
                self.hold_after = calls_of(before) - 1
            again = self._again()
            if again is not None:
                take_counts(self.scheduler, again)
                self._cycled = cycled_options(again)
            rates["lrs"] = self._rates(again)
            rates["written"] = None
        self._dampener.load_state_dict(rates)
        self._rewrite = moved or (self.accept_changes and any(self._own_rates))

    def rebase(self, ratios: list[float]) -> None:
        """Go on with other first rates, which groups and schedulers hold already; `ratios` are new to old, by group.

        The rates are then those of a run that had them from the start; a scheduler of one's own keeps its proportion.
        """
        self.restore()
        self._rewrite, self._cycled = False, []
        self._dampener.lrs = [lr * ratio for lr, ratio in zip(self._dampener.lrs, ratios, strict=True)]
        if self.scheduler is not None and "initial_lr" in self.optimizer.param_groups[0]:  # a plateau alone sets none
            self._dampener.lrs = self._replayed()
        self._dampener.restore()

    def _check(self, state: dict[str, Any]) -> bool:
        """Raise UsageError unless `state` fits; whether the length of the run has changed under it."""
        if state.get("format") != _FORMAT:
            raise UsageError(
                f"the saved schedule has format {state.get('format')!r}; this version reads {_FORMAT}",
                code="resume-state",
            )
        self.adopt_groups()
        mine, saved = self.state_dict(), state
        kind = saved.get("kind")
        kinds = kind if isinstance(kind, dict) else {}
        different = [f"{k} was {kinds.get(k)!r} and is {v!r}" for k, v in mine["kind"].items() if kinds.get(k) != v]
        if different:
            raise UsageError(
                f"the saved schedule is another one: {'; '.join(different)}; resume with the same", code="resume-state"
            )
        check_fields({**mine, "scheduler": {}}, saved, "the state")
        count = len(self.optimizer.param_groups)
        check_groups("the saved schedule", saved["rates"], count)
        own = type(self.scheduler).__module__ in OF_TORCH
        if own:
            check_fields(mine["scheduler"], saved["scheduler"], type(self.scheduler).__name__)
        before, now = saved["horizon"], self.horizon
        moved = bool(before and now and asked(before, now, self.on_horizon))
        changed = []
        if own:
            lengths = not (moved or saved["moved"])
            changed = changed_arguments(self.scheduler, saved["scheduler"], lengths=lengths)
        for index, (before, now) in enumerate(zip(saved["own_rates"], self._own_rates, strict=True)):
            where = f" of param group {index}" if count > 1 else ""
            changed += [f"{k}{where} was {before.get(k)} and is {v}" for k, v in now.items() if before.get(k) != v]
        if self._dampener.warmup_params != saved["rates"]["warmup_params"]:
            changed.append(
                f"the arguments of {type(self.warmup).__name__} were {saved['rates']['warmup_params']} "
                f"and are {self._dampener.warmup_params}"
            )
        if changed and not self.accept_changes:
            raise UsageError(
                f"the schedule changed since it was saved: {'; '.join(changed)}; resume with the same arguments, "
                "or take the new ones from here on: schedule.accept_changes = True, or "
                'fit(..., run=RunOptions(allow=["schedule"]))',
                code="resume-changed",
            )
        return moved

    def _replayed(self, start: int = 0) -> list[float]:
        """The undampened rates at this call of the groups from `start` on, computed from the start of the run."""
        return self._rates(self._again())[start:]

    def _again(self) -> Any:
        """A copy of the scheduler, moved from the start of the run to this call; None for one of somebody's own."""
        return replay(
            self.scheduler,
            calls=self.calls if self.hold_after is None else min(self.calls, self.hold_after),
            reductions=self._reductions,
            fed=self.needs_metric and self.by == STEP,
        )

    def _rates(self, again: Any) -> list[float]:
        """The undampened rates of the groups by that copy, or scaled as the first group's has been."""
        groups, now = self.optimizer.param_groups, self._dampener.lrs[0]
        if again is None:
            return [in_proportion(groups[0], now, float(group.get("initial_lr", group["lr"]))) for group in groups]
        return [float(group["lr"]) for group in again.optimizer.param_groups]

    def _move(self, metric: float | None, *, plateaus: bool, turn: bool) -> None:
        self.calls += 1
        if self.hold_after is not None and self.calls > self.hold_after:
            if turn:
                self._warm()
            return
        # torch warns where it sees no optimizer.step(); here the update is done, however it was done.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        if self._simple:
            self._undampened(self.scheduler.step, turn)
        else:
            self._undampened(partial(advance, self.scheduler, metric, plateaus=plateaus), turn)

    def _warm(self) -> None:
        """The warmup's turn while the scheduler rests."""
        self.adopt_groups()
        self._dampener.advance()

    def _undampened(self, action: Callable[[], Any], turn: bool) -> None:
        """Let `action` see undampened rates; then go on with the warmup if it is its `turn`."""
        self.adopt_groups()
        before = [
            (not p.in_cooldown and p.num_bad_epochs + 1 > p.patience, p.last_epoch, p.best) for p in self._plateaus
        ]
        with self._dampener.dampening(advance=turn):
            action()
        for plateau, (due, count, best), times in zip(self._plateaus, before, self._reductions, strict=True):
            # It was due, was called, and the metric was no better: torch leaves no other trace of a reduction.
            if due and plateau.last_epoch != count and plateau.best == best:
                times.append([plateau.last_epoch, self.calls])

    def _kind(self) -> dict[str, Any]:
        return {
            "scheduler": _names(self.scheduler),
            "by": self.by if self.scheduler is not None else None,
            "warmup": type(self.warmup).__name__ if self.warmup is not None else None,
            "warmup_by": self.warmup_by if self.warmup is not None else None,
        }


def _names(scheduler: Any) -> Any:
    """A scheduler's class, with its parts' classes where it is a composite."""
    if scheduler is None:
        return None
    children = getattr(scheduler, "_schedulers", None)
    name = type(scheduler).__name__
    return name if children is None else {name: [_names(child) for child in children]}


def _as_float64(optimizer: Optimizer, scheduler: Any) -> None:
    """Python's floats in place of the tensors that torch copies from a tensor rate."""
    for group in optimizer.param_groups:
        for key in ("initial_lr", "max_lr", "min_lr", "swa_lr"):
            if isinstance(group.get(key), torch.Tensor):
                group[key] = float(group[key])
    if scheduler is None:
        return
    for part in (scheduler, *leaves(scheduler)):
        for name in _RATE_LISTS:
            values = getattr(part, name, None)
            if isinstance(values, list):
                setattr(part, name, [float(v) if isinstance(v, torch.Tensor) else v for v in values])
