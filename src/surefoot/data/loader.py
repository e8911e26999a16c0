"""Batches in an order that is a pure function of (seed, epoch), from any position at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import batches, held, rng
from ..arguments import Arguments
from ..errors import Problems, UsageError
from ..preprocessing import Preprocessing
from ..rng import fold
from ..text import counted
from .draws import Draws
from .in_memory import InMemory
from .orders import Bucketed, Order, Shuffled, Weighted, occurrences
from .samplers import lengths_of, order_of, weights_of
from .sources import DatasetSource, TensorSource, as_source
from .workers import BatchReader, Workers, apply_to_each


class Loader:
    """Batches ``(inputs, targets, ...)`` of a source, in an order that can be gone on with anywhere.

    Iterating gives the rest of the current epoch: break out and iterate again, and it goes on at `position`, the
    number of this epoch's batches given so far (counted before the batch is handed out). When an epoch is
    exhausted, `epoch` is one more and `position` 0.

    - `source`: a Source, a tuple of tensors (N, ...), or a map-style torch Dataset.
    - `batch_size`: samples a batch; the last batch of an epoch is shorter, or left out with `drop_last`.
    - `shuffle`, `seed`: the order is ``epoch_order(N, seed, epoch)``, or the data's own.
    - `weights`: samples are drawn by weight, with replacement: one for each sample, one for each class, the name of a
      column, or ``"balanced"`` (each class as often as any other).
    - `num_samples`: samples in an epoch, where it is not one of each.
    - `lengths`: batches are made of samples of like length (see Bucketed): a length for each sample, the name of a
      part of the samples, a function of a sample, or ``"auto"`` (the first part). With `max_tokens` a batch has as many
      samples as fit, at most `batch_size`, each counted as long as the longest.
    - `sampler`: a sampler or batch sampler of torch's, taken by its meaning, or one of your own (see OwnSampler).
    - `augment`: random transforms of the raw inputs, each called with ``(inputs (N, C, H, W), draws)`` if it has a
      true attribute ``batched``, else with one sample's input under random numbers of its own. What a sample
      gets depends on (seed, epoch, index) only.
    - `preprocessing`: maps raw inputs to what the model takes, after `augment`.
    - `workers`: processes that read a Dataset ahead; data in memory need none. No bit depends on it.
    - `device`: where batches are put. Data in memory that fit go there once.
    - `normalize_once`: keep the preprocessed data in memory instead of preprocessing at each use; same bits.
      ``"auto"``: where there is no augmentation and they take at most 512 MiB.

    The process's random number generators are never drawn from. Raises UsageError for an empty data set, a batch
    larger than the data, and arguments that cannot be.

    >>> loader = Loader((torch.arange(5.0), torch.arange(5)), batch_size=2, shuffle=False)
    >>> [targets.tolist() for inputs, targets in loader]
    [[0, 1], [2, 3], [4]]
    >>> loader.epoch, loader.position
    (1, 0)
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        weights: Any = None,
        num_samples: int | None = None,
        sampler: Any = None,
        lengths: Any = None,
        max_tokens: int | None = None,
        preprocessing: Preprocessing | None = None,
        augment: Sequence[Callable[..., Any]] = (),
        workers: int = 0,
        device: torch.device | str | None = None,
        normalize_once: bool | str = "auto",
    ):
        self.source = as_source(source)
        count = len(self.source)
        check = Arguments("data: ")
        self.batch_size: int = check.whole("batch_size", batch_size, low=1)
        if not check.problems and self.batch_size > count:
            message = f"{batch_size} is larger than the data set of {counted(count, 'sample')}; give at most {count}"
            check.refuse("batch_size", message)
        self.shuffle = check.flag("shuffle", shuffle)
        self.seed = check.whole("seed", seed)
        self.drop_last = check.flag("drop_last", drop_last)
        self.preprocessing = check.instance("preprocessing", preprocessing, Preprocessing, "Preprocessing()", none=True)
        self.augment = tuple(augment) if isinstance(augment, list | tuple) else (augment,)
        for transform in self.augment:
            check.function("augment", transform, "surefoot.data.augment.RandomHorizontalFlip()")
        self.workers = check.whole("workers", workers, low=0)
        if not isinstance(normalize_once, str) or normalize_once != "auto":
            check.flag("normalize_once", normalize_once)
        if normalize_once is True and augment:
            check.refuse("normalize_once", "augmentation works on raw data; leave one of them out")
        for transform in self.augment:
            if getattr(transform, "batched", False) and (own := held.generators(transform=transform)):
                check.refuse(
                    "augment",
                    f"{', '.join(own)}: a batched transform with a generator of its own draws other numbers in other "
                    "chunks; draw from the `draws` that it is called with",
                )
        if getattr(self.source, "names", ()) and (augment or preprocessing is not None):
            check.refuse("augment" if augment else "preprocessing", f"the samples have columns by name; {_IN_THE_DATA}")
        check.whole("num_samples", num_samples, low=1, none=True)
        check.whole("max_tokens", max_tokens, low=1, none=True)
        if max_tokens is not None and lengths is None:
            check.refuse("max_tokens", "a batch's tokens are counted by lengths; give them too")
        given = {"sampler": sampler, "lengths": lengths, "weights": weights, "num_samples": num_samples}
        first, *others = [name for name, value in given.items() if value is not None] or [""]
        if others and first in ("sampler", "lengths"):
            check.refuse(first, f"says by itself what is read, and in which order; leave {' and '.join(others)} out")
        check.done()
        self._device = _device("cpu" if device is None else device)
        self.epoch = 0
        self.position = 0
        # Settings that may be others than in a state that is loaded, where nobody names them to `load_state_dict`.
        self.accept_changes: Collection[str] = ()
        self._normalize_once = normalize_once
        self._orders = self._order_of(weights, num_samples, sampler, lengths, max_tokens)
        self._keys: tuple[int, Any] | None = None
        self._last_of_epoch: Tensor | None = None
        self._prepared: InMemory | None = None
        self._workers: Workers | None = None

    def _order_of(self, weights: Any, num_samples: int | None, sampler: Any, lengths: Any, most: int | None) -> Order:
        count = len(self.source)
        if lengths is not None:
            each = lengths_of(self.source, lengths)
            return Bucketed(each, self.batch_size, self.seed, self.shuffle, self.drop_last, most)
        if sampler is not None:
            return order_of(sampler, count, self.seed)
        if weights is not None:
            drawn = Weighted(weights_of(self.source, weights), num_samples or count, self.seed)
            if isinstance(self.source, TensorSource) and weights in self.source.names:
                self.source = self.source.without(weights)
            return drawn
        return Shuffled(count, self.seed, self.shuffle, num_samples)

    @property
    def notes(self) -> list[str]:
        """What a user should know of the data and their order before a run."""
        own = getattr(self._orders, "note", None)
        return [*getattr(self.source, "notes", ()), *([own] if own else ())]

    def apart(self) -> Loader:
        """The same loader at the start of its epoch, with a place and worker processes of its own to `close`."""
        if isinstance(self.source, TensorSource):
            self._memory()  # prepared once, for all
        other = copy.copy(self)
        other.position, other._workers = 0, None
        return other

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        if self._orders.batches is not None:
            return self._orders.batches
        whole, rest = divmod(self._orders.samples, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    @property
    def samples(self) -> int:
        """The number of samples in an epoch."""
        count = self._orders.samples
        return count - count % self.batch_size if self.drop_last and self._orders.batches is None else count

    @property
    def device(self) -> torch.device:
        """Where batches are put. Setting it takes effect at the next iteration."""
        return self._device

    @device.setter
    def device(self, device: torch.device | str) -> None:
        self._device = _device(device)
        self._prepared = None

    @property
    def last_indices(self) -> Tensor | None:
        """The data set indices of the last batch that was given, int64 (n,); None before the first."""
        if self.position:
            return self.indices_at(self.epoch, self.position - 1)
        return self._last_of_epoch

    def order(self, epoch: int) -> Tensor:
        """The data set indices of one epoch in order, int64 (samples,)."""
        keys = self._keys_of(epoch)
        return (keys if isinstance(keys, Tensor) else torch.cat(list(keys))) % len(self.source)

    def indices_at(self, epoch: int, position: int) -> Tensor:
        """The data set indices of one batch, int64 (n,)."""
        return self._keys_at(epoch, position) % len(self.source)

    def _keys_at(self, epoch: int, position: int) -> Tensor:
        keys = self._keys_of(epoch)
        if not isinstance(keys, Tensor):
            return keys[position]
        return keys[position * self.batch_size : (position + 1) * self.batch_size]

    def _keys_of(self, epoch: int) -> Tensor | Sequence[Tensor]:
        """An epoch's samples in order, or those of each batch, as keys of their random numbers.

        A key is the index in the data set; when a sample comes again, the number of samples is added, so that it is
        augmented in another way.
        """
        if self._keys is None or self._keys[0] != epoch:
            order = self._orders.of(epoch)
            if self._orders.repeats:
                flat = order if isinstance(order, Tensor) else torch.cat(list(order))
                flat = flat + len(self.source) * occurrences(flat)
                order = flat if isinstance(order, Tensor) else torch.split(flat, [len(batch) for batch in order])
            self._keys = epoch, order[: self.samples] if isinstance(order, Tensor) else order
        return self._keys[1]

    def batch_at(self, epoch: int, position: int) -> tuple[Any, ...]:
        """One batch as iterating would give it, made here and now; no counter and no generator moves."""
        if not 0 <= position < len(self):
            raise IndexError(f"batch {position} of an epoch of {len(self)}")
        keys = self._keys_at(epoch, position)
        if isinstance(self.source, TensorSource):
            return self.source.formed(self._gather(epoch, keys))
        generators = rng.get_state()
        try:
            return self._finish(_usable(self._reader()[epoch, keys.tolist()]), epoch, keys)
        finally:
            rng.set_state(generators)

    def short_batch(self) -> tuple[Any, ...] | None:
        """The last batch of the epoch where it is shorter than the others, without counting it; else None."""
        count = self._orders.samples
        if self._orders.batches or self.drop_last or count <= self.batch_size or not count % self.batch_size:
            return None
        return self.batch_at(self.epoch, len(self) - 1)

    def peek(self) -> tuple[Any, ...]:
        """The next batch, without counting it; at the end of an epoch, the first of the next."""
        if self.position < len(self):
            return self.batch_at(self.epoch, self.position)
        return self.batch_at(self.epoch + 1, 0)

    def seek(self, epoch: int, position: int = 0) -> None:
        """Go to a place at once: nothing is read or replayed. Raises UsageError for a place that is none."""
        check = Arguments("data: ")
        epoch, position = check.whole("epoch", epoch), check.whole("position", position)
        check.done()
        if epoch < 0 or not 0 <= position <= len(self):
            raise UsageError(
                f"data: there is no batch {position} in epoch {epoch}; an epoch has {counted(len(self), 'batch')}"
            )
        self.epoch, self.position = epoch, position
        self._last_of_epoch = None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        epoch, position = self.epoch, self.position
        for chunk in self._chunks(epoch, position):
            for batch in chunk:
                if self.position != position or self.epoch != epoch:
                    raise UsageError(_MOVED)
                position += 1
                self.position = position
                yield batch
        if self.position != position or self.epoch != epoch:
            raise UsageError(_MOVED)
        self._last_of_epoch = self.last_indices
        self.epoch, self.position = epoch + 1, 0

    def _chunks(self, epoch: int, position: int) -> Iterator[Any]:
        """The rest of an epoch as iterables of batches."""
        if not isinstance(self.source, TensorSource):
            yield self._read(epoch, position)
            return
        memory, keys = self._memory(), self._keys_of(epoch)
        if isinstance(keys, Tensor):
            if memory.ready and self._orders.repeats:
                keys = keys % len(self.source)
            chunks = memory.chunks(
                keys[position * self.batch_size :], self.batch_size, lambda some: self._gather(epoch, some)
            )
        else:
            chunks = ((self._gather(epoch, some),) for some in keys[position:])
        yield from (map(self.source.formed, chunk) for chunk in chunks) if self.source.names else chunks

    def _gather(self, epoch: int, keys: Tensor) -> tuple[Any, ...]:
        """The columns of some samples in memory, finished."""
        memory = self._memory()
        read = memory.gather(keys % len(self.source) if self._orders.repeats else keys)
        return read if memory.finished else self._finish(read, epoch, keys)

    def _finish(self, batch: tuple[Any, ...], epoch: int, keys: Tensor) -> tuple[Any, ...]:
        """Moved to the device, augmented and preprocessed; only the first of a batch's values are inputs."""
        inputs, *rest = batch = batches.moved(batch, self._device)
        if not isinstance(inputs, Tensor):
            if self.augment or self.preprocessing is not None:
                name = "augment" if self.augment else "preprocessing"
                raise UsageError(
                    f"data: {name}: the inputs of a batch are {batches.form(inputs)} and not one tensor; {_IN_THE_DATA}"
                )
            return batch
        for number, transform in enumerate(self.augment):
            # Each transform has numbers of its own, so that what one draws does not shift the next.
            seed = fold(self.seed, number)
            if getattr(transform, "batched", False):
                inputs = transform(inputs, Draws(seed, epoch, keys))
            else:
                inputs = apply_to_each(transform, inputs, keys.tolist(), seed, epoch)
        if self.preprocessing is not None:
            inputs = self.preprocessing(inputs)
        return (inputs, *rest)

    def _memory(self) -> InMemory:
        if self._prepared is None:
            assert isinstance(self.source, TensorSource)
            self._prepared = InMemory(
                self.source,
                self.preprocessing,
                self._device,
                augmented=bool(self.augment),
                normalize_once=self._normalize_once,
            )
        return self._prepared

    def _reader(self) -> BatchReader:
        assert isinstance(self.source, DatasetSource)
        return BatchReader(self.source.dataset, self.seed, self.source.collate)

    def _read(self, epoch: int, position: int) -> Iterator[tuple[Any, ...]]:
        """Batches of a Dataset, read in this process or by the workers."""
        if position == len(self):
            return
        # One batch's indices at a time: the start of an epoch must not cost what the whole epoch does.
        places = range(position, len(self))
        keys = ((epoch, self._keys_at(epoch, place).tolist()) for place in places)
        if self.workers:
            if self._workers is None:
                self._workers = Workers(self._reader(), self.workers)
            read = self._workers.batches(keys)
        else:
            read = map(self._reader().__getitem__, keys)
        for batch, place in zip(read, places, strict=True):
            yield self._finish(_usable(batch), epoch, self._keys_at(epoch, place))

    def close(self) -> None:
        """End the worker processes, if any; they start again when needed."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, and what it is a place in; plain numbers."""
        order = self._orders.state(self.epoch)
        return {"epoch": self.epoch, "position": self.position, **self.settings()} | ({"order": order} if order else {})

    def load_state_dict(self, state: Mapping[str, Any], *, allow: Collection[str] = ()) -> None:
        """Go to the place in `state`, from `state_dict`.

        Raises UsageError where the saved loader had another seed, batch_size, number of samples, shuffle or
        drop_last: its next batch would be another one. `allow` names those that may differ; with another
        batch_size, or fewer samples, the place is the first batch that holds no sample already seen, or the last.
        """
        settings = self.settings()
        missing = [name for name in ("epoch", "position", *settings) if name not in state]
        if missing and not {*missing} <= {*self._orders.settings()}:
            raise UsageError(f"loader state: {', '.join(missing)} missing; the order cannot be gone on with")
        names = dict.fromkeys([*settings, *(name for name in state if name not in _PLACE)])
        problems = [
            f"loader state: {name}: the saved run has {state.get(name)!r}, this one {settings.get(name)!r}"
            for name in names
            if state.get(name) != settings.get(name) and name not in allow and name not in self.accept_changes
        ]
        if problems:
            raise Problems([*problems, "the data would go on in another order; give the saved settings"])
        epoch, position = state["epoch"], state["position"]
        for name, value in (("epoch", epoch), ("position", position)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(f"loader state: {name}: {value!r} is not a whole number of 0 or more")
        if state["batch_size"] != self.batch_size:
            position = -(-position * state["batch_size"] // self.batch_size)
        if state["samples"] != settings["samples"] or state["batch_size"] != self.batch_size:
            position = min(position, len(self))
        if position > len(self):
            raise UsageError(
                f"loader state: position: {position} lies beyond the epoch's {counted(len(self), 'batch')}"
            )
        self.seek(epoch, position)
        self._orders.restore(epoch, state.get("order") or {})

    def settings(self) -> dict[str, Any]:
        """What the order of samples depends on, as plain values."""
        return {
            "seed": self.seed,
            "samples": len(self.source),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            **self._orders.settings(),
        }


_IN_THE_DATA = "leave it out, and do it in the data set"
_PLACE = ("epoch", "position", "order")
_MOVED = (
    "data: the loader was moved during an iteration, by another iteration, a seek or a restored state; iterate one "
    "loader at a time, and begin a new iteration after moving it"
)


def _device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"data: device: {device!r} is no device of torch's; give 'cpu', 'cuda' or 'cuda:0'") from None


def _usable(batch: tuple[Any, ...] | UsageError) -> tuple[Any, ...]:
    if isinstance(batch, UsageError):
        raise batch
    return batch
