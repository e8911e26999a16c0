"""How one update is made: the options that the recipe, or `fit`, hands on whole."""

from __future__ import annotations

from dataclasses import dataclass

from .arguments import Arguments
from .limits import CLIPPING, EMA_DECAY, ON_NONFINITE, PRECISIONS


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How one update is made; handed on whole from the recipe, or `fit`, to whatever runs the step.

    One update takes `grad_accum_steps` batches. The gradients' 2-norm is limited to `max_grad_norm`, then each
    element's magnitude to `clip_value`. `precision` is ``float32``, ``bf16`` or ``fp16`` (by autocast, fp16 with a
    GradScaler). With `ema_decay` a moving average follows the weights. `on_nonfinite` says what a run does about a
    loss or gradient that is NaN or infinite: ``stop`` or ``skip`` the update. `set_to_none` is `zero_grad`'s: with
    False gradients are zeroed in place, so that parameters which a batch does not reach are updated with zeros.

    Raises Problems (a UsageError) with all mistakes at once.
    """

    grad_accum_steps: int = 1
    max_grad_norm: float | None = None
    clip_value: float | None = None
    precision: str = "float32"
    ema_decay: float | None = None
    on_nonfinite: str = "stop"
    set_to_none: bool = True

    def __post_init__(self) -> None:
        check = Arguments()
        values = {
            "grad_accum_steps": check.whole("grad_accum_steps", self.grad_accum_steps, low=1),
            "max_grad_norm": check.number("max_grad_norm", self.max_grad_norm, CLIPPING, none=True),
            "clip_value": check.number("clip_value", self.clip_value, CLIPPING, none=True),
            "precision": check.choice("precision", self.precision, PRECISIONS),
            "ema_decay": check.number("ema_decay", self.ema_decay, EMA_DECAY, none=True),
            "on_nonfinite": check.choice("on_nonfinite", self.on_nonfinite, ON_NONFINITE),
            "set_to_none": check.flag("set_to_none", self.set_to_none),
        }
        check.done()
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def clips(self) -> bool:
        """Whether gradients are limited."""
        return self.max_grad_norm is not None or self.clip_value is not None
