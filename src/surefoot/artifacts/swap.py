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
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}\.(new|old)")


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its place when the block ends without an error.

    What the block does not write but the old directory holds is carried over. The files must be durable when
    the block ends; the names are made so here. After an error, or a kill, `target` is as it was.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.new")
    files.system.mkdir(temporary)
    try:
        yield temporary
        if target.is_dir():
            _carry_over(target, temporary)
        _fsync_tree(temporary)
        _put_in_place(temporary, target)
    finally:
        # Holds what the block left unfinished or, after an exchange, the old directory.
        shutil.rmtree(temporary, ignore_errors=True)


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


def _carry_over(old: Path, new: Path) -> None:
    for entry in os.scandir(old):
        place = new / entry.name
        if os.path.lexists(place):
            continue
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), place)
        elif entry.is_dir(follow_symlinks=False):
            os.mkdir(place)
            _carry_over(Path(entry.path), place)
        elif entry.is_file(follow_symlinks=False):
            try:
                os.link(entry.path, place)
            except OSError:  # a file system without hard links
                shutil.copy2(entry.path, place)


def _fsync_tree(directory: Path) -> None:
    for folder, _, _ in os.walk(directory):
        files.fsync_directory(folder)


def _remove_leftovers(target: Path) -> None:
    """Remove what a killed process left beside `target`; a living one's is left alone."""
    with os.scandir(target.parent) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        found = _TEMPORARY.fullmatch(name)
        if not found or found["name"] != target.name or _alive(int(found["pid"])):
            continue
        leftover = target.with_name(name)
        if name.endswith(".old") and not target.exists():
            # Killed between the two renames of a system that cannot exchange names: the old one comes back.
            files.system.rename(leftover, target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
