"""Batches in an order that is a pure function of (seed, epoch), from any position at once."""

from __future__ import annotations

import copy
import os
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
from .sources import DatasetSource, TensorSource, as_source
from .workers import BatchReader, Workers, apply_to_each

# Batches are made many at a time: one indexed read and one conversion for about this many bytes of input. Less would
# come with a cold cache too often, more would no longer be in the processor's when the last of them is used.
CHUNK_BYTES = 1 << 21
CHUNKS_AHEAD = 64
# Data are normalised once, instead of at each use, where the result is at most this large.
NORMALIZED_BYTES = 1 << 29


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of `samples` indices in one epoch: int64 (samples,), a function of its arguments only.

    >>> epoch_order(5, seed=0, epoch=1).tolist() == epoch_order(5, seed=0, epoch=1).tolist()
    True
    """
    generator = torch.Generator().manual_seed(fold(seed, epoch))
    return torch.randperm(samples, generator=generator)


class Loader:
    """Batches ``(inputs, targets, ...)`` of a source, in an order that can be gone on with anywhere.

    Iterating gives the rest of the current epoch: break out and iterate again, and it goes on at `position`, the
    number of this epoch's batches given so far (counted before the batch is handed out). When an epoch is
    exhausted, `epoch` is one more and `position` 0.

    - `source`: a Source, a tuple of tensors (N, ...), or a map-style torch Dataset.
    - `batch_size`: samples a batch; the last batch of an epoch is shorter, or left out with `drop_last`.
    - `shuffle`, `seed`: the order is ``epoch_order(N, seed, epoch)``, or the data's own.
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
        check.done()
        self._device = _device("cpu" if device is None else device)
        self.epoch = 0
        self.position = 0
        # Settings that may be others than in a state that is loaded, where nobody names them to `load_state_dict`.
        self.accept_changes: Collection[str] = ()
        self._normalize_once = normalize_once
        self._order: tuple[int, Tensor] | None = None
        self._last_of_epoch: Tensor | None = None
        self._prepared: tuple[Tensor, ...] | None = None
        self._prepared_normalized = False
        self._workers: Workers | None = None

    def apart(self) -> Loader:
        """The same loader at the start of its epoch, with a place and worker processes of its own to `close`."""
        if isinstance(self.source, TensorSource):
            self._in_memory()  # prepared once, for all
        other = copy.copy(self)
        other.position, other._workers = 0, None
        return other

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(len(self.source), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    @property
    def samples(self) -> int:
        """The number of samples in an epoch."""
        count = len(self.source)
        return count - count % self.batch_size if self.drop_last else count

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
        if self._order is None or self._order[0] != epoch:
            count = len(self.source)
            order = epoch_order(count, self.seed, epoch) if self.shuffle else torch.arange(count)
            self._order = epoch, order[: self.samples]
        return self._order[1]

    def indices_at(self, epoch: int, position: int) -> Tensor:
        """The data set indices of one batch, int64 (n,)."""
        return self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]

    def batch_at(self, epoch: int, position: int) -> tuple[Any, ...]:
        """One batch as iterating would give it, made here and now; no counter and no generator moves."""
        if not 0 <= position < len(self):
            raise IndexError(f"batch {position} of an epoch of {len(self)}")
        indices = self.indices_at(epoch, position)
        if isinstance(self.source, TensorSource):
            return self._gather(epoch, indices)
        generators = rng.get_state()
        try:
            return self._finish(_usable(self._reader()[epoch, indices.tolist()]), epoch, indices)
        finally:
            rng.set_state(generators)

    def short_batch(self) -> tuple[Any, ...] | None:
        """The last batch of the epoch where it is shorter than the others, without counting it; else None."""
        count = len(self.source)
        if self.drop_last or count <= self.batch_size or not count % self.batch_size:
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
        order, size = self.order(epoch), self.batch_size
        step = size * self._batches_in_chunk()
        tensors, select = self._in_memory(), torch.index_select
        # Between two steps every call comes with a cold cache: indices are cut up for many chunks at once, and what
        # is ready as it lies goes out without a look at what it does not need.
        ready = self._device.type == "cpu" and not self.augment and self.source.batch_dtype is None
        ready = ready and (self._prepared_normalized or self.preprocessing is None)
        for first in range(position * size, len(order), step * CHUNKS_AHEAD):
            for indices in torch.unsafe_split(order[first : first + step * CHUNKS_AHEAD], step):
                if ready:
                    chunk = tuple([select(tensor, 0, indices) for tensor in tensors])
                else:
                    chunk = self._gather(epoch, indices)
                if step == size:
                    yield (chunk,)
                    continue
                # Not `split`: its views would share one version counter, so that an in-place change of one batch
                # would spoil the backward pass of another; it costs more, too.
                yield zip(*(torch.unsafe_split(tensor, size) for tensor in chunk), strict=True)

    def _batches_in_chunk(self) -> int:
        numbers = sum(tensor[0].numel() for tensor in self._in_memory())
        return max(1, CHUNK_BYTES // (4 * numbers * self.batch_size))

    def _gather(self, epoch: int, indices: Tensor) -> tuple[Any, ...]:
        """Samples of data in memory, finished; one indexed read of each tensor."""
        assert isinstance(self.source, TensorSource)
        tensors = self._in_memory()
        there = indices if tensors[0].is_cpu else indices.to(tensors[0].device)
        read = self.source.widened(tuple([tensor.index_select(0, there) for tensor in tensors]))
        if self._prepared_normalized:
            return tuple(batches.moved(tensor, self._device) for tensor in read)
        return self._finish(read, epoch, indices)

    def _finish(self, batch: tuple[Any, ...], epoch: int, indices: Tensor) -> tuple[Any, ...]:
        """Moved to the device, augmented and preprocessed; only the first of a batch's values are inputs."""
        inputs, *rest = batch = batches.moved(batch, self._device)
        if not isinstance(inputs, Tensor):
            if self.augment or self.preprocessing is not None:
                name = "augment" if self.augment else "preprocessing"
                raise UsageError(
                    f"data: {name}: the inputs of a batch are {batches.form(inputs)} and not one tensor; leave it "
                    "out, and do it in the data set"
                )
            return batch
        for number, transform in enumerate(self.augment):
            # Each transform has numbers of its own, so that what one draws does not shift the next.
            seed = fold(self.seed, number)
            if getattr(transform, "batched", False):
                inputs = transform(inputs, Draws(seed, epoch, indices))
            else:
                inputs = apply_to_each(transform, inputs, indices.tolist(), seed, epoch)
        if self.preprocessing is not None:
            inputs = self.preprocessing(inputs)
        return (inputs, *rest)

    def _in_memory(self) -> tuple[Tensor, ...]:
        """The source's tensors where they are best kept: on the device, preprocessed, or as they are."""
        if self._prepared is None:
            assert isinstance(self.source, TensorSource)
            tensors = self.source.tensors
            self._prepared_normalized = self._normalizes_once(tensors[0])
            if self._prepared_normalized:
                tensors = (_preprocessed(tensors[0], self.preprocessing), *tensors[1:])
            if self._device.type == "cuda" and _fits(tensors, self._device):
                tensors = tuple(tensor.to(self._device) for tensor in tensors)
            self._prepared = tensors
        return self._prepared

    def _normalizes_once(self, inputs: Tensor) -> bool:
        if self.preprocessing is None or self.augment:
            return False
        if self._normalize_once != "auto":
            return bool(self._normalize_once)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return inputs.numel() * 4 <= min(NORMALIZED_BYTES, memory // 8)

    def _reader(self) -> BatchReader:
        assert isinstance(self.source, DatasetSource)
        return BatchReader(self.source.dataset, self.seed, self.source.collate)

    def _read(self, epoch: int, position: int) -> Iterator[tuple[Any, ...]]:
        """Batches of a Dataset, read in this process or by the workers."""
        if position == len(self):
            return
        # One batch's indices at a time: the start of an epoch must not cost what the whole epoch does.
        places = range(position, len(self))
        keys = ((epoch, self.indices_at(epoch, place).tolist()) for place in places)
        if self.workers:
            if self._workers is None:
                self._workers = Workers(self._reader(), self.workers)
            read = self._workers.batches(keys)
        else:
            read = map(self._reader().__getitem__, keys)
        for batch, place in zip(read, places, strict=True):
            yield self._finish(_usable(batch), epoch, self.indices_at(epoch, place))

    def close(self) -> None:
        """End the worker processes, if any; they start again when needed."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, and what it is a place in; plain numbers."""
        return {"epoch": self.epoch, "position": self.position, **self._setting()}

    def load_state_dict(self, state: Mapping[str, Any], *, allow: Collection[str] = ()) -> None:
        """Go to the place in `state`, from `state_dict`.

        Raises UsageError where the saved loader had another seed, batch_size, number of samples, shuffle or
        drop_last: its next batch would be another one. `allow` names those that may differ; with another
        batch_size, or fewer samples, the place is the first batch that holds no sample already seen, or the last.
        """
        setting = self._setting()
        missing = [name for name in ("epoch", "position", *setting) if name not in state]
        if missing:
            raise UsageError(f"loader state: {', '.join(missing)} missing; the order cannot be gone on with")
        problems = [
            f"loader state: {name}: the saved run has {state[name]!r}, this one {value!r}"
            for name, value in setting.items()
            if state[name] != value and name not in allow and name not in self.accept_changes
        ]
        if problems:
            raise Problems([*problems, "the data would go on in another order; give the saved settings"])
        epoch, position = state["epoch"], state["position"]
        for name, value in (("epoch", epoch), ("position", position)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(f"loader state: {name}: {value!r} is not a whole number of 0 or more")
        if state["batch_size"] != self.batch_size:
            position = -(-position * state["batch_size"] // self.batch_size)
        if state["samples"] != setting["samples"] or state["batch_size"] != self.batch_size:
            position = min(position, len(self))
        if position > len(self):
            raise UsageError(
                f"loader state: position: {position} lies beyond the epoch's {counted(len(self), 'batch')}"
            )
        self.seek(epoch, position)

    def _setting(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "samples": len(self.source),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }


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


def _fits(tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Whether the tensors take at most a quarter of the device's free memory."""
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.nbytes for tensor in tensors) <= free // 4


def _preprocessed(inputs: Tensor, preprocessing: Preprocessing) -> Tensor:
    """All inputs preprocessed, a block at a time: no second copy of the whole is ever needed."""
    out = torch.empty(inputs.shape, dtype=torch.float32)
    block = max(1, (1 << 22) // max(1, inputs[0].numel()))
    for first in range(0, len(inputs), block):
        out[first : first + block] = preprocessing(inputs[first : first + block])
    return out
