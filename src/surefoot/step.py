"""One optimizer update, readable top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import UsageError
from .losses import averaging, calling
from .metrics import Parts

Batch = tuple[Any, ...]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("float32", *AUTOCAST)


class StepResult(NamedTuple):
    """What one update saw: everything detached, nothing read back from the device.

    `loss` is a 0-dim tensor, the mean over the `samples` of all its micro-batches; `outputs` and `targets` are
    theirs, joined, or `metrics.Parts`, one a micro-batch, where their shapes differ. `grad_norm` is the 2-norm over all gradients before clipping (0-dim), where a limit was asked
    for. `updated` is False where the parameters stayed as they were because a gradient overflowed in fp16.
    """

    loss: Tensor
    outputs: Any
    targets: Any
    samples: int
    grad_norm: Tensor | None = None
    updated: bool = True


class NonFiniteLoss(ArithmeticError):
    """The loss of a micro-batch is NaN or infinite; raised before the parameters change."""

    def __init__(self, value: float, micro_batch: int):
        self.value = value
        self.micro_batch = micro_batch
        super().__init__(f"the loss is {value}")


class TrainStep:
    """Turns micro-batches into one update of `model`'s parameters.

    Called with the micro-batches of one step (usually a single one): forward and backward of each, weighted so
    that the gradient is that of the mean over all their samples; then clipping, the optimizer and the moving
    average. With `max_grad_norm` the 2-norm is limited to it; with `clip_value` each element's magnitude.
    `precision` is ``float32``, ``bf16`` or ``fp16`` (the last two by autocast, fp16 with a GradScaler).
    `ema` is a torch AveragedModel that follows the parameters. Set `update` to have one prepared function (a compiled
    or captured step) run in the place of `plain`; it takes and gives the same.

    `check_finite` reads each loss back (free on a CPU; a synchronisation on CUDA) and raises NonFiniteLoss while
    the parameters are still as they were.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
        precision: str = "float32",
        ema: torch.optim.swa_utils.AveragedModel | None = None,
        check_finite: bool = True,
    ):
        if precision == "fp16" and isinstance(optimizer, torch.optim.LBFGS):
            raise UsageError("precision: LBFGS cannot run under fp16; use float32 or bf16")
        if precision not in PRECISIONS:
            raise UsageError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.clip_value = clip_value
        self.precision = precision
        self.ema = ema
        self.check_finite = check_finite
        self.update: Callable[[Sequence[Batch]], StepResult] | None = None
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        self._needs_closure = isinstance(optimizer, torch.optim.LBFGS)
        self.clips = max_grad_norm is not None or clip_value is not None

    def __call__(self, micro_batches: Sequence[Batch]) -> StepResult:
        result = self.plain(micro_batches) if self.update is None else self.update(micro_batches)
        if self.ema is not None and result.updated:
            self.ema.update_parameters(self.model)
        return result

    def plain(self, micro_batches: Sequence[Batch]) -> StepResult:
        """The update as any PyTorch loop would run it, without the moving average."""
        return self._step_with_closure(micro_batches) if self._needs_closure else self._step(micro_batches)

    def _step(self, micro_batches: Sequence[Batch]) -> StepResult:
        self.optimizer.zero_grad()
        seen = self._gradients(micro_batches)
        scaler = self.scaler
        if scaler is None:
            norm = self.clip() if self.clips else None
            self.optimizer.step()
            return StepResult(*seen, norm, True)
        if self.clips:
            scaler.unscale_(self.optimizer)
        norm = self.clip() if self.clips else None
        before = scaler.get_scale()
        scaler.step(self.optimizer)
        scaler.update()
        # A scale that went down means that the gradients overflowed and the optimizer was not stepped.
        return StepResult(*seen, norm, scaler.get_scale() >= before)

    def _step_with_closure(self, micro_batches: Sequence[Batch]) -> StepResult:
        """L-BFGS evaluates the loss several times an update; the first evaluation is the one reported."""
        first: StepResult | None = None

        def closure() -> Tensor:
            nonlocal first
            self.optimizer.zero_grad()
            seen = self._gradients(micro_batches)
            norm = self.clip() if self.clips else None
            first = first or StepResult(*seen, norm, True)
            return seen[0]

        self.optimizer.step(closure)
        assert first is not None
        return first

    def _gradients(self, micro_batches: Sequence[Batch]) -> tuple[Tensor, Any, Any, int]:
        """Forward and backward of each micro-batch; gradients add up to those of the mean over all samples."""
        if len(micro_batches) == 1:
            return self._forward_backward(micro_batches[0], None, 0)
        shares = averaging.shares(self.loss, micro_batches)
        seen = [
            self._forward_backward(batch, share, index)
            for index, (batch, share) in enumerate(zip(micro_batches, shares, strict=True))
        ]
        losses, outputs, targets, samples = zip(*seen, strict=True)
        return torch.stack(losses).sum(), *_joined(outputs, targets), sum(samples)

    def _forward_backward(self, batch: Batch, share: Any, index: int) -> tuple[Tensor, Any, Any, int]:
        dtype = AUTOCAST.get(self.precision)
        if dtype is None:
            loss, outputs, targets = calling.apply(self.loss, self.model, batch, share)
        else:
            with torch.autocast(self.device.type, dtype=dtype):
                loss, outputs, targets = calling.apply(self.loss, self.model, batch, share)
        if self.check_finite:
            number = loss.item()
            if not math.isfinite(number):
                raise NonFiniteLoss(number, index)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return loss.detach(), _detached(outputs), targets, averaging.batch_size(batch)

    def clip(self) -> Tensor | None:
        """Limit the gradients in place; their norm before, where `max_grad_norm` asks for it."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = None
        if self.max_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, self.clip_value)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state; empty where there is none. The moving average is a module, kept as one."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises UsageError where a scaler is missing or was not expected."""
        if (self.scaler is not None) != ("scaler" in state):
            held = "has none" if self.scaler is not None else "has one"
            raise UsageError(f"step: scaler: the saved state {held}, this run's settings say otherwise")
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])


def _detached(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, list | tuple):
        return tuple(map(_detached, outputs))
    return outputs


def _joined(outputs: Sequence[Any], targets: Sequence[Any]) -> tuple[Any, Any]:
    """Outputs and targets of several micro-batches as those of one, where both fit together; else `Parts`."""
    for parts in (outputs, targets):
        tensors = all(isinstance(part, Tensor) and part.dim() for part in parts)
        if not tensors or len({part.shape[1:] for part in parts}) > 1:
            return Parts(outputs), Parts(targets)
    return torch.cat(list(outputs)), torch.cat(list(targets))
