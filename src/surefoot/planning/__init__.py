"""Before the run: what the learning rate will be, what is likely wrong with it, and which rates a model can bear."""

from __future__ import annotations

from .cost import Memory, memory_of
from .events import Event, events
from .lr_find import lr_find, range_test
from .lr_result import LrFind
from .mistakes import MISTAKES, mistakes
from .numbers import GroupPlan
from .pictures import picture_path
from .report import PlanReport, plan_report

__all__ = [
    "MISTAKES",
    "Event",
    "GroupPlan",
    "LrFind",
    "Memory",
    "PlanReport",
    "events",
    "lr_find",
    "memory_of",
    "mistakes",
    "picture_path",
    "plan_report",
    "range_test",
]
