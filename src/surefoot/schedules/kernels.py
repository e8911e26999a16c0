"""torch's schedulers as arithmetic on one group's rate: the same float64 operations, without an optimizer.

A plan of a million steps cannot afford a million calls of `scheduler.step()`. A kernel replays what a scheduler's
`get_lr` does, operation by operation, so that every rate is equal to the last bit (held by tests for all of them and
checked again by `simulate` against the installed torch). Multiplying ones are run by NumPy's `multiply.accumulate`,
which is sequential; the others by short loops.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np
from torch.optim import lr_scheduler as t
from torch.optim.swa_utils import SWALR

Group = dict[str, Any]


class Unknown(Exception):
    """No kernel for this scheduler; it has to be driven itself."""


class Kernel:
    """A scheduler's effect on the rate of one group; `t` counts its calls."""

    def __init__(self) -> None:
        self.t = 0

    def initial(self, lr: float) -> float:
        """The rate that the scheduler's constructor makes of `lr`."""
        return lr

    def begin(self, lr: float) -> float:
        """The rate where a SequentialLR comes to this scheduler."""
        raise NotImplementedError

    def step(self, lr: float) -> float:
        """The rate after one call."""
        raise NotImplementedError

    def feed(self, lr: float) -> float:
        """The rate after the plateaus inside were given a metric of their own (schedules by step)."""
        return lr

    def run(self, lr: float, count: int) -> np.ndarray:
        """The rates after 1, 2, ... `count` calls."""
        rates = np.empty(count)
        step = self.step
        for index in range(count):
            lr = step(lr)
            rates[index] = lr
        return rates


class Multiplying(Kernel):
    """The rate times a factor that depends on the count alone."""

    def __init__(self, base: float):
        super().__init__()
        self.base = base

    def factor(self, t: int) -> float:
        """The factor of call `t`."""
        raise NotImplementedError

    def factors(self, count: int) -> np.ndarray:
        """The factors of the next `count` calls, which are thereby taken."""
        first = self.t + 1
        self.t += count
        factor = self.factor
        return np.fromiter((factor(k) for k in range(first, first + count)), float, count)

    def step(self, lr: float) -> float:
        self.t += 1
        return lr * self.factor(self.t)

    def run(self, lr: float, count: int) -> np.ndarray:
        return np.multiply.accumulate(np.concatenate(([lr], self.factors(count))))[1:]


class StepKernel(Multiplying):
    """torch's StepLR."""

    def __init__(self, s: t.StepLR, base: float):
        super().__init__(base)
        self.size, self.gamma = s.step_size, s.gamma

    def begin(self, lr: float) -> float:
        self.t = 0
        return self.base * self.gamma**0

    def factor(self, t: int) -> float:
        return 1.0 if t % self.size else self.gamma

    def factors(self, count: int) -> np.ndarray:
        found = np.ones(count)
        found[(-self.t - 1) % self.size :: self.size] = self.gamma
        self.t += count
        return found


class MultiStepKernel(Multiplying):
    """torch's MultiStepLR."""

    def __init__(self, s: t.MultiStepLR, base: float):
        super().__init__(base)
        self.milestones, self.gamma = s.milestones, s.gamma

    def begin(self, lr: float) -> float:
        self.t = 0
        return self.base * self.gamma ** bisect_right(sorted(self.milestones.elements()), 0)

    def factor(self, t: int) -> float:
        return self.gamma ** self.milestones[t] if t in self.milestones else 1.0

    def factors(self, count: int) -> np.ndarray:
        found = np.ones(count)
        for milestone in self.milestones:
            if self.t < milestone <= self.t + count:
                found[milestone - self.t - 1] = self.factor(milestone)
        self.t += count
        return found


class ConstantKernel(Multiplying):
    """torch's ConstantLR."""

    def __init__(self, s: t.ConstantLR, base: float):
        super().__init__(base)
        self.ratio, self.total = s.factor, s.total_iters

    def initial(self, lr: float) -> float:
        return lr * self.ratio

    def begin(self, lr: float) -> float:
        self.t = 0
        return self.base * (self.ratio + (self.total <= 0) * (1 - self.ratio))

    def factor(self, t: int) -> float:
        return 1.0 / self.ratio if t == self.total else 1.0


