"""An exception from a user's own code: told at their line, without the frames of the house around it."""

from __future__ import annotations

import pathlib
import sys
import sysconfig
import traceback

_OURS = pathlib.Path(__file__).resolve().parents[1]
_INSTALLED = tuple(
    pathlib.Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def tell(error: BaseException) -> None:
    """Print what was raised: the user's frames where there are any, else the whole traceback as our own bug."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if _is_users(frame.filename)), None)
    if first is None:
        traceback.print_exception(error)
        print(
            "surefoot: this is a bug in surefoot, not in what you gave it; please report it with the lines above",
            file=sys.stderr,
            flush=True,
        )
        return
    last = max(i for i, frame in enumerate(frames) if _is_users(frame.filename))
    place = frames[last]
    print("surefoot: your own code raised an error:", file=sys.stderr)
    print("".join(traceback.format_list(frames[first:])), end="", file=sys.stderr)
    print("".join(traceback.format_exception_only(error)), end="", file=sys.stderr)
    print(f"surefoot: see {place.filename}:{place.lineno}", file=sys.stderr, flush=True)


def _is_users(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = pathlib.Path(filename).resolve()
    return not path.is_relative_to(_OURS) and not any(path.is_relative_to(root) for root in _INSTALLED)
