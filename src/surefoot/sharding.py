"""FSDP2: parameters, gradients and optimizer state in pieces over the ranks, by torch's own `fully_shard`."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import torch_compat
from .errors import UsageError
from .gradients import clip, refuse_gradients
from .reduction import Reduction
from .world import World
from .wrapping import is_spread, local, named_parameters, rows, shared_out, unwrap

# Each number of an update is made of the same number of gradient, state and parameter alone, so that an update has the
# same bits however the parameters are cut. Of all others it has them for one number of ranks.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
    torch.optim.ASGD,
    torch.optim.Rprop,
)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that are gathered one at a time, the outermost ones.

    These are the members of a ModuleList or Sequential that are made of modules themselves, where two or more are of
    one class, and share no parameter with what is outside.

    >>> layers = [nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3)]
    >>> len(blocks(nn.Sequential(*layers, nn.Linear(2, 1))))
    3
    """
    found: list[nn.Module] = []
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)

    def apart(module: nn.Module) -> bool:
        inside = Counter(id(p) for m in module.modules() for p in m._parameters.values() if p is not None)
        return bool(inside) and all(uses[key] == count for key, count in inside.items())

    def visit(module: nn.Module) -> None:
        members = list(module.children())
        kinds = Counter(type(child) for child in members if any(True for _ in child.children()))
        repeated = isinstance(module, nn.ModuleList | nn.Sequential)
        for child in members:
            if repeated and kinds[type(child)] > 1 and apart(child):
                found.append(child)
            else:
                visit(child)

    visit(model)
    return found


