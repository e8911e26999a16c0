"""`surefoot train`: a recipe in, a trained model out."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .recipes import add_trust_argument, named_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, --run, --resume, overrides."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="[RECIPE] [key=value ...]",
        help="a recipe's file or packaged name (default: quickstart); overrides such as optimizer.lr=3e-4 epochs=2",
    )
    parser.add_argument(
        "--dir",
        "--run",
        dest="run",
        metavar="DIR",
        help="the run directory (default: runs/NAME/TIMESTAMP); --dir under torchrun",
    )
    parser.add_argument("--resume", action="store_true", help="go on if DIR holds a run already, else start one")
    parser.add_argument(
        "--from",
        dest="start",
        metavar="FILE",
        help="go on from a checkpoint of your own loop (.pth): its weights, optimizer state and epoch",
    )
    parser.add_argument(
        "--epochs-done", type=int, metavar="N", help="with --from: how many epochs it has done (default: its epoch + 1)"
    )
    add_resume_arguments(parser)
    add_trust_argument(parser)


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    """--allow and --horizon, which only matter when a run is resumed; --timeout, under torchrun."""
    parser.add_argument(
        "--allow",
        metavar="CHANGE",
        action="append",
        default=[],
        help="a changed condition to go on with all the same, by the name in the refusal; marks the run inexact",
    )
    parser.add_argument(
        "--horizon",
        choices=("keep", "stretch"),
        help="with another number of epochs: keep the schedule's length, or stretch it to the new one",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but findings, on standard error")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="under torchrun: how long a process may be silent before the others end (default: 600)",
    )


def resume_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_resume_arguments` gave, as `running.train` takes it."""
    if arguments.timeout is not None and not arguments.timeout > 0:
        raise UsageError(f"--timeout: {arguments.timeout:g} is not above 0; give seconds, e.g. --timeout 60")
    return {
        "allow": arguments.allow,
        "horizon": arguments.horizon,
        "timeout": arguments.timeout,
        "quiet": arguments.quiet,
    }


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on with --resume."""
    from .running import train

    name, overrides = recipe_and_overrides(arguments.overrides)
    if arguments.resume and not arguments.run:
        raise UsageError("--resume needs --run DIR: which run is to go on?")
    done = arguments.epochs_done
    if done is not None and (arguments.start is None or done < 0):
        raise UsageError("--epochs-done: needs --from FILE, and is 0 or more")
    load = functools.partial(named_recipe, name, overrides, trust_code=arguments.trust_code)
    start = None if arguments.start is None else (Path(arguments.start), done)
    settings = {"resume": arguments.resume, **resume_settings(arguments), "start": start}
    if not arguments.run and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("several processes need one run directory: name it with --dir DIR")
    if arguments.run:
        return train(load, Path(arguments.run), **settings)
    loaded = load()
    run_dir = new_run_directory(loaded.name)
    try:
        return train(lambda: loaded, run_dir, **settings)
    finally:
        with contextlib.suppress(OSError):  # not empty: a run has begun there
            for directory in (run_dir, run_dir.parent, run_dir.parent.parent):
                directory.rmdir()


def recipe_and_overrides(words: list[str]) -> tuple[str, list[str]]:
    """The recipe's name and the overrides, distinguished by the first word's "="; a file's name may have one too."""
    if words and ("=" not in words[0] or os.path.isfile(words[0])):
        return words[0], words[1:]
    return "quickstart", words


def new_run_directory(name: str) -> Path:
    """`runs/NAME/TIMESTAMP`, local time to the second, made; a second run within the second gets a suffix."""
    base = Path("runs") / name / datetime.now().strftime("%Y%m%d-%H%M%S")
    path, number = base, 1
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()  # claimed: another training in the same second finds it taken
                return path
            except FileExistsError:
                number += 1
                path = base.with_name(f"{base.name}-{number}")
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"{path}: no run can be kept here: {reason}; name a directory with --run DIR", code="run-directory"
        ) from error
