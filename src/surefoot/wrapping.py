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


def tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer by plain name, a tied one under each of its names, non-persistent ones too."""
    for prefix, child in submodules(module):
        lead = f"{prefix}." if prefix else ""
        for table in (child._parameters, child._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield lead + name, tensor
