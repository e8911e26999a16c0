"""Pictures on disk: SVG only, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from .. import files
from ..errors import UsageError


def picture_path(text: str | Path) -> Path:
    """The path of a picture that is asked for; raises UsageError where it cannot be one, before anything is drawn."""
    path = Path(text)
    if path.suffix.lower() != ".svg":
        raise UsageError(f"{path}: pictures are written as SVG; give {path.with_suffix('.svg')}")
    if path.is_dir():
        raise UsageError(f"{path}: is a directory; give a file's name")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the directory {path.parent} does not exist")
    return path


def save(path: Path, text: str) -> None:
    """Write the SVG `text`; raises UsageError where it cannot be written."""
    try:
        files.write_atomically(picture_path(path), text.encode())
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}; give another file") from error
