"""Samples of a Dataset, each read under random numbers of its own, here or in worker processes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing.connection
import os
import random
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader, default_collate

from .. import held
from ..errors import SurefootError, UsageError, first_line
from ..rng import fold
from .arrays import COLLATE, shape_of

_PR_SET_PDEATHSIG = 1


def fetch(dataset: Any, indices: Iterable[int], seed: int, epoch: int, holder: Any = None) -> list[Any]:
    """The samples at `indices`, each read with Python's, NumPy's and torch's generators seeded for it.

    So are the generators that the data set, or `holder`, has (`held.generators`). The seed is a function of (seed,
    epoch, index); all generators are afterwards as they were.
    """
    with seeded(dataset if holder is None else holder) as seed_all:
        samples = []
        for index in indices:
            seed_all(fold(seed, epoch, index))
            samples.append(dataset[index])
        return samples


def apply_to_each(function: Callable[[Any], Any], items: Any, indices: Sequence[int], seed: int, epoch: int):
    """Stack ``function(item)`` of each item, called under the random numbers of its index."""
    mapped = _Mapped(function, dict(zip(indices, items, strict=True)))
    return torch.stack(fetch(mapped, indices, seed, epoch, function))


class _Mapped:
    def __init__(self, function: Callable[[Any], Any], items: dict[int, Any]):
        self.function = function
        self.items = items

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


@contextlib.contextmanager
def seeded(holder: Any) -> Iterator[Callable[[int], None]]:
    """Gives a function that seeds the process's generators and those that `holder` has; all are put back at the end."""
    # Not rng.capture: CUDA's generators are not touched here, and reading them would wait for the device.
    states = random.getstate(), numpy.random.get_state(), torch.default_generator.get_state()
    own = list(_held(holder).values())
    before = [held.state_of(generator) for generator in own]

    def seed_all(seed: int) -> None:
        random.seed(seed)
        numpy.random.seed(seed & 0xFFFFFFFF)
        torch.default_generator.manual_seed(seed)
        if own:
            held.seed_each(own, seed)

    try:
        yield seed_all
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
        for generator, state in zip(own, before, strict=True):
            held.put_state(generator, state)


def _held(holder: Any) -> dict[str, Any]:
    # Looked for once an object: this runs at every batch.
    try:
        if (found := _HELD.get(holder)) is None:
            found = _HELD[holder] = held.generators(data=holder)
    except TypeError:  # an object that no dictionary takes, or that cannot be referred to weakly
        found = held.generators(data=holder)
    return found


_HELD: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


class BatchReader:
    """Makes the batch of ``(epoch, indices)``; travels to worker processes."""

    def __init__(self, dataset: Any, seed: int, collate: Callable[[list], Any] | None):
        self.dataset = dataset
        self.seed = seed
        self.collate = collate or default_collate

    def __getitem__(self, key: tuple[int, Sequence[int]]) -> tuple[Any, ...]:
        epoch, indices = key
        samples = fetch(self.dataset, indices, self.seed, epoch)
        if self.collate is not default_collate:  # it may draw, and in whatever process it runs must draw the same
            with seeded(self.collate) as seed_all:
                seed_all(fold(self.seed, epoch, *indices))
                batch = self.collate(samples)
        else:
            try:
                batch = default_collate(samples)
            except (RuntimeError, TypeError, ValueError) as error:
                # Returned, since what is raised in a worker process comes back as another text.
                return UsageError(_uncollatable(samples, indices, error))  # type: ignore[return-value]
        return tuple(batch) if isinstance(batch, tuple | list) else (batch,)

    # torch's fetcher hands a whole batch to this method where there is one.
    __getitems__ = __getitem__


def _uncollatable(samples: list[Any], indices: Sequence[int], error: Exception) -> str:
    """Why samples make no batch: two that differ, or one of a kind that torch cannot join."""
    shapes = [shape_of(sample) for sample in samples]
    other = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is None:
        told = f"sample {indices[0]} is {shapes[0]} ({first_line(error)})"
    else:
        told = f"sample {indices[0]} is {shapes[0]} and sample {indices[other]} is {shapes[other]}"
    return f"data: the samples cannot be joined in a batch: {told}; make them alike, or {COLLATE}"


class Workers:
    """Worker processes that read batches ahead, in the order asked for.

    They outlive an epoch. `batches` starts over from any place; `close` ends them. A worker that dies ends the
    iteration with SurefootError; what the data set itself raises is raised here.
    """

    def __init__(self, reader: BatchReader, workers: int):
        self._plan = _Plan()
        self._loader = DataLoader(
            reader,  # type: ignore[arg-type]
            batch_sampler=self._plan,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_unchanged,
            # A thread's workers may outlive the thread: only those of the main thread die with it.
            worker_init_fn=functools.partial(_start_worker, threading.current_thread() is threading.main_thread()),
            persistent_workers=True,
            # torch draws a base seed for its workers; from this generator, and not from the global one.
            generator=torch.Generator(),
        )

    def batches(self, keys: Iterable[tuple[int, Sequence[int]]]) -> Iterator[tuple[Any, ...]]:
        """The batches of the given ``(epoch, indices)``, in order; `keys` are taken as the workers need them."""
        self._plan.keys = keys
        try:
            with _sigchld_kept():
                iterator = iter(self._loader)
            yield from iterator
        except (RuntimeError, EOFError, OSError) as error:
            # The pipe of a worker that died while it handed a batch over breaks before torch has missed the worker.
            if "DataLoader worker (pid" not in str(error) and not self._lost_one(error):
                raise
            self.close()
            raise SurefootError(
                f"data: a worker process ended unexpectedly ({first_line(error)}); memory that ran out is the usual "
                "cause: try fewer workers, or workers: 0 to read the data in this process"
            ) from error

    def _lost_one(self, error: BaseException) -> bool:
        sentinels = [process.sentinel for process in getattr(self._loader._iterator, "_workers", ())]
        # A killed process closes its pipe a moment before it counts as ended.
        patience_s = 5.0 if isinstance(error, EOFError | ConnectionError) else 0.0
        return bool(multiprocessing.connection.wait(sentinels, patience_s))

    def close(self) -> None:
        """End the processes."""
        # torch has no public way. Dropping the iterator would do it too, but only once nothing refers to it any
        # more, and the traceback of an error does.
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()


class _Plan:
    """torch's batch sampler: what is to be read next."""

    keys: Iterable[tuple[int, Sequence[int]]] = ()

    def __iter__(self) -> Iterator[tuple[int, Sequence[int]]]:
        return iter(self.keys)


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
        threading.Thread(target=_end_when_told, args=(parent,), daemon=True).start()
    if dies_with_parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _end_when_told(parent: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
