"""Directories of checkpoints: commit, verify, retain. Nothing is trusted but a manifest whose every hash holds.

Commit: a temporary directory beside the target; each file written and fsynced; MANIFEST.json last, with size
and SHA-256 of each; the directory fsynced; renamed to a name that does not exist; the parent fsynced. Only
then is it committed, and only then may an older one go: first renamed out of the way, then deleted.

Of a model in pieces over several ranks each writes and fsyncs files of its own into that temporary directory
(``model-00001-of-00004.safetensors``); rank 0 lists them, writes the manifest and renames. Read back, all is whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, safe_tensors
from ..safe_tensors import BadFile
from . import pieces

if TYPE_CHECKING:
    import torch

MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"
FORMAT = "surefoot-checkpoint"
VERSION = 1
SHARDED_VERSION = 2
MAX_SHARDS = 10_000
MAX_STATE_BYTES = 32 * 1024 * 1024
MAX_STATE_CONTAINERS = 2_000_000
MAX_MANIFEST_BYTES = 16 * 1024 * 1024

_NAME = re.compile(r"step-(\d{9,18})(?:-(\d{1,6}))?")
_LEFTOVER = re.compile(r"\.(?:tmp|old)-(?P<name>step-\d{9,18}(?:-\d{1,6})?)-[0-9a-f]{8}")


class Damaged(BadFile):
    """A checkpoint that cannot be trusted: `path` is the file or directory at fault, `reason` says why."""


class Foreign(Damaged):
    """A checkpoint of another run."""


@dataclass(frozen=True)
class CheckpointStatus:
    """One checkpoint directory at `path`, of the `step` and its `revision`, with `metrics` and when it was `created`.

    `valid` None means not looked at yet; `reason` says why it is not.

    `bytes` is the size of its files, `foreign` that it belongs to another run (such a one is never removed).
    """

    step: int
    revision: int
    path: Path
    valid: bool | None = None
    reason: str = ""
    bytes: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    foreign: bool = False


@dataclass(frozen=True)
class Content:
    """A checkpoint as read and verified: its manifest, the JSON state, and both tables of tensors."""

    path: Path
    manifest: dict[str, Any]
    state: Any = field(repr=False)
    model: dict[str, torch.Tensor] = field(repr=False)
    other: dict[str, torch.Tensor] = field(repr=False)


def listed(directory: Path) -> list[CheckpointStatus]:
    """The checkpoints by name, oldest first, by step and never by time; none is opened."""
    statuses = []
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        statuses = [status_of(Path(entry.path)) for entry in entries if _NAME.fullmatch(entry.name)]
    return sorted(statuses, key=lambda status: (status.step, status.revision))


def status_of(path: Path) -> CheckpointStatus:
    """What a checkpoint's name says of it."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, "a checkpoint's directory is named after its step"
    return CheckpointStatus(int(match[1]), int(match[2] or 0), path)


def verified(status: CheckpointStatus, run_id: str | None = None) -> CheckpointStatus:
    """The status of one checkpoint after its files were read and hashed."""
    try:
        manifest = read_manifest(status, run_id)
        for name, entry in manifest["files"].items():
            path = status.path / name
            try:
                digest = files.sha256_of(path)
            except OSError as error:
                raise Damaged(path, f"cannot be read: {error.strerror}") from error
            _compare(path, digest, entry)
    except BadFile as error:
        return replace(status, valid=False, reason=str(error), foreign=isinstance(error, Foreign))
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    return replace(status, valid=True, bytes=total, metrics=manifest["metrics"], created=manifest["created"])


def load(status: CheckpointStatus, run_id: str | None = None) -> Content:
    """Read and verify a checkpoint in one pass. Raises `Damaged` or `BadFile`; nothing outside is touched."""
    manifest = read_manifest(status, run_id)
    entries = manifest["files"]
    data = _read(status.path / STATE, MAX_STATE_BYTES)
    _compare(status.path / STATE, hashlib.sha256(data).hexdigest(), entries[STATE])
    state = safe_tensors.parse_json(status.path / STATE, data, "it", max_containers=MAX_STATE_CONTAINERS)
    tables = []
    for part in (MODEL, OPTIMIZER):
        paths = [status.path / name for name in _files_of(part, _shards(manifest))]
        of_each = []
        for path in paths:
            loaded = safe_tensors.load(path)
            _compare(path, loaded.sha256, entries[path.name])
            of_each.append(loaded.tensors)
        tables.append(pieces.joined(paths, of_each, manifest.get("pieces", {}).get(part)))
    return Content(status.path, manifest, state, *tables)


