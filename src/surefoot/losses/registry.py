"""Every loss of torch.nn by its name: its arguments, its task, what it is given, where its formula is."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Problems, UsageError
from ..registry import ArgumentProblem, Entry, Range, Registry, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

# What a batch holds; `conventions` has the conventions themselves.
PAIR = "(inputs, targets)"
TRIPLET = "(anchor, positive, negative)"
TWO_INPUTS = "(first, second, targets)"
CTC = "(inputs, targets, [input_lengths,] target_lengths)"

# Classes of torch.nn that are not in the registry, and why.
LEFT_OUT = {"NLLLoss2d": "a deprecated alias; NLLLoss takes the same (N, C, d1, d2)"}

# `weight: balanced` is possible where the argument holds one number a class (or, pos_weight, one for the positives).
_BALANCED = {
    "weight": frozenset({"CrossEntropyLoss", "NLLLoss", "MultiMarginLoss", "LinearCrossEntropyLoss"}),
    "pos_weight": frozenset({"BCEWithLogitsLoss"}),
}
# Deprecated by torch, or the house's business (where and in what type a loss computes).
_NOT_FOR_USERS = ("size_average", "reduce", "device", "dtype", "options")
_REDUCTIONS = ("mean", "sum", "none")
_POSITIVE = Range(low=0, low_open=True)
_FRACTION = Range(low=0, high=1)


def _entry(
    name: str,
    task: str,
    inputs: str,
    targets: str,
    shapes: str,
    summary: str,
    *,
    batch: str = PAIR,
    limits: Mapping[str, Range] | None = None,
) -> Entry:
    facts = {
        "task": task,
        "input": inputs,
        "target": targets,
        "shapes": shapes,
        "batch": batch,
        "formula": f"docs/losses.md#{name.lower()}",
    }
    return Entry(name, f"torch.nn:{name}", summary, _NOT_FOR_USERS, limits or {}, facts)


# fmt: off
_ENTRIES = [
    _entry(
        "CrossEntropyLoss", "one of C classes", "logits (no softmax)", "class index (int64), or class probabilities",
        "(N, C) and (N); (N, C, d1, ...) and (N, d1, ...); or both (N, C, ...)",
        "softmax and negative log-likelihood in one", limits={"label_smoothing": _FRACTION},
    ),
    _entry(
        "NLLLoss", "one of C classes", "log-probabilities (LogSoftmax)", "class index (int64)",
        "(N, C) and (N); (N, C, d1, ...) and (N, d1, ...)", "negative log-likelihood of the target's class",
    ),
    _entry(
        "LinearCrossEntropyLoss", "one of C classes, last layer inside the loss", "features",
        "class index (int64), or class probabilities",
        "(N, in_features) and (N)", "a linear layer and cross entropy, without ever holding all logits",
        limits={"label_smoothing": _FRACTION, "in_features": Range(low=1), "num_classes": Range(low=1)},
    ),
    _entry(
        "AdaptiveLogSoftmaxWithLoss", "one of very many classes, last layer inside the loss", "features",
        "class index (int64), frequent classes first",
        "(N, in_features) and (N)", "cross entropy with clusters for rare classes",
        limits={"in_features": Range(low=1), "n_classes": Range(low=2), "div_value": _POSITIVE},
    ),
    _entry(
        "MultiMarginLoss", "one of C classes", "scores", "class index (int64)", "(N, C) and (N)",
        "multi-class hinge", limits={"p": Range(low=1, high=2)},
    ),
    _entry(
        "BCEWithLogitsLoss", "yes or no, one or many labels", "logits (no sigmoid)",
        "0 or 1 as float, or probabilities", "both (N, ...), the same", "sigmoid and binary cross entropy in one",
    ),
    _entry(
        "BCELoss", "yes or no, one or many labels", "probabilities (Sigmoid)", "0 or 1 as float, or probabilities",
        "both (N, ...), the same", "binary cross entropy",
    ),
    _entry(
        "MultiLabelSoftMarginLoss", "many labels of C", "logits (no sigmoid)", "0 or 1 as float",
        "both (N, C)", "binary cross entropy averaged over labels, then over samples",
    ),
    _entry(
        "MultiLabelMarginLoss", "many labels of C", "scores", "class indices (int64), padded by -1",
        "both (N, C)", "hinge between every label that holds and every one that does not",
    ),
    _entry(
        "SoftMarginLoss", "yes or no", "scores", "1 or -1 as float", "both (N, ...), the same",
        "logistic loss on signs",
    ),
    _entry(
        "HingeEmbeddingLoss", "alike or not", "distances", "1 (alike) or -1", "both (N, ...), the same",
        "the distance itself, or how far it is below a margin",
    ),
    _entry("MSELoss", "regression", "predictions", "values as float", "both (N, ...), the same", "mean squared error"),
    _entry("L1Loss", "regression", "predictions", "values as float", "both (N, ...), the same", "mean absolute error"),
    _entry(
        "SmoothL1Loss", "regression with outliers", "predictions", "values as float", "both (N, ...), the same",
        "squared below beta, absolute above", limits={"beta": Range(low=0)},
    ),
    _entry(
        "HuberLoss", "regression with outliers", "predictions", "values as float", "both (N, ...), the same",
        "squared below delta, absolute above", limits={"delta": _POSITIVE},
    ),
    _entry(
        "PoissonNLLLoss", "counts", "log of the rate (or the rate, log_input=False)", "counts >= 0 as float",
        "both (N, ...), the same", "negative log-likelihood of counts", limits={"eps": _POSITIVE},
    ),
    _entry(
        "GaussianNLLLoss", "regression with its uncertainty", "(mean, variance > 0), two outputs", "values as float",
        "mean and target (N, ...); variance the same or (N, 1)", "negative log-likelihood of a normal distribution",
        limits={"eps": _POSITIVE},
    ),
    _entry(
        "KLDivLoss", "a distribution", "log-probabilities (LogSoftmax)", "probabilities (or log_target=True)",
        "both (N, C), the same", "Kullback-Leibler divergence; use reduction='batchmean'",
    ),
    _entry(
        "CTCLoss", "a sequence without alignment", "log-probabilities (LogSoftmax)", "label indices, 0 is blank",
        "(T, N, C), and (N, S) or (sum of target lengths)", "connectionist temporal classification",
        batch=CTC, limits={"blank": Range(low=0)},
    ),
    _entry(
        "CosineEmbeddingLoss", "alike or not", "two embeddings", "1 (alike) or -1", "(N, D), (N, D) and (N)",
        "one minus the cosine, or how far it is above a margin",
        batch=TWO_INPUTS, limits={"margin": Range(low=-1, high=1)},
    ),
    _entry(
        "MarginRankingLoss", "which of two is higher", "two scores", "1 (the first) or -1", "(N), (N) and (N)",
        "hinge on the difference of two scores", batch=TWO_INPUTS,
    ),
    _entry(
        "TripletMarginLoss", "embeddings", "anchor, positive, negative", "none", "three of (N, D)",
        "nearer to the positive than to the negative, by a margin",
        batch=TRIPLET, limits={"margin": _POSITIVE, "p": _POSITIVE},
    ),
    _entry(
        "TripletMarginWithDistanceLoss", "embeddings", "anchor, positive, negative", "none", "three of (N, D)",
        "the same with a distance of one's own", batch=TRIPLET, limits={"margin": _POSITIVE},
    ),
]
# fmt: on


class LossRegistry(Registry):
    """The losses; beside the signature it knows `reduction`'s values and ``weight: balanced``."""

    def problems(self, name: str, arguments: Mapping[str, Any]) -> list[ArgumentProblem]:
        if name not in self:
            return super().problems(name, arguments)
        plain, problems = {}, []
        for argument, value in arguments.items():
            if argument in ("size_average", "reduce"):
                message = f"torch has deprecated {argument!r}; give reduction: mean or sum"
                problems.append(ArgumentProblem(argument, message))
            elif isinstance(value, str) and value == "balanced" and argument in _BALANCED:
                if name not in _BALANCED[argument]:
                    able = ", ".join(sorted(_BALANCED[argument]))
                    message = f"{name} takes no balanced {argument}; these do: {able}"
                    problems.append(ArgumentProblem(argument, message))
            else:
                plain[argument] = value
        problems += super().problems(name, plain)
        reduction = arguments.get("reduction", "mean")
        allowed = _REDUCTIONS + (("batchmean",) if name == "KLDivLoss" else ())
        if isinstance(reduction, str) and reduction not in allowed:
            advice = did_you_mean(reduction, allowed) or f"; give one of {', '.join(allowed)}"
            problems.append(ArgumentProblem("reduction", f"{name} has no reduction {reduction!r}{advice}"))
        return problems


