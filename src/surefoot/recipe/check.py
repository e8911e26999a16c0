"""What no single key shows: defaults that follow from other keys, arguments by the registries, keys that clash."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..monitor import better, contradiction
from ..registry import Registry, did_you_mean
from ..text import counted, typed
from .elsewhere import elsewhere
from .model import Recipe, SchedulerSection
from .reading import Reading, join, shortened, text_remedy
from .sections import Part, keys_of

PLATEAU = "ReduceLROnPlateau"
NORM_AND_BIAS = "norm_and_bias"
COMPOSITES = ("SequentialLR", "ChainedScheduler")
# The schedulers that torch's documentation moves after every batch.
BY_STEP = ("OneCycleLR", "CyclicLR")

# Where the registry of each kind of part is; loaded when a recipe is checked, because most of them need torch.
_REGISTRIES = {
    "model": ("surefoot.models", "MODELS"),
    "data": ("surefoot.data", "DATA"),
    "loss": ("surefoot.losses", "LOSSES"),
    "optimizer": ("surefoot.optimizers", "OPTIMIZERS"),
    "scheduler": ("surefoot.schedules", "SCHEDULERS"),
    "warmup": ("surefoot.schedules", "WARMUPS"),
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
        changes["checkpoint"] = replace(recipe.checkpoint, mode=better(recipe.checkpoint.keep_best) or "min")
    if recipe.scheduler is not None and recipe.scheduler.part is not None:
        changes["scheduler"] = _settle_scheduler(recipe.scheduler, "scheduler", reading)
    return replace(recipe, **changes) if changes else recipe


def _settle_scheduler(section: SchedulerSection, path: str, reading: Reading) -> SchedulerSection:
    by = section.by
    if by is None:
        usual = {"step" if part.name in BY_STEP else "epoch": part.name for part in _leaves(section)}
        if len(usual) > 1:
            message = f"{usual['step']} usually goes by step and {usual['epoch']} by epoch; give by: step or by: epoch"
            reading.refuse(reading.where(path), path, message)
        by = "epoch" if "epoch" in usual else "step"
    watched = dict.fromkeys(_monitors(section))
    if len(watched) > 1:
        told = " and ".join(watched)
        reading.refuse(reading.where(path), path, f"its parts watch {told}; one metric can be watched")
    monitor = next(iter(watched), "val/loss" if any(p.name == PLATEAU for p in _leaves(section)) else None)
    return _spread(section, by, monitor, path, reading)


def _spread(section: SchedulerSection, by: str, monitor: str | None, path: str, reading: Reading) -> SchedulerSection:
    """`section` and its parts, all counting `by` and, where they can, watching `monitor`."""
    if section.by not in (None, by):
        where = reading.where(join(path, "by"))
        reading.refuse(where, join(path, "by"), f"{section.by} differs from the {by} of the scheduler around it")
    children = [
        child if child.part is None else _spread(child, by, monitor, f"{path}.schedulers.{i}", reading)
        for i, child in enumerate(section.children)
    ]
    # A class of the user's own may be a plateau too.
    watches = any(part.name == PLATEAU or part.imported for part in _leaves(section))
    if section.monitor is not None and not watches:
        message = f"{section.part.name} watches no metric; only {PLATEAU} does"
        reading.refuse(reading.where(join(path, "monitor")), join(path, "monitor"), message)
    return replace(section, by=by, monitor=monitor if watches else None, children=tuple(children))


def _leaves(section: SchedulerSection) -> Iterator[Part]:
    """The parts that set a rate themselves; none is imported under a name of torch's."""
    if section.children:
        for child in section.children:
            yield from _leaves(child)
    elif section.part is not None:
        yield section.part


def _monitors(section: SchedulerSection) -> Iterator[str]:
    if section.monitor is not None:
        yield section.monitor
    for child in section.children:
        yield from _monitors(child)


def check_parts(recipe: Recipe, reading: Reading, registries: Mapping[str, Registry] | None) -> None:
    """Note what the registries refuse: unknown names, arguments unknown, missing, of a wrong type or out of range.

    A user's own imported part is checked when it is built. `registries` None stands for all of Surefoot's.
    """
    if registries is None:
        registries = all_registries()
        _check_lint_names(recipe, reading)
    for kind, part, section in _parts(recipe):
        if part is None or part.imported or kind not in registries:
            continue
        _check_part(part, registries[kind], keys_of(section) if section else {}, reading)
    optimizer = recipe.optimizer
    if optimizer is None or optimizer.part is None or optimizer.part.imported or "optimizer" not in registries:
        return
    for index, group in enumerate(optimizer.groups):
        path = f"optimizer.groups.{index}"
        options = Part(optimizer.part.name, group.args, path=path)
        _check_part(options, registries["optimizer"], keys_of(type(group)), reading, partial=True)


