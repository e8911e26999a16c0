"""`surefoot check RECIPE`: every check that can be made before training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..text import counted, say
from .recipes import add_recipe_arguments, named_recipe

if TYPE_CHECKING:
    from ..data import Loader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE and overrides."""
    add_recipe_arguments(parser, "optimizer.lr=3e-4")


def run(arguments: argparse.Namespace) -> int:
    """Read the recipe, build all of it, check its first batch and its plan. 0 where it can be trained."""
    from ..build import build
    from ..losses import lint
    from ..planning import mistakes
    from ..tracking.trackers import require_tracker
    from ..training.checks import measuring, try_validation

    loaded = named_recipe(arguments.recipe, arguments.overrides, trust_code=arguments.trust_code)
    for name in loaded.trackers:
        require_tracker(name)
    built = build(loaded, say=say)
    classes = len(built.about.classes) if built.about.classes else None
    findings = lint(
        built.model,
        built.loss,
        built.optimizer,
        built.train.peek(),
        classes=classes,
        off=loaded.lint_off,
        last=built.train.short_batch(),
    )
    if not any(finding.severity == "error" for finding in findings):
        if built.val is not None:
            try_validation(built.model, built.loss, built.val)
        run = built.settings()["run"]
        watched = built.schedule, run.checkpoints, run.early_stopping
        measuring(built.model, built.loss, built.train, built.val, built.metrics, *watched)
    for finding in (*findings, *mistakes(built.schedule, built.steps_per_epoch, loaded.epochs)):
        say(finding)
    parameters = sum(p.numel() for p in built.model.parameters())
    training, validation = map(_amount, (built.train, built.val))
    fatal = any(loaded.strict or finding.severity == "error" for finding in findings)
    verdict = "it cannot be trained as it is" if fatal else "the recipe is sound"
    say(f"{loaded.name}: {verdict}")
    say(f"  model   {loaded.model.part.name}, {counted(parameters, 'parameter')}")
    say(f"  data    {training} to train, {validation} to validate")
    say(f"  run     {counted(loaded.epochs, 'epoch')} of {counted(built.steps_per_epoch, 'step')}")
    say(f"  check   {counted(len(findings), 'finding')} on the first batch")
    return 2 if fatal else 0


def _amount(loader: Loader | None) -> str:
    """How many samples an epoch has."""
    if loader is None:
        return "none"
    return "a stream" if loader.samples is None else counted(loader.samples, "sample")
