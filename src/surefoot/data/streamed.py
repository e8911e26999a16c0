"""Batches of a stream: the place in it that training has reached, whatever was read ahead, and the way back there."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .. import batches
from ..errors import UsageError
from ..micro_batches import Division, MicroBatches
from ..text import counted
from .finishing import Finishing
from .streams import StreamReader, StreamSource
from .workers import Workers, usable

# So many batches of a pass's start are kept for those who look at them before a run.
_KEPT_BATCHES = 16
# A place that is none.
_NOWHERE = -1, -1


class Streamed:
    """The batches of a stream. An epoch is one pass over it, or `num_samples` of it, over as many passes as that takes.

    With workers, batches come from each in turn until all have ended. The place is the state of each worker after the
    last of its batches that was taken.
    """

    def __init__(
        self,
        source: StreamSource,
        batch_size: int,
        finishing: Finishing,
        *,
        drop_last: bool,
        workers: int,
        num_samples: int | None,
    ):
        self.source, self._size, self._finish, self._drop_last = source, batch_size, finishing, drop_last
        self._worker_count, self._num_samples = workers, num_samples
        self.notes: list[str] = []
        self._kept: list[Any] = []
        self._look: StreamReader | None = None
        self._workers: Workers | None = None
        self._request = 0
        self._place = 0, 0
        self._division = Division()
        self._states: list[Any] = []
        self._reading: Iterator[tuple[Any, int, Any]] | None = None
        self._stop(0, 0)

    def apart(self) -> Streamed:
        """The same batches, whole, with a place and worker processes of their own."""
        other = copy.copy(self)
        other._workers = None
        other._stop(0, 0)
        other.divide(Division())
        return other

    def divide(self, division: Division) -> None:
        """Give MicroBatches in the place of batches from now on."""
        if division != self._division:
            self._states = self._plain_states()
            self._division = division
            self.close()
            self.moved()
            self._reading = None

    def moved(self) -> None:
        """Take note that the device is another."""
        self._kept, self._look = [], None

    def close(self) -> None:
        """End the worker processes, if any; the place is kept."""
        if self._workers is not None:
            self._reading = None
            self._workers.close()
            self._workers = None

    @property
    def length(self) -> int | None:
        """The number of batches in an epoch, or None where only the end of the stream tells it."""
        count = self._num_samples
        if count is None and not self._worker_count:  # workers end with a short batch each
            count = self.source.length
        whole, rest = divmod(count or 0, self._size)
        return None if count is None else whole + (1 if rest and not self._drop_last else 0)

    @property
    def samples(self) -> int | None:
        """The number of samples in an epoch, or None."""
        return self._num_samples if self._num_samples is not None else self.source.length

    last_is_short = False

    # --- reading -----------------------------------------------------------------------------------------------------

    def at(self, epoch: int, position: int, most: int | None = None, *, whole: bool = False) -> Any:
        """A batch near the start of the stream, read for itself, in this process."""
        if self._look is None:
            self._look = self._reader(stateful=False)
            self._look.begin(0, None)
        while len(self._kept) <= min(position, _KEPT_BATCHES - 1):
            batch = self._look.read()
            if batch is None:
                break
            self._kept.append(self._finished(batch, 0, len(self._kept)))
        if not self._kept:
            raise UsageError(f"data: the stream {self.source.name} is empty; give at least one sample")
        return self._kept[min(position, len(self._kept) - 1)]

    def rest(self, epoch: int, position: int) -> Iterator[Any]:
        """The rest of an epoch, each batch in a list of its own."""
        if (epoch, position) != self._place:
            self._go(epoch, position)
        whole = self._num_samples is not None
        while (batch := None if whole and position == self.length else self._next()) is not None:
            if position == self.length:
                raise UsageError(self._otherwise(f"goes on after batch {position}"))
            position += 1
            self._place = epoch, position
            yield [self._finished(batch, epoch, position - 1)]
        if not whole and self.length not in (None, position):
            raise UsageError(self._otherwise(f"ended after batch {position}"))
        if whole:
            self._place = epoch + 1, 0
        else:
            self._stop(epoch + 1, 0)

    def turns(self, epoch: int, rank: int, size: int) -> Iterator[tuple[Any, bool]]:
        """See `Loader.turns`."""
        turn: list[Any] = []
        for (batch,) in self.rest(epoch, 0):
            turn.append(batch)
            if len(turn) == size:
                yield turn[rank], True
                turn = []
        if turn:
            yield turn[min(rank, len(turn) - 1)], rank < len(turn)

    def _otherwise(self, what: str) -> str:
        return (
            f"data: the stream {self.source.name} {what}, and by its __len__ it has {self.source.length} samples; mend "
            f"__len__ or give Loader(stream, {self._size}, num_samples=...)"
        )

    def _finished(self, batch: Any, epoch: int, position: int) -> Any:
        keys = torch.arange(position * self._size, (position + 1) * self._size, device="cpu")
        if isinstance(batch, MicroBatches):
            each = zip(batch, self._division.cut(batch.samples), strict=True)
            return self._division.given(
                (self._finish(part, epoch, keys[rows]) for part, (rows, _) in each), batch.samples
            )
        return self._finish(batch, epoch, keys[: batches.size(batch)] if self._finish.augment else keys)

    def _next(self) -> Any:
        """The next batch; None at the end of a pass, and with `num_samples` the first of the next pass."""
        while (batch := self._next_of_pass()) is None:
            if not any(state["batches"] for state in self._states):
                full = f"has no full batch of {self._size}" if self._drop_last else "is empty"
                raise UsageError(f"data: the stream {self.source.name} {full}; give at least one sample")
            if self._num_samples is None:
                return None
            self._stop(*self._place, number=self._pass + 1)
        return batch

    def _next_of_pass(self) -> Any:
        if self._reading is None:
            self._reading = self._read()
        while not all(isinstance(state, Mapping) and state["ended"] for state in self._states):
            try:
                batch, worker, state = next(self._reading)
                usable(batch)
            except BaseException:
                self._reading, self._place = None, _NOWHERE  # part of a batch may have been read
                raise
            self._turn = (worker + 1) % len(self._states)
            self._states[worker] = state
            if batch is not None:
                return batch
        return None

    def _read(self) -> Iterator[tuple[Any, int, Any]]:
        """What the readers give from here on, without an end: a batch or None, the worker, its state."""
        states, turn = self._plain_states(), self._turn
        if not self._worker_count:
            reader = self._reader(stateful=self.source.stateful)
            reader.begin(self._pass, states[0])
            while True:
                batch = reader.read()
                # Nothing is read ahead, so the reader itself tells the state when a checkpoint is made.
                yield batch, 0, reader.state() if batch is None else reader
        if self._workers is None:
            self._workers = Workers(self._reader(stateful=self.source.stateful), self._worker_count)
        self._request += 1
        # Worker after worker is asked; those before the one whose turn it is have nothing to do at first.
        keys = ((self._request, self._pass, states, number < turn) for number in itertools.count())
        yield from itertools.islice(self._workers.batches(keys), turn, None)

    def _plain_states(self) -> list[Any]:
        return [state.state() if isinstance(state, StreamReader) else state for state in self._states]

    def _reader(self, *, stateful: bool) -> StreamReader:
        settings = self._finish.seed, self._size, self._drop_last, self._division
        return StreamReader(self.source, *settings, stateful=stateful)

    # --- the place ---------------------------------------------------------------------------------------------------

    def _stop(self, epoch: int, position: int, number: int | None = None) -> None:
        """Be at the start of a pass, with nothing read."""
        self._place = epoch, position
        self._pass = number if number is not None else 0 if self._num_samples else epoch
        self._states = [None] * max(1, self._worker_count)
        self._turn = 0
        self._reading = None

    def _go(self, epoch: int, position: int) -> None:
        """Go to a place by reading up to there, from the start of the pass."""
        skipped = position if self._num_samples is None else epoch * (self.length or 0) + position
        self._stop(epoch, 0)
        for number in range(skipped):
            if self._next() is None:
                raise UsageError(
                    f"data: the stream {self.source.name} ended after {counted(number, 'batch')}; there is no batch "
                    f"{position} in epoch {epoch}"
                )
        self._place = epoch, position

    def settings(self) -> dict[str, Any]:
        """What the batches depend on beside the loader's own settings."""
        return {"stream": self.source.name, "workers": self._worker_count, "num_samples": self._num_samples}

    def state(self, epoch: int, position: int) -> dict[str, Any]:
        """Where the reading stands at a place that it has reached; nothing at a start, and after a seek."""
        if self._place != (epoch, position) or not any(self._states):
            return {}
        reading = {"pass": self._pass, "turn": self._turn, "workers": self._plain_states()}
        return {"reading": copy.deepcopy(reading)}

    def restore(self, epoch: int, position: int, state: Mapping[str, Any]) -> None:
        """Go on from a `state` of that place; without one, by reading up to there."""
        self._stop(epoch, position)
        reading = state.get("reading")
        if reading is not None:
            if len(reading["workers"]) != len(self._states):
                raise UsageError(
                    f"loader state: the stream {self.source.name} was read by {len(reading['workers'])} workers, each "
                    "a part of it; no other number can go on with these parts",
                    code="resume-data",
                )
            self._pass, self._turn, self._states = reading["pass"], reading["turn"], list(reading["workers"])
            if state["batch_size"] != self._size:
                self._forget_batches(state["batch_size"])
        elif position or (epoch and self._num_samples):
            self._place = _NOWHERE  # so that it is gone to

    def _forget_batches(self, size: int) -> None:
        """Go on from states of a stream that was read in batches of another `size`: digests are of such batches."""
        if not self.source.stateful:
            raise UsageError(
                f"loader state: the stream {self.source.name} was read in batches of {size} and has no state of its "
                "own to go on from; no other batch_size can find the place",
                code="resume-data",
            )
        self._states = [None if state is None else {**state, "before": None} for state in self._states]
