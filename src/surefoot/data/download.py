"""One file from the first of several mirrors that has it, whole and verified, or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import files
from ..errors import SurefootError, UsageError
from ..version import __version__

# Called with a file's name, the bytes that are there and the bytes that there will be.
Progress = Callable[[str, int, int], None]

TIMEOUT_S = 20.0
_CHUNK_BYTES = 1 << 16


class DownloadFailed(SurefootError):
    """No mirror gave the file; `tried` has one line a mirror."""

    def __init__(self, tried: Sequence[str]):
        self.tried = tuple(tried)
        super().__init__("\n".join(self.tried))


def download(
    urls: Sequence[str],
    target: Path,
    *,
    size: int,
    md5: str,
    progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Put the file at `target`, from the first of `urls` that gives `size` bytes with the MD5 `md5`.

    The bytes are verified in memory and appear under their name at once. A mirror is given up after `timeout_s`
    seconds of silence. Raises DownloadFailed where no mirror gives the file, UsageError where it cannot be written.
    """
    check_writable(target.parent)
    tried = []
    for url in urls:
        try:
            data = _read(url, target.name, size, md5, progress, timeout_s)
        except (OSError, http.client.HTTPException, _WrongContent) as error:
            tried.append(f"{url}: {_reason(error)}")
            continue
        made = [place for place in (target.parent, *target.parent.parents) if not place.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(target, data)
        except OSError as error:
            for place in made:
                with contextlib.suppress(OSError):  # whatever is not empty stays
                    place.rmdir()
            raise UsageError(f"{target}: cannot be written: {error.strerror or error}") from error
        return
    raise DownloadFailed(tried)


def check_writable(directory: Path) -> None:
    """Raise UsageError, before anything is fetched, where `directory` cannot be made or written to."""
    there = directory
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "is read-only" if there.is_dir() else "is no directory"
        raise UsageError(f"{there} {what}; data for {directory} cannot be stored there: give another directory")


class _WrongContent(Exception):
    """The mirror gave something else."""


def _read(url: str, name: str, size: int, md5: str, progress: Progress | None, timeout_s: float) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": f"surefoot/{__version__}"})
    data = bytearray()
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        # One byte more than expected is enough to see that it is another file.
        while len(data) <= size and (chunk := response.read(_CHUNK_BYTES)):
            data += chunk
            if progress is not None:
                progress(name, min(len(data), size), size)
    if len(data) != size:
        count = f"only {len(data):,} bytes" if len(data) < size else f"more than {size:,} bytes"
        raise _WrongContent(f"{count} came, {size:,} were expected")
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise _WrongContent(f"another file came: its MD5 is {digest}, {md5} was expected")
    return bytes(data)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason) or type(reason).__name__
