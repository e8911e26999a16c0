"""Which metrics follow from a loss, and how they read its outputs."""

from __future__ import annotations

import functools
from typing import Any

from ..errors import UsageError
from ..registry import did_you_mean
from .averaging import is_summed, many_weights, sample_weight, weighs_by
from .composite import WeightedSum
from .conventions import describe
from .torch_losses import family, ignored

METRICS = ("accuracy",)

# How the right answer is read from a model's output, by the loss it was trained with:
# classes: the highest of (N, C, ...); logits: above 0; probabilities: above 0.5; signs: above 0, targets 1 or -1.
_ACCURACY = {
    "CrossEntropyLoss": "classes",
    "NLLLoss": "classes",
    "MultiMarginLoss": "classes",
    "BCEWithLogitsLoss": "logits",
    "MultiLabelSoftMarginLoss": "logits",
    "BCELoss": "probabilities",
    "SoftMarginLoss": "signs",
}


def accuracy_kind(loss: Any) -> str | None:
    """``"classes"``, ``"logits"``, ``"probabilities"`` or ``"signs"`` where the loss knows accuracy, else None."""
    if isinstance(loss, WeightedSum):
        kinds = {accuracy_kind(part) for part in loss.parts} - {None}
        return kinds.pop() if len(kinds) == 1 else None
    return _ACCURACY.get(loss if isinstance(loss, str) else family(loss))


def default_metrics(loss: Any) -> tuple[str, ...]:
    """The metrics that ``metrics: auto`` means for a loss or a loss's name, beside the loss itself.

    >>> default_metrics("CrossEntropyLoss"), default_metrics("MSELoss")
    (('accuracy',), ())
    """
    return ("accuracy",) if accuracy_kind(loss) else ()


def metric_options(loss: Any, metrics: Any = "auto") -> dict[str, Any]:
    """What `metrics.RunningMetrics` needs to know of a loss: ``RunningMetrics(**metric_options(loss))``.

    `metrics` is ``"auto"`` or the names wanted. With ``reduction="sum"`` the mean is over samples. Raises UsageError
    for an unknown metric, or one that makes no sense with the loss.
    """
    wanted = _named(loss, metrics)
    options: dict[str, Any] = {"summed": is_summed(loss), "ignore_index": _ignored(loss)}
    if "accuracy" in wanted:
        # A user's own loss is believed to score classes; one of torch's that has no right answers is not.
        if accuracy_kind(loss) is None and family(loss) is not None:
            raise UsageError(f"metrics: {describe(loss)} has no accuracy; leave it out, or use a loss of classes")
        options["accuracy"] = accuracy_kind(loss) or "classes"
    kind = weighs_by(loss)
    if not options["summed"] and kind == "elements":
        options["weigh"] = functools.partial(sample_weight, loss)
    if not options["summed"] and kind == "targets":
        options["weigh_many"] = functools.partial(many_weights, loss)
    return options


def _named(loss: Any, metrics: Any) -> tuple[str, ...]:
    """The metrics wanted, by name. Objects are never compared: their ``==`` may be anything."""
    if isinstance(metrics, str):
        wanted: tuple[Any, ...] = default_metrics(loss) if metrics == "auto" else (metrics,)
    elif isinstance(metrics, list | tuple | set | frozenset):
        wanted = tuple(metrics)
    else:
        wanted = (metrics,)
    for name in wanted:
        if not isinstance(name, str):
            raise UsageError(
                f"metrics: {type(name).__name__} is an object, and metrics are given by name ({', '.join(METRICS)}); "
                "leave it out, and compute it with predict() after the run or in a loop of your own"
            )
        if name not in METRICS:
            raise UsageError(
                f"unknown metric {name!r}{did_you_mean(name, METRICS) or ';'} there is: {', '.join(METRICS)}"
            )
    return wanted


def _ignored(loss: Any) -> int:
    return _ignored(loss.parts[0]) if isinstance(loss, WeightedSum) else ignored(loss)
