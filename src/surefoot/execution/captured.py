"""A whole step captured once on a GPU and replayed: no Python and no launches between its kernels.

Everything that a replay reads lies where it lay at the capture: inputs are copied in, the learning rate is a tensor.
Where the capture itself happens is one small class, so that the rest runs (and is tested) without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..losses import averaging, calling
from ..untouched import Snapshot, untouched
from .direct import after_step, before_step, plain_step
from .eager import EagerUpdate, MicroBatches
from .parity import AUTOCAST, Gradients
from .rules import clip, rules_for
from .whole_step import CannotCompile, fits, signature, target_place, why_hooks

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


class CapturedUpdate:
    """One update by a replayed graph; what the graph is not for goes to `eager`.

    Making it leaves parameters, buffers, optimizer state and random numbers as they were. The optimizer is SGD,
    Adam or AdamW with its fused kernels; of its numbers only the learning rate may change later: another change
    (momentum, betas, weight decay) gives the rest of the run to `eager`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        example: Sequence[Tensor],
        eager: EagerUpdate,
        *,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
        precision: str = "float32",
        graphs: Graphs | None = None,
    ):
        if reason := why_hooks(model):
            raise CannotCompile(reason)
        if not plain_step(optimizer) or not all(group.get("fused") for group in optimizer.param_groups):
            raise CannotCompile(f"{type(optimizer).__name__} has no fused update that could be captured")
        self.model, self.loss, self.optimizer, self.eager = model, loss, optimizer, eager
        self.limits = max_grad_norm, clip_value
        self.precision = precision
        self.parameters = self._trained()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.target_place = target_place(loss)
        self.signature = signature(example)
        self.inputs = [part.clone() for part in example]
        try:
            rules_for(optimizer, self.parameters)  # makes the state that the graph will change in place
        except ValueError as error:
            raise CannotCompile(str(error)) from error
        device = self.parameters[0].device
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._lrs: list[float | None] = [None] * len(self.rates)
        self._fixed = self._numbers()
        self._places = [[p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups]
        self.retired = False
        self._output_spec: Any = None
        before = Snapshot(model, loss, optimizer)
        try:
            self._rates()
            self._warm_up()
            self.replay, self.filled = (graphs or CudaGraphs()).capture(self._work)
        finally:
            changed = before.put_back()
        if changed is not None:
            raise CannotCompile(f"{changed}, which a graph would not")

    def __call__(self, micro_batches: MicroBatches) -> Any:
        if self.retired or len(micro_batches) != 1 or not self.model.training:
            return self.eager(micro_batches)
        batch = micro_batches[0]
        if not fits(batch, self.signature):
            return self.eager(micro_batches)
        if self._numbers() != self._fixed or list(map(id, self._trained())) != list(map(id, self.parameters)):
            self.retired = True
            return self.eager(micro_batches)
        arguments = before_step(self.optimizer, ((self.optimizer,), {}))
        self._rates()
        self._feed(batch)
        self.replay()
        loss, norm, outputs = self._found()
        nonfinite = self.eager.nonfinite
        if nonfinite is not None and not math.isfinite(number := loss.item()):
            raise nonfinite(number, 0)  # the fused update left everything alone
        after_step(self.optimizer, arguments)
        limited = self.limits[0] is not None
        targets = None if self.target_place is None else batch[self.target_place]
        return self.eager.result(loss, outputs, targets, averaging.batch_size(batch), norm if limited else None, True)

    def gradients(self, batch: Sequence[Tensor]) -> Gradients:
        """Loss and gradients of one batch as the graph has them; nothing else is changed."""
        with untouched(self.model, self.loss, self.optimizer):
            self._feed(batch)
            self.replay()
            grads = zip(self.parameters, self.filled[2 : 2 + len(self.parameters)], strict=True)
            named = {self.names[id(p)]: grad.clone() for p, grad in grads if id(p) in self.names}
            return Gradients(self.filled[0].clone(), named)

    def _work(self) -> list[Tensor]:
        """The step on the tensors that stay where they are: loss, norm, gradients, outputs."""
        dtype = AUTOCAST.get(self.precision)
        device = self.parameters[0].device.type
        with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            value = calling.apply(self.loss, self.model, tuple(self.inputs))
            grads = list(torch.autograd.grad(value.loss, self.parameters))
        with torch.no_grad():
            norm = torch.zeros((), device=grads[0].device)
            limited = grads
            if any(limit is not None for limit in self.limits):
                limited, norm = clip(grads, *self.limits, norm)
            unsound = (~torch.isfinite(value.loss)).float() if self.eager.nonfinite is not None else None
            self._update(dict(zip(map(id, self.parameters), limited, strict=True)), unsound)
        outputs, self._output_spec = pytree.tree_flatten(value.outputs)
        return [value.loss.detach(), norm, *grads, *(output.detach() for output in outputs)]

    def _update(self, grads: dict[int, Tensor], unsound: Tensor | None) -> None:
        """torch's fused kernels, with the rate as a tensor; `unsound` (1.0) makes them do nothing."""
        state = self.optimizer.state
        for group, rate, params in zip(self.optimizer.param_groups, self.rates, self._places, strict=True):
            if not params:
                continue
            own = [grads[id(p)] for p in params]
            common = {"lr": rate, "weight_decay": group["weight_decay"], "maximize": group["maximize"]}
            if type(self.optimizer).__name__ == "SGD":
                torch._fused_sgd_(
                    params,
                    own,
                    [state[p]["momentum_buffer"] for p in params] if group["momentum"] else [],
                    momentum=group["momentum"],
                    dampening=group["dampening"],
                    nesterov=group["nesterov"],
                    is_first_step=False,
                    found_inf=unsound,
                    **common,
                )
                continue
            steps = [state[p]["step"] for p in params]
            torch._foreach_add_(steps, 1)
            kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            beta1, beta2 = group["betas"]
            kernel(
                params,
                own,
                [state[p]["exp_avg"] for p in params],
                [state[p]["exp_avg_sq"] for p in params],
                [],
                steps,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                found_inf=unsound,
                **common,
            )
            if unsound is not None:
                torch._foreach_sub_(steps, [unsound] * len(steps))

    def _warm_up(self) -> None:
        if self.parameters[0].device.type != "cuda":
            return
        stream = torch.cuda.Stream()
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
        first = 2 + len(self.parameters)
        outputs = [output.clone() for output in self.filled[first:]]
        return self.filled[0].clone(), self.filled[1].clone(), pytree.tree_unflatten(outputs, self._output_spec)

    def _numbers(self) -> list[dict]:
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
