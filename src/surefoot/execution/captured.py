"""A whole step captured once on a GPU and replayed: no Python and no launches between its kernels.

Everything that a replay reads lies where it lay at the capture: inputs are copied in, the learning rate is a tensor.
Where the capture itself happens is one small class, so that the rest runs (and is tested) without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils import _pytree as pytree

from .. import batches, torch_compat
from ..gradients import refuse_gradients
from ..losses import conventions
from ..modes import AUTOCAST
from ..nonfinite import NonFinite
from ..step import Batch, TrainStep
from ..step_result import StepResult
from ..untouched import Snapshot
from .direct import Group, after_step, before_step, is_patched, plain_step, run_adam, run_sgd
from .eager import EagerStep
from .graph import CannotCompile, fits, signature, target_place

WARM_UPS = 3


class Graphs(Protocol):
    """Something that can capture work and replay it."""

    def capture(self, work: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
        """Returns a function that replays `work`, and the tensors that each replay fills. `work` need not run."""
        ...


class CudaGraphs:
    """torch.cuda's graphs. `work` has run before, on another stream, so that libraries have made their plans."""

    def capture(self, work: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
        """See `Graphs`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            filled = work()
        return graph.replay, filled


class CapturedStep:
    """One update by a replayed graph; what the graph is not for runs eagerly.

    Making it leaves parameters, buffers, optimizer state and random numbers as they were. The optimizer is SGD,
    Adam or AdamW with its fused kernels; of its numbers only the learning rate may change later. Another change
    (momentum, betas, weight decay), other parameters, or tensors that lie elsewhere than at the capture (a
    `load_state_dict`) retire the graph: the rest of the run is eager, as nothing else would be right.
    """

    writes_unseen = True

    def __init__(self, step: TrainStep, example: Sequence[Tensor], *, graphs: Graphs | None = None):
        self.step, self.eager = step, EagerStep(step)
        self.model, self.loss, self.optimizer = step.model, step.loss, step.optimizer
        optimizer = step.optimizer
        if not plain_step(optimizer) or not all(group.get("fused") for group in optimizer.param_groups):
            raise CannotCompile(f"{type(optimizer).__name__} has no fused update that could be captured")
        if any(isinstance(group["lr"], Tensor) or group.get("amsgrad") for group in optimizer.param_groups):
            raise CannotCompile("a captured update takes no lr that is a tensor and no amsgrad")
        if is_patched(optimizer) or torch_compat.step_hooks(optimizer) is None:
            raise CannotCompile("the optimizer's step was replaced, or its hooks cannot be seen")
        self.limits = step.options.max_grad_norm, step.options.clip_value
        self.parameters = self._trained()
        self.target_place = target_place(self.loss)
        self.signature = signature(example)
        self.inputs = [part.clone() for part in example]
        for group in optimizer.param_groups:
            make_state(optimizer, group)  # which the graph will change in place
        device = self.parameters[0].device
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._lrs: list[float | None] = [None] * len(self.rates)
        self._fixed = self._numbers()
        self._places = [[p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups]
        self.retired = False
        self._output_spec: Any = None
        before = Snapshot(self.model, self.loss, optimizer)
        try:
            self._rates()
            self._warm_up()
            self.replay, self.filled = (graphs or CudaGraphs()).capture(self._work)
        finally:
            changed = before.put_back()
        if changed is not None:
            raise CannotCompile(f"{changed}, which a graph would not")
        self._held = self._addresses()

    def __call__(self, micro_batches: Sequence[Batch]) -> StepResult:
        if self.retired or len(micro_batches) != 1 or not self.model.training:
            return self.eager(micro_batches)
        batch = micro_batches[0]
        if not fits(batch, self.signature):
            return self.eager(micro_batches)
        if self._numbers() != self._fixed or self._addresses() != self._held:
            self.retired = True
            return self.eager(micro_batches)
        hooks = torch_compat.step_hooks(self.optimizer)
        assert hooks is not None, "looked at before the capture"
        arguments = before_step(self.optimizer, hooks[0], ((self.optimizer,), {}))
        self._rates()
        self._feed(batch)
        self.replay()
        loss, norm, outputs = self._found()
        if self.step.checks and not math.isfinite(self.filled[2].item()):  # the fused update left everything alone
            if not math.isfinite(number := loss.item()):
                raise NonFinite.loss(number)
            self._give_gradients()
            refuse_gradients(self.model, self.step.trained())
            raise NonFinite("the norm of the gradients overflows", math.inf)
        after_step(self.optimizer, hooks[1], arguments)
        targets = None if self.target_place is None else batch[self.target_place]
        limited = self.limits[0] is not None
        return StepResult(loss, outputs, targets, batches.size(batch), norm if limited else None, True)

    def show_gradients(self) -> None:
        """Put the last update's gradients where the plain step leaves them, limited as there."""
        if not self.retired:
            self._give_gradients()
            self.step.limit()

    def _give_gradients(self) -> None:
        for parameter, grad in zip(self.parameters, self.filled[3:], strict=False):
            parameter.grad = grad.clone()

    def _work(self) -> list[Tensor]:
        """The step on the tensors that stay where they are: loss, norm, gradients, outputs."""
        dtype = AUTOCAST.get(self.step.options.precision)
        device = self.parameters[0].device.type
        with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            value = conventions.apply(self.loss, self.model, tuple(self.inputs))
            grads = list(torch.autograd.grad(value.loss, self.parameters))
        with torch.no_grad():
            norm = torch.zeros((), device=grads[0].device)
            limited: Sequence[Tensor | None] = grads
            if any(limit is not None for limit in self.limits):
                limited, norm = clip(grads, *self.limits, norm)
            sound = value.loss.detach() + get_total_norm(grads).to(value.loss.dtype) if self.step.checks else value.loss
            unsound = (~torch.isfinite(sound)).float() if self.step.checks else None
            self._update({id(p): g for p, g in zip(self.parameters, limited, strict=True) if g is not None}, unsound)
        outputs, self._output_spec = pytree.tree_flatten(value.outputs)
        return [value.loss.detach(), norm, sound.detach(), *grads, *(output.detach() for output in outputs)]

    def _update(self, grads: dict[int, Tensor], unsound: Tensor | None) -> None:
        """torch's fused kernels, with the rate as a tensor; `unsound` (1.0) makes them do nothing."""
        state = self.optimizer.state
        for group, rate, params in zip(self.optimizer.param_groups, self.rates, self._places, strict=True):
            if not params:
                continue
            own, changes = [grads[id(p)] for p in params], {"lr": rate, "found_inf": unsound}
            if type(self.optimizer).__name__ == "SGD":
                buffers = [state[p]["momentum_buffer"] for p in params] if group["momentum"] else []
                run_sgd(self._kernel("sgd"), group, params, own, (buffers,), **changes)
                continue
            lists = ([state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq"))
            steps = [state[p]["step"] for p in params]
            kernel = self._kernel("adamw" if group["decoupled_weight_decay"] else "adam")
            run_adam(kernel, group, params, own, (*lists, [], steps), **changes)
            if unsound is not None:
                torch_compat.add_to_all(steps, -unsound)

    def _kernel(self, name: str) -> Callable[..., None]:
        if (kernel := torch_compat.fused(name)) is None:
            raise CannotCompile(f"this torch has no fused {name} as expected")
        return kernel

    def _warm_up(self) -> None:
        if self.parameters[0].device.type != "cuda":
            return
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._work()
        torch.cuda.current_stream().wait_stream(stream)

    def _feed(self, batch: Sequence[Tensor]) -> None:
        for place, part in zip(self.inputs, batch, strict=True):
            place.copy_(part, non_blocking=True)

    def _rates(self) -> None:
        for index, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self._lrs[index]:
                self._lrs[index] = group["lr"]
                self.rates[index].fill_(group["lr"])

    def _found(self) -> tuple[Tensor, Tensor, Any]:
        """Copies: the next replay writes over what this one filled."""
        first = 3 + len(self.parameters)
        outputs = [output.clone() for output in self.filled[first:]]
        return self.filled[0].clone(), self.filled[1].clone(), pytree.tree_unflatten(outputs, self._output_spec)

    def _numbers(self) -> list[dict[str, Any]]:
        return [
            {
                k: v
                for k, v in group.items()
                if k in ("momentum", "dampening", "nesterov", "betas", "weight_decay", "eps")
            }
            for group in self.optimizer.param_groups
        ]

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def _addresses(self) -> list[int]:
        """Where everything lies that the graph changes."""
        trained = self._trained()
        state = self.optimizer.state
        return [t.data_ptr() for p in trained for t in (p, *state.get(p, {}).values()) if isinstance(t, Tensor)]


def make_state(optimizer: torch.optim.Optimizer, group: Group) -> None:
    """State of one group of SGD, Adam or AdamW as torch makes it before the first update; what is there stays.

    Raises CannotCompile for another optimizer, and where torch begins otherwise than with zeros.
    """
    kind = type(optimizer).__name__
    if kind not in ("SGD", "Adam", "AdamW"):
        raise CannotCompile(f"{kind}'s update is not one that a graph can hold (SGD's, Adam's and AdamW's are)")
    for parameter in [p for p in group["params"] if p.requires_grad]:
        if kind == "SGD":
            if not group["momentum"]:
                continue
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                # torch begins with a copy of the first gradient; zeros give the same without dampening only.
                if group["dampening"]:
                    raise CannotCompile("a captured SGD begins without dampening")
                state["momentum_buffer"] = torch.zeros_like(parameter)
        elif not (state := optimizer.state[parameter]):
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)


def clip(
    grads: Sequence[Tensor | None], max_grad_norm: float | None, clip_value: float | None, norm: Tensor
) -> tuple[list[Tensor | None], Tensor]:
    """Gradients limited as `clip_grad_norm_` and then `clip_grad_value_` do, and their 2-norm before."""
    if max_grad_norm is not None:
        norm = torch.stack([g.norm() for g in grads if g is not None]).norm()
        factor = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        grads = [None if g is None else g * factor for g in grads]
    if clip_value is not None:
        grads = [None if g is None else g.clamp(-clip_value, clip_value) for g in grads]
    return list(grads), norm
