"""Which samples of a pass are answered most wrongly and least surely, and how predicted numbers differ from true ones.

The same on any number of ranks: a sample is known by its batch and its row in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..batches import scores
from ..world import World
from .gathering import gathered

MOST = 24
# Labels and targets of a sample beyond these are no list that anybody reads.
_MOST_ANSWERS = 32
_MOST_TARGETS = 8
# More numbers than these of one sample would cost as much as the forward pass.
_MOST_NUMBERS = 1 << 22
_HELD = 1 << 16
_BINS, _POINTS = 40, 1000
_ROW = 1 << 31
_LARGEST = 1e30  # what JSON holds for the loss of an answer that is no number


@dataclass
class Answers:
    """What one pass answered, as plain values; samples are ``(batch, row)``.

    An entry of `wrong` or `unsure` has ``sample``, ``loss`` (its own, without class weights), and where there are as
    many answers as can be read ``true`` and ``predicted``: the class, the labels that hold, or the numbers. Of
    classes and labels it has ``confidence`` too, and of several positions the share that is ``right``. `wrong` begins
    with the largest loss, `unsure` with the lowest confidence. `residuals` are by target: ``mean``, ``deviation``,
    ``edges`` and ``counts`` of a histogram of predicted minus true (what lies beyond is in the first and the last),
    and ``points`` (true, predicted), each of an even selection of one sample in ``stride``.
    """

    kind: str
    wrong: list[dict[str, Any]] = field(default_factory=list)
    unsure: list[dict[str, Any]] = field(default_factory=list)
    residuals: list[dict[str, Any]] = field(default_factory=list)


class Hardest:
    """Takes the outputs and targets of batches; `kind` is how answers are read (`RunningMetrics`), None for numbers.

    `add` waits for no device, unless much is held. What has no answers of a known form is passed over.

    >>> hardest = Hardest("classes", size=2)
    >>> hardest.add(torch.tensor([[9.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]), batch=0)
    >>> found = hardest.result(World.alone())
    >>> found.wrong[0]["sample"], found.wrong[0]["true"], found.wrong[0]["predicted"], found.unsure[0]["sample"]
    ((0, 0), 1, 0, (0, 1))
    """

    def __init__(self, kind: str | None, ignore_index: int = -100, *, size: int, most: int = MOST):
        self.kind, self.ignore_index, self.most = kind, ignore_index, most
        self._size = max(size, 1)
        self._held: list[tuple[Tensor, ...]] = []
        self._count = 0
        self._numbers: list[tuple[Tensor, ...]] = []
        self._stride = 1

    def add(self, outputs: Any, targets: Any, batch: int, samples: int | None = None) -> None:
        """One batch, by its number in the pass; passed over where it has not one row for each of its `samples`."""
        outputs = scores(outputs)
        if isinstance(outputs, list | tuple) and self.kind is None and outputs:
            outputs = outputs[0]  # a mean and its variance
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not targets.dim() or not len(targets):
            return
        if outputs.dim() == 0 or not len(outputs) == len(targets) == (samples or len(outputs)):
            return
        if outputs.numel() > _MOST_NUMBERS * len(outputs):
            return
        outputs = outputs.detach().float()
        if self.kind == "classes" or (self.kind is None and outputs.numel() != targets.numel()):
            found = _of_classes(outputs, targets, self.ignore_index)
        else:
            found = _of_numbers(outputs, targets) if self.kind is None else _of_labels(self.kind, outputs, targets)
        if found is None:
            return
        rows = torch.arange(len(outputs), device=outputs.device) + batch * _ROW
        self._held.append((rows, *found))
        self._count += len(outputs)
        if self._count > _HELD:
            self._keep_hardest()
        if found[3].is_floating_point():
            self._numbers.append(self._selected((rows, *found[3:])))
            self._thin()

    def _keep_hardest(self) -> None:
        """Of what is held, only what may be in the result."""
        if not self._held:
            return
        columns = _joined(self._held)
        some = torch.cat([self._order(columns, wrong)[: self.most] for wrong in (True, False)])
        kept = torch.tensor(sorted({*some.tolist()}), dtype=torch.long, device=some.device)
        self._held, self._count = [tuple(column[kept] for column in columns)], len(kept)

    def _order(self, columns: Sequence[Tensor], wrong: bool) -> Tensor:
        """The places of the samples that are wrong, or that are in doubt, the worst first; of equals the first."""
        _, losses, confidence, right = columns[:4]
        values = losses if wrong else -confidence
        values = torch.where((right < 1) if wrong else confidence < 1, values, -torch.inf)
        order = values.sort(descending=True, stable=True).indices
        return order[values[order] > -torch.inf]

    def _selected(self, columns: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self._stride == 1:
            return tuple(columns)
        kept = (columns[0] // _ROW * self._size + columns[0] % _ROW) % self._stride == 0
        return tuple(column[kept] for column in columns)

    def _thin(self) -> None:
        """Of the numbers an even selection, by a stride that depends only on how many there are."""
        while sum(len(columns[0]) for columns in self._numbers) > _HELD:
            self._stride *= 2
            self._numbers = [self._selected(_joined(self._numbers))]

    def result(self, world: World) -> Answers | None:
        """What was found on all ranks; None where nothing was added anywhere."""
        self._keep_hardest()
        self._held = _of_all(world, self._held)
        if not self._held:
            return None
        columns = [column.cpu() for column in self._held[0]]
        numbers = columns[4].is_floating_point()
        answers = Answers("numbers" if numbers else "labels" if columns[4].dtype == torch.bool else "classes")
        answers.wrong = [_entry(columns, place) for place in self._order(columns, True)[: self.most].tolist()]
        if not numbers:
            answers.unsure = [_entry(columns, place) for place in self._order(columns, False)[: self.most].tolist()]
        self._stride = max(world.gather(self._stride))
        self._numbers = _of_all(world, self._numbers)
        if self._numbers:
            self._numbers = [self._selected(self._numbers[0])]
            self._thin()
            answers.residuals = list(_residuals(self._numbers[0], self._stride))
        return answers


def _of_all(world: World, held: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """What all ranks hold as one, in order of batches and rows."""
    joined = _joined(held) if held else []
    ranks = [each for each in gathered(world, joined) if each] if world.size > 1 else [joined] if joined else []
    if not ranks:
        return []
    columns = _joined(ranks)
    order = columns[0].argsort()
    return [tuple(column[order] for column in columns)]


def _joined(held: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The columns of several stretches as one; where true and predicted have several widths, both have none."""
    columns = [list(each) for each in zip(*held, strict=True)]
    if len({each.shape[1] for each in columns[-1]}) > 1:
        columns[-2:] = [[each[:, :0] for each in column] for column in columns[-2:]]
    return list(map(torch.cat, columns))


# Each of these gives of a batch: the samples' losses (n,), confidence (n,), the share that is right (n,), what is true
# and what was predicted (n, k): whole numbers of classes, truth values of labels, floats of numbers; k is 0 where there
# are too many to read.


def _of_classes(outputs: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, ...] | None:
    """Of scores (N, C, ...) and classes, or probabilities of classes."""
    if outputs.dim() < 2 or outputs.shape[1] < 2:
        return None
    if targets.is_floating_point():
        if targets.shape != outputs.shape:
            return None
        targets = targets.argmax(1)
    if targets.shape != outputs.shape[:1] + outputs.shape[2:]:
        return None
    targets = targets.long()
    counts = (targets != ignore_index) & (targets >= 0) & (targets < outputs.shape[1])
    whole = outputs.logsumexp(1)
    best, answers = outputs.max(1)
    true = outputs.gather(1, targets.clamp(0, outputs.shape[1] - 1).unsqueeze(1)).squeeze(1)
    right = (answers == targets) & ~best.isnan()
    columns = (whole - true, (best - whole).exp(), right.float())
    losses, confidence, right = _means(columns, counts)
    if targets.dim() > 1:
        targets = answers = targets.new_zeros(len(targets), 0)
    return losses, confidence, right, targets.reshape(len(targets), -1), answers.reshape(len(targets), -1)


def _of_labels(kind: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...] | None:
    """Of scores of labels, all of which may hold, of one shape with their targets."""
    if outputs.numel() != targets.numel():
        return None
    outputs, targets = outputs.reshape(len(outputs), -1), targets.reshape(len(outputs), -1)
    true = targets > (0 if kind == "signs" else 0.5)
    sure = outputs if kind == "probabilities" else outputs.sigmoid()
    predicted = sure > 0.5
    losses = functional.binary_cross_entropy(sure.nan_to_num().clamp(0, 1), true.float(), reduction="none")
    losses = losses.where(~sure.isnan(), torch.nan)
    columns = (losses, torch.maximum(sure, 1 - sure), (predicted == true).float())
    means = _means(columns, torch.ones_like(true))
    if true.shape[1] > _MOST_ANSWERS:
        true = predicted = true[:, :0]
    if true.shape[1] == 1:
        return *means, true.long(), predicted.long()
    return *means, true, predicted


def _of_numbers(outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...] | None:
    """Of predicted and true numbers, whose loss is the squared error; none is ever right."""
    if outputs.numel() != targets.numel():
        return None
    true, predicted = (t.detach().reshape(len(outputs), -1).double() for t in (targets, outputs))
    losses = (predicted - true).square().mean(1).float()
    losses = losses.nan_to_num(_LARGEST).clamp(max=_LARGEST)
    if true.shape[1] > _MOST_TARGETS:
        true = predicted = true[:, :0]
    return losses, torch.ones_like(losses), torch.zeros_like(losses), true, predicted


def _means(columns: Sequence[Tensor], counts: Tensor) -> Iterator[Tensor]:
    """The means of each sample's positions that count; of a sample without any: right, and in no doubt."""
    counts = counts.reshape(len(counts), -1)
    some = counts.any(1)
    for column, otherwise, nan in zip(columns, (0.0, 1.0, 1.0), (_LARGEST, 0.0, 0.0), strict=True):
        column = column.reshape(len(counts), -1).nan_to_num(nan).clamp(max=_LARGEST)
        total = torch.where(counts, column, torch.zeros_like(column)).sum(1)
        yield torch.where(some, total / counts.sum(1).clamp(min=1), torch.full_like(total, otherwise))


def _entry(columns: Sequence[Tensor], place: int) -> dict[str, Any]:
    loss, confidence, right, true, predicted = (column[place].tolist() for column in columns[1:])
    entry: dict[str, Any] = {"sample": divmod(int(columns[0][place]), _ROW), "loss": loss}
    numbers = columns[4].is_floating_point()
    if not numbers:
        entry["confidence"] = confidence
    if columns[4].dtype == torch.bool:
        held = [[number for number, holds in enumerate(each) if holds] for each in (true, predicted)]
        return entry | ({"true": held[0], "predicted": held[1]} if true else {}) | {"right": right}
    if not true:
        return entry | ({} if numbers else {"right": right})
    return entry | ({"true": true, "predicted": predicted} if numbers else {"true": true[0], "predicted": predicted[0]})


def _residuals(columns: Sequence[Tensor], stride: int) -> Iterator[dict[str, Any]]:
    _, true, predicted = (column.cpu() for column in columns)
    for target in range(true.shape[1]):
        finite = true[:, target].isfinite() & predicted[:, target].isfinite()
        x, y = true[finite, target], predicted[finite, target]
        if not len(x):
            continue
        errors = (y - x).sort().values
        lowest, first, last, highest = errors[[0, len(errors) // 4, 3 * len(errors) // 4, -1]].tolist()
        # Beyond four times the width of the middle half lie outliers, which would make one column of all others.
        low, high = max(lowest, first - 4 * (last - first)), min(highest, last + 4 * (last - first))
        if high <= low:
            low, high = low - (abs(low) * 1e-6 or 0.5), high + (abs(high) * 1e-6 or 0.5)
        edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64, device="cpu")
        place = torch.bucketize(errors, edges[1:-1])
        counts = (place[:, None] == torch.arange(_BINS, device="cpu")).sum(0)
        few = slice(None, None, -(-len(x) // _POINTS))
        order = x[few].argsort(stable=True)
        yield {
            "samples": len(x),
            "stride": stride,
            "mean": errors.mean().item(),
            "deviation": errors.std(correction=0).item(),
            "edges": edges.tolist(),
            "counts": counts.tolist(),
            "points": list(map(list, itertools.zip_longest(x[few][order].tolist(), y[few][order].tolist()))),
        }
