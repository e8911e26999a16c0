"""How sure answers are against how often they are right: counts by confidence, the same on any number of ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..world import World

BINS = 15
# Confidences are summed as whole numbers of 2**-32: exact, in any order, on any device.
_UNIT = 2**32


class Reliability:
    """Of the answers (N, C) of a classifier, softmax's highest probability in `BINS` equal parts.

    `add` waits for no device. Outputs of another form are passed over.

    >>> reliability = Reliability()
    >>> reliability.add(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 0]))
    >>> found = reliability.result(World.alone())
    >>> found["samples"][-1], found["right"][-1], round(found["confidence"][-1], 3)
    (2, 1, 1.0)
    """

    def __init__(self, ignore_index: int = -100):
        self.ignore_index = ignore_index
        self._sums: Tensor | None = None

    def add(self, outputs: Any, targets: Any) -> None:
        """One batch: logits or log-probabilities (N, C), and the indices of classes (N,)."""
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.dim() != 2:
            return
        if targets.shape != outputs.shape[:1] or targets.is_floating_point():
            return
        confidence, answers = outputs.double().softmax(1).max(1)
        counted = (targets.long() != self.ignore_index) & confidence.isfinite()
        confidence = confidence.nan_to_num()
        place = (confidence * BINS).long().clamp(0, BINS - 1)
        # A comparison and sums of whole numbers: deterministic everywhere, which bincount on CUDA is not.
        inside = (place[:, None] == torch.arange(BINS, device=place.device)) & counted[:, None]
        right = inside & (answers == targets)[:, None]
        units = inside * (confidence * _UNIT).round().long()[:, None]
        sums = torch.stack([inside.sum(0), right.sum(0), units.sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums

    def result(self, world: World) -> dict[str, list[Any]] | None:
        """By part: ``samples``, how many were ``right``, and the mean ``confidence``; None where nothing was added."""
        none = self._sums is None
        sums = torch.zeros(3, BINS, dtype=torch.long, device="cpu") if self._sums is None else self._sums.cpu()
        if world.size > 1:
            sums, none = world.sum(sums), False
        if none or not sums[0].any():
            return None
        samples, right, units = sums.tolist()
        means = [total / _UNIT / n if n else 0.0 for n, total in zip(samples, units, strict=True)]
        return {"samples": samples, "right": right, "confidence": means}
