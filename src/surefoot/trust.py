"""Whose run or model it is: a seal says that this user, on this machine, made what names code to import beside it.

A run's recipe may name code to import (``{import: "module:name"}``), a model its class, and both may come from anybody.
The seal is an HMAC-SHA-256 over what names the code (with the run's id) and the directory's inode, with a key in the
user's state directory, never in a run: the seal of an edited recipe or of a copied directory is not valid.
A directory that is renamed or moved within its file system keeps it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import files
from .errors import UsageError
from .places import user_directory

_KEY_BYTES = 32


def seals(directory: Path, about: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """The fields of run.json that make `recipe` this user's own in the run `about`; none for one that runs nothing.

    The seal before it stays beside it: a kill may come before the new recipe is written.
    """
    runs_something = "import" in recipe or re.search(r"^on_end: (?!null$)", recipe, re.M)
    key = _key(make=True) if runs_something else None
    if key is None:
        return {}
    new = _seal(key, directory, *_of_run(about, recipe))
    return {"seals": [*[seal for seal in _held(about) if seal != new][-1:], new]}


def holds(directory: Path, about: Mapping[str, Any], recipe: str) -> bool:
    """Whether this user has trained the run in `directory` with this recipe, on this machine."""
    key = _key(make=False)
    if key is None:
        return False
    expected = _seal(key, directory, *_of_run(about, recipe))
    return any(hmac.compare_digest(seal, expected) for seal in _held(about))


def model_seal(directory: Path, model: Mapping[str, Any]) -> str | None:
    """The seal of a saved model of this user's: of the class that it names, with its arguments."""
    key = _key(make=True)
    return None if key is None else _seal(key, directory, "model", model)


def holds_model(directory: Path, model: Mapping[str, Any], seal: Any) -> bool:
    """Whether this user has saved the model in `directory`, of this class and arguments, on this machine."""
    key = _key(make=False) if isinstance(seal, str) and seal.isascii() else None
    return key is not None and hmac.compare_digest(seal, _seal(key, directory, "model", model))


def _held(about: Mapping[str, Any]) -> list[str]:
    held = about.get("seals")
    return [seal for seal in held if isinstance(seal, str) and seal.isascii()] if isinstance(held, list) else []


def _of_run(about: Mapping[str, Any], recipe: str) -> tuple[Any, str]:
    return about.get("id"), hashlib.sha256(recipe.encode("utf-8", "surrogatepass")).hexdigest()


def _seal(key: bytes, directory: Path, *what: Any) -> str:
    text = json.dumps([*what, os.stat(directory).st_ino], sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """The user's key; made on first use. None where there is none, or where others could have written it."""
    with contextlib.suppress(OSError, UsageError):
        path = user_directory("state") / "run-key"
        if make and not os.path.lexists(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
                file.flush()
                files.system.fsync(descriptor)  # a name without its bytes would be no key, for good
            try:
                with contextlib.suppress(FileExistsError):  # another process was first: its key counts
                    os.link(new, path)
            finally:
                os.unlink(new)
        status = os.lstat(path)
        if status.st_uid == os.getuid() and not status.st_mode & 0o077:
            key = files.read_bounded(path, _KEY_BYTES)
            return key if len(key) == _KEY_BYTES else None
    return None
