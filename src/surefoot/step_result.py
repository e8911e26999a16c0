"""What one update saw: of one batch, and of several micro-batches together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import batches
from .losses.conventions import LossValue
from .metrics import Parts


class StepResult(NamedTuple):
    """What one update saw: everything detached, nothing read back from the device.

    `loss` is a 0-dim tensor, the mean over the `samples` of all its micro-batches; `outputs` and `targets` are
    theirs, joined, or `metrics.Parts`, one a micro-batch, where their shapes differ. `grad_norm` is the 2-norm over
    all gradients before clipping (0-dim), where a limit was asked for. `updated` is False where the parameters stayed
    as they were because a gradient overflowed in fp16. An objective may have given its `weight` (what its mean is over,
    in place of the samples) and further `numbers`, means over that weight.
    """

    loss: Tensor
    outputs: Any
    targets: Any
    samples: int
    grad_norm: Tensor | None = None
    updated: bool = True
    weight: Any = None
    numbers: Mapping[str, Any] = {}


def result_of(value: LossValue, batch: Any) -> StepResult:
    """What an update saw of one batch."""
    loss, outputs, targets, weight, numbers = value
    samples = batches.size(batch)
    return StepResult(loss.detach(), batches.detached(outputs), targets, samples, None, True, weight, numbers)


def together(results: Sequence[StepResult], parameters: Sequence[Tensor]) -> StepResult:
    """The results of several micro-batches as one; gradients become those of the mean over all of them.

    Losses and gradients add up already, but for an objective that gives its own weights: their sum, which is known only
    now, takes the place of the number of samples.
    """
    loss, samples = torch.stack([result.loss for result in results]).sum(), sum(result.samples for result in results)
    outputs = batches.joined([result.outputs for result in results])
    targets = batches.joined([result.targets for result in results])
    if outputs is None or targets is None:
        outputs, targets = Parts(r.outputs for r in results), Parts(r.targets for r in results)
    if results[0].weight is None:
        return StepResult(loss, outputs, targets, samples)
    weight = sum(result.weight for result in results)
    numbers = {
        name: _over(sum(result.numbers[name] * result.weight for result in results), weight)
        for name in results[0].numbers
    }
    if isinstance(weight, Tensor) or weight != samples:
        factor = _over(samples, weight)
        loss = loss * (factor.to(loss) if isinstance(factor, Tensor) else factor)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
    return StepResult(loss, outputs, targets, samples, weight=weight, numbers=numbers)


def _over(value: Any, weight: Any) -> Any:
    """``value / weight``, and 0 where there is no weight at all; nothing waits for the device."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, torch.zeros_like(weight, dtype=torch.float64), value / weight.double())
    return value / weight if weight else 0.0
