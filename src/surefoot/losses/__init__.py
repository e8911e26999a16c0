"""Losses: the registry, how each is called, what its mean is over, and the lint of the first batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..finding import Finding
from ..lazy import lazily
from .checks.findings import FINDINGS
from .registry import LOSSES, OBJECTIVES, build_loss, needs_targets

if TYPE_CHECKING:
    from .averaging import is_summed, many_weights, sample_weight, shares, weighs_by
    from .balance import class_weights, positive_weight
    from .checks.lint import lint
    from .composite import WeightedSum
    from .conventions import Convention, LossValue, apply, convention_of, value_of
    from .objectives import Objective, objective
    from .scoring import accuracy_kind, default_metrics, metric_options

__all__ = [
    "FINDINGS",
    "LOSSES",
    "OBJECTIVES",
    "Convention",
    "Finding",
    "LossValue",
    "Objective",
    "WeightedSum",
    "accuracy_kind",
    "apply",
    "build_loss",
    "class_weights",
    "convention_of",
    "default_metrics",
    "is_summed",
    "lint",
    "many_weights",
    "metric_options",
    "needs_targets",
    "objective",
    "positive_weight",
    "sample_weight",
    "shares",
    "value_of",
    "weighs_by",
]

# The registry and the names of the findings are read without torch; the rest is imported when it is asked for.
__getattr__ = lazily(
    __name__,
    {
        "averaging": "is_summed many_weights sample_weight shares weighs_by",
        "balance": "class_weights positive_weight",
        "conventions": "Convention LossValue apply convention_of value_of",
        "checks.lint": "lint",
        "composite": "WeightedSum",
        "objectives": "Objective objective",
        "scoring": "accuracy_kind default_metrics metric_options",
    },
)
