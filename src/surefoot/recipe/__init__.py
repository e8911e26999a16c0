"""The recipe: one YAML file to a frozen, typed value, every mistake reported with file, line and column."""

from __future__ import annotations

from .check import all_registries
from .frozen import Frozen
from .key_aliases import key_called
from .load import load_recipe, packaged_names, packaged_summary
from .model import Recipe, SchedulerSection
from .parse import parse_recipe
from .schema import json_schema
from .sections import Part
from .yaml_source import MAX_BYTES

__all__ = [
    "MAX_BYTES",
    "Frozen",
    "Part",
    "Recipe",
    "SchedulerSection",
    "all_registries",
    "json_schema",
    "key_called",
    "load_recipe",
    "packaged_names",
    "packaged_summary",
    "parse_recipe",
]