def _check_part(
    part: Part, registry: Registry, reserved: Mapping[str, Any], reading: Reading, *, partial: bool = False
) -> None:
    """One part's problems; with `partial`, the arguments are some of them and the name is checked elsewhere."""
    if part.name not in registry:
        if not partial:
            # torch.optim.SGD and nn.MSELoss: the last part is the name.
            last = part.name.rpartition(".")[2]
            near = f"; write {last}" if last in registry else did_you_mean(part.name, registry.names())
            own = f"your own is {{import: my_package.module:{part.name}}}" if part.name.isidentifier() else ""
            told = near or f"; the names are: {', '.join(registry.names())}" + (f"; {own}" if own else "")
            message = f"unknown {registry.kind} {shortened(part.name)!r}{told}"
            reading.refuse(_name_place(part, reading), part.path, message)
        return
    parameters = registry[part.name].parameters()
    unknown: set[str] = set()
    for problem in registry.problems(part.name, part.args):
        argument = problem.argument
        if argument is None:
            if not partial:
                reading.refuse(_name_place(part, reading), part.path, problem.message)
            continue
        here = join(part.path, argument)
        if argument in parameters:
            # A function of the user's own is looked at when it is built.
            value = part.args.get(argument)
            if not _is_import(value):
                remedy = text_remedy(value, problem.message) if isinstance(value, str) else ""
                reading.refuse(reading.where(here), here, problem.message + remedy)
        elif argument not in unknown:
            unknown.add(argument)
            keys = [*parameters, *reserved]
            place = elsewhere(argument, part.path, keys)
            meant = f"; {place}" if place else did_you_mean(argument, keys)
            message = f"{part.name} has no argument {argument!r}{meant}" if meant else problem.message
            reading.refuse(reading.keys.get(here, reading.where(here)), part.path, message)


def _is_import(value: Any) -> bool:
    """Whether an argument stands for a user's own function, ``{import: module:name}``, or is a list with such."""
    if isinstance(value, tuple):
        return any(map(_is_import, value))
    return isinstance(value, Mapping) and set(value) == {"import"}


def _check_lint_names(recipe: Recipe, reading: Reading) -> None:
    from ..losses import FINDINGS

    for index, name in enumerate(recipe.lint_off):
        if name not in FINDINGS and name != "all":
            path = f"lint_off.{index}"
            told = did_you_mean(name, FINDINGS) or f"; `{typed('surefoot', 'explain')}` lists them"
            reading.refuse(reading.where(path), path, f"unknown check {name!r}{told}")


def _name_place(part: Part, reading: Reading) -> Any:
    return reading.values.get(join(part.path, "name")) or reading.where(part.path)


def _parts(recipe: Recipe) -> Iterator[tuple[str, Part | None, type | None]]:
    """Every part of a recipe: its kind, itself (None where it is wrong), and the section that it stands in."""
    yield "model", recipe.model, None
    for kind in ("data", "optimizer", "warmup"):
        section = getattr(recipe, kind)
        if section is not None:
            yield kind, section.part, type(section)
    for part in recipe.data.augment if recipe.data else ():
        yield "augmentation", part, None
    for term in recipe.loss or ():
        yield "loss", term.part, type(term)
    if recipe.scheduler is not None:
        yield from _schedulers(recipe.scheduler)


def _schedulers(section: SchedulerSection) -> Iterator[tuple[str, Part | None, type]]:
    yield "scheduler", section.part, type(section)
    for child in section.children:
        yield from _schedulers(child)


