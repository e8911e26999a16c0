"""SIGKILL: at random instants, before each system call that writes, twice in a row."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from functools import cache
from pathlib import Path

from surefoot import files

from .harness import (
    FAST,
    TESTS,
    NotHere,
    Settings,
    Sitting,
    add,
    dice,
    expect_exact,
    half_run,
    reference,
    sit,
    spread,
    valid_steps,
)

OPERATIONS = ("open", "write", "fsync", "close", "mkdir", "rename", "unlink", "rmdir")


class KillBefore(files.System):
    """Dies of SIGKILL before the `nth` (from 0) operation once `armed`; with `nth` None it only notes them."""

    def __init__(self, nth: int | None):
        self.nth = nth
        self.armed = False
        self.seen: list[str] = []


def _wrapped(operation: str):
    inner = getattr(files.System, operation)

    def method(self: KillBefore, *args: object):
        if self.armed:
            if len(self.seen) == self.nth:
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen.append(operation)
        return inner(*args)

    return method


for _operation in OPERATIONS:
    setattr(KillBefore, _operation, _wrapped(_operation))


def _at_random(name: str, *, kills: int, background: bool):
    def check(folder: Path) -> str:
        roll = dice(name)
        run = folder / "run"
        seconds = reference()[2]
        told = []
        for _ in range(kills):
            sitting = Sitting(run, Settings(background=background))
            if not sitting.ended_within(roll.uniform(0.0, seconds)):
                sitting.kill()
            told.append("killed" if sitting.result().code == -signal.SIGKILL else "had ended")
        result = expect_exact(run, background=background)
        return f"{', '.join(told)}; resumed at {result.resumed_at}, exact"

    return check


def _before(nth: int, at_step: int, background: bool):
    """Kill before the nth operation of the save that follows update `at_step`, its retention included."""

    def check(folder: Path) -> str:
        run = folder / "run"
        system = KillBefore(nth)

        def arm(step: int) -> None:
            if step == at_step:
                system.armed = True

        def install() -> None:
            files.system = system

        result = sit(run, install, on_step=arm, background=background)
        assert result.code == -signal.SIGKILL, f"was not killed: {result.err}"
        # The checkpoint before this one is never at stake; in the background, the one before that.
        safe = at_step - 1 if background else at_step
        assert at_step == 0 or max(valid_steps(run)) >= safe, valid_steps(run)
        found = expect_exact(run, background=background)
        return f"killed; resumed at {found.resumed_at}, exact"

    return check


@cache
def operations(at_step: int) -> tuple[str, ...]:
    """The operations of the save after update `at_step`, by name; the same in every run."""
    import tempfile

    system = KillBefore(None)

    def arm(step: int) -> None:
        system.armed = step == at_step
        if step == at_step + 1:
            os.write(2, ("\n" + " ".join(system.seen) + "\n").encode())

    def install() -> None:
        files.system = system

    with tempfile.TemporaryDirectory() as folder:
        result = sit(Path(folder, "run"), install, on_step=arm, background=False)
    return tuple(result.err.strip().splitlines()[0].split())


SYSCALLS = "write,fsync,rename,mkdir,unlink,rmdir"


@cache
def strace() -> str:
    """The path of a strace that may attach to a process here; raises NotHere."""
    found = shutil.which("strace")
    if found is None:
        raise NotHere("strace is not installed")
    probe = subprocess.run([found, "-e", "trace=none", "true"], capture_output=True, text=True)
    if probe.returncode:
        raise NotHere(f"strace may not trace here: {probe.stderr.strip().splitlines()[-1]}")
    return found


def _strace(syscall: str, when: int):
    """Have the kernel kill the process before its `when`th call of `syscall`: no code of ours is asked."""

    def check(folder: Path) -> str:
        program = strace()
        run = folder / "run"
        half_run(run, at=5)
        sitting = Sitting(run, Settings(background=False), hold=True)
        log = open(folder / "strace", "w")  # noqa: SIM115
        inject = f"inject={syscall}:signal=SIGKILL:when={when}"
        command = [program, "-f", "-p", str(sitting.pid), "-e", f"trace={syscall}", "-e", inject]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=log, text=True)
        assert tracer.stderr is not None
        first = tracer.stderr.readline()
        if "attached" not in first:
            sitting.kill()
            sitting.result()
            raise NotHere(f"strace cannot attach: {first.strip()}")
        sitting.go()
        tracer.stderr.read()
        tracer.wait()
        log.close()
        result = sitting.result()
        assert result.code == -signal.SIGKILL, f"was not killed ({result.code}): {result.err}"
        assert max(valid_steps(run)) >= 5
        found = expect_exact(run)
        return f"killed; resumed at {found.resumed_at}, exact"

    return check


def catalogue() -> None:
    """Add the cases of this file."""
    for i, tier in enumerate(spread(60, tests=2, fast=20)):
        name = f"at a random instant, saving in the background, {i}"
        add("SIGKILL", name, _at_random(name, kills=1, background=True), tier)
    for i, tier in enumerate(spread(50, tests=2, fast=15)):
        name = f"at a random instant, {i}"
        add("SIGKILL", name, _at_random(name, kills=1, background=False), tier)
    for i, tier in enumerate(spread(12, tests=1, fast=4)):
        name = f"twice in a row, {i}"
        add("SIGKILL", name, _at_random(name, kills=2, background=i % 2 == 0), tier)
    name = "ten times in a row"
    add("SIGKILL", name, _at_random(name, kills=10, background=True), FAST)
    for at_step, title in ((0, "first save"), (4, "save and retention")):
        listed = operations(at_step)
        for i, tier in enumerate(spread(len(listed), tests=3, fast=12)):
            what = f"before operation {i + 1} of {len(listed)} ({listed[i]}) of a {title}"
            add("SIGKILL", what, _before(i, at_step, background=False), tier)
    for i in range(0, len(operations(4)), 4):
        add("SIGKILL", f"before operation {i + 1} of a save in the background", _before(i, 4, True), FAST)
    plan = [("write", range(1, 11)), ("fsync", range(1, 10)), ("rename", range(1, 5)), ("mkdir", (1, 2))]
    plan += [("unlink", range(1, 6)), ("rmdir", (1, 2))]
    for syscall, whens in plan:
        for when in whens:
            tier = TESTS if (syscall, when) == ("rename", 2) else FAST if when in (1, 4) else 2
            add("SIGKILL by the kernel (strace)", f"before {syscall} number {when}", _strace(syscall, when), tier)