def read_manifest(status: CheckpointStatus, run_id: str | None = None) -> dict[str, Any]:
    """The checked manifest: its own hash, version, step, run, the exact set of files and their sizes."""
    directory = status.path
    _require_directory(directory)
    path = directory / MANIFEST
    data = _read(path, MAX_MANIFEST_BYTES)
    manifest = safe_tensors.parse_json(path, data, "it", max_containers=400_000)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Damaged(path, "is not the manifest of a checkpoint")
    if manifest.get("version") not in (VERSION, SHARDED_VERSION):
        version = str(manifest.get("version"))[:20]
        raise Damaged(
            path,
            f"has format version {version}; this version of surefoot reads versions {VERSION} and {SHARDED_VERSION}",
        )
    if manifest.get("sha256") != _own_hash(manifest) or data != _encoded(manifest):
        raise Damaged(path, "was changed: its own hash does not hold")
    kinds = {"run": str, "step": int, "files": dict, "metrics": dict, "conditions": dict, "created": str}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise Damaged(path, f"lacks {key!r}")
    if manifest["step"] != status.step:
        raise Damaged(path, f"is of step {manifest['step']}, its directory of step {status.step}")
    if run_id is not None and manifest["run"] != run_id:
        raise Foreign(path, f"belongs to run {manifest['run'][:40]!r}, not to this run ({run_id})")
    expected = _names(path, manifest)
    if set(manifest["files"]) != expected:
        raise Damaged(path, f"must list exactly {', '.join(sorted(expected))}")
    try:
        _check_files(directory, manifest)
    except OSError as error:  # a run that goes on removes it meanwhile
        raise Damaged(directory, error.strerror or "cannot be read") from error
    return manifest


def _shards(manifest: Mapping[str, Any]) -> int:
    return int(manifest["shards"]) if manifest["version"] == SHARDED_VERSION else 1


def _files_of(part: str, shards: int) -> list[str]:
    return [pieces.file_name(part, number, shards) for number in range(shards)]


def _names(path: Path, manifest: Mapping[str, Any]) -> set[str]:
    """The files that a checkpoint has beside its manifest."""
    if manifest["version"] == SHARDED_VERSION:
        shards, cuts = manifest.get("shards"), manifest.get("pieces")
        if type(shards) is not int or not 1 < shards <= MAX_SHARDS:
            raise Damaged(path, "lacks 'shards'")
        if not isinstance(cuts, dict) or not all(pieces.are_valid(cuts.get(p), shards) for p in (MODEL, OPTIMIZER)):
            raise Damaged(path, "lacks 'pieces' of its shards")
    return {STATE, *(name for part in (MODEL, OPTIMIZER) for name in _files_of(part, _shards(manifest)))}


def _check_files(directory: Path, manifest: dict[str, Any]) -> None:
    present = set(os.listdir(directory))
    for name in sorted(present - {MANIFEST, *manifest["files"]}):
        raise Damaged(directory / name[:100], "is not listed in the manifest")
    for name, entry in manifest["files"].items():
        if (
            not isinstance(entry, dict)
            or type(entry.get("bytes")) is not int
            or not isinstance(entry.get("sha256"), str)
        ):
            raise Damaged(directory / MANIFEST, f"lacks size or sha256 of {name}")
        if name not in present:
            raise Damaged(directory / name, "is missing")
        file = os.lstat(directory / name)
        if not stat.S_ISREG(file.st_mode):
            raise Damaged(directory / name, "is not a regular file")
        if file.st_size != entry["bytes"]:
            raise Damaged(directory / name, f"holds {file.st_size} bytes; its manifest says {entry['bytes']}")


def _require_directory(directory: Path) -> None:
    try:
        mode = os.lstat(directory).st_mode
    except OSError as error:
        raise Damaged(directory, error.strerror or "is missing") from error
    if not stat.S_ISDIR(mode):
        raise Damaged(directory, "is not a directory" if not stat.S_ISLNK(mode) else "is a symbolic link")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise Damaged(directory, "cannot be read: permission denied")


