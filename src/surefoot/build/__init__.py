"""Recipe to live objects: the only place where a name becomes an object."""

from __future__ import annotations

from .assemble import Built, build
from .parts import build_data, build_loss, build_metrics, build_model, schedule_specs

__all__ = ["Built", "build", "build_data", "build_loss", "build_metrics", "build_model", "schedule_specs"]
