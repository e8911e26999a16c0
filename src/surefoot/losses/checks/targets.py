"""Checks of the targets, made before the loss sees them (on CUDA a bad index kills the process)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...batches import form
from ...finding import Finding
from ...text import counted
from ..torch_losses import ignored, option
from .evidence import Evidence
from .findings import error, warning

INDICES = ("CrossEntropyLoss", "NLLLoss", "LinearCrossEntropyLoss", "AdaptiveLogSoftmaxWithLoss", "MultiMarginLoss")
_PROBABILITIES = ("CrossEntropyLoss", "LinearCrossEntropyLoss")
_ZERO_TO_ONE = ("BCELoss", "BCEWithLogitsLoss", "MultiLabelSoftMarginLoss")
_SIGNS = ("SoftMarginLoss", "HingeEmbeddingLoss", "CosineEmbeddingLoss", "MarginRankingLoss")
# Losses that compare element by element; those in the second line refuse other shapes by themselves.
ELEMENTWISE = (
    *("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "PoissonNLLLoss", "GaussianNLLLoss", "KLDivLoss"),
    *("HingeEmbeddingLoss", "MultiLabelSoftMarginLoss", "BCELoss", "BCEWithLogitsLoss", "SoftMarginLoss"),
)
_REFUSES_SHAPES = ("BCELoss", "BCEWithLogitsLoss", "SoftMarginLoss")


def check_targets(evidence: Evidence) -> Iterator[Finding]:
    """Findings about the targets and the outputs' shape, before the loss is computed."""
    for name, loss in evidence.parts:
        targets, outputs = evidence.targets, evidence.outputs
        if name == "CTCLoss":
            yield from _ctc(loss, outputs, *targets)
        if not isinstance(targets, Tensor):
            continue
        if name in INDICES:
            yield from _indices(name, loss, outputs, targets, evidence.classes)
        if name == "MultiLabelMarginLoss" and not targets.is_floating_point():
            low, high = _ends(targets)
            if low < -1 or high >= targets.shape[-1]:
                yield error(
                    "target-out-of-range",
                    f"targets go from {low} to {high}; label indices are 0 to {targets.shape[-1] - 1}, padded by -1",
                    "correct the label indices",
                )
        if name in _ZERO_TO_ONE and targets.numel():
            low, high = _ends(targets)
            if low < 0 or high > 1:
                signs = bool(((targets == 1) | (targets == -1)).all())
                yield error(
                    "target-out-of-range",
                    f"{name}'s targets are 0 or 1 (or between); these go from {low:g} to {high:g}",
                    "map -1 to 0, or use SoftMarginLoss"
                    if signs
                    else "use CrossEntropyLoss for class indices, or correct the targets",
                )
        if name in _SIGNS and bool(((targets != 1) & (targets != -1)).any()):
            other = targets[(targets != 1) & (targets != -1)].flatten()[0].item()
            yield warning(
                "targets-not-signs",
                f"{name}'s targets are 1 and -1; these hold {other:g}, which has another meaning or none",
                "give `targets * 2 - 1` where they are 0 and 1",
            )
        if name == "PoissonNLLLoss" and targets.numel() and bool((targets < 0).any()):
            yield warning(
                "negative-counts",
                f"PoissonNLLLoss's targets are counts; the lowest is {targets.min().item():g}",
                "give counts of 0 or more, or use a regression loss",
            )
        if name == "KLDivLoss" and targets.is_floating_point():
            yield from _distribution(loss, targets)
        if name in ELEMENTWISE:
            yield from _shapes(name, outputs, targets)
    yield from _constant(evidence)


def _ends(tensor: Tensor) -> tuple[float, float]:
    tensor = tensor.detach()
    if tensor.dtype == torch.bool:
        tensor = tensor.int()
    return tensor.min().item(), tensor.max().item()


def class_count(name: str | None, loss: Any, outputs: Any) -> int | None:
    """The number of classes that a loss of class indices compares; None where that is unknown."""
    if name == "LinearCrossEntropyLoss":
        return int(loss.num_classes)
    if name == "AdaptiveLogSoftmaxWithLoss":
        return int(loss.n_classes)
    if not isinstance(outputs, Tensor) or outputs.dim() == 0:
        return None
    return outputs.shape[1] if outputs.dim() > 1 else outputs.shape[0]


