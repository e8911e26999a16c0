"""The gradients of one update's micro-batches, added as one balanced tree, whichever of them this process has."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import UsageError
from .torch_compat import as_ddp
from .untouched import Buffers
from .world import World
from .wrapping import named_parameters, wrapped

Sums = dict[Tensor, Tensor]

# Above every level within a batch's micro-batches.
_BATCH = 1000


class Reduction:
    """Adds gradients of micro-batches: in pairs of neighbours within this rank, then over all ranks.

    Of several batches that make one update, first those of the same rows. Where each rank has 1, 2, 4, 8 ...
    micro-batches of a batch, the sums have the same bits on any number of ranks, one included.

    Over ranks that share memory they are added there, after the last backward pass. Elsewhere DistributedDataParallel
    adds them while that pass still goes on, once an update has reached every parameter; until then, and for what DDP
    does not know (a loss's own parameters, models that are not called as one), after it. A model given as
    DistributedDataParallel stays the one that is called, unless it has a hook of its own, or was made with
    `find_unused_parameters`.
    """

    def __init__(self, world: World, model: nn.Module, *, called_once: bool):
        self._world, self._given = world, model
        self._own_ddp = _ddp_in(model)
        self.model: nn.Module = model if self._own_ddp is None else self._own_ddp.module
        self._parameters: list[Tensor] = list(self.model.parameters())
        unused = getattr(self._own_ddp, "find_unused_parameters", False)
        self._by_ddp = world.size > 1 and called_once and not unused and not self._in_memory()
        self._ddp: nn.Module | None = None
        self._wrapped: list[Tensor] = []
        self._reached = False
        self._stack: list[tuple[int, Sums]] = []
        self._done: set[Tensor] = set()
        self._poisoned = False
        self._in_place = False
        self._under_way: list[dist.Work] = []

    def _in_memory(self) -> bool:
        """Whether ranks that share memory add there what DDP would send, and sooner."""
        on_cpu = all(p.device.type == "cpu" for p in self._parameters)
        return self._own_ddp is None and on_cpu and self._world.shares_memory

    def begin(self) -> None:
        """Before the first micro-batch of an update."""
        self._stack.clear()
        self._done.clear()
        self._under_way.clear()
        self._poisoned = False
        trained = [p for p in self._parameters if p.requires_grad]
        if self._wrapped and (len(trained) != len(self._wrapped) or any(map(_differ, trained, self._wrapped))):
            self._unwrap()  # others are trained from now on
        if self._by_ddp and self._reached and not self._wrapped:
            self._ddp, self._wrapped = self._as_ddp(), trained

    def called(self, *, last: bool) -> nn.Module:
        """What the next micro-batch is given to, which may be the last of the update."""
        return self._ddp if last and self._ddp is not None else self.model

    def poison(self) -> None:
        """Make the sum NaN on every rank: a loss of this rank is not finite, and all must know."""
        self._poisoned = True

    def hold(self, parameters: Sequence[Tensor], ends: bool) -> None:
        """Take the gradients of a micro-batch; `ends` says that it is the last one of the same rows."""
        sums, level = {p: p.grad for p in parameters if p.grad is not None}, 0
        for parameter in sums:
            parameter.grad = None
        stack = self._stack
        while stack and stack[-1][0] == level:
            sums, level = _added(stack.pop()[1], sums), level + 1
        if ends:
            while stack and stack[-1][0] < _BATCH:
                sums = _added(stack.pop()[1], sums)
            level = _BATCH
            while stack and stack[-1][0] == level:
                sums, level = _added(stack.pop()[1], sums), level + 1
        stack.append((level, sums))

    def finish(self, parameters: Sequence[Tensor]) -> None:
        """After the last backward pass: its gradients, those held and those of all ranks become one sum."""
        missing = [p for p in self._wrapped if p not in self._done]
        if missing:
            left_out = next((p for p in missing if p.grad is None), missing[0])
            name = next(name for name, p in named_parameters(self.model) if p is left_out)
            raise UsageError(
                f"this batch gave {name} no gradient on rank {self._world.rank}, though earlier ones did; where a "
                "forward pass leaves parameters out, give the model as DistributedDataParallel(model, "
                "find_unused_parameters=True)"
            )
        self._world.wait(self._under_way)
        self.add_held([p for p in parameters if p not in self._done])

    def add_held(self, rest: Sequence[Tensor]) -> None:
        """Add to the gradients of these parameters those held, and those of all ranks."""
        for parameter in rest:
            grad = parameter.grad
            for _, held in reversed(self._stack):
                if (part := held.get(parameter)) is not None:
                    grad = part if grad is None else grad.add_(part)
            parameter.grad = grad
        self._stack.clear()
        if self._world.size > 1 and rest:
            self._over_ranks(rest)
        self._reached = all(p.grad is not None for p in self._parameters if p.requires_grad)

    def _over_ranks(self, parameters: Sequence[Tensor]) -> None:
        """Add the gradients of all ranks; what none of them has stays None."""
        for same in _by_dtype(parameters):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in same]
            if self._poisoned:
                grads = [torch.full_like(grad, math.nan) for grad in grads]
            has = grads[0].new_tensor([p.grad is not None for p in same])
            flat = self._world.sum(torch.cat([has, *[grad.reshape(-1) for grad in grads]]))
            anywhere, *parts = torch.split(flat, [len(same), *[grad.numel() for grad in grads]])
            for parameter, ranks, part in zip(same, anywhere.tolist(), parts, strict=True):
                if not ranks:
                    parameter.grad = None
                elif parameter.is_contiguous():
                    parameter.grad = part.view(parameter.shape)
                else:
                    parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))

    def _as_ddp(self) -> nn.Module:
        called, ddp = self._given, self._own_ddp
        self._own_ddp = None  # it is one for the parameters of now
        if ddp is None:
            called = ddp = as_ddp(self.model, self._world.group)
        hook: Any = lambda _, bucket: self._of_bucket(bucket)  # noqa: E731 (torch refuses annotations that are text)
        self._in_place = ddp.gradient_as_bucket_view
        try:
            ddp.register_comm_hook(None, hook)
        except RuntimeError:  # it has another, as from `World.wrap`
            called = ddp = as_ddp(self.model, self._world.group)
            self._in_place = True
            ddp.register_comm_hook(None, hook)
        return called

    def _of_bucket(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """DDP's hook: the last micro-batch's gradients in, the sum over all micro-batches out."""
        if self._poisoned:
            bucket.buffer().fill_(math.nan)
        parameters = bucket.parameters()
        for _, held in reversed(self._stack):
            for parameter, grad in zip(parameters, bucket.gradients(), strict=True):
                if (part := held.get(parameter)) is not None:
                    grad.add_(part)
        self._done.update(parameters)
        if self._world.size == 2:  # a + b = b + a; while it goes on, the backward pass does
            work = dist.all_reduce(bucket.buffer(), group=self._world.group, async_op=True)
            assert work is not None
            if self._in_place:  # gradients are views of the buffer: there is nothing for DDP to wait for, or to copy
                self._under_way.append(work)
                done: torch.futures.Future[Tensor] = torch.futures.Future()
                done.set_result(bucket.buffer())
                return done
            reduced: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
            return reduced
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(self._world.sum(bucket.buffer()))
        return future

    def _unwrap(self) -> None:
        self._ddp, self._wrapped, self._reached = None, [], False
        gc.collect()  # its hooks on the parameters go with it


class FirstBuffers:
    """The buffers of modules (running statistics), kept as the first of a batch's micro-batches leaves them.

    Each begins with those of the update's start, as it does where it is the only one of its rank.
    """

    def __init__(self, *modules: nn.Module):
        self._begun, self._first = Buffers(*modules), Buffers(*modules)
        self._begun.note(always=True)
        self._kept = False

    def next_rows(self) -> None:
        """Before other rows of the batches go through the model, and after the last."""
        if not self._kept:
            self._first.note(always=True)
            self._kept = True
        self._begun.put_back()

    def finish(self) -> None:
        """After the last."""
        if self._kept:
            self._first.put_back()


def take_from_first(world: World, tensors: Iterable[Tensor]) -> None:
    """Give all ranks rank 0's values of these tensors. Raises UsageError for sparse ones."""
    if world.size == 1:
        return
    with torch.no_grad():
        for same in _by_dtype(map(_each_place_once, tensors)):
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            world.take_from_first(flat)
            for tensor, part in zip(same, torch.split(flat, [tensor.numel() for tensor in same]), strict=True):
                tensor.copy_(part.view(tensor.shape))


def _each_place_once(tensor: Tensor) -> Tensor:
    """The same memory without the dimensions that were only expanded: such a tensor cannot be written to."""
    if tensor.layout is not torch.strided:
        raise UsageError(
            f"model: its sparse buffer of shape {tuple(tensor.shape)} cannot be shared by several processes; register "
            "it dense, or its indices and values as two buffers"
        )
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _ddp_in(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """The DistributedDataParallel that a model was given as, perhaps compiled."""
    while not isinstance(model, nn.parallel.DistributedDataParallel):
        if (name := wrapped(model)) is None:
            return None
        model = getattr(model, name)
    return model


def _differ(one: Tensor, other: Tensor) -> bool:
    return one is not other


def _added(first: Sums, second: Sums) -> Sums:
    for parameter, grad in second.items():
        first[parameter] = first[parameter].add_(grad) if parameter in first else grad
    return first


def _by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())
