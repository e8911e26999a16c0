"""The warmups, by pytorch_warmup's names, arguments and factors (after Ma & Yarats 2019, arxiv.org/abs/1910.04209)."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from ..arguments import Arguments
from ..errors import UsageError
from ..registry import describe
from ..text import counted
from .dampening import BaseWarmup


class LinearWarmup(BaseWarmup):
    """The factor ``min(1, (step + 1) / warmup_period)``; `warmup_period` is a number or one for each group.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> warmup = LinearWarmup(optimizer, warmup_period=4)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates.append(optimizer.param_groups[0]["lr"])
    ...     with warmup.dampening():
    ...         pass
    >>> rates
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    stays_at_one = True

    def __init__(self, optimizer: Optimizer, warmup_period: int | list[int], last_step: int = -1):
        self._periods = _periods(type(self).__name__, optimizer, warmup_period)
        super().__init__(optimizer, last_step)

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        return {"warmup_period": self._periods[min(index, len(self._periods) - 1)]}

    def warmup_factor(self, step: int, warmup_period: int) -> float:
        return min(1.0, (step + 1) / warmup_period)


class ExponentialWarmup(LinearWarmup):
    """The factor ``1 - exp(-(step + 1) / warmup_period)``; `warmup_period` is a number or one for each group."""

    def warmup_factor(self, step: int, warmup_period: int) -> float:
        return 1.0 - math.exp(-(step + 1) / warmup_period)


class UntunedLinearWarmup(LinearWarmup):
    """`LinearWarmup` over ``2 / (1 - beta2)`` steps, for Adam and its kin."""

    _reach = 2.0

    def __init__(self, optimizer: Optimizer, last_step: int = -1):
        BaseWarmup.__init__(self, optimizer, last_step)

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        return {"warmup_period": int(self._reach / (1.0 - _beta2(type(self).__name__, group)))}


class UntunedExponentialWarmup(UntunedLinearWarmup, ExponentialWarmup):
    """`ExponentialWarmup` over ``1 / (1 - beta2)`` steps, for Adam and its kin."""

    _reach = 1.0


class RAdamWarmup(BaseWarmup):
    """RAdam's rectification term (Liu et al. 2019, arxiv.org/abs/1908.03265) as a warmup of Adam and its kin."""

    def params_of(self, group: dict[str, Any], index: int) -> dict[str, Any]:
        beta2 = _beta2(type(self).__name__, group)
        if not beta2 > 0.6:
            raise UsageError(f"RAdamWarmup: beta2 {beta2} must be greater than 0.6")
        rho_inf = 2.0 / (1 - beta2) - 1
        offset = 1
        while not _rho(offset, beta2, rho_inf) > 4:
            offset += 1
        return {"beta2": beta2, "rho_inf": rho_inf, "offset": offset}

    def warmup_factor(self, step: int, beta2: float, rho_inf: float, offset: int) -> float:
        rho = _rho(step + offset, beta2, rho_inf)
        numerator = (rho - 4) * (rho - 2) * rho_inf
        denominator = (rho_inf - 4) * (rho_inf - 2) * rho
        return math.sqrt(numerator / denominator)


def _rho(t: int, beta2: float, rho_inf: float) -> float:
    b2t = beta2**t
    return rho_inf - 2 * t * b2t / (1 - b2t)


def _beta2(warmup: str, group: dict[str, Any]) -> float:
    if "betas" not in group:
        raise UsageError(f"{warmup} needs an optimizer with betas (Adam, AdamW, NAdam, ...); use LinearWarmup here")
    return float(group["betas"][1])


def _periods(warmup: str, optimizer: Optimizer, warmup_period: int | list[int]) -> list[int]:
    periods = []
    for period in warmup_period if isinstance(warmup_period, list | tuple) else [warmup_period]:
        check = Arguments()
        periods.append(check.whole("warmup_period", period, low=1))
        if check.problems:
            raise UsageError(
                f"{warmup}: warmup_period {describe(warmup_period)} is not a whole number above 0 or a list of them"
            )
    count = len(getattr(optimizer, "param_groups", ()))
    if isinstance(warmup_period, list | tuple) and len(periods) != count:
        raise UsageError(
            f"{warmup}: warmup_period has {counted(len(periods), 'number')} for {counted(count, 'param group')}; "
            "give one for each"
        )
    return periods
