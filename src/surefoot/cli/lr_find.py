"""`surefoot lr-find RECIPE`: the range test (Smith 2015), on a copy of the state."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ..text import say, typed
from .recipes import add_chart_arguments, add_recipe_arguments, named_recipe, show_chart

if TYPE_CHECKING:
    from ..build import Built


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, --start, --end, --steps, --svg, --json."""
    add_recipe_arguments(parser, "data.batch_size=128")
    parser.add_argument("--start", type=float, default=1e-7, metavar="LR", help="the lowest rate (default: 1e-7)")
    parser.add_argument("--end", type=float, default=10.0, metavar="LR", help="the highest rate (default: 10)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="updates in between (default: 100)")
    add_chart_arguments(parser, "rates and losses")


def run(arguments: argparse.Namespace) -> int:
    """Raise the rate step by step, print the chart and a suggestion. Nothing is kept of the training."""
    from ..build import build
    from ..execution import as_torch_would, prepare
    from ..planning import lr_find, picture_path

    loaded = named_recipe(arguments.recipe, arguments.overrides, trust_code=arguments.trust_code)
    chart = picture_path(arguments.svg) if arguments.svg else None
    built = build(loaded, say=functools.partial(say, error=True))
    with prepare(as_torch_would(built.train.device.type)):
        result = lr_find(
            built.model,
            built.loss,
            built.optimizer,
            built.train,
            start=arguments.start,
            end=arguments.end,
            steps=arguments.steps,
            options=built.step_options(),
        )
    show_chart(result, chart, as_json=arguments.json)
    if result.suggestion is not None and not arguments.json:
        rates = _rates(built, result.suggestion)
        say(f"\ntry: {typed('surefoot', 'train', Path(arguments.recipe), *arguments.overrides, *rates)}")
    return 0


def _rates(built: Built, suggestion: float) -> list[str]:
    """The overrides by which the group with the highest rate has the suggested one, and the others in proportion."""
    recipe, optimizer = built.recipe, built.optimizer
    for path, section in recipe.scheduler.walk() if recipe.scheduler else ():
        if section.part.name in ("OneCycleLR", "CyclicLR"):  # they begin and end by their own, whatever groups have
            return [f"{path}.max_lr={suggestion:.2g}"]
    given = zip(optimizer.param_groups, built.schedule.undampened_lrs, strict=True)
    highest = max(float(group.get("initial_lr", lr)) for group, lr in given)
    default = float(recipe.optimizer.part.args.get("lr", optimizer.defaults.get("lr", highest)))
    keys = {"optimizer.lr": default}
    for index, group in enumerate(recipe.optimizer.groups):
        if "lr" in group.args:
            keys[f"optimizer.groups.{index}.lr"] = float(group.args["lr"])
    return [f"{key}={suggestion * (lr / highest if highest > 0 else 1):.2g}" for key, lr in keys.items()]
