"""Ways of running a step, timed in turn on real batches and checked against plain eager gradients."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .. import rng
from ..copying import twins
from ..errors import UsageError, first_line
from ..micro_batches import MicroBatches
from ..modes import set_mode
from ..step import TrainStep
from ..untouched import is_lazy
from .backends import make_backend
from .graph_step import CannotCompile
from .machine import free_bytes, ranks_here
from .parts import make_part
from .settings import Execution, freed_memory_kept, prepare
from .verify import Observed, cloned, compared, record

# A step that another beats by less than this is not beaten: the simpler one stays.
MARGIN = 0.03
# Time of one turn of a candidate; long enough for the clock, short enough that turns are taken often.
TURN_S = 0.004
# At once there are the plain step's copy, and one for each layout and kind of optimizer; with gradients and Adam's
# state each is four times as large as its model.
MOST_COPIES, OF_A_COPY = 4, 4


@dataclass
class Trial:
    """One candidate: its settings, the times of its turns (seconds a step), and what is held against it."""

    execution: Execution
    times: list[float] = field(default_factory=list)
    refused: str | None = None
    checked: bool = False
    verdict: str = ""

    @property
    def seconds(self) -> float:
        """The time of a step: the lower quartile of the turns, since others' work only adds; infinite before any."""
        return sorted(self.times)[len(self.times) // 4] if self.times else math.inf


class Bench:
    """Runs candidates on copies of a step's model, loss and optimizer; the originals are never touched.

    The copies' learning rate is 0, so that what is timed is always the same work on sound numbers. Several ranks time
    the same candidate at the same time, each its own micro-batches without what goes between ranks, and take the
    slowest's time as theirs; what fails on one is held against the candidate on all. A batch that the plain step
    refuses shows nothing of a candidate and is left out. Use it as a context manager: random numbers, threads and
    oneDNN are as before when it is left. Raises UsageError where there is no copy of the model, or no batch is left.
    """

    def __init__(self, step: TrainStep, batches: Sequence[Any]):
        self.original = step
        shapes = _shapes(batches[0])
        self.batches = [batch for batch in batches if _shapes(batch) == shapes]
        self.world = step.world
        self._copies: dict[Any, TrainStep] = {}
        self._backends: dict[Execution, Callable[[Any], Any]] = {}
        self.expected: list[Observed] = []

    def __enter__(self) -> Bench:
        self.world.agree(self._make_first)
        self._random = rng.get_state()
        self._memory = freed_memory_kept()
        self._memory.__enter__()
        try:
            self.world.agree(self._expect)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.__exit__(None, None, None)
        rng.set_state(self._random)
        self._copies.clear()
        self._backends.clear()
        if self.original.device.type == "cuda":
            torch.cuda.empty_cache()  # what the copies took is the run's

    def _make_first(self) -> None:
        step = self.original
        tensors = [t for t in (*step.model.parameters(), *step.model.buffers()) if not is_lazy(t)]
        needed = MOST_COPIES * OF_A_COPY * sum(tensor.nbytes for tensor in tensors)
        if (free := free_bytes(step.device)) is not None and needed * ranks_here() > free:
            raise UsageError(
                f"copies of the model would take {needed * ranks_here() / 1e9:.1f} GB of memory, of which "
                f"{free / 1e9:.1f} GB are free"
            )
        self._copy(None)

    def time(self, trial: Trial, steps: int | None = None) -> None:
        """One turn: a few steps, the first of them unmeasured. What it raises is held against the candidate."""
        if steps is None:
            steps = max(1, min(64, round(TURN_S / trial.seconds)))
        with contextlib.ExitStack() as stack:
            runs: list[Callable[[int], Any]] = []
            seconds = 0.0

            def begin() -> None:
                runs.append(stack.enter_context(self._running(trial.execution)))
                runs[0](0)
                self._wait()

            def turn() -> None:
                nonlocal seconds
                start = time.perf_counter()
                for i in range(steps):
                    runs[0](i)
                self._wait()
                seconds = (time.perf_counter() - start) / steps

            trial.refused = self._refused(begin)  # the ranks have met now

            if trial.refused is None and (failed := self._refused(turn)) is None:
                trial.times.append(max(self.world.gather(seconds)))
            elif trial.refused is None:
                trial.refused = failed
        if len(trial.times) == 2 and trial.times[0] > 1.5 * trial.times[1]:
            del trial.times[0]  # the first turn paid for pages and caches

    def check(self, trial: Trial) -> bool:
        """Compare an update (at a rate of 0) on every batch; a difference is held against the candidate."""
        if not trial.checked and not trial.refused:
            self.look(trial)
            self.agree(trial)
        return trial.refused is None

    def agree(self, trial: Trial) -> None:
        """Hold against the candidate, on all ranks, what `look` has found on any."""
        trial.refused = self._first(trial.refused)
        trial.checked = trial.refused is None

    def look(self, trial: Trial) -> None:
        """`check` on this rank, of which the others do not know yet."""
        for batch, expected in zip(self.batches, self.expected, strict=True):
            try:
                observed = self.observed(trial.execution, batch)
            except CannotCompile as error:
                trial.refused = str(error)
                return
            except Exception as error:
                trial.refused = f"it fails: {first_line(error, kind=True)}"
                return
            if difference := compared(self.original, expected, observed, exact=False):
                trial.refused = f"it {difference}"
                return

    def _refused(self, act: Callable[[], None]) -> str | None:
        """What is held against a candidate after `act`, on any rank."""
        try:
            act()
        except Exception as error:  # the user's own forward runs here, under settings that it may not stand
            return self._first(f"it fails: {first_line(error, kind=True)}")
        return self._first(None)

    def _first(self, refused: str | None) -> str | None:
        return next((each for each in self.world.gather(refused) if each), None)

    def _expect(self) -> None:
        """An update (at a rate of 0) of each batch by the plain step, as torch would run it."""
        step = self._copy(None)
        for batch in self.batches:
            rng.set_state(self._random)
            try:
                self.expected.append(self._one(step, step.plain, batch))
            except Exception as error:  # the user's own forward: training will come to it and show its place
                raise UsageError(f"the step fails: {first_line(error, kind=True)}") from error
        sound = [pair for pair in zip(self.batches, self.expected, strict=True) if pair[1].sound]
        if not sound:
            raise UsageError(self.expected[0].refused or "the loss is not finite")
        self.batches, self.expected = map(list, zip(*sound, strict=True))

    def observed(self, execution: Execution, batch: Any) -> Observed:
        """One update (at a rate of 0) of one batch as `execution` runs it, on a copy that was not timed.

        Timing moves a copy on, and a model may show it: by a codebook in its buffers, by a counter. A graph is compared
        before it is timed; an eager backend costs nothing to make anew.
        """
        graph = execution.compile != "none" or execution.cuda_graph
        step = self._copy(execution if graph else None)
        with prepare(execution, step.model, step.optimizer):
            backend = self._backend(execution) if graph else self._made(execution, step)
            rng.set_state(self._random)
            return self._one(step, backend, batch)

    def _one(self, step: TrainStep, run: Callable[[Any], Any], batch: Any) -> Observed:
        """What one update gave; not what it left: copies that were timed have another state than fresh ones."""
        step.divided.updates = 0  # micro-batches draw from seeds of their own, which count updates
        observed = record(step, run, [batch], updates=1)
        observed.tensors = {}
        return observed

    @contextlib.contextmanager
    def _running(self, execution: Execution) -> Iterator[Callable[[int], Any]]:
        step = self._copy(execution)
        with prepare(execution, step.model, step.optimizer):
            backend = self._backend(execution)
            # A forward pass may write into its inputs: each candidate is timed on copies of its own.
            batches = [[cloned(batch)] for batch in self.batches]
            yield lambda i: backend(batches[i % len(batches)])

    def _backend(self, execution: Execution) -> Callable[[Any], Any]:
        if execution not in self._backends:
            self._backends[execution] = self._made(execution, self._copy(execution))
        return self._backends[execution]

    def _made(self, execution: Execution, copy: TrainStep) -> Callable[[Any], Any]:
        if isinstance(example := self.batches[0], MicroBatches):
            copy.divided.use(make_part(execution, copy, example[0]))
            return copy.plain
        backend = make_backend(execution, copy, example)
        assert backend is not None, "what has no backend is not measured"
        return backend

    def _copy(self, execution: Execution | None) -> TrainStep:
        """A copy for each layout, kind of state and kind of optimizer; None is the one that is never timed."""
        key: tuple[object, ...] | None = None
        if (of := execution) is not None:
            key = (of.memory_format, of.optimizer_impl, of.compile, of.cuda_graph)
        if key not in self._copies:
            step = self.original
            model, loss, optimizer = twins(step.model, step.loss, step.optimizer)
            set_mode(optimizer, training=True)
            for group in optimizer.param_groups:
                if group.get("lr") is not None:  # a number of any kind, or a tensor
                    group["lr"] = group["lr"] * 0
            self._copies[key] = TrainStep(model, loss, optimizer, replace(step.options, ema_decay=None))
        return self._copies[key]

    def _wait(self) -> None:
        if self.original.device.type == "cuda":
            torch.cuda.synchronize()


def _shapes(batch: Any) -> list[Any]:
    """What a batch, or each of MicroBatches, is made of."""
    return [_shapes(part) if isinstance(part, tuple | list) else part.shape for part in batch]


def race(bench: Bench, trials: Sequence[Trial], budget_s: float, rounds: int = 9) -> None:
    """Time `trials` in turn, a turn each a round, until `rounds` or the budget (seconds) is spent.

    Those that are far behind drop out early. Every one gets its first turn unless the budget is gone.
    """
    start = time.perf_counter()

    def left() -> float:
        return budget_s - bench.world.gather(time.perf_counter() - start)[0]

    for number in range(rounds):
        best = min((t.seconds for t in trials if not t.refused), default=math.inf)
        behind = 2.0 if number == 1 else 1.3
        for trial in trials:
            if trial.refused:
                continue
            if number == 0:
                if trial is not trials[0] and left() <= 0:
                    return
            elif not trial.times or trial.seconds > behind * best:
                continue
            elif left() < 2 * trial.seconds:  # a turn begins with a step that does not count
                return
            bench.time(trial)


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """The fastest that nothing is held against; an earlier one where it is as good as that (`MARGIN`)."""
    sound = [t for t in trials if t.times and not t.refused]
    if not sound:
        return None
    best = min(t.seconds for t in sound)
    return next(t for t in sound if t.seconds <= best * (1 + MARGIN))
