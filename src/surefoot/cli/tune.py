"""`surefoot tune RECIPE`: every way to run this recipe's step on this machine, timed and checked."""

from __future__ import annotations

import argparse

from ..text import say
from .recipes import add_trust_argument, named_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, --seconds."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's file or packaged name")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides such as data.batch_size=512")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="what timing may take (default: 5)")
    add_trust_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Time every candidate, compiled ones too, against eager float32 gradients; print the table."""
    from ..build import build
    from ..execution import tune
    from ..training.plan import BATCHES_TO_MEASURE

    loaded = named_recipe(arguments.recipe, arguments.overrides, trust_code=arguments.trust_code)
    built = build(loaded, say=say)
    table = tune(
        built.settings()["execution"],
        model=built.model,
        loss=built.loss,
        optimizer=built.optimizer,
        batches=[built.train.batch_at(0, i) for i in range(min(BATCHES_TO_MEASURE, len(built.train)))],
        steps_expected=loaded.epochs * built.steps_per_epoch,
        precision=loaded.precision,
        max_grad_norm=loaded.max_grad_norm,
        clip_value=loaded.clip_value,
        budget_s=arguments.seconds,
        thorough=True,
        say=say,
    )
    say(table.render())
    return 0
