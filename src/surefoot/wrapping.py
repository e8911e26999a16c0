"""What wraps a module without being part of it: torch.compile, DataParallel, DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


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
    return next((type(part).__name__ for part in module.modules() if isinstance(part, kinds)), None)


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
