"""The run directory: made once, locked while in use, described by run.json."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, safe_tensors
from ..errors import Problems, UsageError
from ..text import typed
from ..tracking.journal import end_of_last_line
from ..tracking.validation import FILE as VALIDATION
from . import store
from .store import CheckpointStatus

if TYPE_CHECKING:
    from ..world import World

RUN, LOCK, CHECKPOINTS, JOURNAL = "run.json", "LOCK", "checkpoints", "metrics.jsonl"
_MAX_RUN_BYTES = 4 * 1024 * 1024
STATUSES = ("running", "interrupted", "done", "failed")


class RunDirectory:
    """A run's directory, held by this process (its `lock`) until `close`.

    `about` is the content of run.json: "id", "created", "status" (running, interrupted, done, failed),
    "conditions", "inexact" (changes that were allowed) and whatever `record` adds.

    >>> import tempfile
    >>> with RunDirectory.create(tempfile.mkdtemp() + "/run") as run:
    ...     run.record(status="done")
    >>> with RunDirectory.open(run.path) as again:
    ...     again.about["status"], again.id == run.id
    ('done', True)
    """

    def __init__(self, path: Path, about: dict[str, Any], lock: Lock | None):
        self.path = path
        self.about = about
        self._lock = lock
        self._recording = threading.Lock()

    @property
    def id(self) -> str:
        """The run's own name, drawn when it was made; every manifest repeats it."""
        return str(self.about["id"])

    @property
    def elsewhere(self) -> bool:
        """Whether another rank holds the directory, so that nothing may be done to it here."""
        return self._lock is None

    @property
    def checkpoints(self) -> Path:
        """The directory of its checkpoints."""
        return self.path / CHECKPOINTS

    @staticmethod
    def holds_run(path: str | Path) -> bool:
        """Whether a directory holds a run: its run.json, or checkpoints that lost it."""
        return any(os.path.lexists(Path(path) / name) for name in (RUN, CHECKPOINTS))

    @classmethod
    def create(cls, path: str | Path, *, adopt_journal: bool = False, **about: Any) -> RunDirectory:
        """Make a new run, with `about` in its run.json.

        `adopt_journal`: a metrics.jsonl that is there already is the new run's own.

        Raises `UsageError` where a run lies already or nothing can be written; leaves nothing then.
        """
        path = Path(path)
        made = _make_directories(path)
        lock = None
        try:
            refuse_links(path)
            lock = Lock.take(path)
            files.remove_unfinished(path)
            if cls.holds_run(path) or (not adopt_journal and _has_bytes(path / JOURNAL)):
                raise UsageError(
                    f"{path}: already holds a run; resume it (`{typed('surefoot', 'resume', path)}`) or name another "
                    "directory",
                    code="run-directory",
                )
            content = {
                "id": secrets.token_hex(8),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "status": "running",
                "inexact": [],
                **about,
            }
            run = cls(path, content, lock)
            run._write()
            files.fsync_directory(path)
            return run
        except BaseException as error:
            if lock is not None:
                if made:  # before it is given back: another's would be no lock without its name
                    with contextlib.suppress(OSError):
                        (path / LOCK).unlink(missing_ok=True)
                lock.release()
            for directory in made:
                with contextlib.suppress(OSError):
                    directory.rmdir()
            if isinstance(error, OSError):
                raise unusable(path, error) from error
            raise

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Take a run that is there. Raises `UsageError` when there is none or another process has it.

        When run.json is lost or damaged, `about` comes back with "id" None: the newest valid checkpoint knows it.
        """
        path = Path(path)
        if not cls.holds_run(path):
            raise UsageError(f"{path}: holds no run ({RUN} is missing)", code="run-missing")
        refuse_links(path)
        lock = Lock.take(path)
        files.remove_unfinished(path)
        return cls(path, read_about(path) or {"id": None, "status": "running", "inexact": []}, lock)

    @classmethod
    def take(cls, path: str | Path, *, adopt_journal: bool = False, **about: Any) -> RunDirectory:
        """`open` the run that is there, or `create` one."""
        if cls.holds_run(path):
            return cls.open(path)
        return cls.create(path, adopt_journal=adopt_journal, **about)

    @classmethod
    def of_first(cls, world: World, path: Path, take: Callable[[], RunDirectory]) -> RunDirectory:
        """Let rank 0 `take` a run; the other ranks get one that knows the same and never touches the disk."""
        taken: list[RunDirectory] = []

        def about() -> dict[str, Any]:
            taken.append(take())
            return taken[0].about

        known = world.agree(about, on=0)
        return taken[0] if taken else cls(path, known, None)

    def record(self, **fields: Any) -> None:
        """Set fields of run.json, durably; unchanged ones cost nothing. Raises `OSError`."""
        assert fields.get("status", "running") in STATUSES, fields
        if self._lock is None:
            self.about |= fields
            return
        with self._recording:  # the thread that saves notes that there is something to resume
            if any(self.about.get(key) != value for key, value in fields.items()):
                self.about |= fields
                self._write()

    def _write(self) -> None:
        self.about["sha256"] = _own_hash(self.about)
        files.write_durably(self.path / RUN, json.dumps(self.about, indent=1).encode() + b"\n")

    def close(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


# What a run writes to, below its directory: places that are directories, and files.
_FOLDERS = (CHECKPOINTS, "tensorboard", "model", "model/best", "trackers", "trackers/wandb")
_LOGS = ("trackers/mlflow.log", "trackers/wandb.log")
_FILES = (RUN, LOCK, JOURNAL, VALIDATION, "recipe.yaml", "report.html", *_LOGS)


def refuse_links(path: Path) -> None:
    """Raise Problems where something in the run at `path` leads elsewhere, before anything in it is changed.

    The run directory itself may be a link. In it, no place that is written to may be one, nor anything but a plain
    file or a directory; and a file that is written in place may have no second name (a hard link).
    """
    problems = []
    for name in _FOLDERS:
        problems += _wrong(path / name, stat.S_ISDIR, "a directory")
    for name in _FILES:
        problems += _wrong(path / name, stat.S_ISREG, "a plain file", alone=name in (LOCK, JOURNAL, *_LOGS))
    for folder, folders, names in os.walk(path / "tensorboard"):
        for name in sorted((*folders, *names)):
            is_right = stat.S_ISDIR if name in folders else stat.S_ISREG
            problems += _wrong(Path(folder) / name, is_right, "a plain file", alone=name in names)
    if problems:
        raise Problems(problems)


def _wrong(path: Path, is_right: Callable[[int], bool], expected: str, alone: bool = False) -> list[str]:
    try:
        status = os.lstat(path)
    except OSError:
        return []  # not there, or said by whoever opens it
    remedy = "a run writes there, and only inside its own directory: move it away"
    if stat.S_ISLNK(status.st_mode):
        return [f"{path}: is a symbolic link; {remedy}"]
    if not is_right(status.st_mode):
        return [f"{path}: is not {expected}; {remedy}"]
    if alone and status.st_nlink > 1:
        return [f"{path}: has a second name elsewhere (a hard link); {remedy}, or put a copy in its place"]
    return []


def read_about(path: str | Path) -> dict[str, Any] | None:
    """The content of run.json of the run at `path`, or None when it is lost or was changed; needs no lock."""
    try:
        data = files.read_bounded(Path(path) / RUN, _MAX_RUN_BYTES)
        about = safe_tensors.parse_json(Path(path) / RUN, data, "it", max_containers=100_000)
    except (OSError, safe_tensors.BadFile):
        return None
    if not isinstance(about, dict) or about.get("sha256") != _own_hash(about) or not isinstance(about.get("id"), str):
        return None
    return about


def scan(run: str | Path) -> Iterator[CheckpointStatus]:
    """Every checkpoint of a run, oldest first, verified to the last byte; the run may be in use.

    One that knows of more records than the run's journal has is not valid: a resume steps over it.
    """
    about = read_about(run)
    try:
        statuses = store.listed(Path(run) / CHECKPOINTS)
    except OSError as error:
        raise UsageError(f"{Path(run) / CHECKPOINTS}: cannot be read: {error.strerror or error}") from error
    for status in statuses:
        looked_at = store.verified(status, about["id"] if about else None)
        if looked_at.valid and (reason := _lacks_records(status.path, Path(run) / JOURNAL)):
            looked_at = replace(looked_at, valid=False, reason=reason)
        if os.path.lexists(status.path):  # else a run that goes on has removed it meanwhile
            yield looked_at


def _lacks_records(checkpoint: Path, journal: Path) -> str:
    """Why a checkpoint that is whole cannot be gone on from: the run's journal was cut; "" where it was not."""
    limits = {"max_bytes": store.MAX_STATE_BYTES, "max_containers": store.MAX_STATE_CONTAINERS}
    try:
        state = safe_tensors.read_json(checkpoint / store.STATE, **limits)
        with os.fdopen(files.open_regular(journal), "rb") as file:
            held = end_of_last_line(file.fileno())
    except (OSError, safe_tensors.BadFile):  # none: the journal of a hand-written loop may lie elsewhere
        return ""
    needed = state.get("journal") if isinstance(state, dict) and state.get("marks") else None
    if type(needed) is not int or needed <= held:
        return ""
    return f"{checkpoint}: needs {needed} bytes of the journal, which holds {held}: it was cut"


