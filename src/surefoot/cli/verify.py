"""`surefoot verify RECIPE`, or `-- COMMAND`: prove, on this machine, that a killed run ends bit-identical.

With `--ranks` in each number of processes as well.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..text import say
from .recipes import add_recipe_arguments, named_recipe

if TYPE_CHECKING:
    from ..recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, or a command after --; --kills, --ranks, --seed, --keep, --with, --compare."""
    add_recipe_arguments(parser, "epochs=2", optional=True)
    parser.usage = "surefoot verify RECIPE [key=value ...] [options]\n       surefoot verify [options] -- COMMAND ..."
    parser.set_defaults(command=[])
    parser.add_argument("--kills", type=_count, default=5, metavar="N", help="how often to kill it (default: 5)")
    parser.add_argument(
        "--ranks", type=_sizes, default=(1,), metavar="N,N,...",
        help="numbers of processes, such as 1,2,4: untouched in each, and killed and gone on with in each by turns",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="draws the instants of the kills (default: 0)")
    parser.add_argument("--keep", metavar="DIR", help="keep the runs in DIR (default: a temporary directory)")
    parser.add_argument(
        "--with", dest="links", action="append", default=[], metavar="PATH",
        help="of a command: a file or directory that it reads by a relative path; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--compare", action="append", default=[], metavar="FILE",
        help="of a command: a file that it writes, or a pattern of such, to compare as well; may be repeated",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Train untouched and killed; compare bytes; 0 where they are equal, 1 where they are not."""
    from ..proof import Job, prove

    recipe, command, sizes = arguments.recipe, arguments.command, arguments.ranks
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
        loaded = named_recipe(recipe, arguments.overrides, trust_code=arguments.trust_code)
        overrides = [*arguments.overrides, *_division(loaded, sizes)]
        job = Job.of_recipe(recipe, overrides, trust_code=arguments.trust_code)
    if max(sizes) > 1:  # torchrun gives each process one, where nothing is said
        job = job.under(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
    keep = Path(arguments.keep) if arguments.keep else None
    verdict = prove(job, kills=arguments.kills, seed=arguments.seed, processes=sizes, keep=keep, say=say)
    say(verdict.summary())
    return 0 if verdict.same else 1


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and 0 < int(word) < 1000 for word in words) or len({*map(int, words)}) < len(words):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of processes, each once, such as 1,2,4")
    return tuple(map(int, words))


def _division(recipe: Recipe, sizes: Sequence[int]) -> list[str]:
    """What makes the same micro-batches in each number of processes, as overrides.

    Raises UsageError for numbers that cannot end with the same bits.
    """
    from ..micro_batches import sums_alike

    most = max(sizes)
    if most == 1:
        return []
    if recipe.parallel == "none":
        raise UsageError("--ranks: the recipe says parallel: none, which more than one process is refused with")
    parts = recipe.micro_batches or most
    if others := [size for size in sizes if not sums_alike(parts, size)]:
        can = [size for size in range(1, parts + 1) if sums_alike(parts, size)]
        raise UsageError(
            f"--ranks: with {parts} micro-batches runs in {_listed(can)} processes end with the same bits, and in "
            f"{_listed(others)} with others: each process needs 1, 2, 4, 8 ... of them, or all; leave out "
            f"{_listed(others)}, or give micro_batches=N"
        )
    return [f"micro_batches={parts}"]


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
