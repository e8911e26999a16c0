"""The gradients of one update in micro-batches of all processes: each seeded by itself, added as one tree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import rng
from .errors import UsageError
from .gradients import limit_gradients
from .losses import averaging, conventions
from .losses.conventions import LossValue
from .losses.hidden import hidden_state
from .micro_batches import MicroBatches
from .moving_average import MovingAverage
from .nonfinite import NonFinite
from .reduction import FirstBuffers, Reduction, take_from_first
from .sharding import ShardedReduction, limit_pieces, shard
from .step_options import StepOptions
from .step_result import StepResult, of_parts
from .world import World
from .wrapping import replicating, shared_out

# Losses that call the model several times a batch, or as they like.
CALLED_OFTEN = ("objective", "triplet", "two inputs")


class Step(Protocol):
    """What is needed of a TrainStep."""

    optimizer: torch.optim.Optimizer
    options: StepOptions
    device: torch.device

    def one(self, batch: Any, share: Any, index: int, model: Callable[..., Any]) -> LossValue:
        """Forward and backward of one micro-batch."""
        ...

    def trained(self) -> list[Tensor]:
        """What the optimizer updates."""
        ...


class Divided:
    """What a TrainStep does with MicroBatches: this rank's go forward and backward, the sums are those of all ranks.

    All ranks begin with rank 0's parameters and buffers. `updates` counts the updates so far: each micro-batch draws
    from a seed of its own, made of the run's `seed`, that count and its number. Raises UsageError for a model that
    several processes cannot train (one in DataParallel).
    """

    def __init__(self, world: World, model: nn.Module, loss: Any, seed: int):
        self.world, self.model, self.loss, self.seed = world, model, loss, seed
        kind = None if shared_out(model) else replicating(model)
        if world.size > 1 and kind not in (None, "DistributedDataParallel"):
            raise UsageError(
                f"model: a {kind} cannot be trained by several processes here; give the model by itself", code="ranks"
            )
        sharded, hidden = bool(shared_out(model)), list(hidden_state(loss, model).values())
        self._holders = (model, *hidden)
        for part in self._holders:  # as DDP does: what each rank has made at random must be one model
            parameters = [] if sharded and part is model else part.parameters()
            take_from_first(world, [*parameters, *part.buffers()])
        self._called_once = conventions.convention_of(loss).name not in CALLED_OFTEN
        reducing = ShardedReduction if sharded else Reduction
        self.reduction = reducing(world, model, called_once=self._called_once)
        self._with_buffers = [each for part in self._holders for each in part.modules() if each._buffers]
        self.updates = 0
        self._whole: Any = None
        self._counts = False
        self._refused: list[tuple[int, float]] = []
        self.form: Any = None

    def use(self, form: Any) -> None:
        """Run micro-batches that `form` fits by it (see `execution.parts`); sums over ranks then follow the last."""
        self.form = form
        if form is not None and not isinstance(self.reduction, ShardedReduction):
            self.reduction = Reduction(self.world, self.model, called_once=False)

    def shard(self, optimizer: torch.optim.Optimizer, ema: MovingAverage | None) -> None:
        """Put the model, its moving average and what the optimizer has of them under FSDP2, over all ranks."""
        shard(self.model, optimizer)
        if ema is not None:
            shard(ema.module)
        self.reduction = ShardedReduction(self.world, self.model, called_once=self._called_once)

    def gradients(self, micro_batches: Sequence[MicroBatches], step: Step) -> StepResult:
        """Forward and backward of this rank's micro-batches; gradients become those of the mean over all ranks'."""
        batches, parts, trained = len(micro_batches), MicroBatches.joined(micro_batches), step.trained()
        held = [] if step.options.set_to_none else [p for p in trained if p.grad is not None]
        step.optimizer.zero_grad(set_to_none=True)
        self._refused.clear()
        self.updates += 1
        shares = averaging.shares(self.loss, parts, self.world, self._complete(parts))
        reduction, form = self.reduction, self.form
        reduction.begin()
        buffers = FirstBuffers(*self._holders) if len(parts) > batches else None
        values = []
        for place, (batch, number, share) in enumerate(zip(parts, parts.numbers, shares, strict=True)):
            last = place == len(parts) - 1
            if buffers is not None and place and place % batches == 0:
                buffers.next_rows()
            with rng.seeded(rng.fold(self.seed, self.updates, number), step.device):
                model = reduction.called(last=last)
                run = step.one if form is None or not form.fits(batch) else functools.partial(form, step)
                values.append(run(batch, share, number % batches, model))
            if not last:
                reduction.hold(trained, ends=place % batches == batches - 1)
        reduction.finish(trained)
        if buffers is not None:
            buffers.finish()
        take_from_first(self.world, self._buffers())  # each has seen micro-batches of its own
        for parameter in held:  # as zeros, which zero_grad would have left
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return of_parts(values, parts, trained, self.world)

    def _complete(self, parts: MicroBatches) -> bool:
        """Whether on all ranks no target of the data is ignored: then nothing is exchanged to know how many count."""
        if parts.whole is not self._whole:
            self._whole = parts.whole
            self._counts = all(
                self.world.gather(parts.whole is not None and averaging.all_count(self.loss, parts.whole))
            )
        return self._counts

    def _buffers(self) -> list[Tensor]:
        return [buffer for module in self._with_buffers for buffer in module._buffers.values() if buffer is not None]

    def limit(
        self, trained: Sequence[Tensor], max_grad_norm: float | None, clip_value: float | None, looks: bool
    ) -> Tensor | None:
        """`gradients.limit_gradients`, also of those that ranks have in pieces."""
        if isinstance(self.reduction, ShardedReduction):
            return limit_pieces(self.world, self.model, trained, max_grad_norm, clip_value, looks)
        return limit_gradients(self.model, trained, max_grad_norm, clip_value, looks)

    def refuse(self, number: float, index: int) -> None:
        """A loss is not finite: raise NonFinite, or of several ranks note it, since the others do not know yet."""
        if self.world.size == 1:
            raise NonFinite.loss(number, index)
        self._refused.append((index, number))
        self.reduction.poison()

    def agree(self) -> None:
        """Raise NonFinite, on every rank the same, where the loss of any rank was not finite."""
        refused = sorted((index, value) for rank in self.world.gather(self._refused) for index, value in rank)
        if refused:
            index, value = refused[0]
            raise NonFinite.loss(value, index)
