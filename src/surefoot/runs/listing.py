"""The runs below a directory. An index of what their files said is kept, and used only while the files are the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from ..checkpoint.run import RunDirectory
from ..errors import UsageError
from ..places import user_directory
from ..version import __version__
from .record import Content, Run, judged_alike, read_content, signature

# What a sweep keeps beside its trials.
SWEEP, SWEPT = ".sweep", ("best.yaml", "sweep.html")
_DEEPEST = 8
# Reading so few runs is as fast as reading an index.
_WORTH_KEEPING = 20
# To begin a process takes as long as to read some hundred runs.
_A_PROCESS_READS = 500
# A file that was changed just now may change again within the same tick of its file system's clock.
_SETTLED_NS = 2_000_000_000
_MOST_INDEX_BYTES = 512 * 1024 * 1024


@dataclass
class Listing:
    """The runs that were found, in the order of their paths, and what was passed over, with the reason."""

    runs: list[Run] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


def list_runs(directory: str | Path) -> Listing:
    """Every run in and below `directory`; nothing is written but the index in the user's cache.

    Hidden directories and links below `directory` are not followed. Raises UsageError where it cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UsageError(
            f"{directory}: {'is a file' if directory.exists() else 'no such directory'}; give one that holds runs",
            code="run-missing",
        )
    listing = Listing()
    paths = [directory] if RunDirectory.holds_run(directory) else list(_below(directory, listing.passed_over))
    index = _Index(directory) if len(paths) >= _WORTH_KEEPING else None
    known = [None if index is None else index.content(path) for path in paths]
    read = _read([path for path, content in zip(paths, known, strict=True) if content is None])
    for path, content in zip(paths, known, strict=True):
        if content is None:
            content = next(read)
            if index is not None:
                index.keep(path, content)
        if content.problems and content.status == "damaged" and not content.epochs and content.id is None:
            listing.passed_over.append(f"{path}: {content.problems[0]}")
            continue
        listing.runs.append(Run(path, content))
    if index is not None:
        index.save()
    listing.runs = judged_alike(listing.runs)
    return listing


def _read(paths: list[Path]) -> Iterator[Content]:
    """What the files of each run say; many are read by several processes, forked so that they need import nothing."""
    workers = min(len(paths) // _A_PROCESS_READS, os.cpu_count() or 1)
    # torch has threads, which a fork does not take with it.
    if workers < 2 or sys.platform != "linux" or "torch" in sys.modules:
        yield from map(read_content, paths)
        return
    # An interrupt is for the process that waits for them.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.map(read_content, paths, chunksize=50)


def _below(directory: Path, passed_over: list[str], depth: int = 0) -> Iterator[Path]:
    try:
        with os.scandir(directory) as entries:
            names = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if depth == 0:
            raise UsageError(f"{directory}: cannot be read: {error.strerror}") from error
        passed_over.append(f"{directory}: cannot be read: {error.strerror}")
        return
    ours = SWEPT if any(entry.name == SWEEP for entry in names) else ()
    for entry in names:
        path = directory / entry.name
        if entry.name.startswith(".") or entry.name in ours:
            continue
        if entry.is_symlink() or not entry.is_dir(follow_symlinks=False):
            passed_over.append(f"{path}: is a {'symbolic link' if entry.is_symlink() else 'file'}, no run")
        elif RunDirectory.holds_run(path):
            yield path
        else:
            before, inside = False, list[str]()
            for run in _below(path, inside, depth + 1) if depth < _DEEPEST else ():
                before = True
                yield run
            passed_over.extend(inside if before else [f"{path}: holds no run"])


class _Index:
    """What the files of the runs below a directory said, with the signature that each had."""

    def __init__(self, directory: Path):
        self._base = os.path.abspath(directory)
        name = hashlib.sha256(os.fsencode(self._base)).hexdigest()[:32]
        self._path: Path | None = None
        self._kept: dict[str, Any] = {}
        self._next: dict[str, Any] = {}
        self._changed = False
        self._seen: dict[Path, tuple[str, Any]] = {}
        self._begun = time.time_ns()
        with contextlib.suppress(UsageError, OSError, ValueError, RecursionError):
            self._path = user_directory("cache") / "runs" / f"{name}.json"
            kept = json.loads(files.read_bounded(self._path, _MOST_INDEX_BYTES))
            if isinstance(kept, dict) and kept.get("version") == __version__ and isinstance(kept.get("runs"), dict):
                self._kept = kept["runs"]

    def content(self, path: Path) -> Content | None:
        """What is kept of a run, if its files are as they were."""
        key = os.path.relpath(os.path.abspath(path), self._base) if not path.is_absolute() else str(path)
        now, kept = signature(path), self._kept.get(key)
        # Taken before the files are read: what changes meanwhile makes it another.
        self._seen[path] = key, now
        with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):  # an index of somebody's making
            if kept is not None and kept[0] == now:
                content = Content.of_plain(kept[1])
                self._next[key] = kept
                return content
        return None

    def keep(self, path: Path, content: Content) -> None:
        """Note what a run's files have just said."""
        key, now = self._seen[path]
        if max((file[0] for file in now if file), default=0) < self._begun - _SETTLED_NS:
            self._next[key] = [now, content.plain()]
            self._changed = True

    def save(self) -> None:
        if self._path is None or not (self._changed or len(self._next) != len(self._kept)):
            return
        with contextlib.suppress(OSError, ValueError):  # it only saves time
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            text = json.dumps({"version": __version__, "runs": self._next})
            files.write_atomically(self._path, text.encode("utf-8", "surrogatepass"))
