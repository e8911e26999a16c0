"""Processes: two on one run, orphans, stale locks, clocks, signals in every phase, workers killed."""

from __future__ import annotations

import datetime
import json
import os
import signal
import time
from pathlib import Path

from torch.utils.data import Dataset, get_worker_info

from surefoot import files
from surefoot.checkpoint import object_states, writer

from .harness import (
    FAST,
    TESTS,
    Settings,
    Sitting,
    add,
    dice,
    expect_exact,
    expect_message,
    half_run,
    reference,
    sit,
    valid_steps,
)
from .training import data


def _two_on_one(folder: Path) -> str:
    run = folder / "run"
    gate_read, gate_write = os.pipe()
    ready_read, ready_write = os.pipe()

    def wait_here() -> None:
        os.write(ready_write, b"x")
        os.close(gate_write)
        os.read(gate_read, 1)

    first = Sitting(run, Settings(on_resumed=wait_here))
    os.read(ready_read, 1)
    second = sit(run)
    told = expect_message(second, 2, "this run is in use by process", str(first.pid))
    os.close(gate_write)
    assert first.result().code == 0
    for descriptor in (gate_read, ready_read, ready_write):
        os.close(descriptor)
    expect_exact(run)
    return told[-70:]


def _both_at_once(folder: Path) -> str:
    """Two processes that begin in the same instant: one trains, one is told."""
    run = folder / "run"
    both = [Sitting(run, Settings(), hold=True) for _ in range(2)]
    for sitting in both:
        sitting.go()
    results = sorted((sitting.result() for sitting in both), key=lambda result: result.code)
    codes = [result.code for result in results]
    assert codes in ([0, 2], [0, 0]), results  # the second may find the first one done
    if codes[1] == 2:
        assert "in use by process" in results[1].err, results[1].err
    expect_exact(run)
    return f"exit codes {codes}, exact"


