"""An exception from a user's own code: told at their line, without the frames of the house around it."""

from __future__ import annotations

import pathlib
import sysconfig
import traceback

from ..text import say

_OURS = pathlib.Path(__file__).resolve().parents[1]
_INSTALLED = tuple(
    pathlib.Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def tell(error: BaseException) -> int:
    """Print what was raised: the user's frames where there are any, else the whole traceback as our own bug.

    Returns the exit code.
    """
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if _is_users(frame.filename)), None)
    if first is None:
        say("".join(traceback.format_exception(error)).rstrip(), error=True)
        bug = "this is a bug in surefoot, not in what you gave it; please report it with the lines above"
        say(f"surefoot: {bug}", error=True)
        return 1
    last = max(i for i, frame in enumerate(frames) if _is_users(frame.filename))
    place = frames[last]
    lines = [*traceback.format_list(frames[first:]), *traceback.format_exception_only(error)]
    say("surefoot: your own code raised an error:\n" + "".join(lines).rstrip(), error=True)
    say(f"surefoot: see {place.filename}:{place.lineno}", error=True)
    return 1


def _is_users(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = pathlib.Path(filename).resolve()
    return not path.is_relative_to(_OURS) and not any(path.is_relative_to(root) for root in _INSTALLED)
