"""What no single key shows: defaults that follow from other keys, arguments by the registries, keys that clash."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..metrics.registry import OWN, RESERVED
from ..monitor import better, contradiction
from ..registry import Registry, did_you_mean, imports_in
from ..text import counted, shortened, typed
from .data_section import Normalize
from .key_aliases import elsewhere
from .model import Recipe, SchedulerSection
from .reading import Reading, join, text_remedy
from .run_sections import CheckpointSection, EarlyStoppingSection
from .sections import Part, keys_of

PLATEAU = "ReduceLROnPlateau"
NORM_AND_BIAS = "norm_and_bias"
COMPOSITES = ("SequentialLR", "ChainedScheduler")
# The schedulers that torch's documentation moves after every batch.
BY_STEP = ("OneCycleLR", "CyclicLR")

# Where the registry of each kind of part is; loaded when a recipe is checked, because most of them need torch.
_REGISTRIES = {
    "loss": ("surefoot.losses", "LOSSES"),
    "objective": ("surefoot.losses", "OBJECTIVES"),
    "metric": ("surefoot.metrics.registry", "METRICS"),
    "optimizer": ("surefoot.optimizers", "OPTIMIZERS"),
    "scheduler": ("surefoot.schedules", "SCHEDULERS"),
    "warmup": ("surefoot.schedules", "WARMUPS"),
    "model": ("surefoot.models", "MODELS"),
    "data": ("surefoot.data", "DATA"),
    "augmentation": ("surefoot.data", "AUGMENTATIONS"),
}


def all_registries() -> dict[str, Registry]:
    """Surefoot's own registries, by the kind of part. Imports torch."""
    return {kind: getattr(importlib.import_module(m), name) for kind, (m, name) in _REGISTRIES.items()}


def settle(recipe: Recipe, reading: Reading) -> Recipe:
    """`recipe` with the defaults that follow from other keys: modes, and what schedulers count and watch."""
    changes: dict[str, Any] = {}
    if recipe.early_stopping is not None and recipe.early_stopping.mode is None:
        changes["early_stopping"] = replace(recipe.early_stopping, mode=better(recipe.early_stopping.monitor))
    if recipe.checkpoint is not None and recipe.checkpoint.mode is None:
        watched = recipe.checkpoint.keep_best
        changes["checkpoint"] = replace(recipe.checkpoint, mode="min" if watched is None else better(watched))
    if recipe.scheduler is not None and recipe.scheduler.part is not None:
        changes["scheduler"] = _settle_scheduler(recipe.scheduler, reading)
    return replace(recipe, **changes)


def _settle_scheduler(section: SchedulerSection, reading: Reading) -> SchedulerSection:
    by = section.by
    if by is None:
        usual = {"step" if part.name in BY_STEP else "epoch": part.name for part in section.leaves()}
        if len(usual) > 1:
            message = f"{usual['step']} usually goes by step and {usual['epoch']} by epoch; give by: step or by: epoch"
            reading.refuse("scheduler", message)
        by = "epoch" if "epoch" in usual else "step"
    monitors = list(dict.fromkeys(inner.monitor for _, inner in section.walk() if inner.monitor is not None))
    if len(monitors) > 1:
        reading.refuse("scheduler", f"its parts watch {' and '.join(monitors)}; one metric can be watched")
    default = "val/loss" if any(part.name == PLATEAU for part in section.leaves()) else None
    return _spread(section, by, monitors[0] if monitors else default, "scheduler", reading)


def _spread(section: SchedulerSection, by: str, monitor: str | None, path: str, reading: Reading) -> SchedulerSection:
    """`section` and its parts, all counting `by` and, where they can, watching `monitor`."""
    if section.by not in (None, by):
        reading.refuse(join(path, "by"), f"{section.by} differs from the {by} of the scheduler around it")
    children = [
        child if child.part is None else _spread(child, by, monitor, f"{path}.schedulers.{i}", reading)
        for i, child in enumerate(section.children)
    ]
    # A class of the user's own may be a plateau too.
    watches = any(part.name == PLATEAU or part.imported for part in section.leaves())
    if section.monitor is not None and not watches:
        reading.refuse(join(path, "monitor"), f"{section.part.name} watches no metric; only {PLATEAU} does")
    return replace(section, by=by, monitor=monitor if watches else None, children=tuple(children))


