"""What one update saw: of one batch, and of several micro-batches together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import batches
from .losses.averaging import of_all_ranks
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

    Of an update in MicroBatches `loss` is this rank's part of the sum, and `parts` are its micro-batches one by one, as
    `RunningMetrics.add_parts` takes them, in the place of outputs, targets and numbers.
    """

    loss: Tensor
    outputs: Any
    targets: Any
    samples: int
    grad_norm: Tensor | None = None
    updated: bool = True
    weight: Any = None
    numbers: Mapping[str, Any] = {}
    parts: Sequence[StepResult] = ()


def result_of(value: LossValue, batch: Any, samples: int | None = None) -> StepResult:
    """What an update saw of one batch, of which so many samples count: by default all."""
    loss, outputs, targets, weight, numbers = value
    samples = batches.size(batch) if samples is None else samples
    return StepResult(loss.detach(), batches.detached(outputs), targets, samples, None, True, weight, numbers)


def together(
    results: Sequence[StepResult],
    parameters: Sequence[Tensor],
    micro_batches: Sequence[Any] = (),
    world: World | None = None,
) -> StepResult:
    """The results of several micro-batches as one; gradients become those of the mean over all of them.

    Losses and gradients add up already, but for an objective that gives its own weights: their sum, which is known only
    now, takes the place of the number of samples. Of MicroBatches it is the sum over the ranks of the `world`.
    """
    loss = torch.stack([result.loss for result in results]).sum()
    weight: Any = None
    if isinstance(micro_batches, MicroBatches):
        whole = StepResult(loss, None, None, micro_batches.samples, parts=tuple(results))
        if results[0].weight is not None:
            weights = [result.weight if result.samples else 0 for result in results]
            weight = sum(of_all_ranks(weights, micro_batches, world).unbind())
    else:
        outputs = batches.joined([result.outputs for result in results])
        targets = batches.joined([result.targets for result in results])
        if outputs is None or targets is None:
            outputs, targets = Parts(r.outputs for r in results), Parts(r.targets for r in results)
        whole = StepResult(loss, outputs, targets, sum(result.samples for result in results))
        if results[0].weight is not None:
            weight = sum(result.weight for result in results)
            numbers = {
                name: _over(sum(result.numbers[name] * result.weight for result in results), weight)
                for name in results[0].numbers
            }
            whole = whole._replace(numbers=numbers)
    if isinstance(weight, Tensor) or weight not in (None, whole.samples):
        factor = _over(whole.samples, weight)
        loss = loss * (factor.to(loss) if isinstance(factor, Tensor) else factor)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
    return whole._replace(loss=loss, weight=weight)


def _over(value: Any, weight: Any) -> Any:
    """``value / weight``, and 0 where there is no weight at all; nothing waits for the device."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, torch.zeros_like(weight, dtype=torch.float64), value / weight.double())
    return value / weight if weight else 0.0