def _own_hash(about: dict[str, Any]) -> str:
    rest = {key: value for key, value in about.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def unusable(path: Path, error: OSError) -> UsageError:
    """The message about a directory that the system refuses."""
    advice = {
        errno.EACCES: "you may not write there; name another directory",
        errno.EPERM: "you may not write there; name another directory",
        errno.EROFS: "name a directory on a disk that can be written",
        errno.ENOSPC: "free some space or name a directory on another disk",
        errno.EDQUOT: "free some space or name a directory on another disk",
        errno.ENOTDIR: "a part of this path is a file; name another directory",
        errno.EEXIST: "a file has this name; name another directory",
        errno.ELOOP: "a symbolic link stands where a file of the run belongs; remove it",
        errno.ENAMETOOLONG: "give a shorter name",
    }.get(error.errno or 0, "name another directory")
    return UsageError(f"{path}: cannot be used for a run: {error.strerror or error}; {advice}")


def _has_bytes(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.lstat(path).st_size > 0
    return False


def _make_directories(path: Path) -> list[Path]:
    """Make `path` and its missing parents; returns what was made, deepest first."""
    missing = []
    current = path
    while not current.exists() and current != current.parent:
        missing.append(current)
        current = current.parent
    made: list[Path] = []
    try:
        if not missing and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        for directory in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process made it just now
                directory.mkdir()
                made.insert(0, directory)
            files.fsync_directory(directory.parent)
    except OSError as error:
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise unusable(path, error) from error
    return made


class Lock:
    """The run's LOCK, held through fcntl.lockf: gone with its owner, and not inherited by worker processes.

    A file that a killed owner left is no obstacle. POSIX locks do not hold within one process and fall with
    any descriptor of the file, so a second taking in the same process is refused before the file is opened.
    """

    _held: dict[tuple[int, int], int] = {}

    def __init__(self, descriptor: int, identity: tuple[int, int]):
        self._descriptor: int | None = descriptor
        self._identity = identity
        self._owner = os.getpid()

    @classmethod
    def take(cls, directory: Path) -> Lock:
        """Lock a run directory, or raise `UsageError` naming who has it."""
        path = directory / LOCK
        with contextlib.suppress(FileNotFoundError):
            file = os.lstat(path)
            if cls._held.get((file.st_dev, file.st_ino)) == os.getpid():
                raise UsageError(
                    f"{directory}: this run is already open in this process; close it first", code="run-in-use"
                )
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise unusable(directory, error) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            note = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode() + b"\n", 0)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UsageError(
                    f"{directory}: this run is in use by {holder}; wait until it ends, or stop it first",
                    code="run-in-use",
                ) from None
            raise unusable(directory, error) from error
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        cls._held[identity] = os.getpid()
        return cls(descriptor, identity)

    def release(self) -> None:
        """Give the lock back; in a child process that was forked, and the second time, nothing happens."""
        if self._descriptor is not None and os.getpid() == self._owner:
            os.close(self._descriptor)
            self._held.pop(self._identity, None)
        self._descriptor = None


def holder(directory: str | Path) -> str | None:
    """Who has the lock of the run in `directory`, or None. Only looks: takes nothing and makes no file."""
    path = Path(directory) / LOCK
    with contextlib.suppress(OSError):
        file = os.lstat(path)
        if Lock._held.get((file.st_dev, file.st_ino)) == os.getpid():
            return "this process"  # opening and closing the file would give the lock away
        descriptor = files.open_regular(path)
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, _QUESTION)
            return _holder(descriptor) if answer[_TYPE] != _QUESTION_FREE[_TYPE] else None
        finally:
            os.close(descriptor)
    return None


# A struct flock that asks for a lock to write, and one that says that nobody has the file.
_LAYOUT = "@qqihh" if sys.platform == "darwin" else "@hhqqi0q"
_TYPE = slice(20, 22) if sys.platform == "darwin" else slice(0, 2)


def _flock(kind: int) -> bytes:
    return struct.pack(_LAYOUT, *((0, 0, 0, kind, 0) if sys.platform == "darwin" else (kind, 0, 0, 0, 0)))


_QUESTION, _QUESTION_FREE = _flock(fcntl.F_WRLCK), _flock(fcntl.F_UNLCK)


def _holder(descriptor: int) -> str:
    try:
        note = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {int(note['pid'])} on {str(note['host'])[:80]} since {str(note['since'])[:19]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
