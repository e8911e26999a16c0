"""Errors that are no SurefootError, in one message: a resource that is missing, the user's own code, or our bug."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import sysconfig
import traceback

from ..errors import with_reference
from ..text import say

_OURS = pathlib.Path(__file__).resolve().parents[1]
_INSTALLED = tuple(
    pathlib.Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_NO_MEMORY = "free some, ask for less (a smaller batch or model), or raise the limit (ulimit -v)"
_NO_PROCESS = "end some, or raise the limit (ulimit -u); data.workers=0 and execution.threads=1 need the fewest"
_NO_SPACE = "free some space, or set TMPDIR to a directory that has it"
# What to do, by the error's number or text.
_NUMBERS = {
    errno.ENOMEM: _NO_MEMORY,
    errno.EAGAIN: _NO_PROCESS,
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close some programs: the machine has no more open files to give",
    errno.EROFS: "name a directory on a disk that can be written",
    errno.EACCES: "you may not use it; name another place",
    errno.EPERM: "you may not use it; name another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EIO: "check the disk",
}
_TEXTS = {
    r"not enough memory|can't allocate memory|cannot allocate|[Oo]ut of memory|failed to map segment|bad_alloc|"
    "cannot apply additional memory protection|failed to allocate": _NO_MEMORY,
    r"can't start new thread|Resource temporarily unavailable|pthread_create": _NO_PROCESS,
    r"No usable temporary directory": _NO_SPACE,
    r"No space left on device": _NO_SPACE,
}


def print_error(error: BaseException) -> int:
    """Print what was raised, in one message, and return the exit code.

    A missing resource and a package that cannot be imported take a line; the user's own code is shown from its
    first frame on; all else is our own bug, with the whole traceback.
    """
    frames = traceback.extract_tb(error.__traceback__)
    users = [i for i, frame in enumerate(frames) if _is_users(frame.filename)]
    lacking = _lacking(error)
    if lacking is not None and (not users or users[-1] != len(frames) - 1):
        say(f"surefoot: {with_reference(lacking, 'machine-limits')}", error=True)
        return 1
    broken = _broken_package(frames)
    if broken is not None:
        first = str(error).partition("\n")[0]
        message = (
            f"surefoot: the installed package {broken} cannot be imported here: {type(error).__name__}: {first}; "
            f"install the {broken} that goes with this torch and this Python"
        )
        say(with_reference(message, "package-broken"), error=True)
        return 1
    if users:
        _print_users_error(traceback.format_list(frames[users[0] :]) + traceback.format_exception_only(error))
        place = frames[users[-1]]
        say(with_reference(f"surefoot: see {place.filename}:{place.lineno}", "own-code"), error=True)
        return 1
    # What a worker process raised comes back as text, with its traceback in it.
    places = re.findall(r'File "(.+?)", line (\d+)', str(error)) if "Original Traceback" in str(error) else []
    theirs = [(file, line) for file, line in places if _is_users(file)]
    if theirs:
        _print_users_error([str(error)])
        say(with_reference(f"surefoot: see {theirs[-1][0]}:{theirs[-1][1]}", "own-code"), error=True)
        return 1
    say("".join(traceback.format_exception(error)).rstrip(), error=True)
    bug = "this is a bug in surefoot, not in what you gave it; please report it with the lines above"
    say(f"surefoot: {bug}", error=True)
    return 1


def _print_users_error(lines: list[str]) -> None:
    say("surefoot: your own code raised an error:\n" + "".join(lines).rstrip(), error=True)


def _lacking(error: BaseException) -> str | None:
    """The missing resource, and what to do; None where the error is another."""
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError):
        return f"no memory is left{': ' + text if text else ''}; {_NO_MEMORY}"
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return f"{where}{error.strerror}; {_NUMBERS[error.errno]}"
    for pattern, remedy in _TEXTS.items():
        if isinstance(error, (OSError, RuntimeError, ImportError, SystemError)) and re.search(pattern, str(error)):
            return f"{text}; {remedy}"
    return None


def _broken_package(frames: traceback.StackSummary) -> str | None:
    """The installed package in whose import the error arose, if it did so in none of ours and none of the user's."""
    imports = [i for i, frame in enumerate(frames) if frame.filename.startswith("<frozen importlib")]
    after = [frame.filename for frame in frames[imports[-1] + 1 :]] if imports else []
    if not after or any(_is_users(name) or pathlib.Path(name).resolve().is_relative_to(_OURS) for name in after):
        return None
    path = pathlib.Path(after[0]).resolve()
    root = next((root for root in reversed(_INSTALLED) if path.is_relative_to(root)), None)
    return path.relative_to(root).parts[0].removesuffix(".py") if root else None


def _is_users(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = pathlib.Path(filename).resolve()
    return not path.is_relative_to(_OURS) and not any(path.is_relative_to(root) for root in _INSTALLED)
