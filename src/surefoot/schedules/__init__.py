"""Learning rates: torch's schedulers and pytorch_warmup's warmups in one schedule, known before the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily
from .registry import SCHEDULERS, WARMUPS, SchedulerSpec, WarmupSpec

if TYPE_CHECKING:
    from .building import build_schedule
    from .composite import ChainedScheduler, SequentialLR
    from .schedule import Schedule
    from .simulation import LaterGroup, Simulation, simulate, simulate_schedule
    from .warmup import ExponentialWarmup, LinearWarmup, RAdamWarmup, UntunedExponentialWarmup, UntunedLinearWarmup

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
    "simulate",
    "simulate_schedule",
]

# The registry is listed without torch; the rest is imported when it is asked for.
__getattr__ = lazily(
    __name__,
    {
        "building": "build_schedule",
        "composite": "ChainedScheduler SequentialLR",
        "schedule": "Schedule",
        "simulation": "LaterGroup Simulation simulate simulate_schedule",
        "warmup": "ExponentialWarmup LinearWarmup RAdamWarmup UntunedExponentialWarmup UntunedLinearWarmup",
    },
)