def _orphan(folder: Path) -> str:
    """The trainer is killed; a process that it had forked lives on and must not hold the run."""
    run = folder / "run"
    gate_read, gate_write = os.pipe()

    def leave_a_child(step: int) -> None:
        if step == 6:
            orphan = os.fork()
            if orphan == 0:
                os.close(gate_write)
                os.read(gate_read, 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

    assert sit(run, on_step=leave_a_child, background=False).code == -signal.SIGKILL
    result = expect_exact(run)
    os.close(gate_write)
    os.close(gate_read)
    return f"resumed at {result.resumed_at} beside the orphan, exact"


def _stale_lock(content: bytes):
    def check(folder: Path) -> str:
        run = folder / "run"
        half_run(run)
        (run / "LOCK").write_bytes(content)
        expect_exact(run)
        return "taken over, exact"

    return check


def _clock(days: int):
    """The clock jumps: order is by step, never by time."""

    def check(folder: Path) -> str:
        run = folder / "run"
        half_run(run)

        class Elsewhen(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.datetime.now(tz) + datetime.timedelta(days=days)

        def install() -> None:
            writer.datetime = Elsewhen
            monotonic = time.time
            time.time = lambda: monotonic() + days * 86400

        def stop(step: int) -> None:
            if step == 9:
                os.kill(os.getpid(), signal.SIGKILL)

        assert sit(run, install, on_step=stop, background=False).code == -signal.SIGKILL
        for i, path in enumerate(sorted((run / "checkpoints").iterdir())):
            os.utime(path, (2e9 - 1e8 * i, 2e9 - 1e8 * i))  # the newest by step is the oldest by time
        result = expect_exact(run)
        assert result.resumed_at == 9, result.out
        return "resumed by step, exact"

    return check


def _signal_in(phase: str, signum: int):
    """The first signal is answered at the next boundary, wherever it comes."""

    def check(folder: Path) -> str:
        run = folder / "run"

        def send(step: int | None = None) -> None:
            if step in (None, 4):
                signal.raise_signal(signum)

        before = None
        settings: dict = {}
        if phase == "step":
            settings["on_step"] = send
        elif phase == "validation":
            settings["on_validation"] = send
        elif phase == "load":
            half_run(run, at=2)
            inner = object_states.set_state

            def before() -> None:
                def restore(*arguments):
                    send()
                    inner(*arguments)
                    send() if signum == signal.SIGUSR1 else None

                object_states.set_state = restore
        else:
            system = _SignalInSave(signum)

            def before() -> None:
                files.system = system

            settings["on_step"] = system.arm
            settings["background"] = phase == "background save"
        result = sit(run, before, **settings)
        if signum == signal.SIGUSR1:
            assert result.code == 0 and "saved at step" in result.err, result
        else:
            expect_message(result, 128 + signum, "stopped by", "saved in")
        found = expect_exact(run)
        return f"exit {result.code}; resumed at {found.resumed_at}, exact"

    return check


class _SignalInSave(files.System):
    """Sends a signal to this process in the middle of one save."""

    def __init__(self, signum: int, count: int = 1):
        self.signum, self.count, self.armed = signum, count, False

    def arm(self, step: int) -> None:
        self.armed = self.armed or step == 4

    def fsync(self, descriptor):
        if self.armed and self.count:
            self.count -= 1
            os.kill(os.getpid(), self.signum)
        super().fsync(descriptor)


def _second_signal(in_save: bool):
    def check(folder: Path) -> str:
        run = folder / "run"
        system = _SignalInSave(signal.SIGTERM, count=2)

        def twice(step: int) -> None:
            if step == 4:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)

        def install() -> None:
            if in_save:
                files.system = system

        result = sit(run, install, on_step=system.arm if in_save else twice, background=False)
        told = expect_message(result, 128 + signal.SIGTERM, "stopped at once by a second SIGTERM")
        expect_exact(run)
        return told[-60:]

    return check


def _signal_from_outside(index: int, signum: int):
    """A real signal at a random instant: once the loop runs, it ends at a boundary with its exit code."""

    def check(folder: Path) -> str:
        run = folder / "run"
        delay = dice(f"signal {index}").uniform(0, reference()[2])
        sitting = Sitting(run, Settings())
        if not sitting.ended_within(delay):
            sitting.kill(signum)
        result = sitting.result()
        # Before the handlers are in, a signal ends the process the old way.
        codes = (0, 128 + signum, -signum)
        early = signum == signal.SIGINT and result.code == 70 and "KeyboardInterrupt" in result.err
        assert result.code in codes or early, result
        expect_exact(run)
        return f"exit {result.code}, exact"

    return check


class Mortal(Dataset):
    """Reads like the tensors, but a worker that reads it dies: at one sample, if a file says so."""

    def __init__(self, fuse: Path | None):
        self.inputs, self.targets = data()
        self.fuse = fuse

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int):
        # The run's own process reads samples too: for the data's fingerprint.
        if index == 13 and get_worker_info() is not None and self.fuse is not None and self.fuse.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inputs[index], self.targets[index]


def _worker_killed(folder: Path) -> str:
    run = folder / "run"
    fuse = folder / "fuse"
    fuse.write_text("")
    result = sit(run, source=lambda: Mortal(fuse), workers=2)
    told = expect_message(result, 1, "a worker process ended unexpectedly")
    fuse.unlink()
    done = sit(run, source=lambda: Mortal(fuse), workers=2)
    assert done.code == 0, done.err
    again = folder / "again"
    assert sit(again, source=lambda: Mortal(None), workers=0).code == 0
    assert (folder / "run.digest").read_text() == (folder / "again.digest").read_text()
    return told[-60:]


PRECISION = "flags.fp32_precision.mkldnn.matmul"


