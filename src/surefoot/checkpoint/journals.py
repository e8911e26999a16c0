"""The journal beside the checkpoints: what of it a checkpoint knows, and back to there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import store


def place(journal: Any) -> dict[str, Any]:
    """Where the journal is now: its size, and the marks by which it can be checked (empty where it gives none)."""
    if journal is None:
        return {"journal": None, "marks": {}}
    return {"journal": journal.offset, "marks": journal.marks() if hasattr(journal, "marks") else {}}


def check(journal: Any, path: Path, tree: dict[str, Any]) -> None:
    """Raise `Damaged` for a checkpoint that knows of more records than there are."""
    if journal is None:
        return
    if tree["journal"] is None:
        raise UsageError(f"{path}: was saved without a journal; its records cannot go on exactly")
    if journal.offset < tree["journal"]:
        raise store.Damaged(
            path, f"needs {tree['journal']} bytes of the journal, which holds {journal.offset}: it was cut"
        )


def go_back(journal: Any, tree: dict[str, Any], say: Callable[[str], None]) -> list[str]:
    """Cut the journal back to the checkpoint; returns, and reports, damage that could not be mended."""
    if journal is None:
        return []
    if not hasattr(journal, "marks"):
        journal.truncate(tree["journal"] or 0)
        return []
    mended, damaged = journal.truncate(tree["journal"] or 0, tree["marks"])
    for message in (*mended, *damaged):
        say(message)
    return list(damaged)
