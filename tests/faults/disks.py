"""Disks that are full, broken, read-only or gone; names that are not what they seem."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from surefoot import files

from .harness import (
    FAST,
    TESTS,
    NotHere,
    Settings,
    Sitting,
    add,
    expect_exact,
    expect_message,
    half_run,
    newest,
    sit,
    valid_steps,
)
from .kills import strace

AT = 6


class Failing(files.System):
    """From the `nth` call of `operation` on after it is armed, every such call fails; with `once` only that one."""

    def __init__(self, operation: str, code: int, nth: int, *, once: bool):
        self.operation, self.code, self.left, self.once = operation, code, nth, once
        self.armed = False


def _wrapped(operation: str):
    inner = getattr(files.System, operation)

    def method(self: Failing, *args: object):
        if self.armed and operation == self.operation:
            if self.left == 0:
                if self.once:
                    self.armed = False
                if operation == "close":  # the descriptor is gone even when close fails
                    inner(*args)
                raise OSError(self.code, os.strerror(self.code))
            self.left -= 1
        return inner(*args)

    return method


for _operation in ("open", "write", "fsync", "close", "mkdir", "rename", "unlink", "rmdir"):
    setattr(Failing, _operation, _wrapped(_operation))


def _failing(operation: str, code: int, nth: int, *, once: bool, background: bool = False):
    """A save that the disk refuses: told at the next step, the older checkpoint stays, and the run goes on later."""

    def check(folder: Path) -> str:
        run = folder / "run"
        system = Failing(operation, code, nth, once=once)

        def install() -> None:
            files.system = system

        def arm(step: int) -> None:
            if step == AT:
                system.armed = True

        result = sit(run, install, on_step=arm, background=background)
        told = expect_message(result, 1, os.strerror(code), "could not be written", "the run is kept up to step")
        assert max(valid_steps(run)) >= AT - 1, valid_steps(run)
        expect_exact(run)
        return told[-70:]

    return check


def _not_removed(operation: str):
    """The new checkpoint is safe and an old one cannot go: told, and the run goes on."""

    def check(folder: Path) -> str:
        run = folder / "run"
        system = Failing(operation, errno.EIO, 1 if operation == "rename" else 0, once=True)

        def install() -> None:
            files.system = system

        def arm(step: int) -> None:
            system.armed = system.armed or step == AT

        result = sit(run, install, on_step=arm, background=False)
        assert result.code == 0 and "cannot be removed: Input/output error" in result.err, result
        return "told; the run went on, exact"

    return check


def _short_writes(folder: Path) -> str:
    """Writes that take 7 bytes at a time: nothing is lost."""

    class Short(files.System):
        def write(self, descriptor, data):
            return os.write(descriptor, data[:700])

    def install() -> None:
        files.system = Short()

    run = folder / "run"
    half_run(run)
    result = sit(run, install)
    assert result.code == 0, result.err
    return f"whole; {expect_exact(run) and 'exact'}"


def _file_size_limit(folder: Path) -> str:
    """RLIMIT_FSIZE, as a quota would: EFBIG from the kernel itself."""
    run = folder / "run"
    half_run(run, width=64)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    told = expect_message(sit(run, limit, width=64), 1, "File too large", "could not be written")
    assert max(valid_steps(run)) >= 7
    expect_exact(run, width=64)
    return told[-70:]


@contextlib.contextmanager
def _small_disk(folder: Path, size: str, options: str = "") -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(disk)]
    made = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
    if made is None or made.returncode:
        raise NotHere("mounting a small disk is not permitted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _full_disk(folder: Path) -> str:
    """A real disk with no room for a third checkpoint; then something else frees space."""
    with _small_disk(folder, "700k") as disk:
        run = disk / "run"
        half_run(run, width=64)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        left = valid_steps(run)
        result = sit(run, width=64)
        told = expect_message(result, 1, "No space left on device")
        assert valid_steps(run) == left
        ballast.unlink()
        expect_exact(run, width=64)
    return told[-70:]


def _full_from_the_start(folder: Path) -> str:
    with _small_disk(folder, "16k") as disk:
        (disk / "ballast").write_bytes(bytes(8192))
        result = sit(disk / "run")
        return expect_message(result, 2 if result.code == 2 else 1, "No space left on device")[-70:]


def _read_only_disk(folder: Path) -> str:
    with _small_disk(folder, "4m") as disk:
        run = disk / "run"
        half_run(run)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        told = expect_message(sit(run), 2, "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        expect_exact(run)
    return told[-70:]


def _new_run_on_read_only_disk(folder: Path) -> str:
    with _small_disk(folder, "4m", ",ro") as disk:
        return expect_message(sit(disk / "run"), 2, "Read-only file system")[-70:]


def _nobody() -> None:
    """Root may write anywhere; the one who runs this must not be root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def _no_permission(folder: Path) -> str:
    folder.chmod(0o755)
    (folder / "closed").mkdir(mode=0o555)
    return expect_message(sit(folder / "closed" / "run", _nobody), 2, "Permission denied")[-70:]


