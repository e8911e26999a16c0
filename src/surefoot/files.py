"""Durable files: what these functions have written is on the disk when they return, whole or not at all.

Every system call that writes goes through `system`, so that a test can make the disk fill up, the
power fail or the process die before any one of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


def durable_fsync(descriptor: int) -> None:
    """Return once the disk itself holds what was written to an open file or directory.

    On macOS fsync(2) only hands the data to the drive, which may lose it when the power fails: F_FULLFSYNC waits for
    the medium. File systems that lack it (network drives) answer with an error, and get the plain fsync.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL):
                raise
    os.fsync(descriptor)


class System:
    """The system calls behind a durable write; tests replace single ones."""

    open = staticmethod(os.open)
    write = staticmethod(os.write)
    fsync = staticmethod(durable_fsync)
    close = staticmethod(os.close)
    mkdir = staticmethod(os.mkdir)
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    rmdir = staticmethod(os.rmdir)
    exists = staticmethod(os.path.lexists)


system = System()


@dataclass(frozen=True)
class Written:
    """What was written: size in bytes and SHA-256 as hex digits."""

    bytes: int
    sha256: str


# One write(2) moves at most 0x7ffff000 bytes; smaller pieces also let a signal be noticed in between.
_PIECE = 64 * 1024 * 1024
_SMALL = 256 * 1024
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an `OSError` of the block name `path`: write(2) and fsync(2) have only a number.

    >>> with naming("m.jsonl"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    ...
    OSError: [Errno 28] No space left on device: 'm.jsonl'
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_new(path: str | Path, chunks: Iterable[bytes | memoryview]) -> Written:
    """Write a file that does not exist yet, chunk by chunk, and fsync it; not yet its directory.

    Raises `FileExistsError` for a name that is taken, a symbolic link included, and `OSError` for whatever
    the disk answers. After an error the file may be there in part; the caller discards it. An fsync that
    failed is never tried again: the kernel may have dropped the data and would then answer "done".
    """
    with naming(path):
        return _filled(_made(path), chunks)


def _made(path: str | Path) -> int:
    return system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def _filled(descriptor: int, chunks: Iterable[bytes | memoryview]) -> Written:
    """Write, fsync and close."""
    digest = hashlib.sha256()
    total = 0
    with _closed_after(descriptor):
        for view in _gathered(chunks):
            digest.update(view)
            total += view.nbytes
            _write_all(descriptor, view)
        system.fsync(descriptor)
    return Written(total, digest.hexdigest())


@contextlib.contextmanager
def _closed_after(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            system.close(descriptor)
        raise
    system.close(descriptor)


def _gathered(chunks: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The same bytes, small chunks put together: a model of a thousand biases is not a thousand writes."""
    small = bytearray()
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        if len(small) + view.nbytes <= _SMALL:
            small += view
            continue
        if small:
            yield memoryview(small)
            small = bytearray()
        if view.nbytes <= _SMALL:
            small += view
        else:
            yield view
    if small:
        yield memoryview(small)


def _write_all(descriptor: int, view: memoryview) -> None:
    while view.nbytes:
        count = system.write(descriptor, view[:_PIECE])
        if count <= 0:
            raise OSError(errno.EIO, "the disk took no bytes")
        view = view[count:]


def fsync_directory(path: str | Path) -> None:
    """Make the names in a directory durable, as far as its file system can: some network drives sync no directories.

    >>> fsync_directory(".")
    """
    with naming(path):
        descriptor = system.open(path, os.O_RDONLY | os.O_DIRECTORY)
        with _closed_after(descriptor):
            try:
                system.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise


@contextlib.contextmanager
def parents_made(path: str | Path) -> Iterator[None]:
    """Make the directories above `path` that are missing, durably; an error in the block takes them away again."""
    missing = [parent for parent in Path(os.path.abspath(path)).parents if not parent.exists()]
    try:
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            fsync_directory(parent.parent)
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):  # never made, or another process has put something there
                parent.rmdir()
        raise


def write_durably(path: str | Path, data: bytes) -> Written:
    """Replace or make `path`: after a crash at any instant it holds the old bytes or the new, no mixture.

    When it returns, the new bytes are on the disk under their name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     write_durably(Path(d, "a.txt"), b"hello").bytes
    5
    """
    return replace_durably(path, [data])


def replace_durably(path: str | Path, chunks: Iterable[bytes | memoryview]) -> Written:
    """`write_durably` for a file that comes in pieces."""
    return _replace(Path(path), chunks, durable=True)


def write_atomically(path: str | Path, data: bytes) -> Written:
    """Like `write_durably`, but after a power cut the old bytes may be back: the name is not awaited."""
    return _replace(Path(path), [data], durable=False)


def _replace(path: Path, chunks: Iterable[bytes | memoryview], *, durable: bool) -> Written:
    if not path.name:  # "." and "/"
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    remove_unfinished(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    mark = -1
    with naming(path):
        try:
            _refuse_special(path)
            descriptor = _made(temporary)
            # Held until the name is changed: distinguishes a file that is being written from one that a kill left.
            mark = os.dup(descriptor)
            lock(mark, wait=True)
            if not system.exists(temporary):  # another process took it for one that a kill left, before it was marked
                os.close(descriptor)
                return _replace(path, chunks, durable=durable)
            written = _filled(descriptor, chunks)
            system.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                system.unlink(temporary)
            raise
        finally:
            if mark >= 0:
                os.close(mark)
    if durable:
        fsync_directory(path.parent)
    return written


def _refuse_special(path: Path) -> None:
    """Raise `NotRegular` for a device, a pipe or a socket: /dev/null would be a plain file from then on."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # there is nothing
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise NotRegular(errno.EINVAL, f"is {_kind(mode)}, not a regular file", str(path))


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Mark an open file or directory as in use until it is closed; False where another process has marked it.

    With `wait`, for a new one that may be taken for a leftover before it is marked: then it is gone afterwards.

    The mark ends with its process, whatever its number: in a container every process may be number 1. A file system
    that has no such marks answers False too. (flock, and not lockf: that cannot mark a directory.)
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def remove_unfinished(directory: str | Path, only: str | None = None) -> None:
    """Remove what killed processes left of `write_durably` in `directory`, of the file `only` where it is given.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     Path(d, ".a.json.0123abcd.tmp").touch()
    ...     remove_unfinished(d)
    ...     os.listdir(d)
    []
    """
    for name in os.listdir(directory):
        match = _TEMPORARY.fullmatch(name)
        if match is None or only not in (match["name"], None):
            continue
        with contextlib.suppress(OSError):  # it is gone, is no file, or cannot be removed: nothing depends on it
            descriptor = open_regular(Path(directory, name))
            try:
                if lock(descriptor):
                    system.unlink(Path(directory, name))
            finally:
                os.close(descriptor)


class NotRegular(OSError):
    """The name is a symbolic link, a directory, a device or a pipe where a plain file was expected."""


def open_regular(path: str | Path, *, follow: bool = False, flags: int = os.O_RDONLY) -> int:
    """Open a plain file, by default for reading, and return its descriptor; never blocks on a pipe or a device.

    A link is followed only where a user may well name one (`follow`): a recipe, data. Raises `NotRegular` for anything
    but a regular file, `OSError` when it cannot be opened.
    """
    mode = (os.stat(path) if follow else os.lstat(path)).st_mode
    if not stat.S_ISREG(mode):
        raise NotRegular(errno.EINVAL, f"is {_kind(mode)}, not a regular file", str(path))
    try:
        descriptor = os.open(path, flags | (0 if follow else os.O_NOFOLLOW) | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotRegular(errno.EINVAL, "is a symbolic link, not a regular file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # swapped between lstat and open
        os.close(descriptor)
        raise NotRegular(errno.EINVAL, "is not a regular file", str(path))
    return descriptor


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return name
    return "a device"


class TooLarge(OSError):
    """A file holds more bytes than its reader is willing to take."""


def read_bounded(path: str | Path, limit: int, *, follow: bool = False) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; more raises `TooLarge` before they are read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     _ = write_durably(Path(d, "a"), b"12345")
    ...     read_bounded(Path(d, "a"), 5)
    b'12345'
    """
    descriptor = open_regular(path, follow=follow)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise TooLarge(errno.EFBIG, f"holds {size} bytes; at most {limit} are read", str(path))
        data = file.read(size + 1)
        while len(data) <= limit and (piece := file.read(limit + 1 - len(data))):  # it grew while it was read
            data += piece
        if len(data) > limit:
            raise TooLarge(errno.EFBIG, f"holds more than {limit} bytes", str(path))
    return data


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a regular file as hex digits, in bounded memory.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     _ = write_durably(Path(d, "a"), b"abc")
    ...     sha256_of(Path(d, "a"))[:8]
    'ba7816bf'
    """
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
