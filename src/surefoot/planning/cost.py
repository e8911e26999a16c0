"""What a run needs: memory, by tracing one batch, and time, by timing a few steps; nothing live is changed."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .. import batches
from ..checkpoint.codec import SPARSE
from ..untouched import is_lazy, untouched

# State per parameter of the optimizers that cannot be tried on tensors without storage.
_STATE_FACTOR = {"SparseAdam": 2.0, "Adafactor": 1.0}


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs at its peak: of `parameters`, `buffers`, `gradients`, `optimizer` and `batch`;
    `activations` is None where not measured."""

    parameters: int
    buffers: int
    gradients: int
    optimizer: int
    activations: int | None
    batch: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        parts = (self.parameters, self.buffers, self.gradients, self.optimizer, self.activations or 0, self.batch)
        return sum(parts)

    def plain(self) -> dict[str, int | None]:
        """For JSON."""
        return {**asdict(self), "total": self.total}


def memory_of(
    model: nn.Module,
    optimizer: Optimizer,
    batch: tuple[Any, ...] | None = None,
    apply: Callable[[nn.Module, tuple[Any, ...]], torch.Tensor] | None = None,
) -> Memory:
    """The memory of one training step of `model` under `optimizer`.

    Activations are what autograd keeps of one forward pass over `batch` (saved tensors, each storage once), with
    ``apply(model, batch)`` giving the loss. That pass leaves no trace.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    kept = None
    if batch is not None and apply is not None:
        kept = activation_bytes(model, batch, apply)
    return Memory(
        parameters=_bytes(model.parameters()),
        buffers=_bytes(model.buffers()),
        gradients=_bytes(learning),
        optimizer=state_bytes(optimizer),
        activations=kept,
        batch=_bytes(batches.tensors(batch)),
    )


def activation_bytes(
    model: nn.Module, batch: tuple[Any, ...], apply: Callable[[nn.Module, tuple[Any, ...]], torch.Tensor]
) -> int:
    """Bytes that autograd keeps for the backward pass, without parameters, buffers and the batch itself."""
    held = (*model.parameters(), *model.buffers(), *batches.tensors(batch))
    before = {part.untyped_storage().data_ptr() for tensor in held for part in _parts(tensor)}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        for storage in (part.untyped_storage() for part in _parts(tensor)):
            if storage.data_ptr() not in before:
                kept[storage.data_ptr()] = storage.nbytes()
                alive.append(storage)  # so that an address is not given away twice
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with untouched(model, apply), torch.enable_grad(), hooks:
        model.train()
        loss = apply(model, batch)
        del loss
    return sum(kept.values())


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state after its first step, found by a step on tensors without storage."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    kind = type(optimizer)
    if isinstance(optimizer, torch.optim.LBFGS):
        # Two vectors for each step remembered, and three of its own.
        return (2 * int(optimizer.param_groups[0]["history_size"]) + 3) * _bytes(held)
    if kind.__name__ in _STATE_FACTOR:
        return int(_STATE_FACTOR[kind.__name__] * _bytes(held))
    groups = []
    for group in optimizer.param_groups:
        hollow = {k: copy.copy(v) for k, v in group.items() if k not in ("params", "param_names")}
        hollow |= {k: False for k in ("foreach", "fused", "capturable") if k in hollow}
        hollow |= {"lr": float(hollow["lr"])} if "lr" in hollow else {}
        hollow["params"] = [nn.Parameter(torch.empty_like(p, device="meta")) for p in group["params"]]
        groups.append(hollow)
    twin = copy.copy(optimizer)
    Optimizer.__init__(twin, groups, dict(optimizer.defaults))
    twin.step = kind.step.__get__(twin)  # type: ignore[method-assign]
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    for parameter, hollow in zip(held, (p for group in twin.param_groups for p in group["params"]), strict=True):
        # What the constructor has made, as torch 2.10's Adagrad does.
        twin.state[hollow] = {
            key: torch.empty_like(value, device="meta") if torch.is_tensor(value) else copy.copy(value)
            for key, value in optimizer.state.get(parameter, {}).items()
        }
    # A copy of an optimizer has torch's attributes only. Objects stay behind: a wrapper would move what it wraps.
    vars(twin).update({k: v for k, v in vars(optimizer).items() if isinstance(v, int | float | str | None)})
    # Most make their state before they read a tensor; what is there when one cannot be read, or is missing in a class
    # of one's own, is the state.
    with contextlib.suppress(Exception):
        twin.step()
    if any(twin.state.values()):
        return _bytes(
            value
            for state in twin.state.values()
            if isinstance(state, dict)
            for value in state.values()
            if torch.is_tensor(value)
        )
    return 0 if kind is torch.optim.SGD else 2 * _bytes(held)  # one of one's own; two moments are usual


def seconds_a_step(step: Callable[[], Any]) -> float:
    """The median time of one call of `step`, in seconds, after two calls to warm up, within about a second.

    `step` must work on a copy of what will be trained.
    """
    begin = time.perf_counter()
    for _ in range(2):
        step()
    times: list[float] = []
    while len(times) < 3 or (len(times) < 50 and time.perf_counter() - begin < 1.0):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(part.numel() * part.element_size() for tensor in tensors for part in _parts(tensor))


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What has a tensor's memory: of a sparse one its indices and values; nothing of one that has none yet."""
    if is_lazy(tensor):
        return []
    if tensor.layout is torch.strided:
        return [tensor]
    return [getattr(tensor.detach(), name)() for name in SPARSE.get(tensor.layout, ())]
