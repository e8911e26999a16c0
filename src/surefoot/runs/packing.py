"""A run as one file and back: a tar of what is needed to go on elsewhere, every byte verified on both sides.

The tar is plain (any `tar` reads it), `.tar.zst` or `.tar.gz`; zstd needs the package zstandard, an extra. The first
member, PACK.json, lists every file with size and SHA-256. Read here are only such tars: plain files, each listed, each
once; no links, no records of long names, no path out of the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from .. import files, safe_tensors
from ..checkpoint.run import CHECKPOINTS, LOCK, RUN, Lock, read_about, refuse_links, scan
from ..errors import RunFailed, UsageError
from ..registry import package
from .record import open_run
from .removing import PARTS, TEMPORARY

MANIFEST, FORMAT, VERSION = "PACK.json", "surefoot-pack", 1
ENDINGS = (".tar.zst", ".tar.gz", ".tar")
INSTALL = "pip install 'surefoot[pack]' (or: pip install zstandard)"
_MOST_FILES, _MOST_MANIFEST = 100_000, 32 * 1024 * 1024
_LONGEST_NAME = 100  # of a tar without further records
_BLOCK, _PIECE = 512, 1 << 20


def pack(run: Path, to: Path) -> dict[str, Any]:
    """Write the run as the file `to` and return its manifest.

    With it go run.json, recipe, records, labels, report, model and the newest valid checkpoint. The run is held
    meanwhile. Raises UsageError for a run that is in use, a name that does not end in one of `ENDINGS`, or a file that
    is there; RunFailed where it cannot be written.
    """
    ending = next((ending for ending in ENDINGS if to.name.endswith(ending)), None)
    if ending is None:
        raise UsageError(f"{to}: give a name that ends in {', '.join(ENDINGS)}")
    if os.path.lexists(to):
        raise UsageError(f"{to}: is there already; give another name")
    compress = _compressor(ending)
    open_run(run)
    refuse_links(run)
    lock = Lock.take(run)
    try:
        manifest = _described(run)
        files.replace_durably(to, _compressed(_tar(run, manifest), compress))
    except OSError as error:
        raise RunFailed(f"{error.filename or to}: cannot be packed: {error.strerror}") from error
    finally:
        lock.release()
    return manifest


def _described(run: Path) -> dict[str, Any]:
    """The manifest: what goes with the run, with sizes and hashes."""
    names = [name for name in sorted(PARTS - {LOCK, CHECKPOINTS}) if (run / name).is_file()]
    for folder in ("tensorboard", "model"):
        paths = (path for path in (run / folder).rglob("*") if path.is_file() and not path.is_symlink())
        parts = (path.relative_to(run) for path in paths)
        # What a kill left of a writer is no part of the run.
        names += sorted(part.as_posix() for part in parts if not any(map(TEMPORARY.fullmatch, part.parts)))
    whole = [status for status in scan(run) if status.valid]
    if not whole and read_about(run) is None:
        raise UsageError(f"{run}: has nothing to go on with: its {RUN} is lost or damaged, and no checkpoint is whole")
    if whole:
        newest = whole[-1].path
        names += sorted(path.relative_to(run).as_posix() for path in newest.iterdir())
    entries = {}
    for name in names:
        if not _is_safe(name):
            raise UsageError(f"{run / name}: its name cannot be packed (over {_LONGEST_NAME} bytes, or no text)")
        entries[name] = {"bytes": (run / name).stat().st_size, "sha256": files.sha256_of(run / name)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": run.resolve().name,
        "step": whole[-1].step if whole else None,
        "files": entries,
    }


def _tar(run: Path, manifest: dict[str, Any]) -> Iterator[bytes]:
    text = json.dumps(manifest, indent=1).encode() + b"\n"
    yield _header(MANIFEST, len(text))
    yield text + bytes(-len(text) % _BLOCK)
    for name, entry in manifest["files"].items():
        yield _header(name, entry["bytes"])
        left, digest = entry["bytes"], hashlib.sha256()
        with os.fdopen(files.open_regular(run / name), "rb") as file:
            while left:
                piece = file.read(min(_PIECE, left))
                if not piece:
                    break
                left -= len(piece)
                digest.update(piece)
                yield piece
        if left or digest.hexdigest() != entry["sha256"]:  # a report, or labels: written without the run's lock
            raise UsageError(f"{run / name}: changed while it was packed; pack again")
        yield bytes(-entry["bytes"] % _BLOCK)
    yield bytes(2 * _BLOCK)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compressor(ending: str) -> _Compressor | None:
    if ending == ".tar.gz":
        return zlib.compressobj(6, zlib.DEFLATED, 31)
    if ending == ".tar":
        return None
    compressor: _Compressor = _zstandard().ZstdCompressor(level=3, write_checksum=True).compressobj()
    return compressor


def _zstandard() -> Any:
    missing = f".tar.zst needs the package zstandard, which is not installed: {INSTALL}; or name it .tar.gz"
    return package("zstandard", missing)


def _compressed(pieces: Iterable[bytes], compressor: _Compressor | None) -> Iterator[bytes]:
    for piece in pieces:
        yield piece if compressor is None else compressor.compress(piece)
    if compressor is not None:
        yield compressor.flush()


def unpack(path: Path, to: Path) -> dict[str, Any]:
    """Make the directory `to` from the file `path`, whole or not at all, and return the manifest.

    Raises UsageError for a file that is no such pack, is damaged, or holds anything that its manifest does not list
    exactly so; for a `to` that is there; and where the disk has no room for it.
    """
    if os.path.lexists(to):
        raise UsageError(f"{to}: is there already; name a directory that is not, with --to DIR")
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(4)}.tmp")
    try:
        with files.parents_made(to):
            return _unpacked(path, to, temporary)
    except OSError as error:
        raise UsageError(f"{error.filename or path}: cannot be unpacked: {error.strerror or error}") from error


def _unpacked(path: Path, to: Path, temporary: Path) -> dict[str, Any]:
    try:
        with contextlib.closing(_Source(path)) as source:
            manifest = _manifest(path, source)
            _require_room(to.parent, manifest)
            files.system.mkdir(temporary)
            _take_files(path, source, manifest, temporary)
        for folder, _, _ in os.walk(temporary):
            files.fsync_directory(folder)
        files.system.rename(temporary, to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files.fsync_directory(to.parent)
    return manifest


class _Source:
    """The bytes of a tar, whatever it is compressed by; an end that comes too early is an error."""

    def __init__(self, path: Path):
        self._path = path
        self._file = os.fdopen(files.open_regular(path, follow=True), "rb")
        start = self._file.read(4)
        self._file.seek(0)
        self._read: Callable[[int], bytes] = self._file.read
        if start == b"\x28\xb5\x2f\xfd":
            self._read = _zstandard().ZstdDecompressor(max_window_size=1 << 27).stream_reader(self._file).read
        elif start[:2] == b"\x1f\x8b":
            import gzip

            self._read = gzip.GzipFile(fileobj=self._file).read

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        data = bytearray()
        try:
            while len(data) < count:
                piece = self._read(count - len(data))
                if not piece:
                    raise EOFError
                data += piece
        except OSError as error:
            if error.errno is not None:
                raise
            raise _bad(self._path, f"is damaged: {error}") from error
        except (EOFError, zlib.error) as error:
            raise _bad(self._path, "ends too early, or is damaged; fetch it again") from error
        except Exception as error:  # zstandard has an error of its own
            if type(error).__name__ != "ZstdError":
                raise
            raise _bad(self._path, f"is damaged: {error}") from error
        return bytes(data)

    def header(self) -> tarfile.TarInfo | None:
        """The next member's header; None at the end."""
        block = self.take(_BLOCK)
        if not any(block):
            return None
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as error:
            raise _bad(self._path, f"is no tar that `surefoot pack` writes: {error}") from error
        if entry.type != tarfile.REGTYPE or entry.size < 0:
            raise _bad(self._path, f"holds {entry.name[:100]!r}, which is no plain file")
        return entry

    def close(self) -> None:
        self._file.close()


