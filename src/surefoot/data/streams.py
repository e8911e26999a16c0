"""Streams: data sets that are read from their start on, batch by batch, here or by workers, and gone on with."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import IterableDataset, get_worker_info

from .. import batches
from ..copying import with_data_shared
from ..errors import UsageError, first_line
from ..fingerprint import hash_bytes
from ..micro_batches import Division
from ..rng import fold
from ..text import counted
from .nested import attribute_of
from .sources import Source, class_names
from .workers import collated, seeded

READ_ONCE = "can be read only once; give an IterableDataset, whose __iter__ makes it for each pass"
# How many samples are read, twice, to see whether a stream's state leads back to where it was taken.
_TRIED_SAMPLES = 4
# Of each tensor of a batch so many numbers count in the digest of what was read.
_NUMBERS_IN_DIGEST = 1024
# What a checkpoint keeps of a state, beside lists, tuples and dicts.
_KEPT = (bool, int, float, complex, str, bytes, type(None), Tensor, numpy.ndarray, numpy.number)


def is_stream(data: Any) -> bool:
    """Whether `data` is read by iterating: torch's IterableDataset, or an iterable with a state and no index."""
    if isinstance(data, IterableDataset):
        return True
    stateful = hasattr(data, "state_dict") and hasattr(data, "load_state_dict") and hasattr(data, "__iter__")
    return stateful and not isinstance(data, type) and not hasattr(data, "__getitem__") and not hasattr(data, "dataset")


class StreamSource(Source):
    """Any iterable data set, the `stream`; with several workers each iterates over its part (`get_worker_info`).

    A pass over it begins with a copy of what was given (its data are shared), after `set_epoch(number)`
    where there is one; what it draws depends on (seed, pass, batch, worker). With `state_dict` and `load_state_dict`,
    of the data set or of its iterator, it is gone on with at once; without, or where these do not lead back to the same
    place, it is read again up to there. `collate` makes a batch of a list of samples.
    """

    def __init__(self, stream: Any, *, classes: Sequence[str] | None = None, collate: Callable[..., Any] | None = None):
        self.stream, self.collate = stream, collate
        self.name = type(stream).__qualname__
        if isinstance(stream, type) or not (hasattr(stream, "__iter__") or hasattr(stream, "__getitem__")):
            raise UsageError(f"data: {self.name} cannot be iterated over; give an object with __iter__ as a stream")
        names = class_names(classes) if classes is not None else attribute_of(stream, "classes")
        self.classes = tuple(map(str, names)) if isinstance(names, Sequence) and len(names) else None

    def __len__(self) -> int:
        if (length := self.length) is None:
            raise UsageError(f"data: the number of samples in {self.name} is not known")
        return length

    @property
    def length(self) -> int | None:
        """The number of samples in a pass, where the stream itself tells it."""
        try:
            return len(self.stream)
        except (TypeError, NotImplementedError, AttributeError):
            return None

    @cached_property
    def stateful(self) -> bool:
        """Whether it has a state that can be saved and leads back to the same place; tried on the first samples."""
        first = self._read(None, stateful=True)
        state = copy.deepcopy(first.state())
        if state["state"] is None or not all(isinstance(leaf, _KEPT) for leaf in pytree.tree_leaves(state["state"])):
            return False
        first.read()
        return bool(first.state()["digest"] == self._read(state, stateful=True).state()["digest"])

    def _read(self, state: Any, *, stateful: bool) -> StreamReader:
        """A reader that has read the first samples from `state` on, or from the start."""
        reader = StreamReader(self, 0, _TRIED_SAMPLES, False, stateful=stateful)
        reader.begin(0, state)
        reader.read()
        return reader

    @cached_property
    def _first(self) -> tuple[str, bool]:
        """The digest of the first samples, and whether they are the same when they are read again."""
        one, other = (self._read(None, stateful=False).state()["digest"] for _ in range(2))
        return one, one == other

    def fingerprint(self) -> str:
        """Of the class's name and the first samples."""
        first, same = self._first
        return hashlib.sha256(f"{self.name} {first if same else ''}".encode()).hexdigest()

    @property
    def notes(self) -> list[str]:
        """What a user should know before the run."""
        notes = []
        if not self._first[1]:
            notes.append(
                f"data: {self.name}: its first samples read differently each time under equal seeds, so a resume is "
                "not exact; draw from torch, numpy, random, or from a generator that is an attribute"
            )
        if not self.stateful:
            protocol = hasattr(self.stream, "state_dict")
            reason = "its state cannot be saved, or does not lead back to the same place"
            reason = reason if protocol else "it has no state_dict"
            notes.append(
                f"data: {self.name}: {reason}: when the run is resumed, the pass that it was in is read again up to "
                "there, which takes as long as reading it did"
            )
        return notes

    def samples(self) -> Iterator[Any]:
        return iter(with_data_shared(self.stream))

    def targets(self) -> Tensor:
        raise UsageError(f"data: {self.name} is a stream: its targets are not known before it is read")


