"""`surefoot plan RECIPE`: the learning rate of the whole run, its length, memory and time, before it is spent."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import sys

from ..text import draw, printable, say
from .recipes import add_picture_argument, add_trust_argument, named_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, --svg, --json."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's file or packaged name")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides such as warmup.warmup_period=20")
    add_picture_argument(parser)
    parser.add_argument("--json", action="store_true", help="the numbers as one JSON object for machines")
    add_trust_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Build the recipe, draw its plan, time a few steps. Nothing is trained and nothing is written but the chart."""
    from ..build import build
    from ..losses import apply
    from ..planning import picture_path, plan_report
    from ..schedules.simulation import LaterGroup

    loaded = named_recipe(arguments.recipe, arguments.overrides, trust_code=arguments.trust_code)
    chart = picture_path(arguments.svg) if arguments.svg else None
    built = build(loaded, say=functools.partial(say, error=True))
    batch = built.train.peek()
    later = [LaterGroup(*joins) for joins in built.unfreezing.joining()] if built.unfreezing else []
    with contextlib.ExitStack() as stack:
        report = plan_report(
            built.schedule,
            built.steps_per_epoch,
            loaded.epochs,
            title=printable(loaded.name),
            model=built.model,
            batch=batch,
            apply=lambda model, given: apply(built.loss, model, given).loss,
            samples_per_epoch=built.train.samples,
            step=_timed_step(built, stack),
            later=later,
        )
    if chart is not None:
        report.save_svg(chart)
    if arguments.json:
        say(json.dumps(report.to_json(), indent=2))
        return 0
    width = shutil.get_terminal_size((100, 24)).columns
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    draw(report.render_terminal(min(width, 120), unicode, colour))
    if chart is not None:
        say(f"drawn: {chart}")
    return 0


def _timed_step(built, stack: contextlib.ExitStack):
    """One update as the run would do it. The objects are this process's own and are thrown away afterwards."""
    from ..execution import prepare
    from ..step import NonFinite, TrainStep
    from ..training.plan import choose_plan, use_plan

    recipe = built.recipe
    step = TrainStep(built.model, built.loss, built.optimizer, built.step_options())
    batches = [built.train.batch_at(0, i) for i in range(min(recipe.grad_accum_steps, len(built.train)))]
    state: list = []

    def once() -> None:
        if not state:
            # Only now: what was told of the schedule and the memory is of untouched objects.
            steps = recipe.epochs * built.steps_per_epoch
            plan = choose_plan(built.execution, step, built.train, steps, lambda text: None)
            stack.enter_context(prepare(plan, built.model, built.optimizer))
            use_plan(plan, step, built.train, lambda text: None)
            state.append(plan)
        with contextlib.suppress(NonFinite):  # the run itself will say so
            step(batches)

    return once
