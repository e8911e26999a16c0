"""A run directory for the time of one fit: created or taken over, its status recorded, removed if nothing began."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import files, trust
from ..artifacts import remove_leftovers
from ..checkpoint import RunDirectory
from ..checkpoint.run import JOURNAL, LOCK, RUN
from ..errors import RunFailed, Stopped, UsageError
from ..text import typed
from ..tracking.validation import FILE as VALIDATION
from ..world import World
from .ranks import job

RECIPE = "recipe.yaml"
MOST_RESUMES = 1000
# What a run writes under these names would take the place of what somebody else keeps there.
_OWN = ("model", "report.html", VALIDATION)
# What a Checkpointer's resume changes of run.json.
_OF_A_SITTING = ("status", "conditions", "inexact")


class Claim:
    """A run directory that this process holds; `begun` once the run goes on in it."""

    def __init__(self, run: RunDirectory):
        self.run = run
        self.begun = False

    def begin(self, **facts: Any) -> None:
        """From here on the run is "running", and run.json says how it ends."""
        self.begun = True
        self.run.record(status="running", **facts)

    def resumed_at(self, step: int) -> dict[str, Any]:
        """The field of run.json with the steps at which the run was resumed; of a checkpoint earlier, those go."""
        before = self.run.about.get("resumes")
        kept = [at for at in before if type(at) is int and at < step] if isinstance(before, list) else []
        return {"resumes": [*kept[-MOST_RESUMES:], step]}

    def done(self) -> None:
        """The run has reached its end, which what is written after this may tell; and what memory this sitting took."""
        unit = 1 if sys.platform == "darwin" else 1024
        peaks = {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
        if torch.cuda.is_available():
            peaks["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
        self.run.record(status="done", **peaks)


@contextlib.contextmanager
def claimed(path: Path, world: World, **how: Any) -> Iterator[Claim]:
    """Hold the run directory `path`, as `held_run` says, on rank 0; the other ranks never touch it."""
    claims: list[Claim] = []
    with contextlib.ExitStack() as stack:

        def take() -> RunDirectory:
            claims.append(stack.enter_context(held_run(path, **how)))
            return claims[0].run

        run = RunDirectory.of_first(world, path, take)
        yield claims[0] if claims else Claim(run)


@contextlib.contextmanager
def held_run(path: Path, *, resume: bool, texts: Mapping[str, str], name: str) -> Iterator[Claim]:
    """Hold the run directory `path`, locked; `texts` are files that it has from the start (``recipe.yaml``).

    Raises UsageError where it already holds a run and `resume` is not asked for, or where nothing can be written.
    What fails before `begin` leaves a run that was there as it was, and takes a new directory away again.
    """
    there = RunDirectory.holds_run(path)
    if there and not resume:
        # The command goes on with a run that has a recipe, else fit's own argument.
        way_on = f"`{typed('surefoot', 'resume', path)}`" if (path / RECIPE).is_file() else "in Python: resume=True"
        raise UsageError(f"{path}: already holds a run; go on with it ({way_on}) or name another directory")
    if taken := [name for name in (*texts, *_OWN) if not there and os.path.lexists(path / name)]:
        raise UsageError(
            f"{path / taken[0]}: is there already, and a run keeps its own under this name; name another directory",
            code="run-directory",
        )
    missing = [place for place in (path, *path.parents) if not place.exists()]
    lay_there = {*path.glob("*"), *path.glob("tensorboard/*")}
    by: dict[str, Any] = {} if (this := job()) is None else {"job": this}
    run = RunDirectory.open(path) if there else RunDirectory.create(path, name=name, status="interrupted", **by)
    claim, before = Claim(run), dict(run.about)
    try:
        remove_leftovers(path / "model")
        # Also for a run that was killed before it had them.
        write_texts(run, {file: text for file, text in texts.items() if not (path / file).exists()})
        yield claim
        run.record(status="done")
    except BaseException as error:
        if not claim.begun:
            if not there:
                _discard(path, texts, lay_there, missing)
            elif before.get("id") is not None:  # it was taken up, and could not go on
                with contextlib.suppress(OSError):
                    run.record(**{name: before[name] for name in _OF_A_SITTING if name in before})
        else:
            stopped = isinstance(error, Stopped | KeyboardInterrupt)
            with contextlib.suppress(OSError):  # the first error is the one to tell
                run.record(status="interrupted" if stopped else "failed")
        if (
            isinstance(error, OSError)
            and error.filename
            and Path(os.path.abspath(error.filename)).is_relative_to(os.path.abspath(path))
        ):
            what = f"{error.filename}: cannot be written: {error.strerror}"
            go_on = "make room or mend the disk, then resume the run" if claim.begun else "make room or mend the disk"
            raise RunFailed(f"{what}; {go_on}") from error
        raise
    finally:
        run.close()


def write_texts(run: RunDirectory, texts: Mapping[str, str]) -> None:
    """Write those of a run's files (``recipe.yaml``) that are not there or that an accepted resume has changed.

    First run.json says that they are this user's own.
    """
    if RECIPE in texts:
        run.record(**trust.seals(run.path, run.about, texts[RECIPE]))
    for file, text in texts.items():
        data = text.encode()
        try:
            if files.read_bounded(run.path / file, len(data)) == data:
                continue
        except (FileNotFoundError, files.TooLarge):
            pass
        files.write_durably(run.path / file, data)


def _discard(path: Path, texts: Mapping[str, str], before: Collection[Path], missing: Sequence[Path]) -> None:
    """Take away what a run that never began has made, and nothing that lay in its directory `before`.

    Also the directories that were `missing`, deepest first, its own the first of them.
    """
    names = (RUN, JOURNAL, LOCK, *texts, "checkpoints", "tensorboard")
    made = [place for place in (*path.glob("tensorboard/*"), *map(path.joinpath, names)) if place not in before]
    for place in missing[:1] or made:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
    for place in missing[1:]:
        with contextlib.suppress(OSError):  # another run has begun there
            place.rmdir()
