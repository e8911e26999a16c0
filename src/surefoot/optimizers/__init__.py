"""Optimizers by name, and the parameter groups that they work on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily
from .registry import OPTIMIZERS

if TYPE_CHECKING:
    from .building import build_optimizer
    from .groups import missing_groups, named_groups, param_groups, trainable

__all__ = ["OPTIMIZERS", "build_optimizer", "missing_groups", "named_groups", "param_groups", "trainable"]

# The registry is listed without torch; the rest needs it.
__getattr__ = lazily(
    __name__, {"building": "build_optimizer", "groups": "missing_groups named_groups param_groups trainable"}
)
