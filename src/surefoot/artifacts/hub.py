"""A saved model as the Hugging Face hub takes it: its files in a folder of their own, and their upload."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import files, safe_tensors
from ..errors import RunFailed, UsageError, first_line
from ..registry import package
from ..safe_tensors import BadFile
from ..version import __version__
from .model_dir import INFO, WEIGHTS, read_described, refuse_foreign, write_json
from .swap import new_directory

INSTALL = "pip install 'surefoot[hub]' (or: pip install huggingface_hub)"
PLOTS = "plots"
_MOST_BYTES = 16 * 1024 * 1024
_REPOSITORY = r"[\w.-]{1,96}/[\w.-]{1,96}"
_REMEDIES = {
    401: "the hub does not know who you are: log in by `hf auth login`, or set HF_TOKEN",
    403: "your token may not write there: make one that may, at the hub's settings, and log in by `hf auth login`",
    404: "the hub has no such user or organisation, or it is not yours to write to",
    409: "the hub is changing this repository just now: try again",
    413: "the hub does not take a file so large",
    429: "the hub has had too many requests: try again later",
}


def copy_model(directory: Path, to: Path) -> list[str]:
    """Copy the files of the model in `directory` that others read to the directory `to`; returns their names.

    The weights are checked against their hash. A model that lies at `to` is replaced as a whole, so that at every
    instant the old one or the new one is there. Raises UsageError for a model that cannot be read and a `to` that holds
    other things, OSError as the disk answers.
    """
    _, described = read_described(directory)
    if to.resolve() == directory.resolve():
        raise UsageError(f"{to}: is the model itself; name another directory")
    refuse_foreign(to)
    names = [name for name in (WEIGHTS, "config.json", "README.md") if (directory / name).is_file()]
    plots = sorted(path.name for path in (directory / PLOTS).glob("*") if path.is_file() and not path.is_symlink())
    about: dict[str, Any] = safe_tensors.read_json(directory / INFO, max_bytes=_MOST_BYTES)
    about.pop("seal", None)  # says whose it is on this machine, and nothing elsewhere
    with new_directory(to) as new:
        if plots:
            (new / PLOTS).mkdir()
        for name in [*names, *(f"{PLOTS}/{plot}" for plot in plots)]:
            written = files.write_new(new / name, _pieces(directory / name))
            if name == WEIGHTS and written.sha256 != described["sha256"]:
                raise BadFile(
                    directory / WEIGHTS, f"its SHA-256 is not the one in {INFO}: damaged; train or copy again"
                )
        write_json(new / INFO, about)
    return [*names, INFO, *(f"{PLOTS}/{plot}" for plot in plots)]


def _pieces(path: Path) -> Iterator[bytes]:
    with os.fdopen(files.open_regular(path), "rb") as file:
        while piece := file.read(1 << 20):
            yield piece


def upload(directory: Path, repository: str, *, private: bool, message: str) -> str:
    """Publish a folder as the model `repository` (``user/name``) of the hub, in one commit; returns its address.

    The repository is made where it is not there. Where and who, huggingface_hub's own settings say (HF_ENDPOINT,
    HF_TOKEN, `hf auth login`). Raises UsageError for a name that cannot be one and where huggingface_hub is missing,
    RunFailed with what the hub or the network answered; the repository then holds what it held.
    """
    require_hub(repository)
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(library_name="surefoot", library_version=__version__)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        files_in = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
        operations = [CommitOperationAdd(name, directory / name) for name in files_in]
        api.create_commit(repository, operations, commit_message=message)
    except Exception as error:  # whatever the hub, its library and the network have to say
        status = getattr(getattr(error, "response", None), "status_code", 0)
        remedy = _REMEDIES.get(status, "a commit is there whole or not at all; the same command tries again")
        raise RunFailed(f"{repository}: was not published: {remedy} ({first_line(error, kind=True)})") from error
    return f"{api.endpoint}/{repository}"


def require_hub(repository: str) -> None:
    """Raise UsageError for what is no name of a repository, or where huggingface_hub is missing."""
    if not re.fullmatch(_REPOSITORY, repository):
        raise UsageError(f"{repository}: is not the name of a model on the hub; give user/name, e.g. ada/lenet")
    package("huggingface_hub", f"push: an upload needs huggingface_hub, which is not installed: {INSTALL}")
