"""`surefoot push RUN|MODEL`: the model in the layout of the Hugging Face hub, as a folder and published."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ..errors import RunFailed, UsageError
from ..text import counted, say, typed
from .opening import add_data_argument, add_opening_arguments, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN|MODEL, REPOSITORY, --to, --best, --private, --message and what opening a model needs."""
    parser.add_argument("path", metavar="RUN|MODEL", help="a run, a model directory, .safetensors or .pth")
    parser.add_argument("repository", nargs="?", metavar="USER/NAME", help="where on the hub it is published")
    parser.add_argument("--to", metavar="DIR", help="the folder to write; without USER/NAME nothing else is done")
    parser.add_argument("--best", action="store_true", help="the run's best model instead of its last")
    parser.add_argument("--private", action="store_true", help="a new repository is seen by its owner only")
    parser.add_argument("--message", default="Upload by surefoot push", metavar="TEXT", help="of the commit")
    add_opening_arguments(parser)
    add_data_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, publish it where a repository is named."""
    from ..artifacts.hub import require_hub, upload

    if arguments.repository is None and arguments.to is None:
        raise UsageError("push: give where to: USER/NAME on the hub, or a folder by --to DIR, or both")
    if arguments.repository is not None:
        require_hub(arguments.repository)
    with tempfile.TemporaryDirectory(prefix="surefoot-push-") as scratch:
        folder = Path(arguments.to) if arguments.to else Path(scratch) / "model"
        names = _write(arguments, folder)
        if arguments.to:
            say(f"{folder}: {counted(len(names), 'file')}: {', '.join(names)}")
        if arguments.repository is None:
            say(f"next: {typed('surefoot', 'push', folder)} USER/NAME  # publish it")
            return 0
        address = upload(folder, arguments.repository, private=arguments.private, message=arguments.message)
    say(f"{address}: {counted(len(names), 'file')} published")
    name = arguments.repository.rpartition("/")[2]
    say(f"next: {typed('hf', 'download', arguments.repository, '--local-dir', name)}  # get it elsewhere")
    return 0


def _write(arguments: argparse.Namespace, folder: Path) -> list[str]:
    from ..artifacts import save_model
    from ..artifacts.hub import copy_model
    from ..artifacts.model_dir import model_directory

    path = Path(arguments.path)
    path = path / "model" / "best" if arguments.best else path
    try:
        if (directory := model_directory(path)) is not None:
            return copy_model(directory, folder)
        model = opened(path, arguments)
        if model.module is None:
            raise UsageError(
                f"{path}: is a program; push takes weights: a run, a model directory, .safetensors or .pth"
            )
        info = model.info
        own = (info.model["class"], info.model["args"] or {}) if "class" in info.model else None
        about = {name: getattr(info, name) for name in ("classes", "loss", "metrics", "title", "dataset", "columns")}
        about |= {name: getattr(info, name) for name in ("input_shape", "input_dtype", "averaged", "preprocessing")}
        save_model(model.module, folder, source=own, **about)
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise RunFailed(f"{error.filename or folder}: cannot be written: {error.strerror}") from error
