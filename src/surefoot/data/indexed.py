"""Batches of samples that have an index: their order, and how they are read from memory, here or by workers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..micro_batches import Division
from .finishing import Finishing
from .in_memory import InMemory
from .orders import Order, occurrences
from .sources import DatasetSource, TensorSource
from .workers import BatchReader, Key, Workers, usable


class Indexed:
    """The batches of a source in an `order`: those of any epoch and position at once."""

    def __init__(
        self,
        source: TensorSource | DatasetSource,
        order: Order,
        batch_size: int,
        finishing: Finishing,
        *,
        drop_last: bool,
        workers: int,
        normalize_once: bool | str,
    ):
        self.source, self._order, self._size, self._finish = source, order, batch_size, finishing
        self._drop_last, self._worker_count, self._normalize_once = drop_last, workers, normalize_once
        self._keys: tuple[int, Any] | None = None
        self._prepared: InMemory | None = None
        self._workers: Workers | None = None
        self._division = Division()
        self._whole: Any = None

    def apart(self) -> Indexed:
        """The same batches, whole, with worker processes of their own."""
        if isinstance(self.source, TensorSource):
            self.memory()  # prepared once, for all
        other = copy.copy(self)
        other._workers, other._division = None, Division()
        return other

    def divide(self, division: Division) -> None:
        """Give MicroBatches in the place of batches from now on."""
        self._division = division

    def moved(self) -> None:
        """Take note that the device is another."""
        self._prepared = self._whole = None

    def close(self) -> None:
        """End the worker processes, if any; they start again when needed."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    # --- the order ---------------------------------------------------------------------------------------------------

    @property
    def notes(self) -> list[str]:
        """What a user should know of the order before a run."""
        note = getattr(self._order, "note", None)
        return [note] if note else []

    @property
    def length(self) -> int:
        """The number of batches in an epoch."""
        if self._order.batches is not None:
            return self._order.batches
        whole, rest = divmod(self._order.samples, self._size)
        return whole + (1 if rest and not self._drop_last else 0)

    @property
    def samples(self) -> int:
        """The number of samples in an epoch."""
        count = self._order.samples
        return count - count % self._size if self._drop_last and self._order.batches is None else count

    @property
    def last_is_short(self) -> bool:
        """Whether the last batch of an epoch is shorter than the others."""
        count = self._order.samples
        return not self._order.batches and not self._drop_last and count > self._size and count % self._size != 0

    def order(self, epoch: int) -> Tensor:
        """The data set indices of one epoch in order, int64 (samples,)."""
        keys = self._keys_of(epoch)
        return (keys if isinstance(keys, Tensor) else torch.cat(list(keys))) % len(self.source)

    def indices(self, epoch: int, position: int) -> Tensor:
        """The data set indices of one batch, int64 (n,)."""
        return self._keys_at(epoch, position) % len(self.source)

    def _keys_at(self, epoch: int, position: int) -> Tensor:
        keys = self._keys_of(epoch)
        return keys[position * self._size : (position + 1) * self._size] if isinstance(keys, Tensor) else keys[position]

    def _keys_of(self, epoch: int) -> Tensor | Sequence[Tensor]:
        """An epoch's samples in order, or those of each batch, as keys of their random numbers.

        A key is the index in the data set; when a sample comes again, the number of samples is added, so that it is
        augmented in another way.
        """
        if self._keys is None or self._keys[0] != epoch:
            order = self._order.of(epoch)
            if self._order.repeats:
                flat = order if isinstance(order, Tensor) else torch.cat(list(order))
                flat = flat + len(self.source) * occurrences(flat)
                order = flat if isinstance(order, Tensor) else torch.split(flat, [len(batch) for batch in order])
            self._keys = epoch, order[: self.samples] if isinstance(order, Tensor) else order
        return self._keys[1]

    # --- reading -----------------------------------------------------------------------------------------------------

    def at(self, epoch: int, position: int, most: int | None = None, *, whole: bool = False) -> Any:
        """One batch, or its first samples, `most` of them; made here and now, without a trace. `whole`: not divided."""
        if not 0 <= position < self.length:
            raise IndexError(f"batch {position} of an epoch of {self.length}")
        if whole and self._division.parts > 1:
            return self.apart().at(epoch, position, most)
        if isinstance(self.source, TensorSource):
            return self._formed(epoch, self._keys_at(epoch, position)[:most])
        generators, keys = rng.get_state(), self._keys_at(epoch, position)[:most]
        try:
            return self._batch(epoch, keys, map(self._reader().__getitem__, self._asked(epoch, keys)))
        finally:
            rng.set_state(generators)

    def rest(self, epoch: int, position: int) -> Iterator[Any]:
        """The rest of an epoch as iterables of batches."""
        places = range(position, self.length)
        if not isinstance(self.source, TensorSource):
            yield self._read(epoch, places)
            return
        memory, keys = self.memory(), self._keys_of(epoch)
        if self._division.parts > 1:
            yield (self._formed(epoch, self._keys_at(epoch, place)) for place in places)
            return
        if isinstance(keys, Tensor):
            if memory.ready and self._order.repeats:
                keys = keys % len(self.source)
            chunks = memory.chunks(keys[position * self._size :], self._size, lambda some: self._gather(epoch, some))
        else:
            chunks = ((self._gather(epoch, some),) for some in keys[position:])
        yield from (map(self.source.formed, chunk) for chunk in chunks) if self.source.names else chunks

    def turns(self, epoch: int, rank: int, size: int) -> Iterator[tuple[Any, bool]]:
        """See `Loader.turns`."""
        places = list(range(rank, self.length, size))
        if len(places) * size < self.length:
            places.append(self.length - 1)
        in_memory = isinstance(self.source, TensorSource)
        read = (self._formed(epoch, self._keys_at(epoch, place)) for place in places) if in_memory else None
        for place, batch in zip(places, read or self._read(epoch, places), strict=True):
            yield batch, place % size == rank

    def memory(self) -> InMemory:
        """The source's tensors where they are best kept."""
        if self._prepared is None:
            assert isinstance(self.source, TensorSource)
            self._prepared = InMemory(
                self.source,
                self._finish.preprocessing,
                self._finish.device,
                augmented=bool(self._finish.augment),
                normalize_once=self._normalize_once,
            )
        return self._prepared

    def _gather(self, epoch: int, keys: Tensor) -> tuple[Any, ...]:
        """The columns of some samples in memory, finished."""
        memory = self.memory()
        read = memory.gather(keys % len(self.source) if self._order.repeats else keys)
        return read if memory.finished else self._finish(read, epoch, keys)

    def _reader(self) -> BatchReader:
        assert isinstance(self.source, DatasetSource)
        return BatchReader(self.source.dataset, self._finish.seed, self.source.collate)

    def _formed(self, epoch: int, keys: Tensor) -> Any:
        """A batch of samples in memory, or this rank's micro-batches of it."""
        assert isinstance(self.source, TensorSource)
        if self._division.parts == 1:
            return self.source.formed(self._gather(epoch, keys))
        if self._whole is None:
            self._whole = self.source.formed(self.source.tensors)
        # Each in memory of its own: products round otherwise where rows do not begin at a multiple of 64 bytes, and
        # where a rank's rows begin depends on how many ranks there are.
        parts = [self._gather(epoch, part) for part in self._own(keys)]
        return self._division.given(map(self.source.formed, parts), len(keys), whole=self._whole)

    def _own(self, keys: Tensor) -> list[Tensor]:
        """What of a batch's keys this rank reads, micro-batch by micro-batch."""
        return [keys[rows] for rows, _ in self._division.cut(len(keys))]

    def _asked(self, epoch: int, keys: Tensor) -> Iterator[Key]:
        """What is asked of a reader for one batch."""
        return ((epoch, part.tolist()) for part in self._own(keys))

    def _batch(self, epoch: int, keys: Tensor, read: Iterator[Any]) -> Any:
        """A batch of a Dataset of what is `read`, or this rank's micro-batches of it."""
        parts = [self._finish(usable(next(read)), epoch, part) for part in self._own(keys)]
        return parts[0] if self._division.parts == 1 else self._division.given(parts, len(keys))

    def _read(self, epoch: int, places: Sequence[int]) -> Iterator[Any]:
        """Batches of a Dataset, read in this process or by the workers."""
        if not places:
            return
        # One batch's indices at a time: the start of an epoch must not cost what the whole epoch does.
        asked = itertools.chain.from_iterable(self._asked(epoch, self._keys_at(epoch, place)) for place in places)
        if self._worker_count:
            if self._workers is None:
                self._workers = Workers(self._reader(), self._worker_count)
            read = self._workers.batches(asked)
        else:
            read = map(self._reader().__getitem__, asked)
        for place in places:
            yield self._batch(epoch, self._keys_at(epoch, place), read)
        assert next(read, None) is None, "more was read than asked for"

    # --- resuming ----------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What the order depends on beside the loader's own settings."""
        return {"samples": len(self.source), **self._order.settings()}

    def state(self, epoch: int, position: int) -> dict[str, Any]:
        """What the order of an epoch depends on beside its settings, to be saved with a place in it."""
        state = self._order.state(epoch)
        return {"order": state} if state else {}

    def restore(self, epoch: int, position: int, state: Mapping[str, Any]) -> None:
        """Go on from a `state` of that place."""
        self._keys = None  # those of a sampler with a state may be others now
        self._order.restore(epoch, state.get("order") or {})
