"""A Dataset read sample by sample: same bits with and without workers, and no hang when one dies."""

from __future__ import annotations

import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import threading
import warnings

import numpy
import pytest
import torch
from torch.utils.data import Dataset

from surefoot import rng
from surefoot.data.loader import Loader
from surefoot.data.sources import DatasetSource
from surefoot.data.workers import Workers
from surefoot.errors import SurefootError, UsageError
from surefoot.preprocessing import Preprocessing


class Noisy(Dataset):
    """Every sample draws from all three generators."""

    def __init__(self, count: int = 22):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        if not 0 <= index < self.count:
            raise IndexError(index)
        noise = torch.tensor([random.random(), numpy.random.random(), torch.rand(()).item(), os.getpid() * 0.0])
        return noise[:, None, None] + index, index


class Deadly(Noisy):
    """Kills the process that reads sample 13, unless it is the main one."""

    def __init__(self):
        super().__init__()
        self.parent = os.getpid()

    def __getitem__(self, index: int):
        if index == 13 and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Faulty(Noisy):
    def __getitem__(self, index: int):
        if index == 13:
            raise KeyError("sample 13 is broken")
        return super().__getitem__(index)


def batches(loader: Loader, epochs: int = 2) -> list[tuple[torch.Tensor, ...]]:
    everything = [tuple(t.clone() for t in batch) for _ in range(epochs) for batch in loader]
    loader.close()
    return everything


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


class Shift:
    batched = True

    def __call__(self, inputs, draws):
        return inputs + draws.uniform()[:, None, None, None].float()


def test_workers_change_no_bit():
    settings = {"batch_size": 4, "seed": 2, "augment": [Shift()], "preprocessing": Preprocessing(scale=None)}
    none = batches(Loader(Noisy(), **settings))
    two = batches(Loader(Noisy(), workers=2, **settings))
    assert len(none) == 12
    assert same(none, two)
    # The noise is another one in each epoch.
    assert not torch.equal(
        torch.cat([x for x, _ in none[:6]]).sort(0)[0], torch.cat([x for x, _ in none[6:]]).sort(0)[0]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_is_gone_on_with_in_mid_epoch(workers):
    whole = batches(Loader(Noisy(), 4))
    loader = Loader(Noisy(), 4, workers=workers)
    given = []
    for batch in loader:
        given.append(tuple(t.clone() for t in batch))
        if len(given) == 3:
            break
    # Breaking out and going on, with the same workers.
    for batch in loader:
        given.append(tuple(t.clone() for t in batch))
        if len(given) == 5:
            break
    loader.close()
    resumed = Loader(Noisy(), 4, workers=2 - workers)
    resumed.load_state_dict(loader.state_dict())
    given += batches(resumed)
    assert same(given, whole)


class AnewEachEpoch(Dataset):
    """Makes its generator when its epoch is set."""

    generator: numpy.random.Generator | None = None

    def set_epoch(self, epoch: int) -> None:
        self.generator = numpy.random.default_rng(epoch)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int):
        return torch.tensor([self.generator.random()]), index


