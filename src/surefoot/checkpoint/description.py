"""Live objects in words: the settings that a user gave, as conditions, so that a resume sees what has changed."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..arguments import plain
from ..data import Loader
from ..fingerprint import Fingerprint
from ..schedules.rebasing import cycled, rebase
from ..world import World
from ..wrapping import own_classes, submodules
from .conditions import environment, require_alike
from .user_code import code_of

# What schedulers write into the groups; it follows from the rate that was given.
_SCHEDULERS = ("params", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr", "name")
# A model of more parts is compared as a whole.
_MOST_PARTS = 300
# So deep is looked into callables that hold others: a list of transforms, say.
_MOST_DEEP = 5
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def own_conditions(objects: Mapping[str, Any], world: World, given: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions that objects, code, data, this process and its ranks make of a run, beside those `given`."""
    with own_classes(value for value in objects.values() if isinstance(value, nn.Module)):
        conditions = {
            **environment(),
            **({"world.ranks": world.size} if world.size > 1 else {}),  # one is as it always was
            **describe(objects),
            **code_of(objects.values()),
        }
    if "data.train" not in given:
        for key, value in objects.items():
            if isinstance(value, Loader):
                conditions[f"data.{key}"] = value.source.fingerprint()
    return conditions


def run_conditions(objects: Mapping[str, Any], world: World, given: Mapping[str, Any]) -> dict[str, Any]:
    """All conditions of a run, as plain values: what is `given`, and what follows from its `objects`, by name.

    Raises UsageError where the ranks of `world` would not train the same.
    """
    conditions: dict[str, Any] = plain({**own_conditions(objects, world, given), **given})
    world.ask_anew()
    return world.agree(lambda: require_alike(world.gather(conditions), world.rank))


