"""Running means of loss and metrics over samples: cheap to add to, exact, the same whenever they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..text import counted
from .objects import MetricObjects
from .registry import OWN
from .sums import OwnMetrics, Pair, answers_of

_KINDS = ("classes", "logits", "probabilities", "signs")


class Parts(tuple[Any, ...]):
    """Outputs or targets of one update's micro-batches that cannot be joined (padded to several lengths)."""


class RunningMetrics:
    """Sums of what an epoch (and the stretch since the last log line) has given so far.

    `add` keeps references and computes nothing; the work is done in bulk when a value is asked for, or when what is
    held passes `hold_bytes` or `hold_batches`. Sums are float64, added batch after batch in order, and counts are
    whole numbers, so that when it is done changes no bit of the result. Nothing in `add` waits for a device, unless
    the bounds are passed.

    `kind` says how answers are read from outputs: ``"classes"`` (the highest of (N, C) or (N, C, d1, ...), targets are
    indices or class probabilities), ``"logits"`` (above 0), ``"probabilities"`` (above 0.5), ``"signs"`` (above 0,
    targets 1 or -1); None: there are none. `own` names which of our metrics are wanted, or is a function that tells
    them from the first batch's outputs and targets. `ignore_index` is left out of those of classes. `confusion`
    is the number of classes of a confusion matrix, for ``"classes"`` only. The loss of a batch weighs by its
    number of samples, or by `weigh(outputs, targets)`, which may look at shapes only, or by
    `weigh_many(list of targets)`. With `summed` the batch's loss is a sum and not a mean.
    `objects` are further metrics by name and `binary` is how they read outputs (see `MetricObjects`). These, and our
    own beside accuracy, are measured over an epoch and not over a window. `logs` and `from_loss` are as `OwnMetrics`
    has them.
    `losses.metric_options(loss)` gives these arguments for a loss.

    A tensor that is added must not be overwritten later.

    >>> running = RunningMetrics(kind="classes")
    >>> running.add(torch.tensor(0.5), torch.eye(4), torch.tensor([0, 1, 2, 0]), 4)
    >>> running.add(torch.tensor(2.0), torch.eye(4)[:1], torch.tensor([0]), 1)
    >>> running.result()
    {'loss': 0.8, 'accuracy': 0.8}
    """

    def __init__(
        self,
        *,
        kind: str | None = None,
        own: Sequence[str] | Callable[[Any, Any], Sequence[str]] = ("accuracy",),
        ignore_index: int = -100,
        confusion: int | None = None,
        summed: bool = False,
        weigh: Callable[[Any, Any], int] | None = None,
        weigh_many: Callable[[Sequence[Tensor]], list[float]] | None = None,
        objects: Mapping[str, Any] | None = None,
        binary: bool = False,
        logs: bool = False,
        from_loss: bool = False,
        hold_bytes: int = 32 << 20,
        hold_batches: int = 4096,
    ):
        if kind is not None and kind not in _KINDS:
            raise UsageError(f"kind: {kind!r} is not one of {', '.join(_KINDS)}")
        if confusion is not None and kind != "classes":
            raise UsageError("a confusion matrix needs kind='classes'")
        self.kind = kind
        self.ignore_index = ignore_index
        self.confusion = confusion
        self.summed = summed
        self.weigh = weigh
        self.weigh_many = weigh_many
        self.hold_bytes = hold_bytes
        self.hold_batches = hold_batches
        self.objects = MetricObjects(objects, binary) if objects else None
        self._more = {"logs": logs, "from_loss": from_loss}
        self._choose = own if callable(own) else None
        self._want(() if callable(own) else own)
        self.reset()

    def _want(self, own: Sequence[str]) -> None:
        """Measure these of our metrics from now on."""
        self.own_names = tuple(own)
        self.accuracy = "accuracy" in own and self.kind is not None
        self.own = OwnMetrics(own, self.kind, self.ignore_index, **self._more)
        self._keeps_outputs = self.accuracy or self.own.needs_outputs or self.objects is not None
        self._keeps_targets = self._keeps_outputs or self.weigh_many is not None

    def reset(self) -> None:
        """Forget everything: a new epoch begins."""
        self._held: list[tuple[Any, ...]] = []
        self._reported: list[tuple[int, Any, dict[str, Any]]] = []
        self._held_bytes = 0
        self._epoch = _Sums()
        self._window = _Sums()
        self._matrix = torch.zeros(self.confusion or 0, self.confusion or 0, dtype=torch.long)
        self.own.load({})
        if self.objects is not None:
            self.objects.reset()

    def add(
        self,
        loss: Tensor,
        outputs: Any,
        targets: Any,
        n: int,
        weight: Any = None,
        numbers: Mapping[str, Any] | None = None,
    ) -> None:
        """One batch: its loss (a tensor of one number), the model's outputs, the targets, its number of samples.

        `weight` is what the loss is the mean over, in place of what `weigh` would say; `numbers` are further means over
        it by name, plain or tensors of one number.

        Outputs and targets may be `Parts`; they then count as the parts' together.
        """
        if self._choose is not None:
            self._want(self._choose(outputs, targets))
            self._choose = None
        if weight is not None or numbers:
            self._reported.append((len(self._held), weight, dict(numbers or {})))
        weighed = None
        # `.data` and not `.detach()`: it is a third of the cost, and the graph is let go just the same.
        if self._keeps_outputs:
            outputs = Parts(map(_data, outputs)) if isinstance(outputs, Parts) else _data(outputs)
            self._held_bytes += sum(getattr(part, "nbytes", 0) for part in _parts(outputs)) + 512
        elif self.weigh is not None:
            weighed, outputs = self._weigh(outputs, targets), None
            self._held_bytes += 512
        else:
            outputs = None
            self._held_bytes += 512
        if not self._keeps_targets:
            targets = None
        self._held.append((loss.data, outputs, targets, n, weighed))
        if self._held_bytes > self.hold_bytes or len(self._held) >= self.hold_batches:
            self.flush()

    def flush(self) -> None:
        """Turn what is held into sums."""
        held, self._held, self._held_bytes = self._held, [], 0
        reported, self._reported = self._reported, []
        if not held:
            return
        losses, outputs, targets, samples, weighed = zip(*held, strict=True)
        values = _numbers(losses)
        weights: list[Any] = list(samples)
        if self.weigh_many is not None:
            weights = self._weigh_many(targets)
        elif self._keeps_outputs and self.weigh is not None:
            weights = list(map(self._weigh, outputs, targets))
        elif self.weigh is not None:
            weights = list(weighed)
        if reported:
            for (place, _, _), weight in zip(reported, _plain([w for _, w, _ in reported]), strict=True):
                weights[place] = weights[place] if weight is None else weight
        right, seen = self._count(outputs, targets) if self.accuracy or self.own.needs_outputs else (0, 0)
        for sums in (self._epoch, self._window):
            for value, weight, n in zip(values, weights, samples, strict=True):
                sums.add(value, weight, n, self.summed)
            sums.right += right
            sums.seen += seen
        if self.objects is not None:
            for output, target in zip(outputs, targets, strict=True):
                for o, t in zip(_parts(output), _parts(target), strict=True):
                    self.objects.update(o, t)
        for place, _, numbers in reported:
            for name, number in zip(numbers, _plain(list(numbers.values())), strict=True):
                self._epoch.number(name, number, weights[place])
                self._window.number(name, number, weights[place])

    def result(self) -> dict[str, float]:
        """Means over everything since `reset`, and further metrics' values; ``nan`` before anything was added."""
        self.flush()
        means = self._epoch.means(self.accuracy)
        others = {} if self.objects is None else self.objects.result()
        return means | self.own.values(means["loss"]) | others

    def window(self) -> dict[str, float]:
        """Means over what was added since the last call of `window` (or `reset`)."""
        self.flush()
        means = self._window.means(self.accuracy)
        self._window = _Sums()
        return means

    def better(self, name: str) -> str | None:
        """``"max"`` or ``"min"`` where the metric of that name itself says which is better, else None."""
        if name in self.own_names:
            return OWN[name].facts["better"]
        return None if self.objects is None else self.objects.better(name)

    @property
    def samples(self) -> int:
        """The number of samples since `reset`."""
        self.flush()
        return self._epoch.samples

    def matrix(self) -> Tensor:
        """The confusion matrix (C, C), int64: rows are true classes, columns predicted ones."""
        self.flush()
        return self._matrix.clone()

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain numbers; floats come back bit for bit from JSON (which must allow NaN)."""
        self.flush()
        state = {"epoch": self._epoch.state(), "window": self._window.state(), "matrix": self._matrix.tolist()}
        if self.own.names:
            state["own"] = {"names": list(self.own.names), **self.own.state()}
        return state if self.objects is None else state | {"objects": self.objects.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; what was added before is forgotten."""
        if len(state["matrix"]) != (self.confusion or 0):
            raise UsageError(
                f"the saved confusion matrix has {counted(len(state['matrix']), 'class')} and this one "
                f"{self.confusion or 0}"
            )
        self.reset()
        own = dict(state.get("own", {}))
        saved = own.pop("names", [])
        if list(self.own.names) != saved and (saved or state["epoch"]["samples"]):
            raise UsageError(
                f"metrics: the saved run measures {', '.join(saved) or 'none'} beside loss and accuracy, and this one "
                f"{', '.join(self.own.names) or 'none'}; give the saved ones"
            )
        self.own.load(own)
        (self.objects or MetricObjects({})).load_state_dict(state.get("objects", {"updates": 0}))
        self._epoch = _Sums(**state["epoch"])
        self._window = _Sums(**state["window"])
        if self.confusion:
            self._matrix = torch.tensor(state["matrix"], dtype=torch.long)

    def _weigh(self, outputs: Any, targets: Any) -> Any:
        assert self.weigh is not None
        return sum(map(self.weigh, _parts(outputs), _parts(targets)))

    def _weigh_many(self, targets: Sequence[Any]) -> list[float]:
        assert self.weigh_many is not None
        weights = iter(self.weigh_many([part for one in targets for part in _parts(one)]))
        return [sum(next(weights) for _ in _parts(one)) for one in targets]

    def _count(self, outputs: Sequence[Any], targets: Sequence[Any]) -> tuple[int, int]:
        """Add to our own metrics; how many answers are right, and how many there were."""
        each = [pair for o, t in zip(outputs, targets, strict=True) for pair in zip(_parts(o), _parts(t), strict=True)]
        self.own.update(each)
        if not self.accuracy and self.own.counts is None:
            return 0, 0
        # Batches of one shape (but for their length) are counted as one; counts are whole numbers, so nothing changes.
        groups: dict[Any, list[Pair]] = {}
        for i, (o, t) in enumerate(each):
            key = (*o.shape[1:], t.dtype, *t.shape[1:]) if o.dim() and t.dim() else i
            groups.setdefault(key, []).append((o, t))
        totals = []
        for some in groups.values():
            given, wanted = some[0] if len(some) == 1 else tuple(map(torch.cat, zip(*some, strict=True)))
            answers, truth = answers_of(str(self.kind), given, wanted)
            if self.own.counts is not None:
                self.own.counts.hold(given, answers, truth)
            if self.accuracy:
                totals.append(self._right(answers, truth))
        right, seen = torch.stack(totals).sum(0).tolist() if totals else (0, 0)
        return right, seen

    def _right(self, answers: Tensor, truth: Tensor) -> Tensor:
        if self.kind != "classes":
            right = answers == truth
            return torch.stack([right.sum(), right.new_tensor(right.numel(), dtype=torch.long)])
        counted = truth != self.ignore_index
        if self.confusion:
            self._tally(answers, truth, counted)
        return torch.stack([((answers == truth) & counted).sum(), counted.sum()])

    def _tally(self, answers: Tensor, targets: Tensor, counted: Tensor) -> None:
        size = self.confusion or 0
        counted = counted & (targets >= 0) & (targets < size) & (answers < size)  # what has no name has no cell
        truth, answers = targets[counted].long(), answers[counted]  # labels may be uint8: a product would overflow
        cells = torch.bincount(truth * size + answers, minlength=size * size).reshape(size, size)
        self._matrix += cells.cpu()


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Parts) else (value,)


