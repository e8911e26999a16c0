"""Optimizers by name, and the parameter groups that they work on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .catalogue import OPTIMIZERS

if TYPE_CHECKING:
    from .building import build_optimizer
    from .groups import missing_groups, named_groups, param_groups, trainable

__all__ = ["OPTIMIZERS", "build_optimizer", "missing_groups", "named_groups", "param_groups", "trainable"]


def __getattr__(name: str) -> Any:
    # The catalogue is listed without torch; the rest needs it.
    if name == "build_optimizer":
        from . import building as module
    elif name in __all__:
        from . import groups as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
