"""Losses: the catalogue, how each is called, what its mean is over, and the lint of the first batch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .catalogue import LOSSES, build_loss, needs_targets
from .checks.findings import FINDINGS, Finding

if TYPE_CHECKING:
    from .averaging import batch_size, is_summed, many_weights, sample_weight, shares, weighs_by
    from .balance import class_weights, positive_weight
    from .calling import Convention, LossValue, apply, convention_of, value_of
    from .checks.look import lint
    from .composite import WeightedSum
    from .scoring import accuracy_kind, default_metrics, metric_options

# The catalogue and the names of the findings are read without torch; the rest is imported when it is asked for.
_HOMES = {
    "Convention": "calling",
    "LossValue": "calling",
    "WeightedSum": "composite",
    "accuracy_kind": "scoring",
    "apply": "calling",
    "batch_size": "averaging",
    "class_weights": "balance",
    "convention_of": "calling",
    "default_metrics": "scoring",
    "is_summed": "averaging",
    "lint": "checks.look",
    "many_weights": "averaging",
    "metric_options": "scoring",
    "positive_weight": "balance",
    "sample_weight": "averaging",
    "shares": "averaging",
    "value_of": "calling",
    "weighs_by": "averaging",
}

__all__ = [
    "FINDINGS",
    "LOSSES",
    "Convention",
    "Finding",
    "LossValue",
    "WeightedSum",
    "accuracy_kind",
    "apply",
    "batch_size",
    "build_loss",
    "class_weights",
    "convention_of",
    "default_metrics",
    "is_summed",
    "lint",
    "many_weights",
    "metric_options",
    "needs_targets",
    "positive_weight",
    "sample_weight",
    "shares",
    "value_of",
    "weighs_by",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