def check_together(recipe: Recipe, reading: Reading) -> None:
    """Note keys that are right on their own and clash with one another."""
    _check_measured(recipe, reading)
    _check_mode(recipe.early_stopping, "monitor", "early_stopping", reading)
    _check_mode(recipe.checkpoint, "keep_best", "checkpoint", reading)
    if recipe.scheduler is not None:
        _check_scheduler(recipe.scheduler, "scheduler", reading)
    spared = recipe.optimizer.no_decay if recipe.optimizer is not None else None
    if isinstance(spared, tuple) and NORM_AND_BIAS in spared:
        message = f"{NORM_AND_BIAS} stands alone and not in a list, which is one of patterns"
        reading.refuse(reading.where("optimizer.no_decay"), "optimizer.no_decay", message)
    if recipe.data is not None and recipe.data.normalize not in (None, "auto"):
        means, deviations = len(recipe.data.normalize.mean), len(recipe.data.normalize.std)
        if means != deviations:
            message = f"mean has {counted(means, 'number')} and std has {deviations}; give as many of each"
            reading.refuse(reading.where("data.normalize"), "data.normalize", message)
    if recipe.unfreeze and not recipe.freeze and "freeze" not in reading.values:
        message = "nothing is frozen; give freeze: with the patterns of what starts frozen"
        reading.refuse(reading.where("unfreeze"), "unfreeze", message)
    for index, unfreeze in enumerate(recipe.unfreeze):
        path = f"unfreeze.{index}.epoch"
        if None not in (unfreeze.epoch, recipe.epochs) and unfreeze.epoch >= recipe.epochs:
            message = f"epoch {unfreeze.epoch} never comes: epochs are counted from 0 and the run has {recipe.epochs}"
            reading.refuse(reading.where(path), path, message)


def _check_measured(recipe: Recipe, reading: Reading) -> None:
    """What is watched is measured, where `metrics` says what that is."""
    if recipe.metrics == "auto" or "accuracy" in recipe.metrics:
        return
    watched = {
        "early_stopping.monitor": recipe.early_stopping and recipe.early_stopping.monitor,
        "checkpoint.keep_best": recipe.checkpoint and recipe.checkpoint.keep_best,
        "scheduler.monitor": recipe.scheduler and recipe.scheduler.monitor,
    }
    for path, metric in watched.items():
        if metric and metric.endswith("accuracy"):
            reading.refuse(reading.where(path), path, f"{metric} is not measured; add accuracy to metrics")


def _check_mode(section: Any, metric: str, path: str, reading: Reading) -> None:
    if section is None or getattr(section, metric) is None:
        return
    watched = getattr(section, metric)
    if _had_problem(path, reading):
        return
    if wrong := contradiction(watched, section.mode):
        here = join(path, "mode")
        reading.refuse(reading.where(here), here, wrong)


def _check_scheduler(section: SchedulerSection, path: str, reading: Reading) -> None:
    part = section.part
    if part is None:
        return
    where = reading.where(path)
    if part.name in COMPOSITES and not part.imported:
        if not section.children and join(path, "schedulers") not in reading.values:
            reading.refuse(where, path, f"{part.name} needs schedulers: a list of its parts")
        elif not section.children and not _had_problem(join(path, "schedulers"), reading):
            here = join(path, "schedulers")
            reading.refuse(reading.where(here), here, f"{part.name} needs at least one scheduler")
        milestones = part.args.get("milestones")
        if part.name == "SequentialLR" and section.children and isinstance(milestones, tuple):
            wanted = len(section.children) - 1
            if len(milestones) != wanted:
                here = join(path, "milestones")
                both = f"{counted(len(milestones), 'milestone')} for {counted(wanted + 1, 'scheduler')}"
                message = f"{both}; give one fewer, {wanted}"
                reading.refuse(reading.where(here), here, message)
    elif section.children:
        here = join(path, "schedulers")
        reading.refuse(reading.where(here), here, f"{part.name} has no parts; {' and '.join(COMPOSITES)} have")
    if part.name == PLATEAU and not part.imported:
        if path == "scheduler" and section.by == "step":
            here = join(path, "by")
            message = f"{PLATEAU} watches {section.monitor}, which is known once an epoch; leave by out"
            reading.refuse(reading.where(here), here, message)
        mode = part.args.get("mode", "min")
        if mode in ("min", "max") and section.monitor and mode != better(section.monitor):
            here = join(path, "mode" if "mode" in part.args else "monitor")
            remedy = f"give mode: {better(section.monitor)}"
            message = f"mode {mode} would take the worst {section.monitor} for the best; {remedy}"
            reading.refuse(reading.where(here), here, message)
    for index, child in enumerate(section.children):
        _check_scheduler(child, f"{path}.schedulers.{index}", reading)


def _had_problem(path: str, reading: Reading) -> bool:
    return any(problem.path.startswith(path) for problem in reading.problems)
