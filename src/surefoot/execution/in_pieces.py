"""Which execution settings a model under FSDP2 can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import UsageError
from ..sharding import fused_in_pieces
from .choose import asked_for
from .settings import Execution


def asked_in_pieces(spec: Mapping[str, Any] | str | None, optimizer: torch.optim.Optimizer) -> Any:
    """What a recipe's `execution` fixes, and what is fixed for a model in pieces.

    It is compiled only where that is asked for, and then as a module. Fused kernels of an optimizer, which make other
    bits of other pieces, are taken only where they are asked for. Raises UsageError for what cannot be.
    """
    fixed = asked_for(spec)
    if fixed.get("plain"):
        return spec
    if fixed.get("compile") is True:
        fixed["compile"] = "module"
    given = {"memory_format": "contiguous", "compile": "none", "optimizer_impl": "default", **fixed}
    if reason := _why_not(given, optimizer):
        raise UsageError(f"execution: {reason}; leave it out, or train with parallel: ddp")
    return given


def require_in_pieces(execution: Execution, optimizer: torch.optim.Optimizer) -> None:
    """Raise UsageError for the recorded settings of a run that goes on, where a model in pieces cannot have them."""
    if reason := _why_not(execution.to_json(), optimizer):
        raise UsageError(
            f"parallel: fsdp2: this run was begun with {execution.describe()}, and {reason}; go on with parallel: ddp",
            code="resume-state",
        )


def _why_not(settings: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> str | None:
    if settings["memory_format"] == "channels_last":
        return "memory_format: parameters in pieces do not lie in channels_last"
    if settings["compile"] == "gradients":
        return "compile: gradients of a model in pieces are not one graph (module compiles its blocks)"
    if settings["optimizer_impl"] == "fused" and not fused_in_pieces(optimizer):
        return f"optimizer_impl: torch has no fused {type(optimizer).__name__} for parameters in pieces"
    return None
