"""`surefoot plan RECIPE`: the learning rate of the whole run, its length, memory and time, before it is trained."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..text import printable, redraw, say
from .recipes import add_chart_arguments, add_recipe_arguments, named_recipe, show_chart

if TYPE_CHECKING:
    from ..build import Built


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, --svg, --json."""
    add_recipe_arguments(parser, "warmup.warmup_period=20")
    add_chart_arguments(parser, "the numbers")


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
        stack.callback(redraw)
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
            show=_show,
        )
    show_chart(report, chart, as_json=arguments.json)
    return 0


def _show(done: int, calls: int) -> None:
    """How far the rates of a long run are."""
    redraw(f"computing the learning rates: {100 * done / calls:.0f} % of {calls:,} calls of the scheduler")


def _timed_step(built: Built, stack: contextlib.ExitStack) -> Callable[[], None]:
    """One update as the run would do it. The objects are this process's own and are thrown away afterwards."""
    from ..execution import prepare
    from ..nonfinite import NonFinite
    from ..step import TrainStep
    from ..training.settings import choose_settings, use_settings

    recipe = built.recipe
    step = TrainStep(built.model, built.loss, built.optimizer, built.step_options())
    batches = [*built.train.first_batches(recipe.grad_accum_steps)]
    ready = False

    def once() -> None:
        nonlocal ready
        if not ready:
            # Only now: the schedule and the memory were described from unused objects.
            steps = recipe.epochs * built.steps_per_epoch
            execution = choose_settings(built.execution, step, built.train, steps, lambda text: None)
            stack.enter_context(prepare(execution, built.model, built.optimizer))
            use_settings(execution, step, built.train, lambda text: None)
            ready = True
        with contextlib.suppress(NonFinite):  # the run itself will say so
            step(batches)

    return once
