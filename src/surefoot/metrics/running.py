"""Running means of loss and metrics over samples: cheap to add to, exact, the same whenever they are read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..batches import form
from ..errors import UsageError
from ..text import counted
from ..world import World
from .gathering import gathered, in_order
from .means import Parts, Row, Sums, Unread, bytes_of, data_of, numbers_of, pairs_of, parts_of, plain
from .objects import MetricObjects
from .registry import OWN
from .sums import OwnMetrics, Pair, answers_of, comparable

_KINDS = ("classes", "logits", "probabilities", "signs")


class RunningMetrics:
    """Sums of what an epoch (and the stretch since the last log line) has given so far.

    `add` keeps references and computes nothing; the work is done in bulk when a value is asked for, or when what is
    held passes `hold_bytes` or `hold_batches`. Sums are float64, added batch after batch in order, and counts are
    whole numbers, so that when it is done changes no bit of the result. Nothing in `add` waits for a device, unless
    the bounds are passed; where answers are only counted, outputs that pass `hold_bytes` are let go without a wait.

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

    With a `world` each rank adds what is its own, as often as the others: sums and counts are put together when they
    are read, batch after batch in the order of one process, so that every rank must ask for them. Metrics of others
    are given the answers of all ranks.

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
        world: World | None = None,
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
        self.world = World.alone() if world is None else world
        # How many batches all ranks hold before metrics of others are given their answers.
        self._agreed: int | None = None
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
        self._counted: list[Tensor] = []  # right answers and all, not read yet
        self._held_bytes = 0
        self._here = Unread(self.confusion or 0)
        self._epoch = Sums()
        self._window = Sums()
        self._matrix = torch.zeros(self.confusion or 0, self.confusion or 0, dtype=torch.long, device="cpu")
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

        Outputs and targets may be `Parts`; they then count as the parts' together. With `n` 0 the batch is another
        rank's, and nothing is added.
        """
        self._here.groups.append(self._hold(False, loss, outputs, targets, n, weight, numbers))
        self._after_adding()

    def add_parts(self, parts: Sequence[Sequence[Any]]) -> None:
        """The micro-batches of one update: of each what `add` takes, its loss multiplied by its share of the update."""
        self._here.groups.append(sum(self._hold(True, *part) for part in parts))
        self._after_adding()

    def _hold(
        self, part: bool, loss: Tensor, outputs: Any, targets: Any, n: int, weight: Any = None, numbers: Any = None
    ) -> int:
        """Hold one batch, or micro-batch; returns how many are held of it: 0 where it only stands in."""
        if self._choose is not None:
            self._want(self._choose(outputs, targets))
            self._choose = None
        if not n:
            return 0
        if weight is not None or numbers:
            for name in numbers or ():
                if name in self.own_names or (self.objects is not None and name in self.objects.given):
                    raise UsageError(f"metrics: {name} is a number of the objective too; call one of the two otherwise")
            self._reported.append((len(self._held), weight, dict(numbers or {})))
        weighed = None
        # `.data` and not `.detach()`: it is a third of the cost, and the graph is let go just the same.
        if self._keeps_outputs:
            outputs = Parts(map(data_of, outputs)) if isinstance(outputs, Parts) else data_of(outputs)
        elif self.weigh is not None:
            weighed, outputs = self._weigh(outputs, targets), None
        else:
            outputs = None
        if not self._keeps_targets:
            targets = None
        self._held_bytes += bytes_of(outputs) + bytes_of(targets) + 512
        self._held.append((loss.data, outputs, targets, n, weighed, part))
        return 1

    def _after_adding(self) -> None:
        full = self._held_bytes > self.hold_bytes or len(self._held) >= self.hold_batches
        if self.world.size > 1 and self.objects is not None:
            # When answers are exchanged must not depend on what one rank holds.
            if self._agreed is None:
                self._agreed = max(1, self.hold_bytes // max(1, *self.world.gather(self._held_bytes)))
            full = len(self._here.groups) >= min(self._agreed, self.hold_batches)
        if self._held_bytes > self.hold_bytes and len(self._held) < self.hold_batches and self._let_go():
            return
        if full and (self.world.size == 1 or self.objects is not None):
            self.flush()
        elif full:
            self._sum_held()

    def _let_go(self) -> bool:
        """Count right answers on their device and hold outputs no longer; False where they are still needed.

        Also where what is held then, the targets that the losses weigh by, is too much by itself.
        """
        if not self.accuracy or self.confusion or self.own.in_order() or self.objects is not None:
            return False
        self._count(pairs_of(self._held))
        kept, self._held_bytes = [], 0
        for loss, outputs, targets, n, weighed, part in self._held:
            if self.weigh is not None and self.weigh_many is None and weighed is None:
                weighed = self._weigh(outputs, targets)
            targets = targets if self.weigh_many is not None else None
            kept.append((loss, None, targets, n, weighed, part))
            self._held_bytes += bytes_of(targets) + 512
        self._held = kept
        return 2 * self._held_bytes < self.hold_bytes

    def _sum_held(self) -> None:
        """Turn what is held into numbers."""
        held, self._held, self._held_bytes = self._held, [], 0
        reported, self._reported = self._reported, []
        if not held:
            return
        losses, outputs, targets, samples, weighed, parts = zip(*held, strict=True)
        weights: list[Any] = list(samples)
        if self.weigh_many is not None:
            weights = self._weigh_many(targets)
        elif self.weigh is not None:
            given = zip(outputs, targets, weighed, strict=True)
            weights = [self._weigh(o, t) if w is None else w for o, t, w in given]
        stated: dict[int, Any] = {}
        numbers: dict[int, dict[str, float]] = {}
        for (place, _, each), weight in zip(reported, plain([weight for _, weight, _ in reported]), strict=True):
            numbers[place] = dict(zip(each, plain(list(each.values())), strict=True))
            if weight is not None:
                weights[place] = stated[place] = weight
        here = self._here
        for place, value in enumerate(numbers_of(losses)):
            row = value, weights[place], samples[place], numbers.get(place, {}), place in stated, parts[place]
            here.rows.append(row)
        if not self._keeps_outputs:
            return
        pairs = pairs_of(held)
        if self.accuracy or self.own.needs_outputs:
            self._count(pairs)
        if self._counted:
            right, seen = torch.stack(self._counted).sum(0).tolist()
            here.right += right
            here.seen += seen
            self._counted = []
        if self.objects is not None:
            here.answers += pairs

    def flush(self) -> None:
        """Turn what is held into sums, those of all ranks."""
        self._sum_held()
        here, self._here = self._here, Unread(self.confusion or 0)
        if not here.groups:  # on no rank
            return
        world = self.world
        parts = any(row[-1] for row in here.rows[:1])
        # Batches are added one by one in any case: only an update's micro-batches make a group.
        together: Iterable[list[Row]] = in_order([here.groups], [here.rows]) if parts else [here.rows]
        if world.size > 1:
            ranks: list[Any] = world.gather([here.groups, here.rows, here.right, here.seen])
            groups = [rank[0] for rank in ranks]
            together = in_order(groups, [rank[1] for rank in ranks])
            here.right, here.seen = sum(rank[2] for rank in ranks), sum(rank[3] for rank in ranks)
            here.matrix = world.sum(here.matrix)
            here.own = {name: self._of_ranks(groups, here.own.get(name, ())) for name in self.own.in_order()}
            if self.own.counts is not None:
                self.own.counts.of_ranks(world)
            if self.objects is not None:
                each = [self._of_ranks(groups, [self._exchangeable(pair[k]) for pair in here.answers]) for k in (0, 1)]
                here.answers = list(zip(*each, strict=True))
        for rows in together:
            self._epoch.add(rows, self.summed)
            self._window.add(rows, self.summed)
        for sums in (self._epoch, self._window):
            sums.right += here.right
            sums.seen += here.seen
        self._matrix += here.matrix
        self.own.add(here.own)
        for answer, truth in here.answers:
            assert self.objects is not None
            self.objects.update(answer, truth)

    def before_save(self) -> None:
        """Called by a Checkpointer on every rank: the state is then rank 0's alone to give."""
        self.flush()

    def _of_ranks(self, groups: Sequence[Sequence[int]], own: Sequence[Tensor]) -> list[Tensor]:
        return [tensor for some in in_order(groups, gathered(self.world, own)) for tensor in some]

    def _exchangeable(self, answers: Any) -> Tensor:
        if isinstance(answers, Tensor):
            return answers
        assert self.objects is not None
        raise UsageError(
            f"metrics: {', '.join(self.objects.given)}: on several ranks the answers of all go to each, as tensors; "
            f"found {form(answers)}; leave it out, or measure it afterwards in one process: surefoot.evaluate(...)"
        )

    def result(self) -> dict[str, float]:
        """Means over everything since `reset`, and further metrics' values; ``nan`` before anything was added."""
        self.flush()
        means = self._epoch.means(self.accuracy)
        others = {} if self.objects is None else self.objects.result()
        return means | self.own.values(means["loss"]) | others

    def window(self) -> dict[str, float]:
        """Means since the last call of `window` (or `reset`); `has_weight` says whether any of it has weight."""
        self.flush()
        means, self.has_weight = self._window.means(self.accuracy), self._window.weight > 0
        self._window = Sums()
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
                f"{self.confusion or 0}",
                code="resume-state",
            )
        self.reset()
        own = dict(state.get("own", {}))
        saved = own.pop("names", [])
        if list(self.own.names) != saved and (saved or state["epoch"]["samples"]):
            raise UsageError(
                f"metrics: the saved run measures {', '.join(saved) or 'none'} beside loss and accuracy, and this one "
                f"{', '.join(self.own.names) or 'none'}; give the saved ones",
                code="resume-state",
            )
        self.own.load(own)
        (self.objects or MetricObjects({})).load_state_dict(state.get("objects", {"updates": 0}))
        self._epoch = Sums(**state["epoch"])
        self._window = Sums(**state["window"])
        if self.confusion:
            self._matrix = torch.tensor(state["matrix"], dtype=torch.long, device="cpu")

    def _weigh(self, outputs: Any, targets: Any) -> Any:
        assert self.weigh is not None
        return sum(map(self.weigh, parts_of(outputs), parts_of(targets)))

    def _weigh_many(self, targets: Sequence[Any]) -> list[float]:
        assert self.weigh_many is not None
        if not any([isinstance(one, Parts) for one in targets]):
            return self.weigh_many(targets)
        weights = iter(self.weigh_many([part for one in targets for part in parts_of(one)]))
        return [sum(next(weights) for _ in parts_of(one)) for one in targets]

    def _count(self, pairs: Sequence[Pair]) -> None:
        """Count answers, and sum up what our own metrics are made of."""
        for name, rows in self.own.rows(pairs).items():
            self._here.own.setdefault(name, []).extend(rows)
        if not self.accuracy and self.own.counts is None:
            return
        # Batches of one shape (but for their length) are counted as one; counts are whole numbers, so nothing changes.
        groups: dict[Any, list[Pair]] = {}
        for i, (o, t) in enumerate(itertools.starmap(comparable, pairs) if self.kind == "classes" else pairs):
            key = (*o.shape[1:], t.dtype, *t.shape[1:]) if o.dim() and t.dim() else i
            groups.setdefault(key, []).append((o, t))
        for some in groups.values():
            given, wanted = some[0] if len(some) == 1 else tuple(map(torch.cat, zip(*some, strict=True)))
            answers, truth = answers_of(str(self.kind), given, wanted)
            if self.own.counts is not None:
                self.own.counts.hold(given, answers, truth)
            if self.accuracy:
                self._counted.append(self._right(answers, truth))

    def _right(self, answers: Tensor, truth: Tensor) -> Tensor:
        if self.kind != "classes":
            right = answers == truth
            return torch.stack([right.sum(), right.new_tensor(right.numel(), dtype=torch.long)])
        counted = truth.long() != self.ignore_index  # in uint8 -100 would be class 156
        if self.confusion:
            self._tally(answers, truth, counted)
        return torch.stack([((answers == truth) & counted).sum(), counted.sum()])

    def _tally(self, answers: Tensor, targets: Tensor, counted: Tensor) -> None:
        size = self.confusion or 0
        counted = counted & (targets >= 0) & (targets < size) & (answers < size)  # what has no name has no cell
        truth, answers = targets[counted].long(), answers[counted]  # labels may be uint8: a product would overflow
        cells = torch.bincount(truth * size + answers, minlength=size * size).reshape(size, size)
        self._here.matrix += cells.cpu()
