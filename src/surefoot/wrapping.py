"""What wraps a module without being part of it: torch.compile, DataParallel, DistributedDataParallel, FSDP2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.fsdp import FSDPModule


def wrapped(module: nn.Module) -> str | None:
    """The attribute under which a wrapper holds the module that it wraps, or None for a module of its own."""
    from torch import nn

    for name in ("_orig_mod", "_checkpoint_wrapped_module"):
        if isinstance(getattr(module, name, None), nn.Module):
            return name
    return "module" if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) else None


def unwrap(module: nn.Module) -> nn.Module:
    """The module that the user wrote.

    >>> from torch import nn
    >>> layer = nn.Linear(2, 2)
    >>> unwrap(nn.DataParallel(layer)) is layer
    True
    """
    while (name := wrapped(module)) is not None:
        module = getattr(module, name)
    return module


def replicating(module: nn.Module) -> str | None:
    """The class of what shares a step between processes or devices, anywhere in `module`, or None.

    >>> from torch import nn
    >>> replicating(nn.Sequential(nn.DataParallel(nn.Linear(1, 1))))
    'DataParallel'
    """
    from torch import nn
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel, FSDPModule, FullyShardedDataParallel)
    found = next((part for part in module.modules() if isinstance(part, kinds)), None)
    if found is None:
        return None
    return "model under FSDP2" if isinstance(found, FSDPModule) else type(found).__name__


def shared_out(module: nn.Module) -> list[FSDPModule]:
    """The parts of `module` that FSDP2 (`fully_shard`) keeps in pieces, one on each rank; the whole of it first."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def is_spread(tensor: Any) -> bool:
    """Whether each rank has a piece of this tensor (torch's DTensor)."""
    return hasattr(tensor, "to_local")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's piece of a tensor that is spread over ranks (a DTensor), in the same memory; any other as it is."""
    to_local = getattr(tensor.detach(), "to_local", None)
    piece: torch.Tensor = tensor if to_local is None else to_local()
    return piece


def rows(total: int, rank: int, size: int) -> slice:
    """Which of `total` rows of a parameter are a rank's, as torch cuts them: all as many, the last ones fewer or none.

    >>> [rows(5, rank, 4) for rank in range(4)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None), slice(5, 5, None)]
    """
    each = -(-total // size)
    return slice(min(rank * each, total), min((rank + 1) * each, total))


@contextlib.contextmanager
def own_classes(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it modules under FSDP2 have the class that the user wrote; torch gives them one of its own."""
    parts = {part: type(part) for module in modules for part in shared_out(module)}
    for part, kind in parts.items():
        part.__class__ = kind.__mro__[2]
    try:
        yield
    finally:
        for part, kind in parts.items():
            part.__class__ = kind


@contextlib.contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Within it `module` is whole on every rank, as if it had never been under FSDP2; for calls and for saving.

    All ranks enter and leave it together; within it none of them waits for another.
    """
    from . import torch_compat

    parts = shared_out(module)
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.callback(part.reshard)
            part.unshard()
            stack.enter_context(torch_compat.kept_whole(part))
        stack.enter_context(own_classes([module]))
        yield


def class_path(module: nn.Module) -> str:
    """``module:Name`` of the class that the user wrote, also where torch.jit made a program of it.

    >>> from torch import nn
    >>> class_path(nn.Linear(1, 1))
    'torch.nn.modules.linear:Linear'
    """
    from torch import jit

    from .torch_compat import scripted_class

    path = scripted_class(module) if isinstance(module, jit.ScriptModule) else None
    return path or f"{type(module).__module__}:{type(module).__qualname__}"


def submodules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every submodule as often as it has a name, by the name that it has without the wrappers.

    >>> from torch import nn
    >>> [name for name, _ in submodules(nn.Sequential(nn.DataParallel(nn.Linear(1, 1))))]
    ['', '0']
    """
    module = unwrap(module)
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from submodules(child, f"{prefix}.{name}" if prefix else name)


def named_parameters(module: nn.Module, *, every: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """As the module's own, by the names that they have without the wrappers; with `every`, each tied name too.

    >>> from torch import nn
    >>> [name for name, _ in named_parameters(nn.DataParallel(nn.Linear(1, 1)))]
    ['weight', 'bias']
    """
    done = set()
    for prefix, child in submodules(module):
        for name, parameter in child._parameters.items():
            if parameter is not None and (every or id(parameter) not in done):
                done.add(id(parameter))
                yield (f"{prefix}.{name}" if prefix else name), parameter


def tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer by plain name, a tied one under each of its names, non-persistent ones too."""
    for prefix, child in submodules(module):
        lead = f"{prefix}." if prefix else ""
        for table in (child._parameters, child._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield lead + name, tensor
