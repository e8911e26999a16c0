"""One optimizer update, readable top to bottom: what runs unless `execution` has something faster and the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from . import rng
from .arguments import Arguments
from .errors import UsageError
from .gradients import limit_gradients
from .limits import CLIPPING, EMA_DECAY, ON_NONFINITE, PRECISIONS
from .losses import averaging, conventions
from .micro_batches import MicroBatches
from .modes import autocast
from .moving_average import MovingAverage
from .nonfinite import NonFinite
from .reduction import FirstBuffers, Reduction, take_from_first
from .sharding import ShardedReduction, limit_pieces, shard
from .step_result import StepResult, of_parts, result_of, together
from .untouched import Buffers, put_back_on
from .world import World
from .wrapping import replicating, shared_out

Batch = tuple[Any, ...]

# Losses that call the model several times a batch, or as they like.
CALLED_OFTEN = ("objective", "triplet", "two inputs")


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
        self.options = options = options if options is not None else StepOptions()
        if options.precision == "fp16" and isinstance(optimizer, torch.optim.LBFGS):
            raise UsageError("precision: LBFGS cannot run under fp16; use float32 or bf16")
        sharded = bool(shared_out(model))
        kind = None if sharded else replicating(model)
        if self.world.size > 1 and kind not in (None, "DistributedDataParallel"):
            raise UsageError(f"model: a {kind} cannot be trained by several processes here; give the model by itself")
        for part in (model, loss):
            if isinstance(part, nn.Module):  # as DDP does: what each rank has made at random must be one model
                parameters = [] if sharded and part is model else part.parameters()
                take_from_first(self.world, [*parameters, *part.buffers()])
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.checks = options.on_nonfinite == "skip" or self.device.type == "cpu"
        self.scaler = GradScaler(self.device.type) if options.precision == "fp16" else None
        self.ema = None if options.ema_decay is None else MovingAverage(model, options.ema_decay)
        self._scale: float | None = None  # the scaler's, where it was read already
        self.backend: Callable[[Sequence[Batch]], StepResult] | None = None
        self._buffers = Buffers(model, loss)
        self._called_once = conventions.convention_of(loss).name not in CALLED_OFTEN
        reduction = ShardedReduction if sharded else Reduction
        self._reduction = reduction(self.world, model, called_once=self._called_once)
        # Of updates whose micro-batches are given as such; how many batches make one.
        self._seed, self._updates, self._batches = seed, 0, 1
        self._refused: list[tuple[int, float]] = []

    def shard(self) -> None:
        """Put the model, its moving average and what the optimizer has of them under FSDP2, over all ranks.

        Raises UsageError for what cannot be, and for what is under FSDP2 already nothing is done.
        """
        if shared_out(self.model):
            return
        shard(self.model, self.optimizer)
        if self.ema is not None:
            shard(self.ema.module)
        self._reduction = ShardedReduction(self.world, self.model, called_once=self._called_once)

    def __call__(self, micro_batches: Sequence[Any]) -> StepResult:
        if isinstance(micro_batches[0], MicroBatches):
            self._batches, micro_batches = len(micro_batches), MicroBatches.joined(micro_batches)
        if self.checks:
            self._buffers.note(always=getattr(self.backend, "writes_unseen", False))
        try:
            result = (self.backend or self.plain)(micro_batches)
        except NonFinite:
            self._buffers.put_back()
            raise
        if self.ema is not None and result.updated:
            self.ema.update_parameters(self.model)
        return result

    def plain(self, micro_batches: Sequence[Batch]) -> StepResult:
        """The update without the moving average."""
        if isinstance(self.optimizer, torch.optim.LBFGS):
            return self._by_closure(micro_batches)
        result, scaler = self._gradients(micro_batches), self.scaler
        if scaler is None:
            norm = self.limit()
            self.optimizer.step()
            return result._replace(grad_norm=norm)
        if self.options.clips:
            scaler.unscale_(self.optimizer)
        norm, updated = self.limit(), self._scaled_update(scaler)
        if not updated and self.world.size > 1:
            self._agree_on_losses()
        return result._replace(grad_norm=norm, updated=updated)

    def _scaled_update(self, scaler: torch.amp.GradScaler) -> bool:
        """Update unless the gradients overflowed, and say whether it was done; waits for the device once."""
        fused = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        if fused and self._scale is None:
            self._scale = scaler.get_scale()
        stepped: list[bool] = []
        hook = self.optimizer.register_step_pre_hook(lambda *_: stepped.append(True))
        try:
            scaler.step(self.optimizer)
        finally:
            hook.remove()
        scaler.update()
        # A fused kernel is always called, and looks by itself: the scale goes down where the gradients overflowed.
        before, self._scale = self._scale, scaler.get_scale() if fused else None
        return bool(stepped) if self._scale is None or before is None else self._scale >= before

    def _by_closure(self, micro_batches: Sequence[Batch]) -> StepResult:
        """L-BFGS evaluates the loss several times an update; the first evaluation is the one reported."""
        results = []

        def closure() -> Tensor:
            result = self._gradients(micro_batches)
            results.append(result._replace(grad_norm=self.limit()))
            return self.world.sum(result.loss)

        with put_back_on(NonFinite, self.optimizer):  # perhaps not at the first evaluation
            self.optimizer.step(closure)  # type: ignore[arg-type]
        return results[0]

    def _gradients(self, micro_batches: Sequence[Batch]) -> StepResult:
        """Forward and backward of each micro-batch; gradients add up to those of the mean over all samples."""
        if isinstance(micro_batches, MicroBatches):
            return self._divided(micro_batches)
        self.optimizer.zero_grad(set_to_none=self.options.set_to_none)
        shares = [None] if len(micro_batches) == 1 else averaging.shares(self.loss, micro_batches)
        results = []
        for index, (batch, share) in enumerate(zip(micro_batches, shares, strict=True)):
            value = self.forward(batch, share, index)
            # The mean over no token at all is 0/0, and so is its gradient. A weight on a device is waited for.
            if not (value.weight is not None and share and not value.weight):
                loss = value.loss if self.scaler is None else self.scaler.scale(value.loss)
                loss.backward()  # type: ignore[no-untyped-call]
            results.append(result_of(value, batch))
        return results[0] if len(results) == 1 else together(results, self.trained())

    def _divided(self, micro_batches: MicroBatches) -> StepResult:
        """Forward and backward of this rank's micro-batches; gradients become those of the mean over all ranks'."""
        self.optimizer.zero_grad(set_to_none=True)
        self._refused.clear()
        self._updates += 1
        shares = averaging.shares(self.loss, micro_batches, self.world)
        reduction, trained, values = self._reduction, self.trained(), []
        reduction.begin()
        buffers = FirstBuffers(self.model, len(micro_batches) > self._batches)
        for place, (number, share) in enumerate(zip(micro_batches.numbers, shares, strict=True)):
            last, batch = place == len(micro_batches) - 1, micro_batches[place]
            if place and place % self._batches == 0:
                buffers.next_rows()
            with rng.seeded(rng.fold(self._seed, self._updates, number), self.device):
                value = self.forward(batch, share, number % self._batches, reduction.called(last=last))
                if not (value.weight is not None and share and not value.weight):
                    loss = value.loss if self.scaler is None else self.scaler.scale(value.loss)
                    loss.backward()  # type: ignore[no-untyped-call]
            values.append(value)
            if not last:
                reduction.hold(trained, ends=place % self._batches == self._batches - 1)
        reduction.finish(trained)
        buffers.finish()
        take_from_first(self.world, self.model.buffers())  # each has seen micro-batches of its own
        if not self.options.set_to_none:
            for parameter in trained:
                if parameter.grad is None and parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        return of_parts(values, micro_batches, trained, self.world)

    def forward(
        self, batch: Batch, share: Any = None, index: int = 0, model: Callable[..., Any] | None = None
    ) -> conventions.LossValue:
        """The loss (with its graph) of one micro-batch, and what it came from; `model` may be a compiled form of it."""
        with autocast(self.device, self.options.precision):
            value = conventions.apply(self.loss, self.model if model is None else model, batch, share)
        if self.checks and not math.isfinite(number := value.loss.item()):
            if self.world.size == 1:
                raise NonFinite.loss(number, index)
            self._refused.append((index, number))  # the others do not know yet, and must
            self._reduction.poison()
        return value

    def limit(self) -> Tensor | None:
        """Look at the gradients, then clip them in place. Returns their norm before, where `max_grad_norm` is set."""
        looks = self.checks and self.scaler is None  # the scaler looks itself, and skips
        if not looks and not self.options.clips:
            return None
        limits = self.options.max_grad_norm, self.options.clip_value
        try:
            if isinstance(self._reduction, ShardedReduction):
                return limit_pieces(self.world, self.model, self.trained(), *limits, looks)
            return limit_gradients(self.model, self.trained(), *limits, looks)
        except NonFinite:
            self._agree_on_losses()
            raise

    def _agree_on_losses(self) -> None:
        """Raise NonFinite, on every rank the same, where the loss of any rank was not finite."""
        refused = sorted((index, value) for rank in self.world.gather(self._refused) for index, value in rank)
        if refused:
            index, value = refused[0]
            raise NonFinite.loss(value, index)

    def trained(self) -> list[Tensor]:
        """What the optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state, and how often micro-batches were seeded; the moving average is a module, kept as one."""
        state = {} if self.scaler is None else {"scaler": self.scaler.state_dict()}
        return state | ({"updates": self._updates} if self._updates else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises UsageError where a scaler is missing or was not expected."""
        if (self.scaler is not None) != ("scaler" in state):
            held = "has none" if self.scaler is not None else "has one"
            raise UsageError(f"step: scaler: the saved state {held}, this run's settings say otherwise")
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
            self._scale = None
        self._updates = state.get("updates", 0)