def shard(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put `model` under FSDP2 over all ranks of the default process group: its `blocks`, then the rest of it.

    Each rank keeps its rows of every parameter; `optimizer` gets these in the place of the whole ones, its state too.
    Raises UsageError for a model or optimizer that this cannot be done with; nothing is changed then.
    """
    from torch.distributed.fsdp import fully_shard

    inner = unwrap(model)
    _check(inner, optimizer)
    whole = [(name, parameter) for name, parameter in named_parameters(inner)]
    for part in [*blocks(inner), inner]:
        # Also the last one: after a forward pass without a backward pass, parameters are again those in pieces.
        fully_shard(part, reshard_after_forward=True)
    pieces = dict(named_parameters(inner))
    if optimizer is not None:
        new = {id(parameter): pieces[name] for name, parameter in whole}
        for group in optimizer.param_groups:
            group["params"] = [new.get(id(parameter), parameter) for parameter in group["params"]]
        for parameter in [p for p in optimizer.state if id(p) in new]:
            piece = new[id(parameter)]
            state = optimizer.state.pop(parameter)
            optimizer.state[piece] = {name: piece_of(value, piece) for name, value in state.items()}


def _check(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    names, met = {id(parameter): name for name, parameter in named_parameters(model)}, set[int]()
    for part in [*blocks(model), model]:
        trained = [p for _, p in named_parameters(part) if p.requires_grad and id(p) not in met]
        met.update(map(id, trained))
        for p in trained:
            if p.dtype != trained[0].dtype:
                raise UsageError(
                    f"parallel: fsdp2 cannot be used: {names[id(trained[0])]} is {trained[0].dtype}, {names[id(p)]} is "
                    f"{p.dtype}, and torch gathers both at once; give them one dtype, or train with parallel: ddp"
                )
    for name, parameter in named_parameters(model):
        if not parameter.dim():
            raise UsageError(
                f"parallel: fsdp2 cannot be used: {name} is a number without dimension, which torch does not keep in "
                "pieces; give it the shape (1,), or train with parallel: ddp"
            )
        if not parameter.is_contiguous():
            raise UsageError(
                f"parallel: fsdp2 cannot be used: {name} does not lie in the order of its dimensions (channels_last?); "
                "make it contiguous, or train with parallel: ddp"
            )
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise UsageError(
                f"parallel: fsdp2 cannot be used: {name} has sparse gradients; give it sparse=False, or train with "
                "parallel: ddp"
            )
    if isinstance(optimizer, torch.optim.LBFGS | torch.optim.Adafactor):
        raise UsageError(
            f"parallel: fsdp2 cannot be used: {type(optimizer).__name__} needs whole parameters; take another "
            "optimizer, or train with parallel: ddp"
        )
    if optimizer is not None and not fused_in_pieces(optimizer) and _is_fused(optimizer):
        raise UsageError(
            f"parallel: fsdp2 cannot be used: torch has no fused {type(optimizer).__name__} for parameters in pieces; "
            "leave fused out, or train with parallel: ddp"
        )


def piece_of(value: Any, like: Any) -> Any:
    """A whole tensor in pieces as `like` is, this rank's in memory of its own; another shape or value as it is."""
    if not isinstance(value, Tensor) or not is_spread(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor

    own = _own_piece(value.detach().to(like.device), like).clone(memory_format=torch.contiguous_format)
    return DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _own_piece(value: Tensor, like: Any) -> Tensor:
    (placement,) = like.placements
    part = rows(value.shape[placement.dim], like.device_mesh.get_local_rank(), like.device_mesh.size())
    return value.narrow(placement.dim, part.start, part.stop - part.start)


class ShardedReduction(Reduction):
    """Adds gradients as `Reduction` does, of a model under FSDP2: each rank gets its rows of the sum.

    Whole gradients of the last micro-batch are added to those held and sent while the backward pass goes on, one of
    FSDP2's modules at a time. Which parameters a batch reaches must be the same on all ranks, and in all updates. A
    model that is called several times a batch, or perhaps not, is made whole for the update instead, its gradients too.
    """

    def __init__(self, world: World, model: nn.Module, *, called_once: bool):
        super().__init__(world, model, called_once=False)
        self._together = called_once
        self._parts = shared_out(model)
        self._whole: dict[Tensor, Tensor] = {}
        self._modules: list[list[Tensor]] = []
        for number, part in enumerate(self._parts):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other
            part.set_custom_reduce_scatter(_TreeSum(self, number))  # type: ignore[arg-type]
            if self._in_memory():
                part.set_custom_all_gather(_InMemory(world))  # type: ignore[arg-type]
            part.unshard()
            part.reshard()
            pairs = torch_compat.fsdp_whole(part)
            self._whole |= dict(pairs)
            self._modules.append([whole for _, whole in pairs])
        # What each of FSDP2's modules reached, in the order in which they were added; None until the first update.
        self._trained: list[int] = []
        self._watched: set[Tensor] = set()
        self._order: list[tuple[int, list[int]]] | None = None
        self._so_far: list[tuple[int, list[int]]] = []
        self._last = False

    def begin(self) -> None:
        super().begin()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if list(map(id, trained)) != self._trained:
            self._order = None  # others are trained from now on
            self._watch()
        self._trained = list(map(id, trained))
        self._so_far, self._last = [], False
        for part in self._parts:
            part.set_requires_gradient_sync(False, recurse=False)
            part.set_reshard_after_backward(self._together, recurse=False)
            if not self._together:
                part.unshard()

    @contextlib.contextmanager
    def forgotten(self) -> Iterator[None]:
        """Within it the model may be called and go backward, and meets no other rank; no gradient is kept."""
        with contextlib.ExitStack() as stack:
            for part in self._parts:
                part.set_requires_gradient_sync(False, recurse=False)
                part.set_reshard_after_backward(False, recurse=False)
                stack.callback(part.reshard)
                part.unshard()
                stack.enter_context(torch_compat.kept_whole(part))
            try:
                yield
            finally:
                for whole in self._whole.values():
                    whole.grad = None

    def _watch(self) -> None:
        for piece, whole in self._whole.items():
            whole.requires_grad_(piece.requires_grad)
            if piece.requires_grad and whole not in self._watched:
                self._watched.add(whole)
                whole.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]

    def called(self, *, last: bool) -> nn.Module:
        self._last = last and self._together
        if self._last:
            for part in self._parts:
                part.set_requires_gradient_sync(True, recurse=False)
        return self.model

    def hold(self, parameters: Sequence[Tensor], ends: bool) -> None:
        super().hold([self._whole.get(p, p) for p in parameters], ends)

    def finish(self, parameters: Sequence[Tensor]) -> None:
        if not self._together:
            self._finish_whole(parameters)
            return
        self.before_adding(None)
        self._order = self._so_far
        self.add_held([p for p in parameters if p not in self._whole])

    def _finish_whole(self, parameters: Sequence[Tensor]) -> None:
        self.add_held([self._whole.get(p, p) for p in parameters])
        for part in self._parts:
            part.reshard()
        for piece, whole in self._whole.items():
            if whole.grad is not None:
                piece.grad, whole.grad = piece_of(whole.grad, piece), None

    def _arrived(self, whole: Tensor) -> None:
        """A whole gradient of the last micro-batch is there: those held are added to it."""
        if not self._last:
            return
        self._done.add(whole)
        for _, held in reversed(self._stack):
            if (part := held.get(whole)) is not None:
                assert whole.grad is not None
                whole.grad.add_(part)

    def before_adding(self, number: int | None) -> None:
        """Raise UsageError unless all ranks are about to add the same gradients (None: no more of them)."""
        held = {p for _, sums in self._stack for p in sums}
        lacking: list[int] = []
        if number is not None:
            module = self._modules[number]
            lacking = [i for i, p in enumerate(module) if p.requires_grad and p not in self._done]
        mine = (-1 if number is None else number, lacking)
        place = len(self._so_far)
        self._so_far.append(mine)
        if self._order is None:
            agreed = all(tuple(other) == (mine[0], mine[1]) for other in self._world.gather(mine))
        else:
            agreed = place < len(self._order) and self._order[place] == mine
        if number is None:
            lost = bool(held.intersection(self._whole.values()) - self._done)
        else:
            lost = any(module[i] in held for i in lacking)
        if agreed and not lost:
            return
        names = {self._whole[p]: name for name, p in self._named()}
        first = next((names[p] for p in self._whole.values() if p.requires_grad and p not in self._done), None)
        which = "other parameters than on other ranks, or in earlier updates" if first is None else f"no {first}"
        raise UsageError(
            f"this batch reaches {which} on rank {self._world.rank}, and FSDP2 adds the gradients of all ranks in one "
            "order; a model that leaves parts out by its data trains with parallel: ddp"
        )

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, p) for name, p in named_parameters(self.model) if p in self._whole)

    def sum_into(self, output: Tensor, gradients: Tensor) -> None:
        """This rank's part of the sum of all ranks' `gradients`."""
        if self._poisoned:
            gradients.fill_(torch.nan)
        output.copy_(self._world.sum_of_parts(gradients))


