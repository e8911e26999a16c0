"""The update of an optimizer that evaluates the loss several times: L-BFGS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .nonfinite import NonFinite
from .step_result import StepResult
from .untouched import put_back_on
from .world import World


class Step(Protocol):
    """What is needed of a TrainStep."""

    optimizer: torch.optim.Optimizer
    world: World

    def gradients(self, micro_batches: Sequence[Any]) -> StepResult:
        """Forward and backward of each micro-batch."""
        ...

    def limit(self) -> Tensor | None:
        """Look at the gradients, then clip them."""
        ...


def update_by_closure(step: Step, micro_batches: Sequence[Any]) -> StepResult:
    """One update of `step.optimizer`, which calls a closure; its first evaluation is the one reported."""
    results = []

    def closure() -> Tensor:
        result = step.gradients(micro_batches)
        results.append(result._replace(grad_norm=step.limit()))
        return step.world.sum(result.loss)

    with put_back_on(NonFinite, step.optimizer):  # perhaps not at the first evaluation
        step.optimizer.step(closure)  # type: ignore[arg-type]
    return results[0]