def _no_permission_to_resume(folder: Path) -> str:
    run = folder / "run"
    folder.chmod(0o755)
    half_run(run)
    run.chmod(0o555)
    (run / "metrics.jsonl").chmod(0o444)
    told = expect_message(sit(run, _nobody), 2, "Permission denied")
    run.chmod(0o755)
    (run / "metrics.jsonl").chmod(0o644)
    expect_exact(run)
    return told[-70:]


def _unreadable_checkpoint(folder: Path) -> str:
    """One checkpoint that may not be read: named, stepped over."""
    run = folder / "run"
    folder.chmod(0o777)
    os.umask(0)
    half_run(run)
    for path in (run, *run.rglob("*")):
        os.chmod(path, 0o777)
    newest(run).path.chmod(0o000)
    result = sit(run, _nobody)
    assert result.code == 0 and result.resumed_at == 6 and "denied" in result.err, result
    return "named, stepped over, exact"


def _vanished(what: str):
    """Something deletes the run's folder under it: one message, no endless attempts."""

    def check(folder: Path) -> str:
        run = folder / "run"

        def vanish(step: int) -> None:
            if step == AT:
                shutil.rmtree(run / what)

        result = sit(run, on_step=vanish, background=False)
        if what == "checkpoints" and result.code == 0:
            # Made anew: what is saved from then on is whole.
            assert valid_steps(run)
            return "made again, the run went on"
        return expect_message(result, 1, "No such file or directory", "no checkpoint of this run exists")[-70:]

    return check


def _link(place: str):
    """A symbolic link where a checkpoint's part belongs: refused, its target untouched."""

    def check(folder: Path) -> str:
        run = folder / "run"
        half_run(run)
        path = newest(run).path / place if place else newest(run).path
        target = folder / "elsewhere"
        os.rename(path, target)
        path.symlink_to(target)
        before = target.read_bytes() if target.is_file() else sorted(os.listdir(target))
        result = expect_exact(run)
        assert result.resumed_at == 6, result
        assert before == (target.read_bytes() if target.is_file() else sorted(os.listdir(target)))
        return "refused, stepped over, target untouched, exact"

    return check


def _linked_lock(folder: Path) -> str:
    run = folder / "run"
    half_run(run)
    victim = folder / "victim"
    victim.write_text("precious")
    (run / "LOCK").unlink()
    (run / "LOCK").symlink_to(victim)
    told = expect_message(sit(run), 2, "LOCK: is a symbolic link")
    assert victim.read_text() == "precious"
    return told[-70:]


def _checkpoints_as(what: str):
    """`checkpoints` is something else than a folder that can be read."""

    def check(folder: Path) -> str:
        run = folder / "run"
        folder.chmod(0o777)
        half_run(run)
        place = run / "checkpoints"
        os.rename(place, folder / "elsewhere")
        before = None
        if what == "a file":
            place.write_text("")
        elif what == "a link to nothing":
            place.symlink_to(folder / "nothing")
        else:
            place.mkdir()
            for path in (run, *run.iterdir()):
                path.chmod(0o777)
            place.chmod(0o000)
            before = _nobody
        result = sit(run, before)
        told = expect_message(result, 2, "checkpoints")
        if what == "unreadable":
            place.chmod(0o755)
        (place.rmdir if place.is_dir() else place.unlink)()
        os.rename(folder / "elsewhere", place)
        expect_exact(run)
        return told[-70:]

    return check


