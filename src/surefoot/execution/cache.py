"""Choices remembered from run to run: one small JSON file for each model, batch, machine and set of versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import write_atomically
from ..places import user_directory
from .plan import Execution

# Counted up when plans come to mean other code: what was fastest may no longer be.
FORMAT = 2


def directory() -> Path:
    """Where choices are kept: ``surefoot/execution`` under ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    return user_directory("cache") / "execution"


def load(key: str) -> Execution | None:
    """The choice kept under `key`; None where there is none, or what is there cannot be read."""
    try:
        data = json.loads((directory() / f"{key}.json").read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            return None
        return Execution.from_json(data["execution"])
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        return None  # measured again and written anew


def save(key: str, execution: Execution, facts: dict[str, Any], say: Callable[[str], None]) -> None:
    """Keep a choice. A cache that cannot be written is said and not an error."""
    data = {"format": FORMAT, "execution": execution.to_json(), "facts": facts}
    try:
        directory().mkdir(parents=True, exist_ok=True)
        write_atomically(directory() / f"{key}.json", json.dumps(data, indent=1).encode())
    except (OSError, UsageError) as error:
        say(f"the measured choice is not kept for the next run: {error}")