def _indices(name: str, loss: Any, outputs: Any, targets: Tensor, classes: int | None) -> Iterator[Finding]:
    count = class_count(name, loss, outputs)
    if count is None or not isinstance(outputs, Tensor):
        return
    if classes is not None and count < classes:
        yield error(
            "too-few-outputs",
            f"the data has {counted(classes, 'class')} and the model distinguishes {count}",
            f"give the last layer {classes} outputs",
        )
    inside = name in ("LinearCrossEntropyLoss", "AdaptiveLogSoftmaxWithLoss")  # outputs are features, not scores
    same_shape = not inside and outputs.dim() > 1 and targets.shape == outputs.shape
    if same_shape and _one_hot(targets):
        refused = not (targets.is_floating_point() and name in _PROBABILITIES)
        if refused or option(loss, "weight") is not None:
            why = (
                "is refused" if refused else "is taken as probabilities, whose mean is not divided by the class weights"
            )
            make = error if refused else warning
            yield make(
                "one-hot-targets",
                f"the targets {form(targets)} are one-hot; {name} wants class indices (N,), and one-hot {why}",
                "give `targets.argmax(1)`",
            )
        return
    if targets.is_floating_point():
        if name not in _PROBABILITIES or (not same_shape and not inside):
            whole = bool((targets == targets.round()).all())
            fix = "give `targets.long()`" if whole else "use a regression loss, or give int64 class indices"
            yield error("target-dtype", f"{name} wants class indices as int64; the targets are {form(targets)}", fix)
        return
    if targets.dtype not in (torch.int64, torch.uint8) or (
        targets.dtype == torch.uint8 and name not in ("CrossEntropyLoss", "NLLLoss")
    ):
        yield error(
            "target-dtype",
            f"{name} wants class indices as int64; the targets are {form(targets)}",
            "give `targets.long()`",
        )
        return
    if not inside:
        yield from _index_shape(name, outputs, targets)
    labels = (
        targets[targets != ignored(loss)] if name not in ("MultiMarginLoss", "AdaptiveLogSoftmaxWithLoss") else targets
    )
    if labels.numel():
        low, high = _ends(labels)
        if low < 0 or high >= count:
            from_one = low == 1 and high == count
            yield error(
                "target-out-of-range",
                f"the targets go from {low} to {high}; the model has {count} outputs, "
                f"so that class indices are 0 to {count - 1}",
                "subtract 1: classes count from 0"
                if from_one
                else f"correct the targets, or give the last layer {high + 1} outputs",
            )


def _index_shape(name: str, outputs: Tensor, targets: Tensor) -> Iterator[Finding]:
    expected = outputs.shape[:1] + outputs.shape[2:] if outputs.dim() > 1 else outputs.shape[:0]
    if targets.shape == expected:
        return
    message = (
        f"{name} with outputs {form(outputs)}, classes in dimension 1, wants targets {tuple(expected)}; "
        f"they are {form(targets)}"
    )
    if targets.dim() == len(expected) + 1 and targets.dim() > 1 and targets.shape[1] == 1:
        fix = "give `targets.squeeze(1)`"
    else:
        fix = "make the shapes fit: one class index for each row of scores"
    yield error("shape-mismatch", message, fix)


def _one_hot(targets: Tensor) -> bool:
    if targets.shape[1] < 2 or not bool(((targets == 0) | (targets == 1)).all()):
        return False
    return bool((targets.sum(1) == 1).all())


def _distribution(loss: Any, targets: Tensor) -> Iterator[Finding]:
    logs = bool(option(loss, "log_target", False))
    shown = targets.detach().double()
    probabilities = bool((shown >= 0).all()) and _sums_to_one(shown)
    if logs and not _sums_to_one(shown.exp()):
        state = "are probabilities" if probabilities else "are not logs of probabilities that sum to 1"
        fix = "leave out log_target" if probabilities else "give `log_softmax` of the targets' scores"
        yield warning("kl-target-not-a-distribution", f"log_target is set and the targets {state}", fix)
    if not logs and not probabilities:
        logs_given = bool((shown <= 0).all()) and _sums_to_one(shown.exp())
        state = "are logs of probabilities" if logs_given else "do not sum to 1"
        fix = "set log_target: true" if logs_given else "give `softmax` of the targets' scores"
        yield warning("kl-target-not-a-distribution", f"KLDivLoss's targets are probabilities; these {state}", fix)


