"""Samples of a Dataset, each read under random numbers of its own, here or in worker processes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import multiprocessing.connection
import os
import random
import signal
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from .. import batches, generators
from ..errors import SurefootError, UsageError, first_line
from ..rng import fold
from ..text import duration
from .arrays import COLLATE

_PR_SET_PDEATHSIG = 1
# An epoch, and the samples of one of its batches: their indices, plus the number of samples each time one comes again.
Key = tuple[int, Sequence[int]]


def fetch(dataset: Any, keys: Iterable[int], seed: int, epoch: int, moment: Any = None) -> list[Any]:
    """The samples of `keys`, each read with Python's, NumPy's and torch's generators seeded for it.

    So are the generators that the data set has (`generators.held_by`). The seed is a function of (seed, epoch, key),
    the index is the key modulo the number of samples; all generators are afterwards as they were. For `moment` see
    `seeded`.
    """
    count = len(dataset)
    with seeded(dataset, moment) as seed_all:
        samples = []
        for key in keys:
            seed_all(fold(seed, epoch, key))
            samples.append(dataset[key % count])
        return samples


def apply_to_each(
    function: Callable[[Any], Any], items: Tensor, indices: Sequence[int], seed: int, epoch: int
) -> Tensor:
    """Stack ``function(item)`` of each item, called under the random numbers of its index."""
    with seeded(function, epoch) as seed_all:
        results = []
        for index, item in zip(indices, items, strict=True):
            seed_all(fold(seed, epoch, index))
            results.append(function(item))
    try:
        return torch.stack(results)
    except (TypeError, RuntimeError) as error:
        forms = list(dict.fromkeys(map(batches.form, results)))
        raise UsageError(
            f"data: augment: {getattr(function, '__name__', type(function).__name__)} makes {' and '.join(forms[:3])} "
            "of inputs; give a tensor of each, all of one shape"
        ) from error


@contextlib.contextmanager
def seeded(holder: Any, moment: Any = None) -> Iterator[Callable[[int], None]]:
    """Gives a function that seeds the process's generators and those of `holder`; all are restored at the end.

    At another `moment` (an epoch, say) `holder` may have made others than before.
    """
    # Not rng.get_state: CUDA's generators are not touched here, and reading them would wait for the device.
    states = random.getstate(), numpy.random.get_state(), torch.default_generator.get_state()
    held = list(_generators_of(holder, moment).values())
    before = [generators.state_of(generator) for generator in held]

    def seed_all(seed: int) -> None:
        random.seed(seed)
        numpy.random.seed(seed & 0xFFFFFFFF)
        torch.default_generator.manual_seed(seed)
        if held:
            generators.seed_each(held, seed)

    try:
        yield seed_all
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
        for generator, state in zip(held, before, strict=True):
            generators.put_state(generator, state)


# Of each object the last moment at which it was searched, how often, and what was found.
_GENERATORS: weakref.WeakKeyDictionary[Any, tuple[Any, int, dict[str, Any]]] = weakref.WeakKeyDictionary()
_readers = itertools.count()


def _generators_of(holder: Any, moment: Any) -> dict[str, Any]:
    # This runs at every batch, and a search takes milliseconds. There are two at each moment: the first finds what a
    # `set_epoch` has made, the second what is made when the first sample is read.
    try:
        last, searches, held = _GENERATORS.get(holder, (moment, 0, {}))
        searches = searches if last == moment else 0
        if searches < 2:
            held = generators.held_by(data=holder)
            _GENERATORS[holder] = moment, searches + 1, held
        return held
    except TypeError:  # not hashable, or without weak references
        return generators.held_by(data=holder)


class BatchReader:
    """Makes the batch of ``(epoch, keys)``; copied to the worker processes.

    A sample that is refused, and samples that make no batch, give a UsageError as the value: raised in a worker, it
    would arrive as another type or with another text.
    """

    def __init__(self, dataset: Any, seed: int, collate: Callable[[list[Any]], Any] | None):
        self.dataset = dataset
        self.seed = seed
        self.collate = collate
        self._number = next(_readers)

    def __getitem__(self, key: Key) -> tuple[Any, ...] | UsageError:
        epoch, keys = key
        try:
            samples = fetch(self.dataset, keys, self.seed, epoch, (self._number, epoch))
            return collated(samples, self.collate, self._indices(keys), self.seed, epoch, *keys)
        except UsageError as error:
            return UsageError(str(error), code=error.code)

    # torch's fetcher hands a whole batch to this method where there is one.
    __getitems__ = __getitem__

    def described(self, key: Key) -> str:
        """What is waited for, as a warning says it."""
        epoch, indices = key[0], self._indices(key[1])
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        return f"the samples {shown} of epoch {epoch + 1}: reading one of them"

    def _indices(self, keys: Sequence[int]) -> list[int]:
        count = len(self.dataset)
        return [key % count for key in keys]


def usable(batch: tuple[Any, ...] | UsageError) -> tuple[Any, ...]:
    """A batch that was read; raises the UsageError that was given in its place."""
    if isinstance(batch, UsageError):
        raise batch
    return batch


def collated(
    samples: list[Any], collate: Callable[[list[Any]], Any] | None, indices: Sequence[int], *seed: int
) -> tuple[Any, ...]:
    """A batch of samples, as a tuple; raises UsageError for those that make none.

    A user's own function may draw random numbers, and draws the same in whatever process it runs.
    """
    if collate is None or collate is default_collate:
        try:
            batch = batches.stacked(samples)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise UsageError(_uncollatable(samples, indices, error)) from error
    else:
        with seeded(collate, seed[1]) as seed_all:
            seed_all(fold(*seed))
            batch = collate(samples)
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def _uncollatable(samples: list[Any], indices: Sequence[int], error: Exception) -> str:
    """Why samples make no batch: two that differ, or one of a kind that torch cannot join."""
    shapes = [batches.form(sample) for sample in samples]
    other = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is None:
        reason = f"sample {indices[0]} is {shapes[0]} ({first_line(error)})"
    else:
        reason = f"sample {indices[0]} is {shapes[0]} and sample {indices[other]} is {shapes[other]}"
    return f"data: the samples cannot be joined in a batch: {reason}; make them alike, or {COLLATE}"


class Workers:
    """Worker processes that read batches ahead by a `reader`, in the order asked for.

    They outlive an epoch. `batches` starts over from any place; `close` ends them. A worker that dies ends the
    iteration with SurefootError; what the data set itself raises is raised here. Where no batch comes for a minute,
    a RuntimeWarning names the samples that are waited for, and again each time that the wait has doubled.
    """

    # How often torch looks whether the workers live, in seconds, and after how many such looks a warning is due.
    LOOK_S = 5.0
    LOOKS_BEFORE_WARNING = 12

    def __init__(self, reader: Any, workers: int):
        self._keys, self._described = _Keys(), reader.described
        self._loader: DataLoader[Any] = DataLoader(
            reader,  # read by index, as torch needs it, but no Dataset
            batch_sampler=self._keys,  # keys and not indices
            num_workers=workers,
            collate_fn=_unchanged,
            timeout=self.LOOK_S,
            # A thread's workers may outlive the thread: only those of the main thread die with it.
            worker_init_fn=functools.partial(_start_worker, threading.current_thread() is threading.main_thread()),
            persistent_workers=True,
            # torch draws a base seed for its workers; from this generator, and not from the global one.
            generator=torch.Generator(),
        )

    def batches(self, keys: Iterable[Any]) -> Iterator[Any]:
        """What the reader makes of each key, in order; `keys` are taken as the workers need them."""
        self._keys.source = keys
        self._keys.requested.clear()
        try:
            with _sigchld_kept():
                iterator = self._started()
            while True:
                try:
                    batch = self._next(iterator)
                except StopIteration:
                    return
                self._keys.requested.popleft()
                yield batch
        except (RuntimeError, EOFError, OSError) as error:
            # The pipe of a worker that died while it handed a batch over breaks before torch has missed the worker.
            if "DataLoader worker (pid" not in str(error) and not self._lost_one(error):
                raise
            self.close()
            raise SurefootError(
                f"data: a worker process ended unexpectedly ({first_line(error)}); memory that ran out is the usual "
                "cause: try fewer workers, or workers: 0 to read the data in this process",
                code="data-worker",
            ) from error

    def _started(self) -> Iterator[Any]:
        """torch's iterator at a start; what workers still read for an earlier one is awaited, however long it takes."""
        iterator: Any = self._loader._iterator
        if iterator is None:
            return iter(self._loader)
        iterator._timeout = 0
        try:
            return iter(self._loader)
        finally:
            iterator._timeout = self._loader.timeout

    def _next(self, iterator: Iterator[Any]) -> Any:
        """The next batch, however long it takes; with a warning now and then."""
        looks, warn_at = 0, self.LOOKS_BEFORE_WARNING
        while True:
            try:
                return next(iterator)
            except RuntimeError as error:
                if "DataLoader timed out after" not in str(error):
                    raise
            looks += 1
            if looks == warn_at:
                warn_at *= 2
                waiting_for = self._described(self._keys.requested[0])
                warnings.warn(
                    f"data: no batch has come from the worker processes for {duration(looks * self.LOOK_S)}; still "
                    f"waiting for {waiting_for} may have stopped for good; with workers: 0 an interrupt (Ctrl-C) shows "
                    "where",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _lost_one(self, error: BaseException) -> bool:
        sentinels = [process.sentinel for process in getattr(self._loader._iterator, "_workers", ())]
        # A killed process closes its pipe a moment before it counts as ended.
        patience_s = 5.0 if isinstance(error, EOFError | ConnectionError) else 0.0
        return bool(multiprocessing.connection.wait(sentinels, patience_s))

    def close(self) -> None:
        """End the processes; on return there are none left.

        One that does not leave by itself within seconds is killed.
        """
        # torch has no public way. Dropping the iterator would do it too, but only once nothing refers to it any
        # more, and the traceback of an error does.
        iterator: Any = self._loader._iterator
        self._loader._iterator = None
        if iterator is not None:
            iterator._shutdown_workers()
            # On a busy machine a worker may take longer to leave than torch waits for it.
            for worker in iterator._workers:
                worker.kill()
                worker.join()


class _Keys:
    """torch's batch sampler: what is to be read, and what of it was requested and has not come yet."""

    def __init__(self) -> None:
        self.source: Iterable[Any] = ()
        self.requested: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        for key in self.source:
            self.requested.append(key)
            yield key


def _unchanged(batch: Any) -> Any:
    return batch


@contextlib.contextmanager
def _sigchld_kept() -> Iterator[None]:
    """Undo the SIGCHLD handler that torch installs with its first workers.

    It raises a RuntimeError wherever the main thread happens to be, in the middle of an update too. A dead worker
    is found without it when the next batch is asked for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _start_worker(dies_with_parent: bool, worker: int) -> None:
    """Leave signals to the parent, and do not outlive it.

    Ctrl-C, and a scheduler's SIGTERM or SIGUSR1 to all processes, reach workers too; the parent answers them and
    still needs its batches until the step ends. It is SIGTERM from the parent that means us.
    """
    signal.set_wakeup_fd(-1)
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = os.getppid()
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_request, args=(parent,), daemon=True).start()
    if dies_with_parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _end_on_request(parent: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
