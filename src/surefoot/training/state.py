"""Where a run is: epoch, step, phase, best value so far, patience left; plain numbers that a checkpoint holds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from ..arguments import Arguments
from ..checkpoint.policy import Every, Keep, check_when_busy
from ..limits import MIN_DELTA
from ..monitor import AUTO, settled


@dataclass(frozen=True)
class Checkpoints:
    """When a run is saved and what is kept.

    `every` is ``"1 epoch"``, ``"500 steps"`` or ``"10 min"``; None saves only when the run ends or is stopped. The
    `keep_last` newest ones stay (None: all), and with `keep_best` (``"val/loss"``) the best one by that metric
    too. `mode` is ``"min"``, ``"max"``, or ``"auto"``: as the metric or its name says. A save that is due while the one
    before is still being written is awaited, or left out with ``when_busy="skip"``. Raises UsageError for anything
    else, and for a mode that would take the worst for the best.

    >>> Checkpoints(keep_best="val/accuracy").mode
    'max'
    """

    every: str | None = "1 epoch"
    keep_last: int | None = 3
    keep_best: str | None = None
    mode: str = AUTO
    when_busy: str = "wait"

    def __post_init__(self) -> None:
        check_when_busy(self.when_busy)
        object.__setattr__(self, "keep_last", Keep(self.keep_last).last)
        object.__setattr__(self, "mode", settled(self.mode, self.keep_best, "keep_best", later=True))
        if self.every is not None:
            Every.parse(self.every)


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after `patience` epochs in which `monitor` did not improve by more than `min_delta`.

    `mode` is ``"min"``, ``"max"``, or ``"auto"``: as the metric or its name says. Raises
    UsageError for values that cannot be, and for a mode that would take the worst for the best.
    """

    monitor: str = "val/loss"
    mode: str = AUTO
    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        check = Arguments("early_stopping.")
        check.text("monitor", self.monitor)
        object.__setattr__(self, "patience", check.whole("patience", self.patience, low=1))
        object.__setattr__(self, "min_delta", check.number("min_delta", self.min_delta, MIN_DELTA))
        check.done()
        object.__setattr__(self, "mode", settled(self.mode, self.monitor, "early_stopping", later=True))


@dataclass
class Best:
    """The best value of one metric so far, and when it was reached."""

    mode: str = "min"
    min_delta: float = 0.0
    value: float | None = None
    epoch: int | None = None
    metric: str | None = None

    def improves(self, value: float, epoch: int) -> bool:
        """Take `value` in; True where it is the best yet. NaN never is."""
        if math.isnan(value):
            return False
        sign = 1.0 if self.mode == "min" else -1.0
        if self.value is not None and not sign * value < sign * self.value - self.min_delta:
            return False
        self.value, self.epoch = value, epoch
        return True


_COUNTS = ("epoch", "step", "phase", "stopped_early", "stale_epochs", "skipped")


@dataclass
class RunState:
    """Everything of a run's progress that is not in the model, optimizer, schedule or loader.

    `rates` are those of each param group at the update that was recorded last, `last` the last epoch's metrics.
    `phase` is ``"train"`` within an epoch's updates, ``"record"`` once the loader has gone on to the next epoch, and
    ``"validate"`` once the epoch is recorded, so that a run stopped while validating begins that validation again.
    """

    epoch: int = 0
    step: int = 0
    phase: str = "train"
    stopped_early: bool = False
    stale_epochs: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: Best = field(default_factory=Best)
    patience_best: Best = field(default_factory=Best)
    last: dict[str, float] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    wall_before: float = 0.0
    patience: int | None = None
    _started: float = field(default_factory=time.monotonic, repr=False)

    def wall_s(self) -> float:
        """Seconds spent in this run, earlier sittings included."""
        return round(self.wall_before + time.monotonic() - self._started, 3)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "skipped_in_a_row": self.skipped_in_a_row,
            "best": vars(self.best).copy(),
            "patience_best": vars(self.patience_best).copy(),
            "last": dict(self.last),
            "rates": list(self.rates),
            "wall_s": self.wall_s(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; metrics, modes, deltas and patience are this run's."""
        for name in _COUNTS:
            setattr(self, name, state[name])
        self.skipped_in_a_row = state.get("skipped_in_a_row", 0)  # earlier versions kept none
        for name in ("best", "patience_best"):
            mine: Best = getattr(self, name)
            if (state[name]["metric"], state[name]["mode"]) == (mine.metric, mine.mode):
                mine.value, mine.epoch = state[name]["value"], state[name]["epoch"]
            elif name == "patience_best":  # the value of another metric says nothing about this one
                self.stale_epochs = 0
        # As a run that had this patience from the start; an epoch that was begun is trained to its end.
        spent = self.patience is not None and self.stale_epochs >= self.patience
        self.stopped_early = spent and self.phase == "train"
        self.last = dict(state["last"])
        self.rates = list(state["rates"])
        self.wall_before = state["wall_s"]
        self._started = time.monotonic()
