"""The kernel of any scheduler of torch, composites included."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.optim import lr_scheduler as t
from torch.optim.swa_utils import SWALR

from .composite import ChainedScheduler, SequentialLR
from .kernels import (
    Absolute,
    ConstantKernel,
    CosineKernel,
    ExponentialKernel,
    Group,
    Kernel,
    LinearKernel,
    MultiplicativeKernel,
    Multiplying,
    MultiStepKernel,
    PlateauKernel,
    PolynomialKernel,
    StepKernel,
    SwaKernel,
    Unknown,
    WarmRestartsKernel,
    cyclic_value,
    lambda_value,
    one_cycle_value,
)


class _Chain(Kernel):
    def __init__(self, parts: Sequence[Kernel]):
        super().__init__()
        self.parts = parts

    def initial(self, lr: float) -> float:
        for part in self.parts:
            lr = part.initial(lr)
        return lr

    def step(self, lr: float) -> float:
        for part in self.parts:
            lr = part.step(lr)
        return lr

    def feed(self, lr: float) -> float:
        for part in self.parts:
            lr = part.feed(lr)
        return lr

    def run(self, lr: float, count: int) -> np.ndarray:
        if not all(isinstance(part, Multiplying) for part in self.parts):
            return super().run(lr, count)
        woven = np.stack([part.factors(count) for part in self.parts], axis=1).ravel()
        return np.multiply.accumulate(np.concatenate(([lr], woven)))[len(self.parts) :: len(self.parts)]


class _Sequence(Kernel):
    def __init__(self, parts: Sequence[Kernel], milestones: Sequence[int]):
        super().__init__()
        self.parts, self.milestones = parts, list(milestones)
        if any(isinstance(part, _Chain | _Sequence | SwaKernel) for part in parts):
            raise Unknown("a composite or SWALR inside of SequentialLR")

    @property
    def active(self) -> Kernel:
        return self.parts[bisect_right(self.milestones, self.t)]

    def initial(self, lr: float) -> float:
        return self.parts[bisect_right(self.milestones, 0)].initial(lr)

    def step(self, lr: float) -> float:
        self.t += 1
        index = bisect_right(self.milestones, self.t)
        part = self.parts[index]
        return part.begin(lr) if index and self.milestones[index - 1] == self.t else part.step(lr)

    def feed(self, lr: float) -> float:
        return self.active.feed(lr)

    def run(self, lr: float, count: int) -> np.ndarray:
        pieces, left = [], count
        while left:
            upcoming = [m for m in self.milestones if m > self.t]
            quiet = min(left, upcoming[0] - self.t - 1) if upcoming else left
            if quiet:
                pieces.append(self.active.run(lr, quiet))
                lr = float(pieces[-1][-1])
                self.t += quiet
                left -= quiet
            else:
                lr = self.step(lr)
                pieces.append(np.array([lr]))
                left -= 1
        return np.concatenate(pieces) if pieces else np.empty(0)


def never(_: int) -> bool:
    """The script of a plateau that does not reduce."""
    return False


def kernel_of(
    scheduler: Any, group: Group, index: int, *, scripts: dict[int, Callable[[int], bool]], fed: bool = False
) -> Kernel:
    """The kernel of `scheduler` for the `index`-th param group, standing where a new scheduler stands.

    `scripts` maps ``id(plateau)`` to what it does; `fed` says that plateaus go by epoch while the rest goes by step.
    Raises Unknown for a class that is not torch's own (a subclass may do anything).
    """
    kind = type(scheduler)
    if kind in (ChainedScheduler, t.ChainedScheduler):
        return _Chain([kernel_of(s, group, index, scripts=scripts, fed=fed) for s in scheduler._schedulers])
    if kind in (SequentialLR, t.SequentialLR):
        parts = [kernel_of(s, group, index, scripts=scripts, fed=fed) for s in scheduler._schedulers]
        return _Sequence(parts, scheduler._milestones)
    if kind is t.ReduceLROnPlateau:
        base = float(group.get("initial_lr", group["lr"]))
        return PlateauKernel(scheduler, base, index, scripts.get(id(scheduler), never), fed)
    bases = getattr(scheduler, "base_lrs", [])
    if kind is t.OneCycleLR:
        return Absolute(one_cycle_value(scheduler, group))
    if kind is SWALR:
        return SwaKernel(scheduler, group)
    if not bases:
        raise Unknown(kind.__name__)
    base = bases[min(index, len(bases) - 1)]
    if kind is t.LambdaLR:
        return Absolute(lambda_value(scheduler, base, index))
    if kind is t.CyclicLR:
        return Absolute(cyclic_value(scheduler, base, index))
    if kind is t.MultiplicativeLR:
        return MultiplicativeKernel(scheduler.lr_lambdas[min(index, len(scheduler.lr_lambdas) - 1)], base)
    if kind not in _PLAIN:
        raise Unknown(kind.__name__)
    return _PLAIN[kind](scheduler, base)


_PLAIN: dict[type, Callable[[Any, float], Kernel]] = {
    t.StepLR: StepKernel,
    t.MultiStepLR: MultiStepKernel,
    t.ConstantLR: ConstantKernel,
    t.LinearLR: LinearKernel,
    t.ExponentialLR: ExponentialKernel,
    t.PolynomialLR: PolynomialKernel,
    t.CosineAnnealingLR: CosineKernel,
    t.CosineAnnealingWarmRestarts: WarmRestartsKernel,
}