def _sums_to_one(values: Tensor) -> bool:
    dims = range(values.dim())
    return any(bool(((values.sum(dim) - 1).abs() < 2e-2).all()) for dim in dims)


def _shapes(name: str, outputs: Any, targets: Tensor) -> Iterator[Finding]:
    if name == "GaussianNLLLoss" and isinstance(outputs, list | tuple) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, Tensor) or outputs.shape == targets.shape:
        return
    message = f"the outputs are {form(outputs)} and the targets {form(targets)}"
    scores = outputs.dim() > 1 and targets.shape == outputs.shape[:1] and outputs.shape[1] > 1
    if scores and targets.dtype == torch.int64:
        fix = "use CrossEntropyLoss if the targets are class indices; else give both the same shape"
    elif outputs.numel() == targets.numel():
        fix = f"give `targets.reshape({', '.join(map(str, (-1, *outputs.shape[1:])))})`, or squeeze the outputs"
    else:
        fix = "give outputs and targets the same shape"
    try:
        together = torch.broadcast_shapes(outputs.shape, targets.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        together = None
    if together is None or name in _REFUSES_SHAPES:
        yield error("shape-mismatch", f"{message}; {name} compares element by element", fix)
    else:
        yield warning(
            "broadcast",
            f"{message}; {name} compares them as {tuple(together)}, each output with targets that are not its own",
            fix,
        )


def _constant(evidence: Evidence) -> Iterator[Finding]:
    targets = evidence.targets
    if not isinstance(targets, Tensor) or targets.dim() == 0 or len(targets) < 4 or not targets.numel():
        return
    if not bool((targets == targets[:1]).all()):
        return
    # As many equal targets as chance would give once in a million draws (of balanced classes), or not a word.
    kinds = evidence.classes
    for name, loss in evidence.parts:
        if name in INDICES:
            kinds = kinds or class_count(name, loss, evidence.outputs)
            if bool((targets == ignored(loss)).all()):
                return
    if kinds is None and not bool((targets == targets.round()).all()):
        kinds = 1_000_000  # real numbers do not repeat
    if max(kinds or 2, 2) ** (len(targets) - 1) < 1_000_000:
        return
    shown = f"{targets.flatten()[0].item():g}" if targets[0].numel() == 1 else "the same"
    yield warning(
        "constant-target",
        f"all {len(targets)} targets of the first batch are {shown}: nothing can be learnt from it",
        "shuffle the data if it is sorted by class; else look where the targets come from",
    )


def _ctc(
    loss: Any, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
) -> Iterator[Finding]:
    blank = option(loss, "blank", 0)
    count = log_probs.shape[-1]
    inputs, lengths = (torch.as_tensor(n, device="cpu").reshape(-1).tolist() for n in (input_lengths, target_lengths))
    rows = _ctc_rows(targets, lengths)
    labels = torch.cat(rows) if rows else targets.new_zeros(0)
    if labels.numel():
        low, high = _ends(labels)
        if low < 0 or high >= count:
            yield error(
                "target-out-of-range",
                f"the labels go from {low} to {high}; the model has {count} outputs",
                "correct the labels, or widen the last layer",
            )
        if bool((labels == blank).any()):
            yield warning(
                "ctc-blank-in-targets",
                f"the label {blank} is the blank, which means no label, and the targets hold it within their lengths",
                "count labels from 1, or set `blank` to an index that is no label",
            )
    for i, (steps, row) in enumerate(zip(inputs, rows, strict=False)):
        needed = len(row) + int((row[1:] == row[:-1]).sum())
        if steps < needed and not option(loss, "zero_infinity", False):
            yield warning(
                "ctc-input-too-short",
                f"sample {i} has {steps} input steps and needs {needed} (its labels, and a blank between two alike): "
                "its loss is infinite",
                "leave out such samples, reduce the model's stride, or set zero_infinity: true",
            )
            return


def _ctc_rows(targets: Tensor, lengths: list[int]) -> list[Tensor]:
    if targets.dim() == 2:
        return [row[:n] for row, n in zip(targets, lengths, strict=False)]
    return list(torch.split(targets[: sum(lengths)], lengths)) if sum(lengths) <= len(targets) else [targets]
