"""Replace a directory as a whole: at every instant its name holds the old one or the new one, complete."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .. import files

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_A_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Earlier versions put the process id before the hex digits.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?:\d+-)?[0-9a-f]{8}\.(new|old)")


def is_temporary(name: str) -> bool:
    """Whether a directory's name is one that `new_directory` gives while it works.

    >>> is_temporary(".best.0123abcd.new"), is_temporary("best")
    (True, False)
    """
    return _TEMPORARY.fullmatch(name) is not None


def remove_directory(target: Path) -> None:
    """Take the directory `target` away as a whole: at every instant its name holds all of it or nothing."""
    with scratch_directory(target) as temporary:
        files.system.rename(target, temporary / target.name)


@contextlib.contextmanager
def scratch_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target`, gone when the block ends; what a kill leaves of it, the next removes."""
    remove_leftovers(target)
    temporary, mark = _made(target)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(mark)


def _made(target: Path) -> tuple[Path, int]:
    """The directory, and the descriptor that marks it as in use."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
        files.system.mkdir(temporary)
        with contextlib.suppress(FileNotFoundError):
            mark = os.open(temporary, _A_DIRECTORY)
            files.lock(mark, wait=True)
            if files.system.exists(temporary):
                return temporary, mark
            os.close(mark)  # another process took it for one that a kill left, before it was marked


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its place when the block ends without an error.

    What the block does not write but the old directory holds is carried over. The files must be durable when
    the block ends; the names are made so here. After an error, or a kill, `target` is as it was.
    """
    target = Path(os.path.abspath(target))
    with files.parents_made(target), scratch_directory(target) as temporary:
        yield temporary
        if target.is_dir():
            carry_over(target, temporary)
        for folder, _, _ in os.walk(temporary):
            files.fsync_directory(folder)
        _put_in_place(temporary, target)  # after an exchange, `temporary` is the old directory


def _put_in_place(temporary: Path, target: Path) -> None:
    if not files.system.exists(target):
        files.system.rename(temporary, target)
    elif not _exchange(temporary, target):
        old = temporary.with_suffix(".old")
        files.system.rename(target, old)
        try:
            files.system.rename(temporary, target)
        except BaseException:
            files.system.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    files.fsync_directory(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux renameat2); False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def carry_over(old: Path, new: Path) -> None:
    """Let `new` have what only `old` holds: the files themselves, by second names where the file system has such."""
    for entry in os.scandir(old):
        place = new / entry.name
        if os.path.lexists(place) or is_temporary(entry.name):
            continue
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), place)
        elif entry.is_dir(follow_symlinks=False):
            os.mkdir(place)
            carry_over(Path(entry.path), place)
        elif entry.is_file(follow_symlinks=False):
            try:
                os.link(entry.path, place)
            except OSError:  # a file system without hard links
                shutil.copy2(entry.path, place)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left beside `target` and in it; what a living one writes is left alone."""
    for parent, name in ((target.parent, target.name), (target, None)):
        for entry in os.listdir(parent) if parent.is_dir() and not parent.is_symlink() else []:
            match = _TEMPORARY.fullmatch(entry)
            if match is None or name not in (match["name"], None):
                continue
            leftover, rightful = parent / entry, parent / match["name"]
            with contextlib.suppress(OSError):  # gone meanwhile, or no directory
                mark = os.open(leftover, _A_DIRECTORY)
                try:
                    if not files.lock(mark):
                        continue
                    if entry.endswith(".old") and not files.system.exists(rightful):
                        # Killed between the two renames of a system that cannot exchange names.
                        files.system.rename(leftover, rightful)
                    else:
                        shutil.rmtree(leftover)
                finally:
                    os.close(mark)
