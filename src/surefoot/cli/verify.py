"""`surefoot verify RECIPE`: prove, on this machine and for this recipe, that a killed run ends bit-identical."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..text import say
from .recipes import add_recipe_arguments, named_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, --kills, --seed, --keep."""
    add_recipe_arguments(parser, "epochs=2")
    parser.add_argument("--kills", type=_count, default=5, metavar="N", help="how often to kill it (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="draws the instants of the kills (default: 0)")
    parser.add_argument("--keep", metavar="DIR", help="keep both runs in DIR (default: a temporary directory)")


def run(arguments: argparse.Namespace) -> int:
    """Train once untouched, once killed; compare bytes; 0 where they are equal, 1 where they are not."""
    from ..proof import prove

    # Every mistake before anything is trained.
    named_recipe(arguments.recipe, arguments.overrides, trust_code=arguments.trust_code)
    verdict = prove(
        arguments.recipe,
        arguments.overrides,
        trust_code=arguments.trust_code,
        kills=arguments.kills,
        seed=arguments.seed,
        keep=Path(arguments.keep) if arguments.keep else None,
        say=say,
    )
    say(verdict.summary())
    return 0 if verdict.same else 1


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value