def _changed(what: str):
    """Something that the run depends on is another than before: refused with a diff, or allowed by name."""

    def check(folder: Path) -> str:
        run = folder / "run"
        half_run(run)

        def other():
            inputs, targets = data()
            if what == "data: one value changed":
                inputs[3, 0, 0, 0] += 1e-6
            elif what == "data: one label changed":
                targets[5] = 1
            elif what == "data: a sample fewer":
                inputs, targets = inputs[:-1], targets[:-1]
            elif what == "data: order changed":
                inputs, targets = inputs.flip(0), targets.flip(0)
            return inputs, targets

        def before() -> None:
            import torch

            if what == "threads":
                torch.set_num_threads(2)
            elif what == "flags.mkldnn":
                torch.backends.mkldnn.enabled = False  # type: ignore[attr-defined]
            elif what == "flags.deterministic":
                torch.use_deterministic_algorithms(True)
            elif what == PRECISION:
                torch.set_float32_matmul_precision("medium")
            elif what == "versions.torch":
                torch.__version__ = "2.12.0"

        name = "data.loader" if what.startswith("data") else what
        refused = sit(run, before, source=other)
        told = expect_message(refused, 2, "under other conditions", f"{name}: was ", f"--allow {name}")
        assert valid_steps(run) == [6, 7]
        result = sit(run, before, source=other, allow=(name,))
        if what != "data: a sample fewer":  # another number of batches: the loader itself refuses that
            assert result.code == 0 and "no longer exact" in result.err, result
            about = json.loads((run / "run.json").read_text())
            assert about["inexact"] and about["inexact"][0].startswith(f"{name}: was"), about["inexact"]
        else:
            expect_message(result, 2)
        return told[:70]

    return check


def _not_finite(value: float):
    """The loss becomes NaN or infinite: the run stops, names the samples, and the last finite state stays."""

    def check(folder: Path) -> str:
        run = folder / "run"

        def poisoned():
            inputs, targets = data()
            inputs[13] = value
            return inputs, targets

        result = sit(run, source=poisoned, background=False)
        told = expect_message(result, 1, "the loss is nan on samples", "13")
        last = max(valid_steps(run), default=0)
        assert int(result.err.split("step ")[1].split(":")[0]) == last, "the last finite state is not the newest one"
        return told[:70]

    return check


def catalogue() -> None:
    """Add the cases of this file."""
    add("processes", "two on one run", _two_on_one, TESTS)
    for i in range(4):
        add("processes", f"two that begin at once, {i}", _both_at_once, TESTS if i == 0 else FAST)
    add("processes", "an orphan of a killed run", _orphan, TESTS)
    note = json.dumps({"pid": 1, "host": "elsewhere", "since": "2020-01-01T00:00:00"}).encode()
    for title, content in (("of process 1", note), ("of nobody", b""), ("that is noise", os.urandom(64))):
        add("processes", f"a stale lock {title}", _stale_lock(content), TESTS if title == "of process 1" else FAST)
    add("clock", "a year ahead", _clock(365), TESTS)
    add("clock", "a year behind", _clock(-365), FAST)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        for phase in ("step", "save", "background save", "validation", "load"):
            tier = TESTS if signum == signal.SIGTERM or phase == "step" else FAST
            add("signals", f"{signal.Signals(signum).name} in {phase}", _signal_in(phase, signum), tier)
    add("signals", "a second SIGTERM in a step", _second_signal(False), TESTS)
    add("signals", "a second SIGTERM in a save", _second_signal(True), TESTS)
    for i in range(10):
        signum = (signal.SIGTERM, signal.SIGINT)[i % 2]
        name = f"{signal.Signals(signum).name} from outside at a random instant, {i}"
        add("signals", name, _signal_from_outside(i, signum), TESTS if i < 2 else FAST)
    add("data", "a worker process is killed", _worker_killed, TESTS)
    for what in ("one value changed", "one label changed", "a sample fewer", "order changed"):
        add("data", what, _changed(f"data: {what}"), TESTS if what == "one value changed" else FAST)
    for what in ("threads", "flags.mkldnn", "flags.deterministic", PRECISION, "versions.torch"):
        add("conditions", f"{what} changed", _changed(what), TESTS if what == "threads" else FAST)
    for value in (float("nan"), float("inf")):
        add("data", f"a sample that is {value}", _not_finite(value), TESTS)
