"""fp16's scale: losses are multiplied so that small gradients are not 0, and an update that overflows is left out."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from .divided import Divided
from .errors import UsageError
from .gradients import refuse_gradients
from .step_options import StepOptions
from .step_result import StepResult
from .world import World

# Gradients that overflow at such a scale too (fp16's smallest number) are not finite at any.
LEAST_SCALE = 2.0**-24


class Step(Protocol):
    """What is needed of a TrainStep."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    options: StepOptions
    world: World
    divided: Divided

    def limit(self) -> Tensor | None:
        """Look at the gradients, then clip them."""
        ...

    def trained(self) -> list[Tensor]:
        """What the optimizer updates."""
        ...


class Scaler(GradScaler):
    """torch's GradScaler, that says whether an update was done, and waits for the device once to know."""

    _read: float | None = None  # the scale, where it was read already

    @classmethod
    def of(cls, device: torch.device, options: StepOptions, optimizer: torch.optim.Optimizer) -> Scaler | None:
        """The scaler of a step with these options; None but under fp16. Raises UsageError for L-BFGS under fp16."""
        if options.precision != "fp16":
            return None
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UsageError("precision: LBFGS cannot run under fp16; use float32 or bf16")
        return cls(device.type)

    def update_of(self, step: Step, result: StepResult) -> StepResult:
        """Clip and update with the scaled gradients of `result`; returns it with their norm and whether it was done.

        Raises NonFinite where the gradients overflow at the smallest scale too.
        """
        # GradScaler takes no update without a gradient (no micro-batch had any weight).
        if all(p.grad is None for p in step.trained()):
            norm = step.limit()
            step.optimizer.step()
            return result._replace(grad_norm=norm)
        if step.options.clips:
            self.unscale_(step.optimizer)
        norm, updated = step.limit(), self.update_with(step.optimizer)
        if not updated:
            if step.world.size > 1:
                step.divided.agree()
            if self.get_scale() < LEAST_SCALE:
                refuse_gradients(step.model, step.trained(), step.world)
        return result._replace(grad_norm=norm, updated=updated)

    def update_with(self, optimizer: torch.optim.Optimizer) -> bool:
        """Update unless the gradients overflowed; returns whether it was done."""
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if fused and self._read is None:
            self._read = self.get_scale()
        stepped: list[bool] = []
        hook = optimizer.register_step_pre_hook(lambda *_: stepped.append(True))
        try:
            self.step(optimizer)
        finally:
            hook.remove()
        self.update()
        # A fused kernel is always called, and looks by itself: the scale goes down where the gradients overflowed.
        before, self._read = self._read, self.get_scale() if fused else None
        return bool(stepped) if self._read is None or before is None else self._read >= before

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._read = None