def describe(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `objects`: ``model.0: Linear(in_features=8, ...)``, ``optimizer.lr: 0.1``, ``loader.augment: [...]``.

    Of modules: class, `extra_repr` and constructor arguments that are kept as attributes. Of optimizers: each group's
    values as given, before any scheduler moved them. Of loaders: all settings. Of other callables: class and
    attributes.
    """
    described: dict[str, Any] = {}
    for key, value in objects.items():
        if isinstance(value, torch.optim.swa_utils.AveragedModel):
            continue
        if isinstance(value, nn.Module):
            described |= _module(key, value)
        elif isinstance(value, torch.optim.Optimizer):
            groups = initial_group_options(value, objects)
            for index, group in enumerate(groups):
                described |= {f"{prefix(key, index, len(groups))}.{name}": _shown(item) for name, item in group.items()}
        elif isinstance(value, Loader):
            described |= {f"{key}.{name}": item for name, item in value.settings().items() if name != "samples"}
            described[f"{key}.preprocessing"] = repr(value.preprocessing)
            described[f"{key}.augment"] = [_text(transform) for transform in value.augment]
        elif callable(value) and not hasattr(value, "state_dict"):
            described[key] = _text(value)
    return described


def comparable(saved: Mapping[str, Any], now: Mapping[str, Any], objects: Iterable[str]) -> list[dict[str, Any]]:
    """Both sets of conditions, without those that the recipe states already and that are compared there."""
    recipe = any(name.startswith("recipe.") for name in now)
    built = {*objects, "checkpoint", "loss", "metrics", "val"} if recipe else set()
    # Which of torch's implementations of an update runs is an execution setting, where there is one.
    planned = (".foreach", ".fused") if any(name.startswith("execution.") for name in now) else ()

    def counts(name: str) -> bool:
        return name.partition(".")[0] not in built and not (planned and name.endswith(planned))

    return [{name: value for name, value in each.items() if counts(name)} for each in (saved, now)]


def initial_options(objects: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The options of every optimizer's param groups as they were given, by the optimizer's key."""
    return {k: initial_group_options(v, objects) for k, v in objects.items() if isinstance(v, torch.optim.Optimizer)}


def use_changed(
    objects: Mapping[str, Any],
    given: Mapping[str, list[dict[str, Any]]],
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
) -> None:
    """Let options that differ between the conditions `saved` and `now` take effect: loading put the old ones back."""
    for key, groups in given.items():
        optimizer = objects[key]
        rates: dict[int, tuple[Any, Any]] = {}
        for index, options in enumerate(groups):
            where = prefix(key, index, len(groups))
            for name, value in options.items():
                was = saved.get(f"{where}.{name}")
                if f"{where}.{name}" not in saved or was == now.get(f"{where}.{name}"):
                    continue
                if name == "lr":
                    rates[index] = (was, value)
                else:
                    optimizer.param_groups[index][name] = value
        if rates:
            holders = [o for o in objects.values() if getattr(o, "optimizer", None) is optimizer]
            rebase(optimizer, next((o for o in holders if hasattr(o, "undampened_lrs")), None), holders, rates)


def prefix(key: str, index: int, groups: int) -> str:
    """What the settings of one param group are named after."""
    return key if groups == 1 else f"{key}.{index}"


def initial_group_options(optimizer: torch.optim.Optimizer, objects: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The options of each param group as they were given; a rate is that without scheduler and warmup.

    What OneCycleLR or CyclicLR has written over is left out: the schedule compares its own arguments.
    """
    movers = [o for o in objects.values() if getattr(o, "optimizer", 0) is optimizer]
    rates = next((o.undampened_lrs for o in movers if hasattr(o, "undampened_lrs")), None)
    hidden = {*_SCHEDULERS, *(name for o in movers for name in cycled(getattr(o, "scheduler", o)))}
    every = []
    for index, group in enumerate(optimizer.param_groups):
        options = {name: value for name, value in group.items() if name not in hidden}
        if "lr" in options:
            now = options["lr"] if rates is None else rates[index]
            rate = group.get("initial_lr", now)
            options["lr"] = None if rate is None else float(rate)  # one that computes its own may have none
        every.append(options)
    return every


def _module(key: str, module: nn.Module) -> dict[str, Any]:
    parts = {f"{key}.{name}" if name else key: text for name, part in submodules(module) if (text := _text(part))}
    if len(parts) > _MOST_PARTS:
        return {f"{key}.structure": Fingerprint.of(parts)}
    return parts


def _text(value: Any, depth: int = 0) -> str:
    """``Dropout(p=0.5)``: a class with the constructor arguments that an object shows or keeps as attributes."""
    kind = type(value)
    if inspect.isroutine(value) or isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    shown = value.extra_repr() if isinstance(value, nn.Module) else ""
    if isinstance(value, functools.partial):
        given = [*enumerate(value.args), *value.keywords.items()]
        shown = ", ".join([_text(value.func, depth), *(f"{n}={_shown(_setting(item, depth))}" for n, item in given)])
    arguments = () if isinstance(value, functools.partial) else _arguments(value, depth)
    kept = [f"{name}={_shown(item)}" for name, item in arguments if f"{name}=" not in shown]
    text = f"{kind.__qualname__}({', '.join([shown] * bool(shown) + kept)})"
    return re.sub(r" at 0x[0-9a-f]+", "", text)  # where an object lies differs from process to process


def _arguments(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    try:
        names = inspect.signature(type(value).__init__).parameters
    except (TypeError, ValueError):
        return
    for name in names:
        item = getattr(value, name, None) if name != "self" else None
        if isinstance(value, nn.Module) and isinstance(item, nn.Module):
            continue  # a part, described as such
        if (setting := _setting(item, depth)) is not None:
            yield name, setting


def _setting(item: Any, depth: int) -> Any:
    """What of an argument is compared; None for one that computes nothing itself (a configuration, a mapping)."""
    if isinstance(item, _PLAIN):
        return item
    if depth > _MOST_DEEP:
        return type(item).__qualname__
    if isinstance(item, torch.Tensor):
        return None if isinstance(item, nn.Parameter) else f"{tuple(item.shape)} {Fingerprint.of(item)[:16]}"
    if isinstance(item, list | tuple):
        if len(item) > _MOST_PARTS and not all(isinstance(inner, _PLAIN) for inner in item):
            return None
        settings = [_setting(inner, depth + 1) for inner in item]
        return (
            None if any(s is None and inner is not None for s, inner in zip(settings, item, strict=True)) else settings
        )
    return _text(item, depth + 1) if callable(item) else None


def _shown(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else Fingerprint.of(value)
    return list(value) if isinstance(value, tuple) else value
