"""Figures of each label or target for a table, counted batch after batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..batches import leaves
from .by_class import of_counts
from .sums import merged, rounding


class _Counted:
    """The form of a metric; its rows are read by whoever made it, so copies of it are itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    # What is measured is in the rows; an evaluation of one pass needs no state.
    def compute(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class LabelCounts(_Counted):
    """Precision, recall and F1 of each of several labels (N, C) that may hold together: outputs above `threshold`."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.counts = torch.zeros(3, 0, dtype=torch.long, device="cpu")

    def update(self, outputs: Any, targets: Any) -> None:
        """One batch."""
        if not isinstance(outputs, Tensor) or outputs.dim() > 2 or outputs.numel() != targets.numel():
            return  # of positions: too many
        outputs, targets = outputs.reshape(len(outputs), -1), targets.reshape(len(outputs), -1)
        held, true = outputs > self.threshold, targets > 0.5
        counts = torch.stack([(held & true).sum(0), held.sum(0), true.sum(0)]).cpu()
        if self.counts.numel() and self.counts.shape != counts.shape:  # labels that come and go count as one
            self.counts, counts = self.counts.sum(1, keepdim=True), counts.sum(1, keepdim=True)
        self.counts = counts + self.counts if self.counts.numel() else counts

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A row for each label, called by `names` where they are as many; of yes or no, one for yes."""
        counts = self.counts.T.tolist()
        names = names[1:] if len(names) == 2 and len(counts) == 1 else names
        labels = names if len(names) == len(counts) else map(str, range(len(counts)))
        return [{"class": label, **of_counts(*each)} for label, each in zip(labels, counts, strict=True)]


class TargetErrors(_Counted):
    """MAE, RMSE and R2 of each target: each column of (N, T), and of dictionaries and tuples each part."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums: dict[str, Tensor] = {}

    def update(self, outputs: Any, targets: Any) -> None:
        """One batch."""
        if isinstance(outputs, list | tuple) and outputs and isinstance(targets, Tensor):
            outputs = outputs[0]  # a mean and its variance
        parts = dict(leaves(outputs))
        for name, true in leaves(targets):
            output = parts.get(name)
            if not isinstance(output, Tensor) or not isinstance(true, Tensor) or output.numel() != true.numel():
                continue
            columns = true.shape[1] if true.dim() == 2 else 1
            true = true.reshape(-1, columns).double().cpu()
            error = output.reshape(-1, columns).double().cpu() - true
            mean = true.mean(0)
            each = torch.stack(
                [torch.full_like(mean, len(true)), error.abs().sum(0), error.square().sum(0), mean]
                + [(true - mean).square().sum(0)]
            )
            self.sums[name] = merged(self.sums[name], each) if name in self.sums else each

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A row for each target, called by `names` where they are as many, else by its part and column."""
        rows = []
        for part, sums in self.sums.items():
            columns = sums.shape[1]
            numbers = [str(i) for i in range(columns)] if columns > 1 else [""]
            for number, (count, absolute, square, mean, spread) in zip(numbers, sums.T.tolist(), strict=True):
                label = ".".join(word for word in (part, number) if word)
                r2 = None if spread <= rounding(count, mean) else 1 - square / spread
                figures = {"mae": absolute / count, "rmse": math.sqrt(square / count), "r2": r2}
                rows.append({"target": label or "target", "samples": int(count), **figures})
        for row, name in zip(rows, names if len(names) == len(rows) else (), strict=False):
            row["target"] = name
        return rows