def check_parts(recipe: Recipe, reading: Reading, registries: Mapping[str, Registry] | None) -> None:
    """Note what the registries refuse: unknown names, arguments unknown, missing, of a wrong type or out of range.

    A user's own imported part is checked when it is built. `registries` None stands for all of Surefoot's.
    """
    if registries is None:
        registries = all_registries()
        _check_lint_names(recipe, reading)
    for kind, part, section in recipe.parts():
        if part is not None and not part.imported and kind in registries:
            _check_part(part, registries[kind], keys_of(section) if section else {}, reading)
    optimizer = recipe.optimizer
    if optimizer is None or optimizer.part is None or optimizer.part.imported or "optimizer" not in registries:
        return
    for index, group in enumerate(optimizer.groups):
        options = Part(optimizer.part.name, group.args, path=f"optimizer.groups.{index}")
        _check_part(options, registries["optimizer"], keys_of(type(group)), reading, partial=True)


def _check_part(
    part: Part, registry: Registry, reserved: Mapping[str, Any], reading: Reading, *, partial: bool = False
) -> None:
    """One part's problems; with `partial`, the arguments are some of them and the name is checked elsewhere."""
    name_place = reading.values.get(join(part.path, "name"))
    if part.name not in registry:
        if not partial:
            reading.refuse(part.path, _unknown_name(part.name, registry), name_place, code="unknown-name")
        return
    parameters = registry[part.name].parameters()
    unknown: set[str] = set()
    for problem in registry.problems(part.name, part.args):
        argument = problem.argument
        if argument is None:
            if not partial:
                reading.refuse(part.path, problem.message, name_place, code="part-arguments")
            continue
        here = join(part.path, argument)
        value = part.args.get(argument)
        if argument not in parameters:
            if argument in unknown:
                continue  # whatever else is wrong with it
            unknown.add(argument)
            keys = [*parameters, *reserved]
            belongs = elsewhere(argument, part.path, keys)
            meant = f"; {belongs}" if belongs else did_you_mean(argument, keys)
            message = f"{part.name} has no argument {argument!r}{meant}" if meant else problem.message
            place = reading.keys.get(here) or reading.where(here)
            reading.refuse(part.path, message, place, code="part-arguments")
        elif not any(imports_in(value)):  # a function of the user's own is checked when it is built
            remedy = text_remedy(value, problem.message) if isinstance(value, str) else ""
            reading.refuse(here, problem.message + remedy, code="part-arguments")


def _unknown_name(name: str, registry: Registry) -> str:
    last = name.rpartition(".")[2]  # of torch.optim.SGD and nn.MSELoss the last part is the name
    near = f"; write {last}" if last in registry else did_you_mean(name, registry.names()) or registry.remedy(name)
    if not near:
        own = f"; your own is {{import: my_package.module:{name}}}" if name.isidentifier() else ""
        near = f"; the names are: {', '.join(registry.names())}{own}"
    return f"unknown {registry.kind} {shortened(name)!r}{near}"


def _check_lint_names(recipe: Recipe, reading: Reading) -> None:
    from ..losses import FINDINGS

    for index, name in enumerate(recipe.lint_off):
        if name not in FINDINGS and name != "all":
            near = did_you_mean(name, FINDINGS) or f"; `{typed('surefoot', 'explain')}` lists them"
            reading.refuse(f"lint_off.{index}", f"unknown check {name!r}{near}", code="unknown-name")


def check_together(recipe: Recipe, reading: Reading) -> None:
    """Note keys that are right on their own and clash with one another."""
    _check_measured(recipe, reading)
    _check_mode(recipe.early_stopping, "monitor", "early_stopping", reading)
    _check_mode(recipe.checkpoint, "keep_best", "checkpoint", reading)
    if recipe.scheduler is not None:
        for path, section in recipe.scheduler.walk():
            _check_composite(section, path, reading)
            _check_plateau(section, path, reading)
    spared = recipe.optimizer.no_decay if recipe.optimizer is not None else None
    if isinstance(spared, tuple) and NORM_AND_BIAS in spared:
        message = f"{NORM_AND_BIAS} stands alone and not in a list, which is one of patterns"
        reading.refuse("optimizer.no_decay", message)
    if recipe.data is not None and isinstance(recipe.data.normalize, Normalize):
        means, deviations = len(recipe.data.normalize.mean), len(recipe.data.normalize.std)
        if means != deviations:
            message = f"mean has {counted(means, 'number')} and std has {deviations}; give as many of each"
            reading.refuse("data.normalize", message)
    if recipe.unfreeze and not recipe.freeze and "freeze" not in reading.values:
        reading.refuse("unfreeze", "nothing is frozen; give freeze: with the patterns of what starts frozen")
    for index, unfreeze in enumerate(recipe.unfreeze):
        if None not in (unfreeze.epoch, recipe.epochs) and unfreeze.epoch >= recipe.epochs:
            message = f"epoch {unfreeze.epoch} never comes: epochs are counted from 0 and the run has {recipe.epochs}"
            reading.refuse(f"unfreeze.{index}.epoch", message)