def _linked_run(folder: Path) -> str:
    """The run directory itself may be a link: that is how people put runs on another disk."""
    (folder / "far").mkdir()
    (folder / "run").symlink_to(folder / "far")
    half_run(folder / "run")
    expect_exact(folder / "run")
    return "followed, exact"


def _by_strace(syscall: str, code: str, when: int):
    """The kernel itself answers with an error."""

    def check(folder: Path) -> str:
        program = strace()
        run = folder / "run"
        half_run(run, at=5)
        sitting = Sitting(run, Settings(background=False), hold=True)
        inject = f"inject={syscall}:error={code}:when={when}"
        command = [program, "-f", "-p", str(sitting.pid), "-e", f"trace={syscall}", "-e", inject, "-o", "/dev/null"]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        if "attached" not in (first := tracer.stderr.readline()):
            sitting.kill()
            sitting.result()
            raise NotHere(f"strace cannot attach: {first.strip()}")
        sitting.go()
        tracer.stderr.read()
        tracer.wait()
        result = sitting.result()
        told = "survived"
        if result.code:
            told = expect_message(result, result.code, os.strerror(getattr(errno, code)))
            assert result.code in (1, 2)
        assert max(valid_steps(run)) >= 5
        expect_exact(run)
        return told[-70:]

    return check


def catalogue() -> None:
    """Add the cases of this file."""
    full, broken, large, quota = errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT
    for operation, codes, count in (
        ("open", (full, broken), 2),
        ("write", (full, broken, large, quota), 4),
        ("fsync", (full, broken), 6),
        ("close", (full, broken, quota), 4),
        ("mkdir", (full, broken), 1),
    ):
        for code in codes:
            for nth in range(count):
                tier = TESTS if nth == count - 1 else FAST
                name = f"{errno.errorcode[code]} from {operation} number {nth + 1} of a save"
                add("disk", name, _failing(operation, code, nth, once=True), tier)
            name = f"{errno.errorcode[code]} from every {operation} from there on"
            add("disk", name, _failing(operation, code, 0, once=False, background=True), FAST)
    add("disk", "EIO from the rename that commits", _failing("rename", broken, 0, once=True), TESTS)
    add("disk", "ENOSPC from the rename that commits", _failing("rename", full, 0, once=True), FAST)
    for operation in ("rename", "unlink", "rmdir"):
        add("disk", f"EIO from {operation} while an old checkpoint goes", _not_removed(operation), FAST)
    add("disk", "short writes", _short_writes, TESTS)
    add("disk", "a limit on the size of files (EFBIG)", _file_size_limit, TESTS)
    add("disk", "a disk that is full, then has room again", _full_disk, TESTS)
    add("disk", "a disk that is full before the run begins", _full_from_the_start, FAST)
    add("disk", "read-only when a run is resumed", _read_only_disk, TESTS)
    add("disk", "read-only when a run begins", _new_run_on_read_only_disk, FAST)
    for syscall, code, whens in (
        ("write", "ENOSPC", (3, 4, 5)),
        ("fsync", "EIO", (2, 3, 4, 7)),
        ("rename", "EIO", (1, 2, 3)),
        ("mkdir", "ENOSPC", (1,)),
    ):
        for when in whens:
            name = f"{code} from {syscall} number {when}"
            add("disk, by the kernel (strace)", name, _by_strace(syscall, code, when), FAST)
    add("names", "no permission to begin a run", _no_permission, TESTS)
    add("names", "no permission to resume one", _no_permission_to_resume, TESTS)
    add("names", "a checkpoint that may not be read", _unreadable_checkpoint, FAST)
    add("names", "the run's folder vanishes", _vanished(""), TESTS)
    add("names", "the checkpoints' folder vanishes", _vanished("checkpoints"), FAST)
    for part in ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json", ""):
        name = f"a link in place of {part or 'a checkpoint'}"
        add("names", name, _link(part), TESTS if part in ("", "MANIFEST.json") else FAST)
    for what in ("a file", "a link to nothing", "unreadable"):
        add("names", f"checkpoints is {what}", _checkpoints_as(what), FAST)
    add("names", "a link in place of LOCK", _linked_lock, TESTS)
    add("names", "a link in place of the run directory", _linked_run, FAST)
