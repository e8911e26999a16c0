"""Before the run: what the learning rate will be, what is likely wrong with it, and which rates a model can bear."""

from __future__ import annotations

from .cost import Memory, memory_of
from .events import Event, events
from .mistakes import MISTAKES, Finding, mistakes
from .report import GroupPlan, PlanReport, plan_report

__all__ = [
    "MISTAKES",
    "Event",
    "Finding",
    "GroupPlan",
    "Memory",
    "PlanReport",
    "events",
    "memory_of",
    "mistakes",
    "plan_report",
]
