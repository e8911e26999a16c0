"""The update of an optimizer that evaluates the loss several times, L-BFGS, and the refusal of others that would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import UsageError
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


def update_without(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()``; raises UsageError where it wants a closure, which nothing but its own error may tell."""
    try:
        optimizer.step()
    except (
        Exception
    ) as error:  # of any class: SAM's versions have an AssertionError, a RuntimeError or one of their own
        if "closure" in str(error).lower() or "'NoneType' object is not callable" in str(error):
            raise UsageError(f"optimizer: {wants_closure(optimizer)}", code="optimizer") from error
        raise


def wants_closure(optimizer: torch.optim.Optimizer) -> str:
    """What to do with an optimizer whose `step` needs a closure: what it expects of the closure differs."""
    return (
        f"{type(optimizer).__name__}.step needs a closure, which fit gives to torch.optim.LBFGS alone; train "
        "with its base optimizer, or keep your own loop, which surefoot.Checkpointer makes resumable"
    )
