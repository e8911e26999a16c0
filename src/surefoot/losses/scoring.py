"""Which metrics follow from a loss, and how they read its outputs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..metric_objects import is_metric, name_of
from ..metric_registry import OWN, can_be_called, metric_of
from .averaging import is_summed, many_weights, sample_weight, weighs_by
from .composite import WeightedSum
from .conventions import describe
from .torch_losses import family, ignored

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
    return _ACCURACY.get((loss if isinstance(loss, str) else family(loss)) or "")


def default_metrics(loss: Any) -> tuple[str, ...]:
    """The metrics that ``metrics: auto`` means for a loss or a loss's name, beside the loss itself.

    >>> default_metrics("CrossEntropyLoss"), default_metrics("MSELoss")
    (('accuracy',), ())
    """
    return ("accuracy",) if accuracy_kind(loss) else ()


def metric_options(loss: Any, metrics: Any = "auto") -> dict[str, Any]:
    """What `metrics.RunningMetrics` needs to know of a loss: ``RunningMetrics(**metric_options(loss))``.

    `metrics` is ``"auto"``, or what is wanted: names, objects in the manner of torchmetrics, functions of a batch's
    outputs and targets; one, a list, or a mapping of names to them. With ``reduction="sum"`` the mean is over samples.
    Raises UsageError for an unknown metric, or one that makes no sense with the loss.
    """
    wanted, objects = _wanted(loss, metrics)
    options: dict[str, Any] = {"summed": is_summed(loss), "ignore_index": _ignored(loss)}
    if "accuracy" in wanted:
        # A user's own loss is believed to score classes; one of torch's that has no right answers is not.
        if accuracy_kind(loss) is None and family(loss) is not None:
            raise UsageError(f"metrics: {describe(loss)} has no accuracy; leave it out, or use a loss of classes")
        options["accuracy"] = accuracy_kind(loss) or "classes"
    if objects:
        options["objects"] = objects
        options["binary"] = accuracy_kind(loss) in ("logits", "probabilities", "signs")
    kind = weighs_by(loss)
    if not options["summed"] and kind == "elements":
        options["weigh"] = functools.partial(sample_weight, loss)
    if not options["summed"] and kind == "targets":
        options["weigh_many"] = functools.partial(many_weights, loss)
    return options


def _wanted(loss: Any, metrics: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of our own metrics that are wanted, and the objects and functions of others by name.

    Objects are never compared: their ``==`` may be anything.
    """
    if isinstance(metrics, str):
        metrics = default_metrics(loss) if metrics == "auto" else (metrics,)
    named = isinstance(metrics, Mapping) and not isinstance(metrics.get("name"), str)
    items = list(metrics.items()) if named else [(None, each) for each in _listed(metrics)]
    own: list[str] = []
    objects: dict[str, Any] = {}
    for label, metric in items:
        if isinstance(metric, str) and metric not in OWN:
            metric = {"name": metric}
        if isinstance(metric, Mapping):
            name, metric = metric_of(metric)
            label = name if label is None else label
        if isinstance(metric, str):
            if label not in (None, metric):
                raise UsageError(f"metrics: {metric} is recorded as {metric} and has no other name, as {label!r}")
            own.append(metric)
            continue
        if not is_metric(metric):
            text = f"the class {metric.__name__}; give an object of it" if isinstance(metric, type) else repr(metric)
            raise UsageError(
                f"metrics: found {text}; expected names ({', '.join(OWN)} and torchmetrics' classes), objects with "
                "update, compute, reset, state_dict and load_state_dict (torchmetrics' are such), or functions of "
                "(outputs, targets)"
            )
        label = name_of(metric) if label is None else label
        if not can_be_called(label) or label in objects or label in OWN:
            raise UsageError(
                f"metrics: {label!r} is taken or no name; give each its own: metrics={{'macro_f1': F1Score(...), ...}}"
            )
        objects[label] = metric
    return tuple(own), objects


def _listed(metrics: Any) -> Sequence[Any]:
    return tuple(metrics) if isinstance(metrics, list | tuple | set | frozenset) else (metrics,)


def _ignored(loss: Any) -> int:
    return _ignored(loss.parts[0]) if isinstance(loss, WeightedSum) else ignored(loss)
