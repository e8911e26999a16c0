"""Tags and a note of a run, in a file of their own: a process that trains the run never writes it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files, safe_tensors
from ..errors import UsageError
from ..text import printable

LABELS = "labels.json"
_MOST_BYTES = 256 * 1024
_LONGEST_TAG, _MOST_TAGS, _LONGEST_NOTE = 50, 50, 10_000


@dataclass(frozen=True)
class Labels:
    """What a person has said about a run."""

    tags: tuple[str, ...] = ()
    note: str = ""


def read_labels(run: str | Path) -> Labels:
    """The labels of a run; none where it has none. Raises UsageError for a file that is not ours."""
    path = Path(run) / LABELS
    if not os.path.lexists(path):
        return Labels()
    try:
        found: Any = safe_tensors.read_json(path, max_bytes=_MOST_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if isinstance(found, dict):
        tags, note = found.get("tags", []), found.get("note", "")
        if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags) and isinstance(note, str):
            return Labels(tuple(tag[:_LONGEST_TAG] for tag in tags[:_MOST_TAGS]), note[:_LONGEST_NOTE])
    raise UsageError(f"{path}: holds no tags and note; remove it")


def tagged(run: str | Path, tags: Sequence[str], *, remove: bool = False) -> Labels:
    """Add `tags` to a run's, or take them away; returns its labels. Raises UsageError for a tag that cannot be one."""
    if wrong := [tag for tag in tags if not tag or len(tag) > _LONGEST_TAG or not tag.isprintable() or " " in tag]:
        raise UsageError(f"tag {wrong[0]!r}: a tag is a word of at most {_LONGEST_TAG} characters, without blanks")
    with _alone(run):
        labels = read_labels(run)
        kept = [tag for tag in labels.tags if tag not in tags]
        if remove:
            if missing := [tag for tag in tags if tag not in labels.tags]:
                raise UsageError(
                    f"{run}: has no tag {printable(missing[0])!r}; it has {', '.join(labels.tags) or 'none'}"
                )
            return _written(run, dataclasses.replace(labels, tags=tuple(kept)))
        every = tuple(dict.fromkeys([*labels.tags, *tags]))
        if len(every) > _MOST_TAGS:
            raise UsageError(f"{run}: would have {len(every)} tags; {_MOST_TAGS} are the most")
        return _written(run, dataclasses.replace(labels, tags=every))


def noted(run: str | Path, note: str) -> Labels:
    """Set a run's note; "" takes it away. Returns its labels."""
    if len(note) > _LONGEST_NOTE:
        raise UsageError(f"the note has {len(note)} characters; {_LONGEST_NOTE:,} are the most")
    with _alone(run):
        return _written(run, dataclasses.replace(read_labels(run), note=note))


@contextlib.contextmanager
def _alone(run: str | Path) -> Iterator[None]:
    """Let no other process write the labels meanwhile: it would take away what this one adds, or the other way."""
    descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _written(run: str | Path, labels: Labels) -> Labels:
    try:
        text = json.dumps(dataclasses.asdict(labels), indent=1)
        files.write_durably(Path(run) / LABELS, text.encode() + b"\n")
    except OSError as error:
        raise UsageError(f"{Path(run) / LABELS}: cannot be written: {error.strerror}") from error
    return labels
