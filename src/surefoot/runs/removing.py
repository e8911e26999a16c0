"""Remove runs: never one that is in use, never what is no part of one; out of the way first, then deleted."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..checkpoint.run import CHECKPOINTS, JOURNAL, LOCK, RUN, Lock
from ..errors import RunFailed, UsageError
from ..tracking.validation import FILE as VALIDATION
from .labels import LABELS
from .record import RECIPE, Run, no_direction, open_run
from .search import in_order

# What a run's directory holds. Whatever else lies there was put there by somebody, and is not ours to delete.
PARTS = {
    RUN,
    LOCK,
    JOURNAL,
    RECIPE,
    LABELS,
    CHECKPOINTS,
    "tensorboard",
    "model",
    "report.html",
    VALIDATION,
    "started_from.txt",
    "trackers",
}
TEMPORARY = re.compile(r"\.(.+)\.(?:\d+-)?[0-9a-f]{8}\.(tmp|new|old)")
_REMOVED = re.compile(r"\..+\.[0-9a-f]{8}\.removed")


def require_removable(path: Path) -> None:
    """Raise UsageError where `path` is no run, a link to one, one in use, or holds what is no part of a run."""
    if path.is_symlink():
        raise UsageError(f"{path}: is a symbolic link; name the directory itself: {path.resolve()}")
    run = open_run(path)
    if run.held_by is not None:
        raise UsageError(
            f"{path}: this run is in use by {run.held_by}; wait until it ends, or stop it first", code="run-in-use"
        )
    foreign = sorted(name for name in os.listdir(path) if name not in PARTS and not TEMPORARY.fullmatch(name))
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise UsageError(f"{path}: holds what is no part of a run: {shown}; move it elsewhere, then remove the run")


def remove(path: Path) -> None:
    """Remove one run. Raises UsageError where it must not be, RunFailed where the system refuses.

    A kill in between leaves a directory whose name ends in ``.removed``, which the next removal beside it takes away.
    """
    path = Path(os.path.abspath(path))
    require_removable(path)
    lock = Lock.take(path)  # no training begins in it meanwhile
    try:
        aside = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.removed")
        files.system.rename(path, aside)
        files.fsync_directory(path.parent)
    except OSError as error:
        raise RunFailed(f"{path}: cannot be removed: {error.strerror}", code="cannot-write") from error
    finally:
        lock.release()
    with os.scandir(path.parent) as entries:
        leftovers = [entry.path for entry in entries if _REMOVED.fullmatch(entry.name) and not entry.is_symlink()]
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)
    if os.path.lexists(aside):
        raise RunFailed(f"{aside}: could not be deleted wholly; remove it by hand")


def surplus(runs: Sequence[Run], keep: int, metric: str | None) -> tuple[list[Run], list[Run]]:
    """The runs beyond the best `keep`, worst last, and those that cannot be judged or are in use, which stay.

    They are judged by `metric`, else by the one that all of them monitor. Raises UsageError where there is none.
    """
    bests = {run.path: run.best(metric) for run in runs if run.held_by is None}
    judged = [run for run in runs if bests.get(run.path) is not None]
    names = {best[0] for best in bests.values() if best is not None}
    if len(names) > 1:
        raise UsageError(f"the runs are judged by different metrics ({', '.join(sorted(names))}); give --best METRIC")
    for name in names:
        if reason := no_direction(judged, name):
            raise UsageError(
                f"{reason}, so none is known to be the best; remove runs by name: surefoot runs rm RUN ..."
            )
    ordered = in_order(judged, best=next(iter(names))) if judged else []
    return ordered[keep:], [run for run in runs if run not in judged]
