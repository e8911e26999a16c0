"""Choices remembered from run to run: one small JSON file for each model, batch, machine and set of versions."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UsageError, first_line
from ..files import write_atomically
from ..places import user_directory
from .settings import Execution

# Counted up when settings come to mean other code: what was fastest may no longer be.
FORMAT = 4
# A choice with what was tried takes two or three thousand.
MOST_BYTES = 1 << 16


def directory() -> Path:
    """Where choices are kept: ``surefoot/execution`` under ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    return user_directory("cache") / "execution"


def load(key: str, here: Execution, say: Callable[[str], None]) -> Execution | None:
    """The choice kept under `key`; None where there is none, or where it cannot be trusted (with a message to `say`).

    `here` is what this process would run without a choice: the device and the most threads that are plausible.
    """
    path = directory() / f"{key}.json"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        say(f"{path}: {error.strerror}; measured anew")
        return None
    try:
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("is no regular file")
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"is larger than {MOST_BYTES} bytes")
        data = json.loads(text)
        if not isinstance(data, dict) or not isinstance(data.get("execution"), dict):
            raise ValueError("holds no choice")
        if data.get("format") != FORMAT:
            return None  # another version's
        execution = Execution.from_json(data["execution"])
        if (execution.device, execution.precision) != (here.device, here.precision):
            raise ValueError(f"is for {execution.device} in {execution.precision}")
        if execution.threads > max(here.threads, os.cpu_count() or 1):
            raise ValueError(f"asks for {execution.threads} threads")
        return execution
    except (OSError, ValueError, TypeError, RecursionError) as error:
        say(f"{path}: {first_line(error)}; measured anew")
        return None


def forget() -> int:
    """Remove every choice that is kept; how many there were."""
    files = [path for path in directory().glob("*.json") if len(path.stem) == 32]
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


def save(key: str, execution: Execution, facts: dict[str, Any], say: Callable[[str], None]) -> None:
    """Keep a choice. A cache that cannot be written is said and not an error."""
    data = {"format": FORMAT, "execution": execution.to_json(), "facts": facts}
    try:
        directory().mkdir(parents=True, exist_ok=True)
        write_atomically(directory() / f"{key}.json", json.dumps(data, indent=1).encode())
    except (OSError, UsageError) as error:
        say(f"the measured choice is not kept for the next run: {error}")
