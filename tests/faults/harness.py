"""Cases, and sittings of a run in processes forked from a warm one, so that hundreds of them take minutes."""

from __future__ import annotations

import dataclasses
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from surefoot.checkpoint import scan
from surefoot.checkpoint.store import CheckpointStatus

from .training import Settings, guarded, records, train

PATIENCE_S = 600.0
TESTS, FAST, ALL = 0, 1, 2
"""Which runs a case belongs to: the project's tests, `--fast`, or everything."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One fault: `check` is given an empty directory, returns the outcome in words, and asserts that it is right."""

    group: str
    name: str
    check: Callable[[Path], str]
    tier: int = ALL


class NotHere(Exception):
    """This machine cannot make the fault; the message says why."""


CASES: list[Case] = []


def add(group: str, name: str, check: Callable[[Path], str], tier: int = ALL) -> None:
    """Put a case into the catalogue."""
    assert all((case.group, case.name) != (group, name) for case in CASES), name
    CASES.append(Case(group, name, check, tier))


def spread(count: int, *, tests: int, fast: int) -> list[int]:
    """Tiers for `count` like cases, so that about `tests` and `fast` of them are in the smaller runs, evenly."""
    tiers = [ALL] * count
    for tier, share in ((FAST, fast), (TESTS, tests)):
        for i in range(min(share, count)):
            tiers[i * count // min(share, count)] = tier
    return tiers


@dataclasses.dataclass(frozen=True)
class Result:
    """How a sitting ended: exit code (negative: the signal that killed it) and what it printed."""

    code: int
    out: str
    err: str

    @property
    def resumed_at(self) -> int | None:
        found = [line for line in self.out.splitlines() if line.startswith("resumed at step ")]
        return int(found[0].split()[-1]) if found else None


class Sitting:
    """A process that trains: forked here, so that Python and torch are warm."""

    def __init__(
        self,
        run: Path,
        settings: Settings,
        before: Callable[[], None] | None = None,
        *,
        hold: bool = False,
        main: Callable[[Path, Settings], int] = guarded,
    ):
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._go_read, self._go_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(lambda: main(run, settings), before)
        os.close(self._go_read)
        self._handle = os.pidfd_open(self.pid)
        if not hold:
            self.go()

    def _child(self, main: Callable[[], int], before: Callable[[], None] | None) -> None:
        code = 71
        try:
            os.close(self._go_write)
            os.dup2(self._out.fileno(), 1)
            os.dup2(self._err.fileno(), 2)
            # New streams: what the parent had buffered is not ours.
            sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w") for number in (1, 2))
            os.read(self._go_read, 1)
            if before is not None:
                before()
            code = main()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def go(self) -> None:
        """Let a held process begin."""
        os.close(self._go_write)

    def ended_within(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def kill(self, signum: int = signal.SIGKILL) -> None:
        signal.pidfd_send_signal(self._handle, signum)

    def result(self) -> Result:
        """Await the end. A process that hangs is killed and fails its case."""
        hung = not self.ended_within(PATIENCE_S)
        if hung:
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._handle)
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        assert not hung, f"hung for {PATIENCE_S:.0f} s: {texts[1]}"
        return Result(os.waitstatus_to_exitcode(status), *texts)


def warm_up() -> None:
    """Train here once, so that all that torch imports and sets up on first use is there for every fork."""
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder, "run"), Settings(epochs=1, background=False))


def sit(run: Path, before: Callable[[], None] | None = None, **settings: object) -> Result:
    """One sitting from its start to its end."""
    return Sitting(run, Settings(**settings), before).result()


def plain_run(run: Path, **settings: object) -> Result:
    """A sitting that nothing disturbs, and that must end well."""
    result = sit(run, **settings)
    assert result.code == 0, f"exit code {result.code}: {result.err}"
    return result


@cache
def reference(epochs: int = 2, width: int = 0) -> tuple[str, list[dict], float]:
    """Digest, records and seconds of the run that was never touched."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        start = time.monotonic()
        plain_run(run, epochs=epochs, width=width)
        return Path(folder, "run.digest").read_text(), records(run), time.monotonic() - start


def expect_exact(run: Path, **settings: object) -> Result:
    """Resume, and end bit-identical to the untouched run: state, records, and no promised step lost."""
    promised = run.parent / f"{run.name}.promised"
    steps = [int(line) for line in promised.read_text().split()] if promised.exists() else []
    result = plain_run(run, **settings)
    whole, whole_records, _ = reference(int(settings.get("epochs", 2)), int(settings.get("width", 0)))  # type: ignore[call-overload]
    assert Path(run.parent, f"{run.name}.digest").read_text() == whole, "the resumed run ended in another state"
    assert records(run) == whole_records, "the records differ"
    resumed = result.resumed_at or 0
    assert resumed >= max(steps, default=0), f"resumed at step {resumed}, though {max(steps)} had been saved"
    return result


def expect_message(result: Result, code: int, *words: str) -> str:
    """The sitting ended with this exit code and one message that holds the words; returns the message."""
    assert "Traceback" not in result.err, result.err
    assert result.code == code, f"exit code {result.code} instead of {code}: {result.err}"
    last = result.err.rpartition("error: ")[2].strip()
    for word in words:
        assert word in result.err, f"{word!r} is not in: {result.err}"
    return last.splitlines()[0] if last else ""


def valid_steps(run: Path) -> list[int]:
    """Steps of the checkpoints that verify."""
    return [status.step for status in scan(run) if status.valid]


def newest(run: Path) -> CheckpointStatus:
    return list(scan(run))[-1]


def half_run(run: Path, at: int = 7, **settings: object) -> Result:
    """A run stopped after `at` updates by SIGTERM, its last checkpoints in place."""

    def stop(step: int) -> None:
        if step + 1 == at:
            signal.raise_signal(signal.SIGTERM)

    result = sit(run, on_step=stop, **settings)
    assert result.code == 128 + signal.SIGTERM, result.err
    return result


def dice(name: str) -> random.Random:
    """Random numbers that are the same for a case in every run of the catalogue."""
    return random.Random(name)
