"""One optimizer update, readable top to bottom."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import batches, torch_compat
from .arguments import Arguments
from .errors import UsageError
from .limits import CLIPPING, EMA_DECAY, ON_NONFINITE, PRECISIONS
from .losses import averaging, conventions
from .metrics import Parts
from .moving_average import MovingAverage
from .untouched import is_lazy

Batch = tuple[Any, ...]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


class StepResult(NamedTuple):
    """What one update saw: everything detached, nothing read back from the device.

    `loss` is a 0-dim tensor, the mean over the `samples` of all its micro-batches; `outputs` and `targets` are
    theirs, joined, or `metrics.Parts`, one a micro-batch, where their shapes differ. `grad_norm` is the 2-norm over
    all gradients before clipping (0-dim), where a limit was asked for. `updated` is False where the parameters stayed
    as they were because a gradient overflowed in fp16. An objective may have given its `weight` (what its mean is over,
    in place of the samples) and further `numbers`, means over that weight.
    """

    loss: Tensor
    outputs: Any
    targets: Any
    samples: int
    grad_norm: Tensor | None = None
    updated: bool = True
    weight: Any = None
    numbers: Mapping[str, Any] = {}


class NonFinite(ArithmeticError):
    """The loss of a micro-batch, or a gradient, is NaN or infinite; raised before the parameters change.

    `value` is the number met. `micro_batch` counts from 0; None where the gradient of all of them together is meant.
    """

    def __init__(self, what: str, value: float, micro_batch: int | None = None):
        self.value, self.micro_batch = value, micro_batch
        super().__init__(what)

    @classmethod
    def loss(cls, value: float, micro_batch: int = 0) -> NonFinite:
        """The error for a loss."""
        return cls(f"the loss is {value}", value, micro_batch)


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
    ):
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.options = options = options if options is not None else StepOptions()
        if options.precision == "fp16" and isinstance(optimizer, torch.optim.LBFGS):
            raise UsageError("precision: LBFGS cannot run under fp16; use float32 or bf16")
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.checks = options.on_nonfinite == "skip" or self.device.type == "cpu"
        self.scaler = torch.amp.GradScaler(self.device.type) if options.precision == "fp16" else None
        self.ema = None if options.ema_decay is None else MovingAverage(model, options.ema_decay)
        self.backend: Callable[[Sequence[Batch]], StepResult] | None = None
        self._buffers = _Buffers(model, loss)

    def __call__(self, micro_batches: Sequence[Batch]) -> StepResult:
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
            return self._plain_with_closure(micro_batches)
        self.optimizer.zero_grad(set_to_none=self.options.set_to_none)
        seen = self._gradients(micro_batches)
        scaler = self.scaler
        if scaler is None:
            norm = self.limit()
            self.optimizer.step()
            return seen._replace(grad_norm=norm)
        if self.options.clips:
            scaler.unscale_(self.optimizer)
        norm = self.limit()
        before = scaler.get_scale()
        scaler.step(self.optimizer)
        scaler.update()
        # A scale that went down means that the gradients overflowed and the optimizer was not stepped.
        return seen._replace(grad_norm=norm, updated=scaler.get_scale() >= before)

    def _plain_with_closure(self, micro_batches: Sequence[Batch]) -> StepResult:
        """L-BFGS evaluates the loss several times an update; the first evaluation is the one reported."""
        first: StepResult | None = None
        parameters = self._trained()
        before = [p.detach().clone() for p in parameters], copy.deepcopy(self.optimizer.state_dict())

        def closure() -> Tensor:
            nonlocal first
            self.optimizer.zero_grad(set_to_none=self.options.set_to_none)
            seen = self._gradients(micro_batches)
            norm = self.limit()
            first = first or seen._replace(grad_norm=norm)
            return seen.loss

        try:
            self.optimizer.step(closure)  # type: ignore[arg-type]
        except NonFinite:  # perhaps not at the first evaluation
            with torch.no_grad():
                for parameter, value in zip(parameters, before[0], strict=True):
                    parameter.copy_(value)
            self.optimizer.load_state_dict(before[1])
            raise
        assert first is not None
        return first

    def _gradients(self, micro_batches: Sequence[Batch]) -> StepResult:
        """Forward and backward of each micro-batch; gradients add up to those of the mean over all samples."""
        shares = [None] if len(micro_batches) == 1 else averaging.shares(self.loss, micro_batches)
        seen = []
        for index, (batch, share) in enumerate(zip(micro_batches, shares, strict=True)):
            value = self.forward(batch, share, index)
            # The mean over no token at all is 0/0, and so is its gradient. A weight on a device is waited for.
            if not (share and value.weight is not None and not value.weight):
                loss = value.loss if self.scaler is None else self.scaler.scale(value.loss)
                loss.backward()  # type: ignore[no-untyped-call]
            seen.append(result_of(value, batch))
        return seen[0] if len(seen) == 1 else self._together(seen)

    def _together(self, seen: Sequence[StepResult]) -> StepResult:
        """The micro-batches' results as one, and their gradients as those of the mean over all of them."""
        loss, samples = torch.stack([result.loss for result in seen]).sum(), sum(result.samples for result in seen)
        outputs, targets = _joined([result.outputs for result in seen], [result.targets for result in seen])
        if seen[0].weight is None:
            return StepResult(loss, outputs, targets, samples)
        # Losses came multiplied by their weights, which nobody knew before, over the number of samples.
        weight = sum(result.weight for result in seen)
        numbers = {
            name: _over(sum(result.numbers[name] * result.weight for result in seen), weight)
            for name in seen[0].numbers
        }
        if isinstance(weight, Tensor) or weight != samples:
            factor = _over(samples, weight)
            loss = loss * (factor.to(loss) if isinstance(factor, Tensor) else factor)
            for parameter in self._trained():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        return StepResult(loss, outputs, targets, samples, weight=weight, numbers=numbers)

    def forward(
        self, batch: Batch, share: Any = None, index: int = 0, model: Callable[..., Any] | None = None
    ) -> conventions.LossValue:
        """The loss (with its graph) of one micro-batch, and what it came from; `model` may be a compiled form of it."""
        model = self.model if model is None else model
        dtype = AUTOCAST.get(self.options.precision)
        if dtype is None:
            value = conventions.apply(self.loss, model, batch, share)
        else:
            with torch.autocast(self.device.type, dtype=dtype):
                value = conventions.apply(self.loss, model, batch, share)
        if self.checks and not math.isfinite(number := value.loss.item()):
            raise NonFinite.loss(number, index)
        return value

    def limit(self) -> Tensor | None:
        """Look at the gradients, then clip them in place. Returns their norm before, where `max_grad_norm` is set."""
        options, norm = self.options, None
        looks = self.checks and self.scaler is None  # the scaler looks itself, and skips
        if not looks and not options.clips:
            return None
        groups = self.optimizer.param_groups
        grads = [grad for group in groups for p in group["params"] if (grad := p.grad) is not None]
        if options.max_grad_norm is not None:
            if any([grad.layout is not torch.strided for grad in grads]):
                raise UsageError(
                    "max_grad_norm: torch cannot clip sparse gradients; leave it out, or give sparse=False"
                )
            norm = nn.utils.get_total_norm(grads)
            if looks and not math.isfinite(norm):
                self.refuse_gradients()
            nn.utils.clip_grads_with_norm_(self._trained(), options.max_grad_norm, norm)
        elif looks and not torch_compat.all_finite(grads, scratch=True):
            self.refuse_gradients()
        if options.clip_value is not None:
            nn.utils.clip_grad_value_(self._trained(), options.clip_value)
        return norm

    def refuse_gradients(self) -> None:
        """Raise NonFinite for the first gradient that is not finite; a norm may overflow though none is."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        for parameter in self._trained():
            grad = parameter.grad
            if grad is not None and not torch_compat.all_finite([grad]):
                name = names.get(id(parameter), "a parameter outside the model")
                raise NonFinite(f"the gradient of {name} is not finite", math.nan)

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def not_finite(self) -> str | None:
        """The name of a trained parameter that is NaN or infinite, or None."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return next((n for n, p in trained.items() if not torch_compat.all_finite([p.detach()])), None)

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


