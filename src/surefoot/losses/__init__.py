"""Losses: the catalogue, how each is called, what its mean is over, and the lint of the first batch."""

from __future__ import annotations

from .averaging import batch_size, is_summed, many_weights, sample_weight, shares, weighs_by
from .balance import class_weights, positive_weight
from .calling import Convention, LossValue, apply, convention_of, value_of
from .catalogue import LOSSES, build_loss, needs_targets
from .checks import FINDINGS, Finding, lint
from .composite import WeightedSum
from .scoring import accuracy_kind, default_metrics, metric_options

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
