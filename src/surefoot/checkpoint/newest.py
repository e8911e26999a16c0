"""Where a run goes on: its newest valid checkpoint, found by rank 0, which alone looks at the disk, read by all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import rng, safe_tensors
from ..errors import UsageError
from ..text import counted
from ..world import World
from . import journals, store
from .conditions import Change
from .run import RunDirectory
from .snapshot import decode
from .store import CheckpointStatus
from .writer import Writer

# Lines of a journal that run.json names.
MOST_DAMAGED = 50


@dataclass(frozen=True)
class Newest:
    """A checkpoint, read and decoded to `tree`; `skipped` are newer ones that are damaged (known to rank 0)."""

    content: store.Content
    status: CheckpointStatus
    tree: dict[str, Any]
    skipped: tuple[CheckpointStatus, ...] = ()


def newest(world: World, writer: Writer, run: RunDirectory, journal: Any, say: Callable[[str], None]) -> Newest:
    """The newest valid checkpoint. Raises UsageError where none is; those stepped over are reported."""
    found: list[Newest] = []

    def find() -> dict[str, Any]:
        found.append(_find(writer, run, journal, say))
        status = found[0].status
        return {"step": status.step, "revision": status.revision, "path": str(status.path), "metrics": status.metrics}

    place = world.agree(find, on=0)

    def read() -> Newest:
        if found:
            return found[0]
        status = CheckpointStatus(**{**place, "path": Path(place["path"])})
        content = store.load(status, run.about.get("id"))
        return Newest(content, replace(status, valid=True), decode(content))

    return world.agree(read)


def _find(writer: Writer, run: RunDirectory, journal: Any, say: Callable[[str], None]) -> Newest:
    skipped: list[CheckpointStatus] = []
    for status in reversed(writer.known.copy()):
        try:
            content = store.load(status, run.about.get("id"))
            tree = decode(content)
            journals.check(journal, status.path, tree)
        except safe_tensors.BadFile as error:
            foreign = isinstance(error, store.Foreign)
            skipped.append(writer.judge(status, valid=False, reason=str(error), foreign=foreign))
            say(f"{error}; this checkpoint is stepped over")
            continue
        status = writer.judge(status, valid=True, metrics=content.manifest["metrics"])
        for older in writer.known[: writer.known.index(status)]:
            _glance(writer, run, older)
        return Newest(content, status, tree, tuple(skipped))
    reasons = "\n".join(f"  {status.reason}" for status in skipped)
    raise UsageError(
        f"{run.checkpoints}: none of {counted(len(skipped), 'checkpoint')} is valid, so the run cannot go on:"
        f"\n{reasons}\nRestore one from a copy, or start a new run in another directory"
    )


def _glance(writer: Writer, run: RunDirectory, status: CheckpointStatus) -> None:
    """Note the metrics of an older checkpoint, from its manifest; its content is not read."""
    try:
        writer.judge(status, metrics=store.read_manifest(status, run.about.get("id"))["metrics"])
    except safe_tensors.BadFile as error:
        writer.judge(status, valid=False, reason=str(error), foreign=isinstance(error, store.Foreign))


def require_new(run: RunDirectory) -> None:
    """Raise UsageError where a run without a checkpoint cannot be begun."""
    if run.about.get("saved"):
        raise UsageError(
            f"{run.checkpoints}: this run was saved before, and its checkpoints are gone; restore them from a copy, or "
            "start a new run in another directory"
        )
    if run.about.get("id") is None:
        raise UsageError(f"{run.path}: run.json is damaged and there is no checkpoint; start a new run")


def resumed(
    run: RunDirectory, name: str, changes: Sequence[Change], damaged: Collection[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """The entries of run.json once a run goes on: its id, and how it is no longer exact, which is printed as well."""
    fields: dict[str, Any] = {"id": name}
    lost = run.about.get("id") is None
    if lost:
        say(f"{run.path}/run.json was lost or damaged; written again from the checkpoint")
    if changes:
        say("resumed under changed conditions, so no longer exact: " + "; ".join(map(str, changes)))
    inexact = [*run.about.get("inexact", []), *(str(change) for change in changes)]
    if lost or inexact:
        fields["inexact"] = list(dict.fromkeys(inexact))
    if damaged:
        fields["damaged"] = list(dict.fromkeys([*run.about.get("damaged", []), *damaged]))[:MOST_DAMAGED]
    return fields


def random_state(tree: dict[str, Any], world: World) -> Any:
    """The random state of this rank: its own where the run had as many ranks, else rank 0's."""
    states = [tree["rng"], *tree["rngs"]]
    return states[world.rank] if len(states) == world.size else states[0]


def try_random_state(path: Path, state: Any) -> None:
    """Raise UsageError where a random state cannot be used; the present one stays."""
    before = rng.get_state()
    try:
        rng.set_state(state)
    except (UsageError, LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        raise UsageError(f"{path}: its random state cannot be used: {error}", code="random-state") from error
    finally:
        rng.set_state(before)
