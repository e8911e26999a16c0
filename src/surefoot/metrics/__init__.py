"""What is measured beside the loss: running means, our own metrics, torchmetrics' and tables by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .means import Parts
    from .running import RunningMetrics

__all__ = ["Parts", "RunningMetrics"]

# The registry of names is asked by commands that import no torch.
__getattr__ = lazily(__name__, {"means": "Parts", "running": "RunningMetrics"})
