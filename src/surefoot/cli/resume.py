"""`surefoot resume RUN`: go on with a run, bit for bit, or extend it with epochs=N."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .recipes import add_trust_argument, recipe_of_run
from .train import add_resume_arguments, resume_settings

if TYPE_CHECKING:
    from ..recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, overrides, --allow, --horizon."""
    parser.add_argument("run_dir", metavar="RUN", help="the run directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="epochs=N trains longer")
    add_resume_arguments(parser)
    add_trust_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Go on where the newest valid checkpoint stands."""
    from ..checkpoint import refuse_links
    from .running import train

    run_dir = Path(arguments.run_dir)
    settings = resume_settings(arguments)

    def load() -> Recipe:
        refuse_links(run_dir)
        return recipe_of_run(run_dir, arguments.overrides, trust_code=arguments.trust_code)

    return train(load, run_dir, resume=True, **settings)
