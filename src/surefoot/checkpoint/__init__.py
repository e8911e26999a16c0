"""Checkpoints: taken between two steps, durable, verified, never pickled; and the run directory around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .checkpointer import Checkpointer, Restored
    from .conditions import Change, ConditionsChanged, compare, environment, flatten, require_same
    from .description import describe, run_conditions
    from .policy import Every, Keep
    from .run import RunDirectory, holder, read_about, refuse_links, scan
    from .store import CheckpointStatus
    from .user_code import code_of

__all__ = [
    "Change",
    "CheckpointStatus",
    "Checkpointer",
    "ConditionsChanged",
    "Every",
    "Keep",
    "Restored",
    "RunDirectory",
    "code_of",
    "compare",
    "describe",
    "environment",
    "flatten",
    "holder",
    "read_about",
    "refuse_links",
    "require_same",
    "run_conditions",
    "scan",
]

# Runs are listed without torch.
__getattr__ = lazily(
    __name__,
    {
        "checkpointer": "Checkpointer Restored",
        "conditions": "Change ConditionsChanged compare environment flatten require_same",
        "description": "describe run_conditions",
        "policy": "Every Keep",
        "run": "RunDirectory holder read_about refuse_links scan",
        "store": "CheckpointStatus",
        "user_code": "code_of",
    },
)
