"""Batches in an order that is a pure function of (seed, epoch), from any position at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import batches, generators
from ..arguments import Arguments
from ..errors import Problems, UsageError
from ..micro_batches import Division, MicroBatches
from ..preprocessing import Preprocessing
from ..text import counted
from .conversion import as_source
from .finishing import IN_THE_DATA, Finishing
from .indexed import Indexed
from .orders import Bucketed, Order, Shuffled, Weighted
from .samplers import lengths_of, order_of, refuse_parts, weights_of
from .sources import DatasetSource, TensorSource
from .streamed import Streamed
from .streams import StreamSource


class Loader:
    """Batches ``(inputs, targets, ...)`` of a source, in an order that can be gone on with anywhere.

    Iterating gives the rest of the current epoch: break out and iterate again, and it goes on at `position`, the
    number of this epoch's batches given so far (counted before the batch is handed out). When an epoch is
    exhausted, `epoch` is one more and `position` 0.

    - `source`: a Source, a tuple of tensors (N, ...), a map-style torch Dataset, or a stream (see StreamSource).
    - `batch_size`: samples a batch; the last batch of an epoch is shorter, or left out with `drop_last`.
    - `shuffle`, `seed`: the order is ``epoch_order(N, seed, epoch)``, or the data's own.
    - `weights`: samples are drawn by weight, with replacement: one for each sample, one for each class, the name of a
      column, or ``"balanced"`` (each class as often as any other).
    - `num_samples`: samples in an epoch, where it is not one of each; of a stream, where it is not one pass,
      as many batches as would hold them: a pass may end with a shorter one.
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
      ``"auto"``: where there is no augmentation and they take at most 512 MiB and an eighth of the memory.
    - `share`: ``(rank, size)`` or a World. `batch_size` stays that of all ranks together, and each rank is given its
      rows of each batch. `weight` is what the mean of the last batch given counts, so that the mean over ranks is that
      over all rows; where a rank has no row it is 0, and one row stands in.

    The process's random number generators are never drawn from. Raises UsageError for an empty data set or epoch, a
    batch larger than the data, and arguments that cannot be; of a stream, for what orders samples.

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
        share: Any = None,
    ):
        source = as_source(source)
        is_stream = isinstance(source, StreamSource)
        check = Arguments("data: ")
        self.batch_size: int = check.whole("batch_size", batch_size, low=1)
        if not check.problems and not is_stream and self.batch_size > (count := len(source)):
            message = f"{batch_size} is larger than the data set of {counted(count, 'sample')}; give at most {count}"
            check.refuse("batch_size", message)
        self.shuffle = check.flag("shuffle", shuffle) and not is_stream
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
            if getattr(transform, "batched", False) and (held := generators.held_by(transform=transform)):
                check.refuse(
                    "augment",
                    f"{', '.join(held)}: a batched transform with a generator of its own draws other numbers in other "
                    "chunks; draw from the `draws` that it is called with",
                )
        if getattr(source, "names", ()) and (augment or preprocessing is not None):
            check.refuse("augment" if augment else "preprocessing", f"the samples have columns by name; {IN_THE_DATA}")
        check.whole("num_samples", num_samples, low=1, none=True)
        check.whole("max_tokens", max_tokens, low=1, none=True)
        if max_tokens is not None and lengths is None:
            check.refuse("max_tokens", "a batch's tokens are counted by lengths; give them too")
        choices = {"sampler": sampler, "lengths": lengths, "weights": weights, "num_samples": num_samples}
        first, *others = [name for name, value in choices.items() if value is not None] or [""]
        if others and first in ("sampler", "lengths"):
            check.refuse(first, f"says by itself what is read, and in which order; leave {' and '.join(others)} out")
        if is_stream and (ordering := {first, *others} - {"", "num_samples"}):
            check.refuse(min(ordering), "a stream is read in its own order; leave it out, or give a map-style data set")
        check.done()
        self._finish = Finishing(self.seed, self.augment, self.preprocessing, _device(device))
        self.epoch = 0
        self.position = 0
        # Settings that may be others than in a state that is loaded, where nobody names them to `load_state_dict`.
        self.accept_changes: Collection[str] = ()
        self._last_of_epoch: Tensor | None = None
        self.weight = 1.0
        self._by_hand = False
        self.parts = self._ranks = 1
        reading: dict[str, Any] = {"drop_last": self.drop_last, "workers": self.workers}
        self._batches: Indexed | Streamed
        self._sampler = sampler
        if isinstance(source, StreamSource):
            self._batches = Streamed(source, self.batch_size, self._finish, num_samples=num_samples, **reading)
        else:
            order: Order = Shuffled(len(source), self.seed, self.shuffle, num_samples)
            if sampler is not None:
                order = order_of(sampler, len(source), self.seed)
            elif lengths is not None:
                each = lengths_of(source, lengths)
                order = Bucketed(each, self.batch_size, self.seed, self.shuffle, self.drop_last, max_tokens)
            elif weights is not None:
                order = Weighted(weights_of(source, weights), num_samples or len(source), self.seed)
                if isinstance(source, TensorSource) and isinstance(weights, str) and weights in source.names:
                    source = source.without(weights)
            reading["normalize_once"] = normalize_once
            self._batches = Indexed(source, order, self.batch_size, self._finish, **reading)
        if self.drop_last and self.length == 0:
            raise UsageError(
                f"data: drop_last: an epoch has fewer samples than a batch of {self.batch_size}, so that no batch is "
                "left of it; give a smaller batch_size, more samples, or drop_last=False",
                code="argument",
            )
        if share is not None:
            rank, size = share if isinstance(share, tuple) else (share.rank, share.size)
            self.divide(size, rank, size)
            self._by_hand = True

    def divide(self, parts: int, rank: int = 0, size: int = 1) -> None:
        """Give each batch as the MicroBatches of this rank, of `parts` that it is cut into for all; 1: whole."""
        self.require_undivided(size)
        self._by_hand = False
        self.parts, self._ranks = parts, size
        self._batches.divide(Division(parts, rank, size))

    def require_undivided(self, ranks: int) -> None:
        """Raise UsageError where a sampler has divided the samples among processes, and `ranks` would do it again."""
        refuse_parts(self._sampler, ranks)

    @property
    def source(self) -> TensorSource | DatasetSource | StreamSource:
        """What is read."""
        return self._batches.source

    @property
    def notes(self) -> list[str]:
        """What a user should know of the data and their order before a run."""
        return [*getattr(self.source, "notes", ()), *self._batches.notes]

    def apart(self) -> Loader:
        """The same loader at the start of its epoch, with a place and worker processes of its own to `close`.

        Its batches are whole, whatever share of them this one gives.
        """
        other = copy.copy(self)
        other.position, other._batches, other._by_hand = 0, self._batches.apart(), False
        other.parts = other._ranks = 1
        return other

    @property
    def length(self) -> int | None:
        """The number of batches in an epoch; None of a stream where only its end tells it."""
        return self._batches.length

    def __len__(self) -> int:
        """The number of batches in an epoch. Raises UsageError where it is not known."""
        if (length := self._batches.length) is None:
            raise UnknownLength(
                f"data: the length of the stream {getattr(self.source, 'name', '')} is not known; say how many samples "
                f"make an epoch: Loader(stream, {self.batch_size}, num_samples={1000 * self.batch_size}), in a recipe "
                f"num_samples: {1000 * self.batch_size} among its data"
            )
        return length

    @property
    def samples(self) -> int | None:
        """The number of samples in an epoch; None of a stream where only its end tells it."""
        return self._batches.samples

    @property
    def device(self) -> torch.device:
        """Where batches are put. Setting it takes effect at the next iteration."""
        return self._finish.device

    @device.setter
    def device(self, device: torch.device | str) -> None:
        self._finish.device = _device(device)
        self._batches.moved()

    def narrow(self) -> None:
        """Give what is float64 as float32 from the next iteration on."""
        if isinstance(self._batches, Indexed) and isinstance(self.source, TensorSource):
            self._batches.source = self.source.narrowed()
        self._finish.narrow = True
        self._batches.moved()

    @property
    def last_indices(self) -> Tensor | None:
        """The data set indices of the last batch that was given, of all ranks, int64 (n,); None before the first."""
        if self.position:
            return self.indices_at(self.epoch, self.position - 1)
        return self._last_of_epoch

    def order(self, epoch: int) -> Tensor:
        """The data set indices of one epoch in order, int64 (samples,)."""
        return self._indexed().order(epoch)

    def indices_at(self, epoch: int, position: int) -> Tensor:
        """The data set indices of one batch, int64 (n,)."""
        return self._indexed().indices(epoch, position)

    def samples_at(self, position: int) -> int | None:
        """The number of samples of the data set in a batch of this epoch; None of a stream."""
        return None if isinstance(self._batches, Streamed) else len(self.indices_at(self.epoch, position))

    def describe(self, epoch: int, positions: Iterable[int]) -> str:
        """Batches as a message names them: by their samples, or by their numbers in a stream."""
        if isinstance(self._batches, Streamed):
            return f"the batches {', '.join(str(position + 1) for position in positions)} of the stream"
        indices = [index for position in positions for index in self.indices_at(epoch, position).tolist()]
        return f"samples [{', '.join(map(str, indices[:16]))}{', ...' if len(indices) > 16 else ''}]"

    def _indexed(self) -> Indexed:
        if isinstance(self._batches, Streamed):
            raise UsageError(
                f"data: {self._batches.source.name} is a stream: its samples have no indices", code="data-stream"
            )
        return self._batches

    def batch_at(self, epoch: int, position: int) -> Any:
        """One batch as iterating would give it, made here and now; no counter and no generator moves.

        Of a stream, one of its first batches.
        """
        batch = self._batches.at(epoch, position)
        return batch[0] if self._by_hand and isinstance(batch, MicroBatches) else batch

    def first_batches(self, most: int) -> list[Any]:
        """The first batches of the first epoch, at most so many; no counter and no generator moves."""
        return [self.batch_at(0, position) for position in range(min(most, self.length or most))]

    def first_parts(self, position: int = 0) -> Any:
        """The micro-batches of all ranks of a batch of the first epoch, the same on each rank; no counter moves."""
        other = self.apart()
        other.divide(self.parts)
        return other.batch_at(0, position)

    def short_batch(self) -> Any:
        """The last batch of the epoch where it is shorter than the others, without counting it; else None.

        Of batches in micro-batches, the smallest of any rank.
        """
        if not self._batches.last_is_short and self.parts == 1:
            return None
        other = self.apart()
        other.divide(self.parts)
        batch = other.batch_at(self.epoch, len(self) - 1 if self._batches.last_is_short else 0)
        return min(batch, key=batches.size) if isinstance(batch, MicroBatches) else batch

    def peek(self, most: int | None = None) -> Any:
        """The next batch, without counting it; at the end of an epoch, the first of the next.

        With `most`, so many of its samples at most are read. On a GPU that is one of several, as many as it trains on.
        Of a stream a batch of its start.
        """
        at_end = self.length is not None and self.position >= self.length
        if most is None and self._ranks > 1 and self.device.type != "cpu":
            most = -(-self.batch_size // self._ranks)
        batch = self._batches.at(*((self.epoch + 1, 0) if at_end else (self.epoch, self.position)), most, whole=True)
        return batch[0] if isinstance(batch, MicroBatches) else batch

    def seek(self, epoch: int, position: int = 0) -> None:
        """Go to a place at once. Raises UsageError for a place that is none.

        A stream is read up to there when it is iterated over next; to the start of a pass, nothing is read.
        """
        check = Arguments("data: ")
        epoch, position = check.whole("epoch", epoch), check.whole("position", position)
        check.done()
        if epoch < 0 or position < 0 or (self.length is not None and position > self.length):
            raise UsageError(
                f"data: there is no batch {position} in epoch {epoch}; an epoch has {counted(len(self), 'batch')}",
                code="argument",
            )
        self.epoch, self.position = epoch, position
        self._last_of_epoch = None

    def turns(self, rank: int, size: int) -> Iterator[tuple[Any, bool]]:
        """Whole batches of the epoch by turns, from its start: of each `size` one, and whether it is this rank's.

        All ranks get as many: one that has no batch in the last round gets one that is another's. Of a stream, every
        rank reads all batches; of other data only its own. Nothing is counted.
        """
        self.require_undivided(size)
        return self._batches.turns(self.epoch, rank, size)

    def __iter__(self) -> Iterator[Any]:
        epoch, position = self.epoch, self.position
        for chunk in self._batches.rest(epoch, position):
            for batch in chunk:
                if self.position != position or self.epoch != epoch:
                    raise UsageError(_MOVED, code="data-loader")
                position += 1
                self.position = position
                if self._by_hand and isinstance(batch, MicroBatches):
                    self.weight = batch.rows[0] * batch.parts / batch.samples
                    batch = batch[0]
                yield batch
        if self.position != position or self.epoch != epoch:
            raise UsageError(_MOVED, code="data-loader")
        if isinstance(self._batches, Indexed):
            self._last_of_epoch = self.last_indices
        self.epoch, self.position = epoch + 1, 0

    def close(self) -> None:
        """End the worker processes, if any; they start again when needed."""
        self._batches.close()

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, and what it is a place in; plain numbers."""
        place = {"epoch": self.epoch, "position": self.position}
        return {**place, **self.settings(), **self._batches.state(self.epoch, self.position)}

    def load_state_dict(self, state: Mapping[str, Any], *, allow: Collection[str] = ()) -> None:
        """Go to the place in `state`, from `state_dict`.

        Raises UsageError where the saved loader had another seed, batch_size, number of samples, shuffle or
        drop_last: its next batch would be another one. `allow` names those that may differ; with another
        batch_size, or fewer samples, the place is the first batch that holds no sample already seen, or the last.
        """
        settings = self.settings()
        missing = [name for name in ("epoch", "position", *settings) if name not in state]
        if missing and not {*missing} <= {*self._batches.settings()} - {"samples"}:
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
        if self.length is not None and (state.get("samples"), state["batch_size"]) != (
            settings.get("samples"),
            self.batch_size,
        ):
            position = min(position, self.length)
        if self.length is not None and position > self.length:
            raise UsageError(
                f"loader state: position: {position} lies beyond the epoch's {counted(len(self), 'batch')}"
            )
        self.seek(epoch, position)
        self._batches.restore(epoch, position, state)

    def settings(self) -> dict[str, Any]:
        """What the order of samples depends on, as plain values."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            **self._batches.settings(),
        }


class UnknownLength(UsageError, TypeError):
    """The length of a stream is asked for and not known; a TypeError as well, which ``list(loader)`` expects."""


_PLACE = ("epoch", "position", "order", "reading")
_MOVED = (
    "data: the loader was moved during an iteration, by another iteration, a seek or a restored state; iterate one "
    "loader at a time, and begin a new iteration after moving it"
)


def _device(device: Any) -> torch.device:
    try:
        return torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise UsageError(
            f"data: device: {device!r} is no device of torch's; give 'cpu', 'cuda' or 'cuda:0'", code="device"
        ) from None
