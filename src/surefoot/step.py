"""One optimizer update, readable top to bottom: what runs unless `execution` has something faster and the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .closure import update_by_closure, update_without
from .divided import Divided
from .errors import UsageError
from .losses import averaging, conventions
from .losses.hidden import hidden_state
from .micro_batches import MicroBatches
from .modes import autocast
from .moving_average import MovingAverage
from .nonfinite import NonFinite
from .scaler import Scaler
from .step_options import StepOptions as StepOptions
from .step_result import StepResult, result_of, together
from .torch_compat import give_hooks
from .untouched import Buffers
from .world import World
from .wrapping import shared_out

Batch = tuple[Any, ...]


class TrainStep:
    """Turns micro-batches into one update of `model`'s parameters, as any PyTorch loop would.

    Called with the micro-batches of one step (usually a single one): forward and backward of each, weighted so
    that the gradient is that of the mean over all their samples; then clipping, the optimizer and the moving
    average. Set `backend` to have an object that `execution` made run in the place of `plain`: it takes and gives the
    same, and has been compared with it.

    Where `checks` says so (on a CPU; elsewhere, where it waits for the device, under ``on_nonfinite="skip"``), losses
    and gradients are looked at, and NonFinite is raised while parameters, buffers and optimizer are as they were.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        options: StepOptions | None = None,
        *,
        world: World | None = None,
        seed: int = 0,
    ):
        self.world = World.alone() if world is None else world
        self.model, self.loss, self.optimizer = model, loss, optimizer
        give_hooks(optimizer)
        self.options = options = options if options is not None else StepOptions()
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.checks = options.on_nonfinite == "skip" or self.device.type == "cpu"
        self.divided = Divided(self.world, model, loss, seed)
        self.scaler = Scaler.of(self.device, options, optimizer)
        self.ema = None if options.ema_decay is None else MovingAverage(model, options.ema_decay)
        self.backend: Callable[[Sequence[Any]], StepResult] | None = None
        self._buffers = Buffers(model, *hidden_state(loss, model).values())

    def shard(self) -> None:
        """Put the model, its moving average and what the optimizer has of them under FSDP2, over all ranks.

        Raises UsageError for what cannot be, and for what is under FSDP2 already nothing is done.
        """
        if not shared_out(self.model):
            self.divided.shard(self.optimizer, self.ema)

    def __call__(self, micro_batches: Sequence[Any]) -> StepResult:
        if self.checks:
            self._buffers.note(always=self.divided.form is not None or getattr(self.backend, "writes_unseen", False))
        try:
            result = (self.backend or self.plain)(micro_batches)
        except NonFinite:
            if self.checks:
                self._buffers.put_back()
            raise
        if self.ema is not None and result.updated:
            self.ema.update_parameters(self.model)
        return result

    def plain(self, micro_batches: Sequence[Any]) -> StepResult:
        """The update without the moving average."""
        if isinstance(self.optimizer, torch.optim.LBFGS):
            return update_by_closure(self, micro_batches)
        result = self.gradients(micro_batches)
        if self.scaler is not None:
            return self.scaler.update_of(self, result)
        norm = self.limit()
        update_without(self.optimizer)
        return result._replace(grad_norm=norm)

    def gradients(self, micro_batches: Sequence[Any]) -> StepResult:
        """Forward and backward of each micro-batch; gradients add up to those of the mean over all samples."""
        if isinstance(micro_batches[0], MicroBatches):
            return self.divided.gradients(micro_batches, self)
        self.optimizer.zero_grad(set_to_none=self.options.set_to_none)
        shares = [None] if len(micro_batches) == 1 else averaging.shares(self.loss, micro_batches)
        results = [result_of(self.one(b, shares[i], i, self.model), b) for i, b in enumerate(micro_batches)]
        return results[0] if len(results) == 1 else together(results, self.trained())

    def one(self, batch: Batch, share: Any, index: int, model: Callable[..., Any]) -> conventions.LossValue:
        """Forward and backward of one micro-batch; its gradients are added to what is there."""
        value = self.forward(batch, share, index, model)
        # The mean over no token at all is 0/0, and so is its gradient. A weight on a device is waited for.
        if not (value.weight is not None and share and not value.weight):
            loss = value.loss if self.scaler is None else self.scaler.scale(value.loss)
            loss.backward()  # type: ignore[no-untyped-call]
        return value

    def forward(
        self, batch: Batch, share: Any = None, index: int = 0, model: Callable[..., Any] | None = None
    ) -> conventions.LossValue:
        """The loss (with its graph) of one micro-batch, and what it came from; `model` may be a compiled form of it."""
        with autocast(self.device, self.options.precision):
            value = conventions.apply(self.loss, self.model if model is None else model, batch, share)
        if self.checks and not math.isfinite(number := value.loss.item()):
            self.divided.refuse(number, index)
        return value

    def limit(self) -> Tensor | None:
        """Look at the gradients, then clip them in place. Returns their norm before, where `max_grad_norm` is set."""
        looks = self.checks and self.scaler is None  # the scaler looks itself, and skips
        if not looks and not self.options.clips:
            return None
        try:
            return self.divided.limit(self.trained(), self.options.max_grad_norm, self.options.clip_value, looks)
        except NonFinite:
            self.divided.agree()
            raise

    def trained(self) -> list[Tensor]:
        """What the optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state, and how often micro-batches were seeded; the moving average is a module, kept as one."""
        state = {} if self.scaler is None else {"scaler": self.scaler.state_dict()}
        return state | ({"updates": self.divided.updates} if self.divided.updates else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises UsageError where a scaler is missing or was not expected."""
        if (self.scaler is not None) != ("scaler" in state):
            held = "has none" if self.scaler is not None else "has one"
            raise UsageError(
                f"step: scaler: the saved state {held}, this run's settings say otherwise", code="resume-state"
            )
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.divided.updates = state.get("updates", 0)
