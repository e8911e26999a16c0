"""One eager update, to the bit what the plain step does, with less Python around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..losses import averaging, calling
from .calls import DirectCalls
from .direct import DirectUpdate
from .parity import AUTOCAST

Batch = tuple[Any, ...]
MicroBatches = Sequence[Batch]


class EagerUpdate:
    """Forward, backward, clipping and update of one batch; several micro-batches go to `fallback`.

    `clip` limits the gradients in place and returns their norm, or None where nothing is clipped. `result` makes
    the value that is returned from (loss, outputs, targets, samples, grad_norm, updated); `nonfinite` makes the
    exception for a loss that is not finite from (value, index of the micro-batch), raised before anything changes,
    or is None where losses are not to be looked at here.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        fallback: Callable[[MicroBatches], Any],
        result: Callable[..., Any],
        nonfinite: Callable[[float, int], Exception] | None = None,
        clip: Callable[[], Tensor | None] | None = None,
        precision: str = "float32",
    ):
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.fallback = fallback
        self.result = result
        self.nonfinite = nonfinite
        self.clip = clip
        self._dtype = AUTOCAST.get(precision)
        self._pairs = calling.convention_of(loss) is calling.PAIR
        self._calls = DirectCalls(model, loss)
        self._update = DirectUpdate(optimizer)
        self._ones: Tensor | None = None
        self._backward = _engine()

    def __call__(self, micro_batches: MicroBatches) -> Any:
        if len(micro_batches) != 1:
            return self.fallback(micro_batches)
        batch = micro_batches[0]
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        with self._calls:
            if self._dtype is None:
                loss, outputs, targets = self._forward(batch)
            else:
                with torch.autocast(batch[0].device.type, dtype=self._dtype):
                    loss, outputs, targets = self._forward(batch)
        if self.nonfinite is not None:
            number = loss.item()
            if not math.isfinite(number):
                raise self.nonfinite(number, 0)
        ones = self._ones
        if ones is None or ones.dtype != loss.dtype or ones.device != loss.device:
            self._ones = ones = torch.ones_like(loss)
        self._backward(loss, ones)
        norm = self.clip() if self.clip is not None else None
        self._update()
        return self.result(loss.detach(), detached(outputs), targets, averaging.batch_size(batch), norm, True)

    def _forward(self, batch: Batch) -> tuple[Tensor, Any, Any]:
        """`calling.apply`, without its look-ups where the batch is the usual pair."""
        if self._pairs and len(batch) == 2:
            inputs, targets = batch
            outputs = self.model(inputs)
            loss = self.loss(outputs, targets)
            if type(loss) is Tensor and not loss.dim():
                return loss, outputs, targets
            return calling.scalar(loss, self.loss), outputs, targets
        return calling.apply(self.loss, self.model, batch)


def _engine() -> Callable[[Tensor, Tensor], None]:
    """The autograd engine's own entry where this torch has it as expected, else `torch.autograd.backward`.

    The wrapper around it (argument checks, logging hooks) costs as much as a tenth of a small step.
    """
    run = getattr(getattr(torch.autograd.Variable, "_execution_engine", None), "run_backward", None)

    def direct(loss: Tensor, ones: Tensor) -> None:
        run((loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True)

    try:
        leaf = torch.tensor(2.0, requires_grad=True)
        with torch.enable_grad():
            loss = leaf * 3
        direct(loss, torch.ones(()))
        expected = leaf.grad is not None and leaf.grad.item() == 3
    except (TypeError, RuntimeError):
        expected = False
    return direct if expected else torch.autograd.backward


def detached(outputs: Any) -> Any:
    """Outputs without their graph; tuples stay tuples, what is no tensor stays."""
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, list | tuple):
        return tuple(map(detached, outputs))
    return outputs
