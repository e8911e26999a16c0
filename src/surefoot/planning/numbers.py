"""The numbers of a run before it begins: its learning rates, groups, events, findings, memory and time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..finding import Finding
from ..schedules.simulation import Simulation
from .cost import Memory
from .events import Event


@dataclass(frozen=True)
class GroupPlan:
    """A param group: its name, its numbers of tensors and of elements, the epoch from which it learns (`from_epoch`),
    its rates (`first_lr`, `highest_lr`, `last_lr`)."""

    name: str
    tensors: int
    elements: int
    from_epoch: int
    first_lr: float
    highest_lr: float
    last_lr: float


@dataclass(frozen=True)
class PlanNumbers:
    """Everything that can be computed of a run before it begins.

    `run` holds the rates; `always` those with every plateau reducing as early as it can, where there is one. `whole` is
    (steps per epoch, epochs) of a run so long that `run` is only its beginning. `samples` is per run, `seconds` the
    time expected, `memory` that of one step; each None where unknown.
    """

    title: str
    run: Simulation
    always: Simulation | None
    groups: list[GroupPlan]
    events: list[Event]
    findings: list[Finding]
    samples: int | None = None
    memory: Memory | None = None
    seconds: float | None = None
    parts: tuple[str, ...] = ()
    whole: tuple[int, int] | None = None

    @property
    def steps(self) -> int:
        """Updates in the whole run."""
        return self.whole[0] * self.whole[1] if self.whole else self.run.steps

    def lines(self) -> list[tuple[str, np.ndarray]]:
        """(label, rates of shape (steps,)) of each different curve, the plateau's two included."""
        curves = []
        for index, curve in enumerate(self.run.curves):
            names = [name for name, own in zip(self.run.names, self.run.curve_of, strict=True) if own == index]
            label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
            if self.always is None:
                curves.append((label, curve))
                continue
            label = f"{label}, " if len(self.run.curves) > 1 else ""
            curves.append((f"{label}plateau never reduces", curve))
            member = self.run.curve_of.index(index)
            curves.append((f"{label}plateau always reduces", self.always.rates(member)))
        return curves
