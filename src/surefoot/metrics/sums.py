"""What our own metrics are computed from: counts of answers by class, sums of errors and of likelihoods, kept exactly.

Counts are whole numbers, so that many batches are counted as one. Sums of floats are taken batch by batch in float64
and added in order, so that when it is done changes no bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import functional

from ..batches import form
from ..errors import UsageError
from ..world import World

Pair = tuple[Any, Any]


# So many answers are held before they are counted: a bulk costs little more than one batch.
_MOST_HELD = 1 << 20


class Counts:
    """How often each class (or label) is true, is answered, and is both: for ``f1_macro`` and ``iou``.

    `kind` is that of `RunningMetrics`. Classes are those of (N, C, ...); labels are the second dimension of (N, L) and
    of (N, L, d1, d2), and one otherwise.
    """

    def __init__(self, kind: str, ignore_index: int, state: Sequence[Sequence[int]] = ()):
        self.kind, self.ignore_index = kind, ignore_index
        self._counts = torch.tensor(state, dtype=torch.long, device="cpu") if state else None
        # What was counted since `of_ranks`.
        self._new: Tensor | None = None
        self._held: list[Pair] = []
        self._size = self._elements = 0

    def hold(self, outputs: Tensor, answers: Tensor, truth: Tensor) -> None:
        """Take in what `answers_of` has read from outputs and targets."""
        if self.kind == "classes":
            size = outputs.shape[1 if outputs.dim() > 1 else 0]
            shape: tuple[int, ...] = (-1,)
        else:
            size = outputs.shape[1] if outputs.dim() in (2, 4) else 1
            shape = (-1, size)
            if outputs.dim() == 4:
                answers, truth = answers.movedim(1, -1), truth.movedim(1, -1)
        if size != self._size:
            self._count()
        self._size = size
        self._held.append((answers.reshape(shape), truth.reshape(shape)))
        self._elements += answers.numel()
        if self._elements > _MOST_HELD:
            self._count()

    def _count(self) -> None:
        held, self._held, self._elements = self._held, [], 0
        if not held:
            return
        answers, truth = (torch.cat(each) for each in zip(*held, strict=True))
        if self.kind == "classes":
            truth = truth.long()  # in uint8 -100 would be class 156
            inside = (truth != self.ignore_index) & (truth >= 0) & (truth < self._size)
            truth, answers = truth[inside], answers[inside]
            rows = [torch.bincount(of, minlength=self._size) for of in (truth, answers, truth[truth == answers])]
        else:
            rows = [truth.sum(0), answers.sum(0), (answers & truth).sum(0)]
        self._new = self._sum(self._new, torch.stack(rows).cpu())

    def of_ranks(self, world: World) -> None:
        """Put together what each rank has counted since this was done last."""
        self._count()
        new, self._new = self._new, None
        for each in world.gather(None if new is None else new.tolist()):
            if each is not None:
                self._counts = self._sum(self._counts, torch.tensor(each, device="cpu"))

    def _all(self) -> Tensor | None:
        self._count()
        return self._counts if self._new is None else self._sum(self._counts, self._new)

    def _sum(self, before: Tensor | None, more: Tensor) -> Tensor:
        """Of more classes than before, the others were not there; labels that come and go count as one."""
        if before is None or before.shape == more.shape:
            return more if before is None else before + more
        if self.kind == "classes":
            wide = max(before.shape[1], more.shape[1])
            before, more = (functional.pad(each, (0, wide - each.shape[1])) for each in (before, more))
            return before + more
        return before.sum(1, keepdim=True) + more.sum(1, keepdim=True)

    def values(self) -> dict[str, float]:
        """``f1_macro`` and ``iou``, macro averages as torchmetrics defines them.

        A class that is neither true nor answered anywhere has no part in the mean; a label always has one.
        """
        if (counts := self._all()) is None:
            return {"f1_macro": math.nan, "iou": math.nan}
        truth, answered, both = counts.double()
        there = torch.ones_like(truth, dtype=torch.bool) if self.kind != "classes" else truth + answered > 0
        f1 = both * 2 / (truth + answered).clamp(min=1)
        iou = both / (truth + answered - both).clamp(min=1)
        wanted = there.clone()
        if self.kind == "classes" and 0 <= self.ignore_index < len(wanted):
            wanted[self.ignore_index] = False
        return {"f1_macro": f1[there].mean().item(), "iou": iou[wanted].mean().item()}

    def state(self) -> list[list[int]]:
        """The sums as plain numbers."""
        return [] if (counts := self._all()) is None else counts.tolist()


class Errors:
    """Sums of errors: for ``mae`` (over all elements) and ``r2``.

    R2 is scikit-learn's with ``uniform_average`` over the outputs of (N, D); outputs of more dimensions (or of
    several D) count as one.
    """

    def __init__(self, state: Sequence[Sequence[float]] = ()):
        # A row each: samples, sum of errors, of squared errors, mean of the targets, their squared distances from it.
        self._sums = torch.tensor(state, dtype=torch.float64, device="cpu") if state else None

    def rows(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """The sums of each batch, float64 (5, D)."""
        sums: list[Tensor] = []
        samples = []
        for outputs, targets in pairs:
            outputs = outputs[0] if isinstance(outputs, list | tuple) else outputs  # a mean and its variance
            if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
                raise unreadable("mae or r2", outputs, targets, "two tensors of numbers")
            if outputs.dtype in (torch.bfloat16, torch.float16):
                outputs = outputs.float()
            if not targets.is_floating_point():
                targets = targets.to(outputs.dtype)
            if targets.shape != outputs.shape and targets.numel() == outputs.numel():
                targets = targets.reshape(outputs.shape)
            errors = outputs - targets
            targets = targets.expand_as(errors)
            if errors.dim() != 2:
                errors, targets = errors.reshape(-1, 1), targets.reshape(-1, 1)
            samples.append(len(errors))
            mean = targets.mean(0, dtype=torch.float64)
            sums += [
                vector_norm(errors, 1, 0, dtype=torch.float64),
                vector_norm(errors, 2, 0, dtype=torch.float64),
                mean,
                vector_norm(targets.double() - mean, 2, 0),
            ]
        if len({len(each) for each in sums}) > 1:  # of several widths
            return [self.rows([pair])[0] for pair in pairs]
        found = torch.stack(sums).reshape(len(samples), 4, -1).cpu()
        found[:, 1] *= found[:, 1]
        found[:, 3] *= found[:, 3]
        count = (
            torch.tensor(samples, dtype=torch.float64, device="cpu").reshape(-1, 1, 1).expand(-1, 1, found.shape[-1])
        )
        return list(torch.cat([count, found], 1))

    def add(self, rows: Sequence[Tensor]) -> None:
        """Add the sums of each batch, one after another."""
        for each in rows:
            self._sums = each if self._sums is None else merged(self._sums, each)

    def values(self) -> dict[str, float]:
        """``mae`` and ``r2``; R2 of targets that never change is 1 where there are no errors, else 0."""
        if self._sums is None:
            return {"mae": math.nan, "r2": math.nan}
        count, errors, squared_errors, mean, about_mean = self._sums
        constant = about_mean <= rounding(count, mean)
        r2 = torch.where(constant, (squared_errors == 0).double(), 1 - squared_errors / about_mean)
        few = count < 2
        return {"mae": (errors.sum() / count.sum()).item(), "r2": math.nan if few.any() else r2.mean().item()}

    def state(self) -> list[list[float]]:
        """The sums as plain numbers."""
        return [] if self._sums is None else self._sums.tolist()


class Likelihood:
    """The negative log-likelihood of the true classes: for ``perplexity``, its exponential per position.

    Class weights and label smoothing have no part in it. With `logs` the outputs are log-probabilities.
    """

    def __init__(self, ignore_index: int, logs: bool, state: Sequence[float] = ()):
        self.ignore_index, self.logs = ignore_index, logs
        self._total, self._count = (float(state[0]), int(state[1])) if state else (0.0, 0)

    def _of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum and number of positions of one batch, on its device."""
        outputs, targets = comparable(outputs, targets)
        require_indices(targets)
        logs = outputs.float() if self.logs else outputs.float().log_softmax(1 if outputs.dim() > 1 else 0)
        losses = functional.nll_loss(logs, targets.long(), ignore_index=self.ignore_index, reduction="none")
        return torch.stack([losses.sum(dtype=torch.float64), (targets.long() != self.ignore_index).sum().double()])

    def rows(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """The sums of each batch, float64 (2,)."""
        return list(torch.stack([self._of(*pair) for pair in pairs]).cpu())

    def add(self, rows: Sequence[Tensor]) -> None:
        """Add the sums of each batch, one after another."""
        for total, count in map(Tensor.tolist, rows):
            self._total, self._count = self._total + total, self._count + int(count)

    def values(self) -> dict[str, float]:
        """``perplexity``."""
        return {"perplexity": perplexity(self._total / self._count if self._count else math.nan)}

    def state(self) -> list[float]:
        """The sums as plain numbers."""
        return [self._total, self._count]


def merged(one: Tensor, other: Tensor) -> Tensor:
    """The sums of two stretches as one, where row 0 counts, 3 is a mean and 4 the squared distances from it.

    Columns that come and go become one.
    """
    if one.shape != other.shape:
        one, other = (functools.reduce(merged, each.chunk(each.shape[1], dim=1)) for each in (one, other))
    count = one[0] + other[0]
    apart = other[3] - one[3]
    total = one + other
    total[3] = one[3] + apart * other[0] / count
    total[4] += apart.square() * one[0] * other[0] / count
    return total


def rounding(count: Any, mean: Any) -> Any:
    """What rounding leaves of the squared distances of `count` targets that are all alike from their `mean`."""
    return count * (1e-14 * mean) ** 2


def perplexity(mean: float) -> float:
    """The exponential of a mean negative log-likelihood; infinite where that is beyond floats."""
    return math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan


def comparable(outputs: Any, targets: Any) -> Pair:
    """Scores (N, C, ...) and the classes (N, ...), or their probabilities (N, C, ...), that they are compared with.

    Scores (N, ..., C) and classes (N, 1) are brought into this form, where only this fits. Raises UsageError else.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not outputs.dim():
        raise unreadable("accuracy and the like", outputs, targets, "tensors, scores (N, C, ...) and classes (N, ...)")
    shape = outputs.shape[:1] + outputs.shape[2:] if outputs.dim() > 1 else outputs.shape[:0]
    if targets.shape == shape or (targets.is_floating_point() and targets.shape == outputs.shape):
        return outputs, targets
    if outputs.dim() > 2 and targets.shape == outputs.shape[:-1]:
        return outputs.movedim(-1, 1), targets
    if [size for size in targets.shape if size != 1] != [size for size in shape if size != 1]:
        raise unreadable("accuracy and the like", outputs, targets, f"targets {tuple(shape)} beside these outputs")
    return outputs, targets.reshape(shape)


def require_indices(targets: Any) -> None:
    """Raise UsageError for targets of which no perplexity can be computed."""
    if isinstance(targets, Tensor) and targets.is_floating_point():
        raise UsageError("metrics: perplexity needs class indices as targets; these are probabilities")


def unreadable(what: str, outputs: Any, targets: Any, expected: str) -> UsageError:
    """What to raise where a metric of ours cannot be computed from outputs and targets."""
    return UsageError(
        f"metrics: {what} cannot be computed from outputs {form(outputs)} and targets {form(targets)}: expected "
        f"{expected}; leave it out, or give a function of (outputs, targets): metrics={{'accuracy': function}}"
    )


def answers_of(kind: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What is answered and what is true: of classes their indices, of labels whether each one is.

    Outputs are scores (N, C, ...) and targets indices or class probabilities; or both are of one shape.
    """
    if kind == "classes":
        dim = 1 if outputs.dim() > 1 else 0
        if targets.is_floating_point() and targets.dim() == outputs.dim():
            targets = targets.argmax(dim)
        return outputs.argmax(dim), targets
    if targets.numel() == outputs.numel():  # (N, 1) against (N): telling the user is the lint's work
        targets = targets.reshape(outputs.shape)
    return outputs > (0.5 if kind == "probabilities" else 0), targets > (0 if kind == "signs" else 0.5)


class OwnMetrics:
    """Our own metrics beside accuracy, by name, since the last `reset`.

    `kind` is how answers are read, `logs` whether outputs are log-probabilities. With `from_loss` the mean loss is the
    mean negative log-likelihood, of which the perplexity is taken; nothing else is then needed for it.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        kind: str | None = None,
        ignore_index: int = -100,
        *,
        logs: bool,
        from_loss: bool,
    ):
        self.names = tuple(name for name in names if name in MAKERS)
        self._from_loss = from_loss
        self._kind, self._ignore_index, self._logs = kind or "classes", ignore_index, logs
        self.load({})

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; from nothing where it is empty."""
        made = {MAKERS[name] for name in self.names if not (name == "perplexity" and self._from_loss)}
        self._sums: dict[str, Counts | Errors | Likelihood] = {}
        if "counts" in made:
            self._sums["counts"] = Counts(self._kind, self._ignore_index, state.get("counts", ()))
        if "errors" in made:
            self._sums["errors"] = Errors(state.get("errors", ()))
        if "likelihood" in made:
            self._sums["likelihood"] = Likelihood(self._ignore_index, self._logs, state.get("likelihood", ()))

    @property
    def needs_outputs(self) -> bool:
        """Whether outputs and targets must be kept for it."""
        return bool(self._sums)

    @property
    def counts(self) -> Counts | None:
        """What answers are counted in."""
        counts = self._sums.get("counts")
        return counts if isinstance(counts, Counts) else None

    def rows(self, pairs: Sequence[Pair]) -> dict[str, list[Tensor]]:
        """The sums of each batch's outputs and targets, for `add`; answers are given to `counts`."""
        return {name: sums.rows(pairs) for name, sums in self.in_order().items()}

    def add(self, rows: Mapping[str, Sequence[Tensor]]) -> None:
        """Add the sums of each batch, one after another."""
        for name, sums in self.in_order().items():
            sums.add(rows.get(name, ()))

    def in_order(self) -> dict[str, Errors | Likelihood]:
        """The sums whose order shows in their bits."""
        return {name: sums for name, sums in self._sums.items() if not isinstance(sums, Counts)}

    def values(self, mean_loss: float) -> dict[str, float]:
        """The values by name, ``nan`` before anything was added."""
        found = {name: value for sums in self._sums.values() for name, value in sums.values().items()}
        found.setdefault("perplexity", perplexity(mean_loss))
        return {name: found[name] for name in self.names}

    def state(self) -> dict[str, Any]:
        """Plain numbers; floats come back bit for bit from JSON."""
        return {name: sums.state() for name, sums in self._sums.items()}


# Our metrics beside accuracy, and which sums they are made from.
MAKERS = {"f1_macro": "counts", "iou": "counts", "mae": "errors", "r2": "errors", "perplexity": "likelihood"}