class LinearKernel(Multiplying):
    """torch's LinearLR."""

    def __init__(self, s: t.LinearLR, base: float):
        super().__init__(base)
        self.start, self.end, self.total = s.start_factor, s.end_factor, s.total_iters

    def initial(self, lr: float) -> float:
        return lr * self.start

    def begin(self, lr: float) -> float:
        self.t = 0
        return self.base * (self.start + (self.end - self.start) * min(self.total, 0) / self.total)

    def factor(self, t: int) -> float:
        if t > self.total:
            return 1.0
        way = self.end - self.start
        return 1.0 + way / (self.total * self.start + (t - 1) * way)


class ExponentialKernel(Multiplying):
    """torch's ExponentialLR."""

    def __init__(self, s: t.ExponentialLR, base: float):
        super().__init__(base)
        self.gamma = s.gamma

    def begin(self, lr: float) -> float:
        self.t = 0
        return self.base * self.gamma**0

    def factor(self, t: int) -> float:
        return self.gamma

    def factors(self, count: int) -> np.ndarray:
        self.t += count
        return np.full(count, self.gamma)


class PolynomialKernel(Multiplying):
    """torch's PolynomialLR."""

    def __init__(self, s: t.PolynomialLR, base: float):
        super().__init__(base)
        self.total, self.power = s.total_iters, s.power

    def begin(self, lr: float) -> float:
        self.t = 0
        return self.base * (1.0 - min(self.total, 0) / self.total) ** self.power

    def factor(self, t: int) -> float:
        if t > self.total:
            return 1.0
        return ((1.0 - t / self.total) / (1.0 - (t - 1) / self.total)) ** self.power


class MultiplicativeKernel(Multiplying):
    """torch's MultiplicativeLR."""

    def __init__(self, function: Callable[[int], float], base: float):
        super().__init__(base)
        self.factor = function  # type: ignore[method-assign]

    def begin(self, lr: float) -> float:
        self.t = 0
        return lr * self.factor(0)


class CosineKernel(Kernel):
    """torch's CosineAnnealingLR."""

    def __init__(self, s: t.CosineAnnealingLR, base: float):
        super().__init__()
        self.T_max, self.eta_min, self.base = s.T_max, s.eta_min, base

    def begin(self, lr: float) -> float:
        self.t = 0
        return self.eta_min + (self.base - self.eta_min) * (1 + math.cos(math.pi * 0 / self.T_max)) / 2

    def step(self, lr: float) -> float:
        self.t += 1
        eta = self.eta_min
        if (self.t - 1 - self.T_max) % (2 * self.T_max) == 0:
            return lr + (self.base - eta) * (1 - math.cos(math.pi / self.T_max)) / 2
        now = 1 + math.cos(math.pi * self.t / self.T_max)
        before = 1 + math.cos(math.pi * (self.t - 1) / self.T_max)
        return now / before * (lr - eta) + eta


class Absolute(Kernel):
    """The rate as a function of the count alone."""

    def __init__(self, value: Callable[[int], float]):
        super().__init__()
        self.value = value

    def initial(self, lr: float) -> float:
        return self.value(0)

    def begin(self, lr: float) -> float:
        self.t = 0
        return self.value(0)

    def step(self, lr: float) -> float:
        self.t += 1
        return self.value(self.t)

    def run(self, lr: float, count: int) -> np.ndarray:
        first, value = self.t + 1, self.value
        self.t += count
        return np.fromiter((value(k) for k in range(first, first + count)), float, count)


def lambda_value(s: t.LambdaLR, base: float, index: int) -> Callable[[int], float]:
    """The rate of torch's LambdaLR by its count."""
    function = s.lr_lambdas[min(index, len(s.lr_lambdas) - 1)]
    return lambda k: base * function(k)