def _bad(path: Path, reason: str) -> safe_tensors.BadFile:
    return safe_tensors.BadFile(path, reason)


def _manifest(path: Path, source: _Source) -> dict[str, Any]:
    entry = source.header()
    if entry is None or entry.name != MANIFEST or entry.size > _MOST_MANIFEST:
        raise _bad(path, f"is no run that `surefoot pack` wrote ({MANIFEST} does not stand first)")
    data = source.take(entry.size)
    source.take(-entry.size % _BLOCK)
    manifest = safe_tensors.parse_json(path, data, MANIFEST, max_containers=2 * _MOST_FILES)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _bad(path, f"is no run that `surefoot pack` wrote ({MANIFEST} is of another form)")
    if manifest.get("version") != VERSION:
        version = str(manifest.get("version"))[:20]
        raise _bad(path, f"has format version {version}; this version of surefoot reads version {VERSION}")
    entries = manifest.get("files")
    if not isinstance(entries, dict) or len(entries) > _MOST_FILES:
        raise _bad(path, f"{MANIFEST} lists no files")
    for name, wanted in entries.items():
        if not _is_safe(name) or PurePosixPath(name).parts[0] not in PARTS - {LOCK}:
            raise _bad(path, f"lists {name[:100]!r}, which is no part of a run")
        size, digest = (wanted.get("bytes"), wanted.get("sha256")) if isinstance(wanted, dict) else (None, None)
        if type(size) is not int or size < 0 or not isinstance(digest, str):
            raise _bad(path, f"{MANIFEST} does not say size and SHA-256 of {name[:100]!r}")
    return manifest


def _is_safe(name: str) -> bool:
    """Whether a name is a path below the run: no ``..``, nothing empty or hidden, only characters that can be seen."""
    parts = name.split("/")
    short = len(name.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME
    return short and name.isprintable() and all(part and not part.startswith(".") for part in parts)


def _require_room(directory: Path, manifest: dict[str, Any]) -> None:
    needed, free = sum(entry["bytes"] for entry in manifest["files"].values()), shutil.disk_usage(directory).free
    if needed > free:
        raise UsageError(f"{directory}: has {free / 1e6:,.0f} MB free, and the run takes {needed / 1e6:,.0f} MB")


def _take_files(path: Path, source: _Source, manifest: dict[str, Any], directory: Path) -> None:
    left = dict(manifest["files"])
    while (entry := source.header()) is not None:
        wanted = left.pop(entry.name, None)
        if wanted is None or entry.size != wanted["bytes"]:
            raise _bad(path, f"holds {entry.name[:100]!r} otherwise than {MANIFEST} lists it")
        target = directory / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        written = files.write_new(target, _pieces(source, entry.size))
        source.take(-entry.size % _BLOCK)
        if written.sha256 != wanted["sha256"]:
            raise _bad(path, f"{entry.name} is damaged: its SHA-256 does not hold; fetch the file again")
    if left:
        raise _bad(path, f"lacks {next(iter(left))[:100]!r}, which {MANIFEST} lists")


def _pieces(source: _Source, size: int) -> Iterator[bytes]:
    while size:
        piece = source.take(min(size, _PIECE))
        size -= len(piece)
        yield piece