class StreamReader:
    """Reads the batches of a stream one after another; copied to worker processes, where it reads their parts.

    Every rank reads all samples of a stream, and gives its own micro-batches of them where a batch is divided.
    Called with ``(request, pass, the state of each worker or None, whether to do nothing)`` it gives ``(batch, worker,
    state)``: the batch is None at the end, and a UsageError for what is refused. Another request begins anew.
    """

    def __init__(
        self,
        source: StreamSource,
        seed: int,
        size: int,
        drop_last: bool,
        division: Division | None = None,
        *,
        stateful: bool,
    ):
        self._given, self._collate, self._name = source.stream, source.collate, source.name
        self._division = division or Division()
        self._seed, self._size, self._drop_last, self._stateful = seed, size, drop_last, stateful
        self._request: Any = None

    def __getitem__(self, key: tuple[Any, int, Sequence[Any], bool]) -> tuple[Any, int, Any]:
        request, number, states, nothing = key
        worker = self._worker()
        if nothing:
            return None, worker, None
        try:
            if request != self._request:
                self.begin(number, states[worker])
                self._request = request
            batch = self.read()
        except UsageError as error:
            return UsageError(str(error), code=error.code), worker, None
        return batch, worker, self.state()

    __getitems__ = __getitem__

    def described(self, key: Any) -> str:
        """What is waited for, as a warning says it."""
        return f"the next batch of the stream {self._name}: reading it"

    def begin(self, number: int, state: Mapping[str, Any] | None) -> None:
        """Begin a pass, or go on within it from a `state`. Raises UsageError where the stream is another one."""
        self._start(number)
        self._asked: dict[str, Any] | None = None
        self._before: dict[str, Any] | None = None
        if state is None:
            return
        if state["ended"]:
            self._batches, self._digest, self._ended = state["batches"], state["digest"], True
        elif self._stateful and state["state"] is not None:
            if state.get("before") is not None:
                self._compare(state["before"])
                self._start(number)
            self._load(state)
            self._before = state.get("before")
        else:
            while self._batches < state["batches"]:
                if self.read() is None:
                    raise UsageError(
                        f"data: {self._name}: the stream ended after {counted(self._batches, 'batch')}, where the "
                        f"saved run had read {state['batches']}: it is not the same stream",
                        code="resume-data",
                    )
            if self._digest != state["digest"]:
                raise UsageError(
                    f"data: {self._name}: of {counted(self._batches, 'batch')} read again, some are not those of the "
                    "saved run: it is not the same stream",
                    code="resume-data",
                )

    def _start(self, number: int) -> None:
        """Be at the start of a pass."""
        self._pass, self._batches, self._digest, self._ended = number, 0, "", False
        try:
            self._stream = with_data_shared(self._given)
        except TypeError as error:
            raise UsageError(f"data: a {self._name} {READ_ONCE} ({first_line(error)})") from error
        self._iterator: Any = None
        if hasattr(self._stream, "set_epoch"):
            self._stream.set_epoch(number)

    def _compare(self, place: Mapping[str, Any]) -> None:
        """Read the batch after an earlier place again. Raises UsageError where it is another one."""
        self._load(place)
        self.read()
        if self._digest != place["next"]:
            raise UsageError(
                f"data: {self._name}: its batch {place['batches'] + 1}, read again, is not that of the saved run: it "
                "is not the same stream",
                code="resume-data",
            )

    def _load(self, state: Mapping[str, Any]) -> None:
        try:
            with self._seeds():  # those that the first batch was read under
                if by_itself := hasattr(self._stream, "load_state_dict"):
                    self._stream.load_state_dict(copy.deepcopy(state["state"]))
                self._iterator = iter(self._stream)
                if not by_itself:
                    self._iterator.load_state_dict(copy.deepcopy(state["state"]))
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, StopIteration) as error:
            raise UsageError(
                f"data: {self._name}: its load_state_dict refuses the state of the saved run: {first_line(error)}",
                code="resume-data",
            ) from error
        self._batches, self._digest = state["batches"], state["digest"]

    def read(self) -> Any:
        """The next batch, or None at the end."""
        if self._ended:
            return None
        with self._seeds():
            if self._iterator is None:
                self._iterator = iter(self._stream)
            samples = list(itertools.islice(self._iterator, self._size))
            self._ended = len(samples) < self._size
            if not samples or (self._drop_last and self._ended):
                return None
            # Those of all ranks: the digest of what was read is then the same on each.
            whole = Division(self._division.parts)
            parts = [self._collated(samples, rows) for rows, _ in whole.cut(len(samples))]
        self._batches += 1
        self._digest = _digest(self._digest, parts[0] if whole.parts == 1 else parts)
        if self._asked is not None:
            self._before = {**self._asked, "next": self._digest}
            self._asked = None
        if whole.parts == 1:
            return parts[0]
        return self._division.given([parts[number] for number in self._division.own], len(samples))

    def _collated(self, samples: list[Any], rows: slice) -> tuple[Any, ...]:
        first = self._batches * self._size + rows.start
        some = samples[rows]
        return collated(some, self._collate, range(first, first + len(some)), self._seed, self._pass, first)

    def state(self) -> dict[str, Any]:
        """Where the reading stands: plain values, and the stream's own state.

        Besides, of the last place before it that was asked for, what the next batch was: a resume compares it.
        """
        holder = next((h for h in (self._iterator, self._stream) if hasattr(h, "state_dict")), None)
        state = holder.state_dict() if holder is not None and self._stateful and not self._ended else None
        place = {"batches": self._batches, "digest": self._digest, "state": copy.deepcopy(state)}
        self._asked = None if state is None else place
        return {**place, "ended": self._ended, "before": self._before}

    @contextlib.contextmanager
    def _seeds(self) -> Iterator[None]:
        """The context in which the next batch is read, under random numbers of its own."""
        with seeded(self._stream) as seed_all:
            seed_all(fold(self._seed, self._pass, self._worker(), self._batches))
            yield

    def _worker(self) -> int:
        info = get_worker_info()
        return 0 if info is None else info.id


def _digest(before: str, batch: Any) -> str:
    """A digest of all batches so far, from that of those before: by the first numbers of each tensor."""
    digest = hashlib.sha256(before.encode())
    for place, leaf in batches.leaves(batch):
        shape = f" {leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else ""
        digest.update(f"{place} {type(leaf).__name__}{shape}\n".encode())
        if isinstance(leaf, Tensor):
            hash_bytes(digest, leaf.detach().reshape(-1)[:_NUMBERS_IN_DIGEST])
    return digest.hexdigest()[:32]