class _Buffers:
    """The buffers of model and loss as they were before an update, for one that does not happen."""

    def __init__(self, *parts: Any):
        modules = [m for part in parts if isinstance(part, nn.Module) for m in part.modules()]
        self._places = [(m._buffers, name) for m in modules for name in m._buffers]
        self._kept: dict[int, tuple[Tensor | None, int, Tensor | None]] = {}

    def note(self, always: bool) -> None:
        """Copy what changed since the last time; `always` where writes do not show in a tensor's version."""
        for place, (buffers, name) in enumerate(self._places):
            tensor, kept = buffers.get(name), self._kept.get(place)
            version = -1 if tensor is None else tensor._version
            if always or kept is None or kept[0] is not tensor or kept[1] != version:
                value = None if tensor is None or is_lazy(tensor) else tensor.detach().clone()
                self._kept[place] = tensor, version, value

    def put_back(self) -> None:
        """Make them as they were when `note` was called."""
        with torch.no_grad():
            for (buffers, name), (tensor, _, value) in zip(self._places, self._kept.values(), strict=True):
                buffers[name] = tensor
                if tensor is None or value is None:
                    continue
                if tensor.shape != value.shape:
                    tensor.data = value.clone()
                elif not torch.equal(tensor, value):
                    tensor.copy_(value)
        self._kept.clear()


def set_mode(optimizer: torch.optim.Optimizer, training: bool) -> None:
    """Call the optimizer's own `train()` or `eval()` where it has them, as schedule-free ones do."""
    switch = getattr(optimizer, "train" if training else "eval", None)
    if callable(switch):
        switch()


def _over(value: Any, weight: Any) -> Any:
    """``value / weight``, and 0 where there is no weight at all; nothing waits for the device."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, torch.zeros_like(weight, dtype=torch.float64), value / weight.double())
    return value / weight if weight else 0.0


def result_of(value: conventions.LossValue, batch: Batch) -> StepResult:
    """What an update saw of one batch."""
    loss, outputs, targets, weight, numbers = value
    samples = batches.size(batch)
    return StepResult(loss.detach(), batches.detached(outputs), targets, samples, None, True, weight, numbers)


def _joined(outputs: Sequence[Any], targets: Sequence[Any]) -> tuple[Any, Any]:
    """Outputs and targets of several micro-batches as those of one, where both fit together; else `Parts`."""
    pair = batches.joined(outputs), batches.joined(targets)
    return (Parts(outputs), Parts(targets)) if any(whole is None for whole in pair) else pair
