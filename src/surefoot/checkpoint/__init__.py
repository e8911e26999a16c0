"""Checkpoints: taken between two steps, durable, verified, never pickled; and the run directory around them."""

from __future__ import annotations

from .checkpointer import Checkpointer, Restored
from .conditions import Change, ConditionsChanged, compare, environment, flatten, require_same
from .description import describe
from .policy import Every, Keep
from .run import RunDirectory, read_about, refuse_links, scan
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
    "read_about",
    "refuse_links",
    "require_same",
    "scan",
]