class _Sums:
    """The sums of one stretch of batches."""

    __slots__ = ("loss", "numbers", "right", "samples", "seen", "weight")

    def __init__(
        self,
        loss: float = 0.0,
        weight: float = 0,
        samples: int = 0,
        right: int = 0,
        seen: int = 0,
        numbers: Mapping[str, Sequence[float]] | None = None,
    ):
        self.loss, self.weight, self.samples, self.right, self.seen = loss, weight, samples, right, seen
        self.numbers: dict[str, list[float]] = {name: list(sums) for name, sums in (numbers or {}).items()}

    def add(self, value: float, weight: float, samples: int, summed: bool) -> None:
        if summed:
            self.loss += value
        elif weight:  # the mean over no position at all (every one ignored) is 0/0 and has no part
            self.loss += value * weight
        self.weight += weight
        self.samples += samples

    def number(self, name: str, value: float, weight: float) -> None:
        """Add one batch's value of a number that an objective returns."""
        sums = self.numbers.setdefault(name, [0.0, 0.0])
        if weight:
            sums[0] += value * weight
            sums[1] += weight

    def means(self, accuracy: bool) -> dict[str, float]:
        means = {"loss": self.loss / self.weight if self.weight else math.nan}
        if accuracy:
            means["accuracy"] = self.right / self.seen if self.seen else math.nan
        for name, (total, weight) in self.numbers.items():
            means[name] = total / weight if weight else math.nan
        return means

    def state(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__slots__}


def _plain(values: Sequence[Any]) -> list[Any]:
    """Tensors among `values` as numbers, with one look at the device; the rest as it is."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    numbers = iter(_numbers([tensor.double() for tensor in tensors]) if tensors else [])
    return [next(numbers) if isinstance(value, Tensor) else value for value in values]


def _numbers(tensors: Sequence[Tensor]) -> list[float]:
    """The values of many one-number tensors, with one look at the device where they are alike."""
    try:
        return [float(value) for value in torch.stack(list(tensors)).reshape(-1).tolist()]
    except RuntimeError:  # of several shapes or devices: one by one
        return [t.item() for t in tensors]
