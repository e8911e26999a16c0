"""Which metrics follow from a loss, and how they read its outputs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import UsageError
from ..metrics.objects import is_metric, name_of
from ..metrics.registry import OWN, can_be_called, metric_of
from ..metrics.sums import comparable, unreadable
from .averaging import is_summed, many_weights, sample_weight, weighs_by
from .composite import WeightedSum
from .conventions import describe
from .objectives import Objective, models_own
from .torch_losses import family, formula_of, ignored, option, reduction

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
_REGRESSIONS = ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "GaussianNLLLoss")
_LIKELIHOODS = ("CrossEntropyLoss", "NLLLoss")


def accuracy_kind(loss: Any) -> str | None:
    """``"classes"``, ``"logits"``, ``"probabilities"`` or ``"signs"`` where the loss knows accuracy, else None."""
    if isinstance(loss, WeightedSum):
        kinds = {accuracy_kind(part) for part in loss.parts} - {None}
        return kinds.pop() if len(kinds) == 1 else None
    return _ACCURACY.get((loss if isinstance(loss, str) else family(loss)) or "")


def families(loss: Any) -> list[str | None]:
    """torch's name of each loss that is summed, None for a user's own; usually one. A name stands for itself."""
    if isinstance(loss, WeightedSum):
        return [family(part) for part in loss.parts]
    return [loss if isinstance(loss, str) else family(loss)]


def default_metrics(loss: Any, targets: Any = None, outputs: Any = None) -> tuple[str, ...]:
    """The metrics that ``metrics: auto`` means for a loss or a loss's name, beside the loss itself.

    Accuracy and macro F1 for classes and labels; with positions (N, C, T) perplexity, and with two or more, IoU, in the
    place of F1; MAE and R2 for a regression. The first batch's `targets` tell the positions; without them there are
    none. Of an objective the `outputs` count too: only the loss that a model itself returns has any.

    >>> default_metrics("CrossEntropyLoss"), default_metrics("MSELoss")
    (('accuracy', 'f1_macro'), ('mae', 'r2'))
    """
    if isinstance(loss, Objective):
        return _of_models_own(targets, outputs) if loss.function is models_own else ()
    kind, names = accuracy_kind(loss), families(loss)
    if kind is None:
        return ("mae", "r2") if all(name in _REGRESSIONS for name in names) else ()
    dims = targets.dim() if isinstance(targets, Tensor) else 1
    if kind != "classes":
        return ("accuracy", "iou" if dims > 2 else "f1_macro")
    indices = not (isinstance(targets, Tensor) and targets.is_floating_point())
    positions = dims - (1 if indices else 2)
    if positions == 1 and indices and set(names) <= set(_LIKELIHOODS):
        return ("accuracy", "perplexity")
    return ("accuracy", "iou" if positions > 1 else "f1_macro")


def _of_models_own(targets: Any, outputs: Any) -> tuple[str, ...]:
    """The metrics of a model that returns its loss, by the labels that it was given."""
    if not isinstance(targets, Tensor) or not isinstance(outputs, Tensor):
        return ()
    if targets.is_floating_point():
        return ("mae", "r2") if targets.dim() == 1 and outputs.numel() == targets.numel() else ()
    if outputs.dim() != targets.dim() + 1 or outputs.shape[2:] != targets.shape[1:]:
        return ()
    return {1: ("accuracy", "f1_macro"), 2: ("perplexity",)}.get(targets.dim(), ("accuracy", "iou"))


def metric_options(loss: Any, metrics: Any = "auto") -> dict[str, Any]:
    """What `metrics.RunningMetrics` needs to know of a loss: ``RunningMetrics(**metric_options(loss))``.

    `metrics` is what is wanted: names (``"auto"``, ours and torchmetrics'), mappings of a name and its arguments,
    objects in the manner of torchmetrics, functions of a batch's outputs and targets; one, a list, or a mapping of
    names to them. With ``reduction="sum"`` the mean is over samples. Raises UsageError for an unknown metric, or one
    that makes no sense with the loss.
    """
    wanted, objects = _wanted(metrics)
    auto, wanted = "auto" in wanted, tuple(name for name in wanted if name != "auto")
    names, kind = families(loss), accuracy_kind(loss)
    # What an objective has, and whether outputs of one's own loss and targets can be read, the first batch tells.
    chosen = functools.partial(_chosen, loss, wanted, auto)
    later = auto and (kind is not None or None not in names or isinstance(loss, Objective))
    later = later or (bool(wanted) and _unknown(loss))
    for name in wanted:
        # A user's own loss is believed to be what the metric is for; one of torch's that has no right answers is not.
        values = name in ("mae", "r2")
        likely = kind == "classes" or (kind is not None and name != "perplexity")
        fits = set(names) <= set(_REGRESSIONS) if values else likely
        if None not in names and not fits:
            raise UsageError(
                f"metrics: {describe(loss)} has no {name}; leave it out, or use a loss of "
                f"{'numbers, MSELoss say' if values else 'classes'}"
            )
    options: dict[str, Any] = {
        "summed": is_summed(loss),
        "ignore_index": _ignored(loss),
        "kind": kind or "classes",
        "own": chosen if later else wanted,
        "logs": names == ["NLLLoss"],
        "from_loss": _is_mean_likelihood(loss),
    }
    if objects:
        options["objects"] = objects
        options["binary"] = kind in ("logits", "probabilities", "signs")
    weighed_by = weighs_by(loss)
    if not options["summed"] and weighed_by == "elements":
        options["weigh"] = functools.partial(sample_weight, loss)
    if not options["summed"] and weighed_by == "targets":
        options["weigh_many"] = functools.partial(many_weights, loss)
    return options


def _chosen(loss: Any, wanted: Sequence[str], auto: bool, outputs: Any, targets: Any) -> tuple[str, ...]:
    """The metrics that suit the loss, if `auto`, and those that are `wanted` beside them, each once."""
    if wanted and _unknown(loss):
        _require_readable(wanted, outputs, targets)
    return tuple(dict.fromkeys([*(default_metrics(loss, targets, outputs) if auto else ()), *wanted]))


def _unknown(loss: Any) -> bool:
    """Whether a loss is one's own, so that nobody knows what its outputs are."""
    return accuracy_kind(loss) is None and None in families(loss)


def _require_readable(wanted: Sequence[str], outputs: Any, targets: Any) -> None:
    """Raise UsageError where metrics would take the outputs of a loss of one's own for what they are not."""
    if outputs is None:
        return  # an objective may return them in one mode only
    values = [name for name in wanted if name in ("mae", "r2")]
    of_classes = [name for name in wanted if name not in values]
    if values:
        of = outputs[0] if isinstance(outputs, list | tuple) and outputs else outputs  # a mean and its variance
        if not isinstance(of, Tensor) or not isinstance(targets, Tensor) or of.numel() != targets.numel():
            raise unreadable(values[0], outputs, targets, "as many numbers in one tensor as in the other")
    if not of_classes:
        return
    scores, classes = comparable(outputs, targets)
    if scores.dim() < 2 or scores.shape[1] < 2:
        raise unreadable(of_classes[0], outputs, targets, "a score for each class, (N, C, ...)")
    are_probabilities = classes.is_floating_point() and classes.shape == scores.shape
    if are_probabilities and ("perplexity" in of_classes or bool(((classes.sum(1) - 1).abs() > 1e-2).any())):
        raise unreadable(of_classes[0], outputs, targets, "classes, or probabilities that sum to 1")


def _is_mean_likelihood(loss: Any) -> bool:
    """Whether the mean loss of an epoch is the mean negative log-likelihood of a position."""
    if isinstance(loss, Objective):
        return loss.function is models_own
    plain = option(loss, "weight") is None and not option(loss, "label_smoothing", 0)
    return formula_of(loss) in _LIKELIHOODS and plain and reduction(loss) == "mean"


def _wanted(metrics: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of our own metrics that are wanted, and the objects and functions of others by name.

    Objects are never compared: their ``==`` may be anything.
    """
    named = isinstance(metrics, Mapping) and not isinstance(metrics.get("name"), str)
    items = list(metrics.items()) if named else [(None, each) for each in _listed(metrics)]
    names: list[str] = []
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
            names.append(metric)
            continue
        if not is_metric(metric):
            text = f"the class {metric.__name__}; give an object of it" if isinstance(metric, type) else repr(metric)
            raise UsageError(
                f"metrics: found {text}; expected names ({', '.join(OWN)} and torchmetrics' classes), objects with "
                "update, compute, reset, state_dict and load_state_dict (torchmetrics' are such), or functions of "
                "(outputs, targets)"
            )
        label = name_of(metric) if label is None else label
        if not can_be_called(label) or label in objects or label in names:
            raise UsageError(
                f"metrics: {label!r} is taken or no name; give each its own: metrics={{'macro_f1': F1Score(...), ...}}"
            )
        objects[label] = metric
    return tuple(names), objects


def _listed(metrics: Any) -> Sequence[Any]:
    if isinstance(metrics, set | frozenset):  # in an order that is the same in each process
        return sorted(metrics, key=lambda metric: metric if isinstance(metric, str) else name_of(metric))
    return tuple(metrics) if isinstance(metrics, list | tuple) else (metrics,)


def _ignored(loss: Any) -> int:
    """Of a sum, what the first part leaves out that leaves out any."""
    parts = loss.parts if isinstance(loss, WeightedSum) else (loss,)
    return next((ignored(part) for part in parts if option(part, "ignore_index") is not None), -100)
