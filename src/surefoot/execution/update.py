"""From a plan to the function that makes one update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..untouched import untouched
from .captured import CapturedUpdate
from .direct import DirectUpdate, after_step, before_step
from .eager import EagerUpdate, MicroBatches
from .parity import eager_gradients, first_difference
from .plan import Execution
from .whole_step import CannotCompile, CompiledStep, compile_step


def make_update(
    execution: Execution,
    model: nn.Module,
    loss: Callable[..., Tensor],
    optimizer: Any,
    *,
    example: Sequence[Any],
    plain: Callable[[MicroBatches], Any],
    result: Callable[..., Any],
    nonfinite: Callable[[float, int], Exception] | None = None,
    clip: Callable[[], Tensor | None] | None = None,
    max_grad_norm: float | None = None,
    clip_value: float | None = None,
) -> Callable[[MicroBatches], Any] | None:
    """The function that runs one update as `execution` says, or None where the plain step is all there is.

    Call it inside of `prepare(execution, model, optimizer)`. It takes a list of micro-batches, as `plain` (the plain
    step) does, and gives what `plain` gives: `result(loss, outputs, targets, samples, grad_norm, updated)`. `plain`
    itself runs what the fast way cannot: several micro-batches, LBFGS, fp16. `clip` is the plain step's clipping,
    with the limits `max_grad_norm` and `clip_value`; `nonfinite` makes its exception for a loss that is not
    finite, and None means that losses are not looked at. `example` is a batch of the full size: a compiled step is
    one for batches of its shape, and others (an epoch's short last one) run eagerly, whichever comes first.

    Raises CannotCompile for a plan that says compiled or captured where it cannot be.
    """
    if execution.precision == "fp16" or type(optimizer).__name__ == "LBFGS":
        return None
    forward = torch.compile(model) if execution.compile == "module" else model
    eager = EagerUpdate(
        forward,
        loss,
        optimizer,
        fallback=plain,
        result=result,
        nonfinite=nonfinite,
        clip=clip,
        precision=execution.precision,
    )
    if execution.cuda_graph:
        return CapturedUpdate(
            model,
            loss,
            optimizer,
            example,
            eager,
            max_grad_norm=max_grad_norm,
            clip_value=clip_value,
            precision=execution.precision,
        )
    if execution.compile in ("none", "module"):
        return eager

    def compiled() -> CompiledStep:
        step = compile_step(
            model,
            loss,
            optimizer,
            example,
            update=execution.compile == "step",
            max_grad_norm=max_grad_norm,
            clip_value=clip_value,
            precision=execution.precision,
            guard=nonfinite is not None,
            products=execution.products,
        )
        check_step(step, model, loss, example, execution.precision)
        return step

    return CompiledUpdate(compiled, eager)


def check_step(
    step: CompiledStep, model: nn.Module, loss: Callable[..., Tensor], batch: Sequence[Any], precision: str
) -> None:
    """Compare a compiled step with eager on one batch; it leaves no trace. Raises CannotCompile where they differ.

    However well the same plan did before: what the compiler made this time is what counts.
    """
    with untouched(model, loss):
        expected = eager_gradients(model, loss, batch, precision)
    with untouched():
        found, _ = step.tried(batch)
    if difference := first_difference(expected, step.gradients(found), precision):
        raise CannotCompile(f"compiled, it differs from eager by more than rounding: {difference}")


class CompiledUpdate:
    """One update by a compiled graph; what the graph is not for goes to `eager`.

    When other parameters are trained than before (some were unfrozen), the step is compiled anew; where that cannot
    be, the rest of the run is eager.
    """

    def __init__(self, compiled: Callable[[], CompiledStep], eager: EagerUpdate):
        self._compile = compiled
        self._eager = eager
        self._trained = self._trainable()
        self.step: CompiledStep | None = compiled()
        self._update = None if self.step.kind == "step" else DirectUpdate(eager.optimizer)

    def __call__(self, micro_batches: MicroBatches) -> Any:
        if len(micro_batches) != 1 or self.step is None:
            return self._eager(micro_batches)
        batch = micro_batches[0]
        if not self.step.fits(batch):
            if self._trainable() != self._trained:
                self._trained = self._trainable()
                self.step = self._compiled_anew()
            if self.step is None or not self.step.fits(batch):
                return self._eager(micro_batches)
        eager = self._eager
        optimizer = eager.optimizer
        whole = self._update is None
        if whole:
            arguments = before_step(optimizer, ((optimizer,), {}))
        found = self.step(batch)
        if eager.nonfinite is not None:
            number = found.loss.item()
            if not math.isfinite(number):  # the graph left the parameters alone
                raise eager.nonfinite(number, 0)
        norm = found.norm
        if whole:
            after_step(optimizer, arguments)
        else:
            for parameter, grad in zip(self.step.parameters, found.grads, strict=True):
                parameter.grad = grad
            if eager.clip is not None:
                norm = eager.clip()
            self._update()
        return eager.result(found.loss, found.outputs, self.step.targets_of(batch), len(batch[0]), norm, True)

    def _compiled_anew(self) -> CompiledStep | None:
        try:
            return self._compile()
        except CannotCompile:
            return None

    def _trainable(self) -> tuple[int, ...]:
        groups = self._eager.optimizer.param_groups
        return tuple(id(p) for group in groups for p in group["params"] if p.requires_grad)