class AtFirstUse(AnewEachEpoch):
    """Makes its generator, with a seed of the machine's, when its first sample is read."""

    def set_epoch(self, epoch: int) -> None:
        pass

    def __getitem__(self, index: int):
        self.generator = self.generator or numpy.random.default_rng()
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", [AnewEachEpoch, AtFirstUse])
@pytest.mark.parametrize("workers", [0, 2])
def test_generators_that_a_dataset_makes_later_are_found(kind, workers):
    def read(state=None, until=(2, 0)):
        loader = Loader(kind(), 4, workers=workers)
        loader.source.dataset.set_epoch(0)
        loader.source.fingerprint()
        assert not loader.notes
        if state is not None:
            loader.load_state_dict(state)
        given = []
        while (loader.epoch, loader.position) < until:
            loader.source.dataset.set_epoch(loader.epoch)
            for batch in loader:
                given.append(tuple(t.clone() for t in batch))
                if (loader.epoch, loader.position) == until:
                    break
        loader.close()
        return given, loader.state_dict()

    part, state = read(until=(1, 1))
    assert same(part + read(state)[0], read()[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_left_alone(workers):
    rng.seed_all(5)
    expected = random.random(), numpy.random.random(), torch.rand(3).tolist()
    rng.seed_all(5)
    loader = Loader(Noisy(6), 4, workers=workers)
    batches(loader)
    loader.peek()
    loader.source.fingerprint()
    assert (random.random(), numpy.random.random(), torch.rand(3).tolist()) == expected


def test_a_killed_worker_is_told_and_does_not_hang():
    loader = Loader(Deadly(), 4, workers=2)
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(SurefootError, match="a worker process ended unexpectedly") as told:
        for _ in loader:
            # torch's own handler would raise here, in the middle of an update.
            assert signal.getsignal(signal.SIGCHLD) == handler
    assert told.value.exit_code == 1
    assert not isinstance(told.value, UsageError)
    assert not multiprocessing.active_children()


def test_no_worker_is_left_however_long_it_takes_to_leave(monkeypatch):
    """torch waits five seconds for each, then asks it to end and does not look again: here it does not wait at all."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.0)
    loader = Loader(DatasetSource(Slow()), 4, workers=2)
    next(iter(loader))
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    loader.close()
    assert [worker.exitcode for worker in workers if worker.exitcode is None] == []


class Slow(Noisy):
    """The process that reads it ignores being asked to end."""

    def __getitem__(self, index: int):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        return super().__getitem__(index)


class Stuck(Noisy):
    """Reading sample 13 waits until it is let go."""

    def __init__(self):
        super().__init__()
        self.go_on = multiprocessing.Event()

    def __getitem__(self, index: int):
        if index == 13:
            self.go_on.wait()
        return super().__getitem__(index)


def test_a_worker_that_is_stuck_is_told_with_its_samples_and_its_batch_still_comes(monkeypatch):
    monkeypatch.setattr(Workers, "LOOK_S", 0.05)
    monkeypatch.setattr(Workers, "LOOKS_BEFORE_WARNING", 1)
    data, texts = Stuck(), []

    def warn(text, category, stacklevel):
        texts.append(text)
        if "12, 13, 14, 15" in text:
            data.go_on.set()

    monkeypatch.setattr(warnings, "warn", warn)
    loader = Loader(data, 4, workers=2, shuffle=False)
    assert same(batches(loader, 1), batches(Loader(Noisy(), 4, shuffle=False), 1))
    assert any("still waiting for the samples 12, 13, 14, 15 of epoch 1" in text for text in texts)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_dataset_raises_comes_through(workers):
    loader = Loader(Faulty(), 4, workers=workers)
    with pytest.raises(KeyError, match="sample 13 is broken"):
        list(loader)
    loader.close()


def run(code: str) -> subprocess.CompletedProcess:
    """Runs `code` in a process group of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        start_new_session=True,
    )


READING = """
    import os, signal, subprocess, sys
    import torch
    from surefoot.data.loader import Loader

    class Data:
        def __len__(self): return 40
        def __getitem__(self, index): return torch.tensor([index]), os.getpid()

    def ignore():
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(name, signal.SIG_IGN)

    stopped = []
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, lambda number, frame: stopped.append(number))
    loader = Loader(Data(), 4, workers=2)
    batches = iter(loader)
    pids = set(next(batches)[1].tolist() + next(batches)[1].tolist())
"""


def test_signals_to_the_whole_group_stop_the_parent_only():
    done = run(
        READING
        + """
    for name in ("INT", "TERM", "USR1"):
        # Sent by another process: SIGTERM from the parent is how it ends its workers.
        subprocess.run(["kill", f"-{name}", "--", f"-{os.getpgid(0)}"], preexec_fn=ignore)
    rest = list(batches)
    assert len(pids) == 2 and pids == {int(p) for _, ps in rest for p in ps}, (pids, rest)
    assert set(stopped) == {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}, stopped
    loader.close()
    print("read", len(rest))
    """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "read 8\n", "")


def test_workers_die_with_a_killed_parent():
    done = run(
        READING
        + """
    print(*pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    )
    # The pipe of standard output closes only when the last process that holds it has gone: the workers too.
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert all(map(has_ended, pids))


def has_ended(pid: int) -> bool:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    # Readable once the process has ended, even where nobody buries it; far sooner than the limit.
    readable, _, _ = select.select([process], [], [], 10)
    os.close(process)
    return bool(readable)


def test_closing_ends_the_workers():
    done = run(
        READING
        + """
    batches.close()
    loader.close()
    import multiprocessing
    print(len(multiprocessing.active_children()))
    """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_a_sample_may_be_one_value_and_collate_ones_own():
    class Single:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return float(index)

    (values,) = next(iter(Loader(Single(), 4, shuffle=False)))
    assert values.tolist() == [0, 1, 2, 3]
    source = DatasetSource(Single(), collate=lambda samples: (torch.tensor(samples) * 2, "kept"))
    values, kept = next(iter(Loader(source, 4, shuffle=False)))
    assert (values.tolist(), kept) == ([0, 2, 4, 6], "kept")


class Gated(Dataset):
    """Its second sample and all later ones wait until a file is there."""

    def __init__(self, gate):
        self.gate = gate

    def __len__(self):
        return 3

    def __getitem__(self, index):
        while index and not os.path.exists(self.gate):
            select.select([], [], [], 0.01)
        return torch.tensor(index)


def test_what_workers_still_read_for_an_iteration_that_was_left_is_awaited(tmp_path, monkeypatch):
    gate = tmp_path / "gate"
    monkeypatch.setattr(Workers, "LOOK_S", 0.05)
    loader = Loader(Gated(str(gate)), 1, shuffle=False, workers=1)
    try:
        assert next(iter(loader))[0].tolist() == [0]
        started = Workers._started

        def opened_later(self):
            threading.Timer(0.2, gate.touch).start()
            return started(self)

        monkeypatch.setattr(Workers, "_started", opened_later)
        assert [batch.tolist() for (batch,) in loader] == [[1], [2]]
    finally:
        gate.touch()
        loader.close()
