"""Learning rates: torch's schedulers and pytorch_warmup's warmups in one schedule, known before the run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .catalogue import SCHEDULERS, WARMUPS, SchedulerSpec, WarmupSpec

if TYPE_CHECKING:
    from .building import build_schedule, horizon_of
    from .composite import ChainedScheduler, SequentialLR
    from .schedule import Schedule
    from .simulation import LaterGroup, Simulation, simulate, simulate_schedule
    from .warmup import (
        ExponentialWarmup,
        LinearWarmup,
        RAdamWarmup,
        UntunedExponentialWarmup,
        UntunedLinearWarmup,
    )

# The catalogue is listed without torch; the rest is imported when it is asked for.
_HOMES = {
    "ChainedScheduler": "composite",
    "ExponentialWarmup": "warmup",
    "LinearWarmup": "warmup",
    "RAdamWarmup": "warmup",
    "Schedule": "schedule",
    "SequentialLR": "composite",
    "UntunedExponentialWarmup": "warmup",
    "UntunedLinearWarmup": "warmup",
    "build_schedule": "building",
    "horizon_of": "building",
    "LaterGroup": "simulation",
    "Simulation": "simulation",
    "simulate": "simulation",
    "simulate_schedule": "simulation",
}

__all__ = [
    "SCHEDULERS",
    "WARMUPS",
    "ChainedScheduler",
    "ExponentialWarmup",
    "LaterGroup",
    "LinearWarmup",
    "RAdamWarmup",
    "Schedule",
    "SchedulerSpec",
    "SequentialLR",
    "Simulation",
    "UntunedExponentialWarmup",
    "UntunedLinearWarmup",
    "WarmupSpec",
    "build_schedule",
    "horizon_of",
    "simulate",
    "simulate_schedule",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