def _in_this_torch() -> list[Entry]:
    """All entries that this torch has, read from its source: importing torch would take seconds."""
    torch = importlib.util.find_spec("torch")
    source = Path(torch.origin).parent / "nn" / "modules" / "loss.py" if torch and torch.origin else None
    new = "LinearCrossEntropyLoss"
    has_it = source is not None and f"class {new}(" in source.read_text(encoding="utf-8")
    return [entry for entry in _ENTRIES if has_it or entry.name != new]


LOSSES = LossRegistry("loss", "losses", _in_this_torch())

# What may stand in the place of a loss by name; a user's own objective is imported.
_MODELS_OWN = "the loss that the model itself returns for a batch of keywords, as those of transformers do"
OBJECTIVES = Registry(
    "objective",
    "objectives",
    [Entry("model", "surefoot.losses.objectives:models_own", _MODELS_OWN, ("model", "batch"))],
)


def build_loss(
    name: str, args: Mapping[str, Any] | None = None, *, targets: Tensor | None = None, classes: int | None = None
) -> nn.Module:
    """The loss of that name with the arguments `args`, which are checked.

    ``weight="balanced"`` (and BCEWithLogitsLoss's ``pos_weight="balanced"``) are computed from `targets`, those of the
    whole training set; `classes` is the number of classes where it is known. Raises UsageError for an unknown loss, an
    argument that it does not take, or a class without samples.

    >>> import torch
    >>> build_loss("CrossEntropyLoss", {"weight": "balanced"}, targets=torch.tensor([0, 0, 0, 1])).weight
    tensor([0.6667, 2.0000])
    """
    args = dict(args or {})
    if problems := LOSSES.problems(name, args):
        raise Problems([*map(str, problems)])
    for argument, value in args.items():
        if isinstance(value, str) and value == "balanced":
            if targets is None:
                raise UsageError(
                    f"{argument}: balanced needs the training data's targets, and none were given", code="loss-weights"
                )
            args[argument] = _balanced(argument, args, targets, classes)
    loss: nn.Module = LOSSES.build(name, args)
    return loss


def _balanced(argument: str, args: Mapping[str, Any], targets: Tensor, classes: int | None) -> Tensor:
    from .balance import class_weights, positive_weight

    if argument == "pos_weight":
        return positive_weight(targets)
    ignore = args.get("ignore_index")
    return class_weights(targets, args.get("num_classes", classes), ignore_index=-100 if ignore is None else ignore)


def needs_targets(args: Mapping[str, Any]) -> bool:
    """Whether `build_loss` will want the training set's targets for the arguments `args`."""
    return any(isinstance(value, str) and value == "balanced" for value in args.values())
