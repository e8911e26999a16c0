"""What a model's outputs say of each sample: classes with probabilities, labels, scores or numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import batches
from ..errors import UsageError
from ..text import counted, visible
from .info import ModelInfo

# By the loss that a model was trained with: how its outputs are read.
_KINDS = {
    "CrossEntropyLoss": "softmax",
    "NLLLoss": "softmax",
    "KLDivLoss": "softmax",
    "BCEWithLogitsLoss": "sigmoid",
    "MultiLabelSoftMarginLoss": "sigmoid",
    "BCELoss": "probabilities",
    "MultiMarginLoss": "scores",
    "MultiLabelMarginLoss": "scores",
    "SoftMarginLoss": "scores",
}


def kind_of(info: ModelInfo) -> str:
    """How outputs are read, by the loss that the file names.

    ``"softmax"`` (one class of several), ``"sigmoid"`` (labels, each on its own), ``"probabilities"`` (such labels,
    already between 0 and 1), ``"scores"`` (the highest is the answer, on no scale) or ``"numbers"``. A file that names
    no loss (or an objective) gives scores where it names classes, else numbers: nothing says that they are logits.
    A loss of the model's own is taken for cross-entropy where classes are named.
    """
    objective = info.loss.get("objective") if isinstance(info.loss, Mapping) else None
    if objective == "model" and info.classes:
        return "softmax"
    if info.loss is None or objective is not None:
        return "scores" if info.classes else "numbers"
    terms = info.loss if isinstance(info.loss, list | tuple) else [info.loss]
    names = [term.get("name") if isinstance(term, Mapping) else term for term in terms]
    # Of a sum of losses, the one that says how the outputs are read.
    kinds = {_KINDS[name] for name in names if isinstance(name, str) and name in _KINDS}
    return kinds.pop() if len(kinds) == 1 else "numbers"


def probabilities(info: ModelInfo, outputs: Any) -> Any:
    """Softmax over dimension 1 or sigmoid where the loss took logits; other outputs as they are.

    Of outputs of several parts (a tuple, a dictionary) those are read so that are as wide as there are classes.
    """
    if not isinstance(outputs, Tensor):
        return batches.mapped(lambda part: probabilities(_of_part(info, part), part), outputs)
    kind = kind_of(info)
    if kind == "softmax" and outputs.dim() >= 2:
        return outputs.softmax(1)
    return outputs.sigmoid() if kind == "sigmoid" else outputs


def _of_part(info: ModelInfo, part: Tensor) -> ModelInfo:
    """What is known of one of several outputs."""
    fits = info.classes is not None and part.dim() >= 2 and part.shape[1] == len(info.classes)
    return info if fits else replace(info, classes=None, loss=None)


def check_classes(info: ModelInfo, outputs: Tensor, where: object) -> None:
    """Raise UsageError where a file names another number of classes than its model has outputs (N, C, ...)."""
    if info.classes and kind_of(info) != "numbers" and outputs.dim() >= 2 and outputs.shape[1] != len(info.classes):
        if outputs.shape[1] == 1 and len(info.classes) == 2:
            return  # one logit tells two classes apart
        raise UsageError(
            f"{where}: names {counted(len(info.classes), 'class')} and its model has "
            f"{counted(outputs.shape[1], 'output')}; the description is of another model: save it again, or open it "
            "in Python with classes=[...] of the right length"
        )


def describe_outputs(
    info: ModelInfo, outputs: Any, top: int | None = None, *, classes: int = 3
) -> list[dict[str, Any]]:
    """For each sample of `outputs` (N, ...), which `probabilities` gave, what it predicts, as plain data by `info`.

    - Classes: ``{"predictions": [{"class", "index", "probability" | "score"}, ...]}``, the `top` highest first, without
      it so many `classes`.
    - Labels, any number of which may hold: those above 0.5, or the `top` highest, in the same form.
    - The next token of a text: the classes at the last of its positions (N, C, T).
    - Positions (N, C, ...), by share: ``{"positions": count, "predictions": [{"class", "index", "share"}, ...]}``.
    - Numbers: ``{"value": number}`` or ``{"values": [...]}``, all of them; a table's targets by name.
    - Of outputs of several parts: ``{"outputs": {name: one of the above}}``, by keys, fields or positions.
    """
    if not isinstance(outputs, Tensor):
        parts = {name: part for name, part in batches.leaves(outputs) if isinstance(part, Tensor)}
        if len(parts) == 1:
            return describe_outputs(info, next(iter(parts.values())), top, classes=classes)
        each = [describe_outputs(_of_part(info, part), part, top, classes=classes) for part in parts.values()]
        return [{"outputs": dict(zip(parts, answers, strict=True))} for answers in zip(*each, strict=True)]
    kind = kind_of(info)
    if kind == "numbers" or (outputs.dim() > 2 and kind == "scores"):
        targets = info.columns.targets if info.columns is not None else ()
        if outputs.shape[1:] == (len(targets),):
            return [{"values": dict(zip(targets, row.tolist(), strict=True))} for row in outputs]
        return [{"value": row.item()} if row.numel() == 1 else {"values": row.tolist()} for row in outputs]
    if info.reads_text and outputs.dim() == 3:
        outputs = outputs[:, :, -1]
    labels, outputs = _of_classes(kind, outputs[:, None] if outputs.dim() == 1 else outputs)
    names = info.classes if info.classes and len(info.classes) == outputs.shape[1] else range(outputs.shape[1])
    if outputs.dim() > 2:
        each = outputs.flatten(2)
        held = each > 0.5 if labels else torch.zeros_like(each).scatter_(1, each.argmax(1, keepdim=True), 1)
        shares = _highest(held.double().mean(2), names, "share", top or len(names), least=0.0)
        return [{"positions": each.shape[2], "predictions": predictions} for predictions in shares]
    measure = "score" if kind == "scores" else "probability"
    every = labels and top is None
    chosen = _highest(outputs, names, measure, len(names) if every else top or classes, 0.5 if every else None)
    return [{"predictions": predictions} for predictions in chosen]


def _of_classes(kind: str, outputs: Tensor) -> tuple[bool, Tensor]:
    """Whether any number of labels may hold, and probabilities of each class: yes or no is two of them."""
    labels = kind in ("sigmoid", "probabilities")
    if labels and outputs.shape[1] == 1:
        return False, torch.cat([1 - outputs, outputs], 1)
    return labels, outputs


def _highest(
    values: Tensor, names: Sequence[Any], measure: str, top: int, least: float | None
) -> Iterator[list[dict[str, Any]]]:
    """Of each row of (N, C) the highest values with the names of their classes, those above `least` only."""
    count = max(1, min(top, len(names)))
    ordered, indices = values.sort(dim=1, descending=True, stable=True)
    for row, order in zip(ordered[:, :count].tolist(), indices[:, :count].tolist(), strict=True):
        yield [
            {"class": str(names[i]), "index": i, measure: value}
            for value, i in zip(row, order, strict=True)
            if least is None or value > least
        ]


def classes_of_positions(info: ModelInfo, outputs: Any) -> Tensor | None:
    """The class of each pixel, uint8 (N, H, W), of outputs (N, C, H, W) that `probabilities` gave; else None."""
    parts = list(batches.tensors(outputs))
    kind = kind_of(info)
    if len(parts) != 1 or parts[0].dim() != 4 or parts[0].shape[1] > 256 or kind == "numbers":
        return None
    labels, values = _of_classes(kind, parts[0])
    return None if labels else values.argmax(1).to(torch.uint8)


def shown(answer: Mapping[str, Any]) -> list[str]:
    """An `answer` as a line for people, or one for each output: percentages for probabilities and shares, else
    numbers."""
    if "outputs" in answer:
        return [f"{name}: {line}" for name, part in answer["outputs"].items() for line in shown(part)]
    if "value" in answer:
        return [_number(answer["value"])]
    if "values" in answer:
        if isinstance(answer["values"], Mapping):
            return ["  ".join(f"{name} {_number(value)}" for name, value in answer["values"].items())]
        values = torch.as_tensor(answer["values"], dtype=torch.float64, device="cpu").flatten()
        numbers = "  ".join(_number(v) for v in values[:8].tolist())
        if len(values) <= 8:
            return [numbers]
        return [f"{numbers}  ... ({counted(len(values), 'number')}, mean {_number(values.mean().item())})"]
    parts = []
    for prediction in answer["predictions"]:
        *_, (measure, value) = prediction.items()
        parts.append(
            f"{visible(prediction['class'])} {_number(value) if measure == 'score' else f'{100 * value:.1f} %'}"
        )
    positions = f" of {answer['positions']:,} positions" if "positions" in answer else ""
    return [("  ".join(parts) or "no label above 50 %") + positions]


def flat(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An answer as rows of a table of the same columns for all: a row for each class or label, or one of numbers.

    What stands beside ``predictions``, ``values`` and ``outputs`` is in each row. Where no label holds, class and
    probability are None.
    """
    beside = {k: v for k, v in answer.items() if k not in ("predictions", "values", "outputs", "positions")}
    if "outputs" in answer:
        parts = answer["outputs"].items()
        return [beside | {"output": name} | row for name, part in parts for row in flat(part)]
    if "value" in answer:
        return [beside]
    if "values" in answer:
        if isinstance(answer["values"], Mapping):
            return [{**beside, **answer["values"]}]
        values = torch.as_tensor(answer["values"], dtype=torch.float64, device="cpu").flatten().tolist()
        return [beside | {f"value_{i}": value for i, value in enumerate(values)}]
    none = [] if answer["predictions"] else [{"class": None, "probability": None}]
    chosen = [{k: v for k, v in each.items() if k != "index"} for each in answer["predictions"]]
    return [beside | each for each in chosen or none]


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else str(value)