def _read(path: Path, limit: int) -> bytes:
    try:
        return files.read_bounded(path, limit)
    except FileNotFoundError:
        raise Damaged(path, "is missing") from None
    except OSError as error:
        raise Damaged(path, error.strerror or str(error)) from error


def _compare(path: Path, digest: str, entry: Mapping[str, Any]) -> None:
    if digest != entry["sha256"]:
        raise Damaged(path, "was changed: its SHA-256 is not the one in the manifest")


def _encoded(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode() + b"\n"


def _own_hash(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------- writing


Written = dict[str, dict[str, Any]]


def begin(directory: Path, step: int, revision: int) -> Path:
    """A new temporary directory for a checkpoint. Raises `OSError`.

    `revision` is 0, or distinguishes several states at one step (before and after a validation).
    """
    name = f"step-{step:09d}-{revision}" if revision else f"step-{step:09d}"
    temporary = directory / f".tmp-{name}-{secrets.token_hex(4)}"
    try:
        files.system.mkdir(temporary)
    except FileNotFoundError:  # the first checkpoint of a run
        files.system.mkdir(directory)
        files.fsync_directory(directory.parent)
        files.system.mkdir(temporary)
    return temporary


def write(temporary: Path, parts: Mapping[str, Iterable[bytes | memoryview]]) -> Written:
    """Write files of a checkpoint that was begun, and what the manifest says of them. Raises `OSError`."""
    written = {name: files.write_new(temporary / name, chunks) for name, chunks in parts.items()}
    return {name: {"bytes": w.bytes, "sha256": w.sha256} for name, w in written.items()}


def commit(temporary: Path, step: int, written: Written, manifest: Mapping[str, Any]) -> CheckpointStatus:
    """Let a checkpoint whose files are written be there whole, and on the disk, or not at all.

    Raises `OSError`; what was begun is then removed.
    """
    match = _LEFTOVER.fullmatch(temporary.name)
    assert match is not None, "a checkpoint is committed from where it was begun"
    target = temporary.with_name(match["name"])
    standing = temporary
    try:
        version = SHARDED_VERSION if "shards" in manifest else VERSION
        content: dict[str, Any] = {"format": FORMAT, "version": version, "step": step, **manifest, "files": written}
        content["sha256"] = _own_hash(content)
        files.write_new(temporary / MANIFEST, [_encoded(content)])
        files.fsync_directory(temporary)
        if files.system.exists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        files.system.rename(temporary, target)
        standing = target
        files.fsync_directory(temporary.parent)
    except BaseException:
        # A checkpoint of which the disk did not say that it is there must not count as one.
        discard(standing)
        raise
    total = sum(entry["bytes"] for entry in written.values())
    metrics, created = dict(manifest["metrics"]), str(manifest["created"])
    return replace(status_of(target), valid=True, bytes=total, metrics=metrics, created=created)


def remove(path: Path) -> None:
    """Take a checkpoint away so that no process ever finds half of it under its name. Raises `OSError`.

    After a power cut it may be there in part: damaged, and older than what was kept.
    """
    old = path.with_name(f".old-{path.name}-{secrets.token_hex(4)}")
    files.system.rename(path, old)
    _delete(old)


def set_aside(path: Path) -> Path:
    """Give a checkpoint a name that is none, so that it does not count and nothing ever deletes it."""
    kept = path.with_name(f"damaged-{path.name}-{secrets.token_hex(4)}")
    files.system.rename(path, kept)
    files.fsync_directory(path.parent)
    return kept


def discard(path: Path) -> None:
    """Remove what was never committed, as far as the disk lets us."""
    with contextlib.suppress(OSError):
        if _NAME.fullmatch(path.name):
            remove(path)
        else:
            _delete(path)


def sweep(directory: Path) -> list[Path]:
    """Delete what a killed process left half-written or half-deleted; returns what it removed.

    Only names that `commit` and `remove` make, and only real directories. The caller holds the run's lock.
    """
    removed = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            path = directory / name
            if _LEFTOVER.fullmatch(name) and stat.S_ISDIR(os.lstat(path).st_mode):
                with contextlib.suppress(OSError):  # a later sweep tries again; nothing depends on it
                    _delete(path)
                    removed.append(path)
    return removed


def _delete(path: Path) -> None:
    for name in os.listdir(path):
        files.system.unlink(path / name)
    files.system.rmdir(path)