class _TreeSum:
    """What FSDP2 calls in the place of its own reduce-scatter, which adds in an order of the backend's."""

    def __init__(self, reduction: ShardedReduction, number: int):
        self._reduction, self._number = reduction, number

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        self._reduction.before_adding(self._number)
        self._reduction.sum_into(output_tensor, input_tensor)


class _InMemory:
    """What FSDP2 calls in the place of its own all-gather, where the ranks share memory."""

    def __init__(self, world: World):
        self._world = world

    allocate = _TreeSum.allocate

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> None:
        self._world.gather_into(output_tensor, input_tensor)


def limit_pieces(
    world: World,
    model: nn.Module,
    parameters: Sequence[Tensor],
    max_grad_norm: float | None,
    clip_value: float | None,
    looks: bool,
) -> Tensor | None:
    """As `gradients.limit_gradients`, of gradients in pieces; the norm has the bits of the whole ones'."""
    grads = [grad for p in parameters if (grad := p.grad) is not None]
    norm, finite = None, True
    if max_grad_norm is not None:
        norm = _total_norm(world, grads)
        finite = not looks or bool(norm.isfinite())
    elif looks:
        finite = not world.sum(torch.tensor(float(not torch_compat.all_finite(list(map(local, grads)))), device="cpu"))
    if not finite:
        refuse_gradients(model, parameters, world)
    clip(parameters, norm, max_grad_norm, clip_value)
    return norm


def _total_norm(world: World, grads: Sequence[Any]) -> Tensor:
    """The 2-norm over gradients, each of which one rank puts together, and measures as it would be measured whole."""
    if not grads:
        return nn.utils.get_total_norm([])
    norms = local(grads[0]).new_zeros(len(grads))
    by_rows = [i for i, grad in enumerate(grads) if is_spread(grad) and grad.placements[0].is_shard(0)]
    owned = [by_rows[rank :: world.size] for rank in range(world.size)]
    for dtype in dict.fromkeys(grad.dtype for grad in grads):
        places = [[i for i in of_rank if grads[i].dtype == dtype] for of_rank in owned]
        send = [[local(grads[i]).reshape(-1) for i in of_rank] for of_rank in places]
        mine = [grads[i] for i in places[world.rank]]
        sizes = [[_numbers(grad, rank, world.size) for grad in mine] for rank in range(world.size)]
        flat = torch.cat([norms.new_empty(0, dtype=dtype), *(piece for pieces in send for piece in pieces)])
        got = world.exchanged(flat, [sum(map(Tensor.numel, pieces)) for pieces in send], list(map(sum, sizes)))
        found = torch.split(got, [size for of_rank in sizes for size in of_rank])
        for k, (place, grad) in enumerate(zip(places[world.rank], mine, strict=True)):
            norms[place] = nn.utils.get_total_norm([torch.cat(found[k :: len(mine)]).view(grad.shape)])
    norms = world.sum(norms)
    for i in set(range(len(grads))) - set(by_rows):
        grad = grads[i]
        norms[i] = nn.utils.get_total_norm([grad.full_tensor() if is_spread(grad) else grad])
    total: Tensor = torch.linalg.vector_norm(norms)
    return total


def _numbers(grad: Tensor, rank: int, size: int) -> int:
    part = rows(grad.shape[0], rank, size)
    return int((part.stop - part.start) * math.prod(grad.shape[1:]))


def alike_anywhere(optimizer: torch.optim.Optimizer, fused: bool = False) -> bool:
    """Whether updates of parameters in pieces have the same bits however many pieces there are.

    Fused kernels round the last numbers of a tensor in another way than the others.
    """
    return type(optimizer) in ELEMENTWISE and not fused and not _is_fused(optimizer)


def fused_in_pieces(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch's fused kernel of this optimizer, should it have one, takes parameters in pieces."""
    return not isinstance(optimizer, torch.optim.SGD | torch.optim.Adagrad)


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") for group in optimizer.param_groups)