def _check_measured(recipe: Recipe, reading: Reading) -> None:
    """Metrics have names of their own, and what is watched is among them, where `metrics` says what that is."""
    terms = () if isinstance(recipe.metrics, str) else recipe.metrics
    if _had_problem("metrics", reading):
        return
    names = ["loss", *(OWN if isinstance(recipe.metrics, str) else ())]
    for index, term in enumerate(terms):
        name = term.label or (None if term.part.imported else term.part.name)
        if name is not None and (name in names or name in RESERVED):
            taken = "a record has that already" if name in RESERVED else "another metric is called so"
            path = f"metrics.{index}.as" if f"metrics.{index}.as" in reading.values else f"metrics.{index}"
            reading.refuse(path, f"{name}: {taken}; give this one a name, as: NAME")
        names += [] if name is None else [name]
    names += OWN if "auto" in names else ()
    if recipe.objective is not None or any(term.part.imported and not term.label for term in terms):
        return  # the first batch will tell
    watched = {
        "early_stopping.monitor": recipe.early_stopping and recipe.early_stopping.monitor,
        "checkpoint.keep_best": recipe.checkpoint and recipe.checkpoint.keep_best,
        "scheduler.monitor": recipe.scheduler and recipe.scheduler.monitor,
    }
    for path, metric in ((path, str(metric)) for path, metric in watched.items() if metric):
        split, _, name = metric.partition("/")
        if name.partition(".")[0] not in names:
            begin = [f"; did you mean '{split}/{known}'?" for known in names if known.startswith(name)]
            near = begin[0] if begin else did_you_mean(metric, [f"{split}/{known}" for known in names])
            near = near or f"; add {name} to metrics"
            reading.refuse(path, f"{metric} is not measured{near}")


def _check_mode(
    section: EarlyStoppingSection | CheckpointSection | None, metric: str, path: str, reading: Reading
) -> None:
    watched = getattr(section, metric, None)
    if section is None or watched is None or _had_problem(path, reading):
        return
    if wrong := contradiction(watched, section.mode):
        reading.refuse(join(path, "mode"), wrong)


def _check_composite(section: SchedulerSection, path: str, reading: Reading) -> None:
    """A composite has parts, and as many milestones as go with them; no other scheduler has any."""
    part, here = section.part, join(path, "schedulers")
    if part is None:
        return
    if part.name not in COMPOSITES or part.imported:
        if section.children:
            reading.refuse(here, f"{part.name} has no parts; {' and '.join(COMPOSITES)} have")
    elif not section.children:
        if here not in reading.values:
            reading.refuse(path, f"{part.name} needs schedulers: a list of its parts")
        elif not _had_problem(here, reading):
            reading.refuse(here, f"{part.name} needs at least one scheduler")
    elif part.name == "SequentialLR":
        milestones, most = part.args.get("milestones"), len(section.children) - 1
        if isinstance(milestones, tuple) and len(milestones) != most:
            both = f"{counted(len(milestones), 'milestone')} for {counted(most + 1, 'scheduler')}"
            reading.refuse(join(path, "milestones"), f"{both}; give one fewer, {most}")


def _check_plateau(section: SchedulerSection, path: str, reading: Reading) -> None:
    """A plateau goes by epoch, and its mode is that of the metric."""
    part = section.part
    if part is None or part.name != PLATEAU or part.imported:
        return
    if path == "scheduler" and section.by == "step":
        message = f"{PLATEAU} watches {section.monitor}, which is known once an epoch; leave by out"
        reading.refuse(join(path, "by"), message)
    mode = part.args.get("mode", "min")
    right = better(section.monitor)
    if mode in ("min", "max") and section.monitor and right is not None and mode != right:
        remedy = f"give mode: {right}"
        message = f"mode {mode} would take the worst {section.monitor} for the best; {remedy}"
        reading.refuse(join(path, "mode" if "mode" in part.args else "monitor"), message)


def _had_problem(path: str, reading: Reading) -> bool:
    return any(problem.path.startswith(path) for problem in reading.problems)
