"""`surefoot verify RECIPE`, or `-- COMMAND`: prove, on this machine, that a killed run ends bit-identical."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UsageError
from ..text import say
from .recipes import add_recipe_arguments, named_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, or a command after --; --kills, --seed, --keep, --with, --compare."""
    add_recipe_arguments(parser, "epochs=2", optional=True)
    parser.usage = "surefoot verify RECIPE [key=value ...] [options]\n       surefoot verify [options] -- COMMAND ..."
    parser.set_defaults(command=[])
    parser.add_argument("--kills", type=_count, default=5, metavar="N", help="how often to kill it (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="draws the instants of the kills (default: 0)")
    parser.add_argument("--keep", metavar="DIR", help="keep both runs in DIR (default: a temporary directory)")
    parser.add_argument(
        "--with", dest="links", action="append", default=[], metavar="PATH",
        help="of a command: a file or directory that it reads by a relative path; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--compare", action="append", default=[], metavar="FILE",
        help="of a command: a file that it writes, or a pattern of such, to compare as well; may be repeated",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Train once untouched, once killed; compare bytes; 0 where they are equal, 1 where they are not."""
    from ..proof import Job, prove

    recipe, command = arguments.recipe, arguments.command
    if bool(recipe) == bool(command):
        raise UsageError(
            "give a recipe, or a command after --: surefoot verify quickstart, or surefoot verify -- python train.py"
        )
    if command:
        job = Job.of_command(command, arguments.links, arguments.compare)
    elif arguments.links or arguments.compare:
        raise UsageError("--with and --compare are for a command: surefoot verify --compare out.png -- python train.py")
    else:
        # Every mistake before anything is trained.
        named_recipe(recipe, arguments.overrides, trust_code=arguments.trust_code)
        job = Job.of_recipe(recipe, arguments.overrides, trust_code=arguments.trust_code)
    keep = Path(arguments.keep) if arguments.keep else None
    verdict = prove(job, kills=arguments.kills, seed=arguments.seed, keep=keep, say=say)
    say(verdict.summary())
    return 0 if verdict.same else 1


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value
