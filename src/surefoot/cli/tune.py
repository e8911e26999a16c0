"""`surefoot tune RECIPE`: every way to run this recipe's step on this machine, timed and checked."""

from __future__ import annotations

import argparse

from ..errors import UsageError
from ..text import say
from .recipes import add_recipe_arguments, named_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, --seconds, --forget."""
    add_recipe_arguments(parser, "data.batch_size=512", optional=True)
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="what all of it may take, compiling too (default: 60)"
    )
    parser.add_argument("--forget", action="store_true", help="remove every choice that was kept, and end")


def run(arguments: argparse.Namespace) -> int:
    """Time every candidate, compiled ones too, against the plain step; print the table and keep the choice."""
    from ..execution import cache

    if arguments.forget:
        count = cache.forget()
        say(f"{count} kept choice{'' if count == 1 else 's'} removed from {cache.directory()}")
        if arguments.recipe is None:
            return 0
    if arguments.recipe is None:
        raise UsageError("tune: give a recipe's file or packaged name, or --forget")
    if not arguments.seconds > 0:
        raise UsageError(f"tune: --seconds: {arguments.seconds:g} is not above 0")

    from ..build import build
    from ..execution.choose import cache_key, remember, tune
    from ..step import TrainStep
    from ..training.settings import BATCHES_TO_MEASURE

    loaded = named_recipe(arguments.recipe, arguments.overrides, trust_code=arguments.trust_code)
    built = build(loaded, say=say)
    step = TrainStep(built.model, built.loss, built.optimizer, built.step_options())
    batches = built.train.first_batches(BATCHES_TO_MEASURE)
    steps = loaded.epochs * built.steps_per_epoch

    table = tune(
        built.execution, step, batches, steps_expected=steps, budget_s=arguments.seconds, thorough=True, say=say
    )
    say(table.render())
    if len(table.rows) > 1:
        remember(cache_key(built.execution, step, batches[0], steps), table, say)
        say("kept: the next run of this recipe begins with it; `surefoot tune --forget` removes what is kept")
    return 0
