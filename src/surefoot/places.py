"""Where this user keeps things that outlive a run: directories for caches and for state, also without a home."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from .errors import UsageError

_BELOW_HOME = {"cache": ".cache", "state": ".local/state"}


def user_directory(kind: str) -> Path:
    """Surefoot's directory for "cache" or "state": below $XDG_CACHE_HOME or $XDG_STATE_HOME, else below the home.

    Who has no home (no HOME, no passwd entry) gets one for this user alone below the temporary directory. Raises
    UsageError where that is somebody else's.
    """
    directory = os.environ.get(f"XDG_{kind.upper()}_HOME", "")
    if os.path.isabs(directory):
        return Path(directory) / "surefoot"
    home = os.path.expanduser("~")  # stays "~" where nothing tells it
    if os.path.isabs(home):
        return Path(home) / _BELOW_HOME[kind] / "surefoot"
    path = Path(tempfile.gettempdir()) / f"surefoot-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; set HOME or XDG_{kind.upper()}_HOME to a directory") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UsageError(f"{path}: is not this user's alone; set HOME or XDG_{kind.upper()}_HOME to a directory")
    return path / kind
