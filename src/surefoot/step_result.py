"""What one update saw: of one batch, and of several micro-batches together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import batches
from .losses import averaging
from .losses.conventions import LossValue
from .metrics import Parts
from .micro_batches import MicroBatches
from .world import World


class StepResult(NamedTuple):
    """What one update saw: everything detached, nothing read back from the device.

    `loss` is a 0-dim tensor, the mean over the `samples` of all its micro-batches; `outputs` and `targets` are
    theirs, joined, or `metrics.Parts`, one a micro-batch, where their shapes differ. `grad_norm` is the 2-norm over
    all gradients before clipping (0-dim), where a limit was asked for. `updated` is False where the parameters stayed
    as they were because a gradient overflowed in fp16. An objective may have given its `weight` (what its mean is over,
    in place of the samples) and further `numbers`, means over that weight.

    `parts` are the micro-batches as `RunningMetrics.add_parts` takes them, where an objective gave some of them other
    `numbers` than others. Of `MicroBatches` they are always there, this rank's, and `loss` is what they add to the mean
    over the `samples` of all ranks; outputs and targets are with the parts.
    """

    loss: Tensor
    outputs: Any
    targets: Any
    samples: int
    grad_norm: Tensor | None = None
    updated: bool = True
    weight: Any = None
    numbers: Mapping[str, Any] = {}
    parts: Sequence[tuple[Any, ...]] = ()


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
    numbers = {}
    for name in dict.fromkeys(name for result in results for name in result.numbers):
        each = [(result.numbers[name], result.weight) for result in results if name in result.numbers]
        numbers[name] = _over(sum(_times(value, of) for value, of in each), sum(of for _, of in each))
    if isinstance(weight, Tensor) or weight != samples:
        factor = _over(samples, weight)
        loss = loss * (factor.to(loss) if isinstance(factor, Tensor) else factor)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
    # A number of some micro-batches alone is a mean over their weights, and not over the update's.
    alike = all(result.numbers.keys() == numbers.keys() for result in results)
    parts = () if alike else [(*r[:4], r.weight, r.numbers) for r in results]
    return StepResult(loss, outputs, targets, samples, weight=weight, numbers=numbers, parts=parts)


def of_parts(
    values: Sequence[LossValue], micro_batches: MicroBatches, parameters: Sequence[Tensor], world: World
) -> StepResult:
    """What an update saw of this rank's micro-batches; its gradients become those of the mean over all ranks'.

    Where an objective gives its own weights, their sum over all ranks takes the place of the number of samples.
    """
    loss, samples = torch.stack([value.loss.detach() for value in values]).sum(), micro_batches.samples
    weights = [value.weight if rows else 0 for value, rows in zip(values, micro_batches.rows, strict=True)]
    if values[0].weight is not None:
        factor = _over(samples, averaging.of_all_ranks(weights, micro_batches, world)().sum())
        loss = loss * factor.to(loss)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
    parts = [
        (v.loss.detach(), batches.detached(v.outputs), v.targets, rows, weight if rows else None, v.numbers)
        for v, rows, weight in zip(values, micro_batches.rows, weights, strict=True)
    ]
    return StepResult(loss, None, None, samples, parts=parts)


def _times(value: Any, weight: Any) -> Any:
    """``value * weight``, and 0 where there is no weight, whatever the value is (a mean over nothing is NaN)."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, torch.zeros_like(weight), value * weight)
    return value * weight if weight else 0.0


def _over(value: Any, weight: Any) -> Any:
    """``value / weight``, and 0 where there is no weight at all; nothing waits for the device."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, torch.zeros_like(weight, dtype=torch.float64), value / weight.double())
    return value / weight if weight else 0.0