def cyclic_value(s: t.CyclicLR, base: float, index: int) -> Callable[[int], float]:
    """The rate of torch's CyclicLR by its count."""
    top = s.max_lrs[min(index, len(s.max_lrs) - 1)]
    total, ratio, scale = s.total_size, s.step_ratio, s.scale_fn
    by_cycle, floor = s.scale_mode == "cycle", math.floor

    def value(k: int) -> float:
        cycle = floor(1 + k / total)
        x = 1.0 + k / total - cycle
        height = (top - base) * (x / ratio if x <= ratio else (x - 1) / (ratio - 1))
        return base + height * scale(cycle if by_cycle else k)

    return value


def one_cycle_value(s: t.OneCycleLR, group: Group) -> Callable[[int], float]:
    """The rate of torch's OneCycleLR by its count."""
    phases, last, total = s._schedule_phases, len(s._schedule_phases) - 1, s.total_steps
    edges = [(p["end_step"], group[p["start_lr"]], group[p["end_lr"]]) for p in phases]
    anneal = s._annealing_cos if s._anneal_func_type == "cos" else s._annealing_linear

    def value(k: int) -> float:
        if k > total:
            raise ValueError(f"Tried to step {k} times. The specified number of total steps is {total}")
        begin = 0.0
        for index, (end, low, high) in enumerate(edges):
            if k <= end or index == last:
                return anneal(low, high, (k - begin) / (end - begin))
            begin = end
        raise AssertionError("the last phase takes every step")

    return value


class WarmRestartsKernel(Kernel):
    """torch's CosineAnnealingWarmRestarts."""

    def __init__(self, s: t.CosineAnnealingWarmRestarts, base: float):
        super().__init__()
        self.T_mult, self.eta_min, self.base = s.T_mult, s.eta_min, base
        self.T_cur, self.T_i = 0, s.T_0

    def begin(self, lr: float) -> float:
        self.t = 0
        return self._value()

    def step(self, lr: float) -> float:
        self.t += 1
        self.T_cur += 1
        if self.T_cur >= self.T_i:
            self.T_cur %= self.T_i
            self.T_i *= self.T_mult
        return self._value()

    def _value(self) -> float:
        return self.eta_min + (self.base - self.eta_min) * (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2


class SwaKernel(Kernel):
    """torch's SWALR."""

    def __init__(self, s: SWALR, group: Group):
        super().__init__()
        self.epochs, self.anneal, self.swa_lr = s.anneal_epochs, s.anneal_func, group["swa_lr"]

    def initial(self, lr: float) -> float:
        return self._from(0, lr)

    def step(self, lr: float) -> float:
        self.t += 1
        return self._from(self.t, lr)

    def _from(self, step: int, lr: float) -> float:
        if self.epochs == 0:
            step = max(1, step)
        before = self.anneal(max(0, min(1, (step - 1) / max(1, self.epochs))))
        first = self.swa_lr if before == 1 else (lr - before * self.swa_lr) / (1 - before)
        alpha = self.anneal(max(0, min(1, step / max(1, self.epochs))))
        return self.swa_lr * alpha + first * (1 - alpha)


class PlateauKernel(Kernel):
    """ReduceLROnPlateau under a script: `reduces(k)` says whether its k-th call (from 1) reduces the rate."""

    def __init__(self, s: t.ReduceLROnPlateau, base: float, index: int, reduces: Callable[[int], bool], fed: bool):
        super().__init__()
        self.base, self.factor, self.eps, self.reduces, self.fed = base, s.factor, s.eps, reduces, fed
        self.min_lr = s.min_lrs[min(index, len(s.min_lrs) - 1)]

    def begin(self, lr: float) -> float:
        self.t = 0
        return self.base

    def step(self, lr: float) -> float:
        return lr if self.fed else self._told(lr)

    def feed(self, lr: float) -> float:
        return self._told(lr) if self.fed else lr

    def _told(self, lr: float) -> float:
        self.t += 1
        if not self.reduces(self.t):
            return lr
        new = max(lr * self.factor, self.min_lr)
        return new if lr - new > self.eps else lr
