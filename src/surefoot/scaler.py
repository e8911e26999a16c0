"""fp16's scale: losses are multiplied so that small gradients are not 0, and an update that overflows is left out."""

from __future__ import annotations

from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

# Gradients that overflow at such a scale too (fp16's smallest number) are not finite at any.
LEAST_SCALE = 2.0**-24


class Scaler(GradScaler):
    """torch's GradScaler, that says whether an update was done, and waits for the device once to know."""

    _read: float | None = None  # the scale, where it was read already

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
