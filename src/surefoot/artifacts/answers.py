"""What a model's outputs say of each sample: classes with probabilities, labels, scores or numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..text import counted
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
    """
    if info.loss is None or (isinstance(info.loss, Mapping) and "objective" in info.loss):
        return "scores" if info.classes else "numbers"
    terms = info.loss if isinstance(info.loss, list | tuple) else [info.loss]
    names = [term.get("name") if isinstance(term, Mapping) else term for term in terms]
    # Of a sum of losses, the one that says how the outputs are read.
    kinds = {_KINDS[name] for name in names if isinstance(name, str) and name in _KINDS}
    return kinds.pop() if len(kinds) == 1 else "numbers"


def probabilities(info: ModelInfo, outputs: Tensor) -> Tensor:
    """Softmax over dimension 1 or sigmoid where the loss took logits; other outputs as they are."""
    kind = kind_of(info)
    if kind == "softmax" and outputs.dim() >= 2:
        return outputs.softmax(1)
    return outputs.sigmoid() if kind == "sigmoid" else outputs


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


def describe_outputs(info: ModelInfo, outputs: Tensor, top: int = 3) -> list[dict[str, Any]]:
    """For each sample of `outputs` (N, ...), which `probabilities` gave, plain data that says what it predicts.

    ``{"predictions": [{"class", "index", "probability" | "score"}, ...]}``, the `top` highest first; for outputs with
    positions (N, C, ...) the share of positions of each class; ``{"values": [...]}`` for numbers, all of them.
    """
    kind = kind_of(info)
    if kind == "numbers":
        return [{"values": row.tolist() if row.dim() else [row.item()]} for row in outputs]
    if outputs.dim() > 2 and kind == "softmax":
        return [_shares(row, _names(info, len(row)), top) for row in outputs]
    if outputs.dim() > 2:
        return [{"values": row.tolist()} for row in outputs]
    if outputs.dim() == 1:
        outputs = outputs[:, None]
    measure = "score" if kind == "scores" else "probability"
    if outputs.shape[1] == 1 and info.classes and len(info.classes) == 2 and kind != "scores":
        outputs = torch.cat([1 - outputs, outputs], 1)
    names = _names(info, outputs.shape[1])
    values, indices = outputs.topk(max(1, min(top, outputs.shape[1])))
    return [
        {
            "predictions": [
                {"class": names[i], "index": i, measure: v} for v, i in zip(value.tolist(), index.tolist(), strict=True)
            ]
        }
        for value, index in zip(values, indices, strict=True)
    ]


def _shares(row: Tensor, names: Sequence[str], top: int) -> dict[str, Any]:
    counts = torch.bincount(row.argmax(0).flatten(), minlength=len(row))
    positions = int(counts.sum())
    order = counts.argsort(descending=True, stable=True).tolist()[: max(1, top)]
    shares = [{"class": names[i], "index": i, "share": int(counts[i]) / positions} for i in order if counts[i]]
    return {"positions": positions, "predictions": shares}


def _names(info: ModelInfo, count: int) -> list[str]:
    return list(info.classes or map(str, range(count)))


def shown(answer: Mapping[str, Any]) -> str:
    """One line for people: percentages for probabilities and shares, numbers for scores and values."""
    if "values" in answer:
        flat = torch.as_tensor(answer["values"], dtype=torch.float64).flatten()
        numbers = "  ".join(_number(v) for v in flat[:8].tolist())
        if len(flat) <= 8:
            return numbers
        return f"{numbers}  ... ({counted(len(flat), 'number')}, mean {_number(flat.mean().item())})"
    parts = []
    for prediction in answer["predictions"]:
        part = next(name for name in ("probability", "share", "score") if name in prediction)
        value = prediction[part]
        parts.append(f"{prediction['class']} {_number(value) if part == 'score' else f'{100 * value:.1f} %'}")
    positions = f" of {answer['positions']:,} positions" if "positions" in answer else ""
    return "  ".join(parts) + positions


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else str(value)
