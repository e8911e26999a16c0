"""`on_end` of a recipe: a command of the user's shell once a training has ended, however it ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import Stopped, UsageError

_PATIENCE_S = 60.0


@contextlib.contextmanager
def then(
    command: str | None, run_dir: Path, say: Callable[[str], None], begun: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Run `command` after the block: done, failed or stopped, but not where input was refused before it had `begun`.

    It reads the environment variables SUREFOOT_RUN (the directory) and SUREFOOT_STATUS (done, failed, interrupted).
    Where it fails, or takes more than a minute, a message says so and nothing else changes.
    """
    status = None
    try:
        yield
        status = "done"
    except Stopped:
        status = "interrupted"
        raise
    except Exception as error:  # also the user's own code, memory, the disk
        status = None if isinstance(error, UsageError) and not begun() else "failed"
        raise
    finally:
        if command is not None and status is not None:
            _run(command, {"SUREFOOT_RUN": str(run_dir.absolute()), "SUREFOOT_STATUS": status}, say)


def _run(command: str, facts: dict[str, str], say: Callable[[str], None]) -> None:
    try:
        done = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, env={**os.environ, **facts}, timeout=_PATIENCE_S, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        say(f"on_end: {command!r}: {error}")
        return
    if done.returncode:
        say(f"on_end: {command!r}: ended with {done.returncode}")
