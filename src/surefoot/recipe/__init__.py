"""The recipe: one YAML file to a frozen, typed value, every mistake told with file, line and column."""

from __future__ import annotations

from .check import all_registries
from .elsewhere import key_called
from .frozen import Frozen, freeze, thaw
from .load import load_recipe, packaged_names, packaged_summary
from .model import (
    CheckpointSection,
    DataSection,
    EarlyStoppingSection,
    Ema,
    ExecutionSection,
    Group,
    LossTerm,
    Normalize,
    OptimizerSection,
    Recipe,
    SchedulerSection,
    Unfreeze,
    WarmupSection,
)
from .parse import parse_recipe
from .schema import json_schema
from .sections import Part
from .yaml_source import MAX_BYTES

__all__ = [
    "MAX_BYTES",
    "CheckpointSection",
    "DataSection",
    "EarlyStoppingSection",
    "Ema",
    "ExecutionSection",
    "Frozen",
    "Group",
    "LossTerm",
    "Normalize",
    "OptimizerSection",
    "Part",
    "Recipe",
    "SchedulerSection",
    "Unfreeze",
    "WarmupSection",
    "all_registries",
    "freeze",
    "json_schema",
    "key_called",
    "load_recipe",
    "packaged_names",
    "packaged_summary",
    "parse_recipe",
    "thaw",
]
