"""One eager update, to the bit what the plain step does, with less Python around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .. import torch_compat
from ..step import Batch, TrainStep
from ..step_result import StepResult, result_of
from .direct import DirectUpdate, drops_gradients


class EagerStep:
    """Forward, backward, clipping and update of one batch; several micro-batches go to the plain step.

    `model` is called in the place of the step's own: a compiled form of it.
    """

    def __init__(self, step: TrainStep, model: Callable[..., Any] | None = None):
        self.step = step
        self.model = step.model if model is None else model
        self._update = DirectUpdate(step.optimizer)
        self._ones: Tensor | None = None
        self._backward = torch_compat.run_backward()

    def __call__(self, micro_batches: Sequence[Batch]) -> StepResult:
        step = self.step
        if len(micro_batches) != 1:
            return step.plain(micro_batches)
        batch = micro_batches[0]
        if step.options.set_to_none and drops_gradients(step.optimizer):
            for group in step.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            step.optimizer.zero_grad(set_to_none=step.options.set_to_none)
        value = step.forward(batch, model=self.model)
        loss = value.loss
        ones = self._ones
        if ones is None or ones.dtype != loss.dtype or ones.device != loss.device:
            self._ones = ones = loss.new_ones(())
        self._backward(loss, ones)
        norm = step.limit()
        self._update()
        return result_of(value, batch)._replace(grad_norm=norm)
