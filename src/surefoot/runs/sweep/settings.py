"""A sweep's file: the recipe, the keys that are varied and between what; every mistake with its place."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ...errors import Problems, UsageError
from ...recipe import Recipe, load_recipe, packaged_names
from ...recipe.dump import flow
from ...recipe.frozen import Frozen
from ...recipe.kinds import Choice, Kind, Maybe, Monitor, Several, Text, Whole
from ...recipe.mappings import read_section
from ...recipe.nodes import Entries, Items, Problem, Refused, Scalar
from ...recipe.reading import INVALID, Reading
from ...recipe.sections import Keyed, key
from ...recipe.yaml_source import read_text, read_tree
from ...text import shortened
from ..record import settings_of_text

MOST_TRIALS = 100_000
# Keys of a recipe that change no result of a trial.
_NO_RESULT = ("name", "on_end", "tensorboard", "trackers")
_BETWEEN = ("low", "high", "step", "log")


@dataclass(frozen=True)
class Values:
    """One of these values, each as the recipe would have it."""

    values: tuple[Any, ...]

    def grid(self) -> tuple[Any, ...]:
        """What stands for each value in Optuna: its place, since values may be lists, and equal (true and 1)."""
        return tuple(range(len(self.values)))

    def ends(self) -> tuple[Any, ...]:
        """The values that a check tries."""
        return self.values


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`, both included; whole numbers where both ends are."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers lie between."""
        return all(isinstance(end, int) for end in (self.low, self.high, self.step or 1))

    def grid(self) -> tuple[Any, ...]:
        """The values a `step` apart; () without a step."""
        if self.step is None:
            return ()
        if self.whole:
            return tuple(range(int(self.low), int(self.high) + 1, int(self.step))[: MOST_TRIALS + 1])
        low, high, step = (Decimal(repr(number)) for number in (self.low, self.high, self.step))
        count = int(min((high - low) / step, Decimal(MOST_TRIALS))) + 1
        return tuple(float(low + index * step) for index in range(count))  # 0.1 + 2 * 0.1 is 0.3

    def ends(self) -> tuple[Any, ...]:
        """Both ends."""
        return self.low, self.high


class Space(Kind):
    """Dotted keys, each with a list of values or with the ends between which it lies."""

    expected = "a mapping of a recipe's keys to values, e.g. {optimizer.lr: {low: 0.001, high: 0.1, log: true}}"

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        if not isinstance(node, Entries) or not node.entries:
            return self.mismatch(node, path, reading)
        found = {}
        for name, value in node.entries.items():
            reading.keys[f"{path}.{name}"] = node.keys.get(name, node.where)
            reading.values[f"{path}.{name}"] = value.where
            found[name] = self._range(value, f"{path}.{name}", reading)
        return INVALID if any(value is INVALID for value in found.values()) else Frozen(found)

    def _range(self, node: Any, path: str, reading: Reading) -> Any:
        if isinstance(node, Items):
            values = [_plain(item) for item in node.items]
            if not values:
                return reading.refuse(path, "an empty list; give the values to try, e.g. [0.01, 0.1]")
            return Values(tuple(values))
        if isinstance(node, Entries):
            return self._between(node, path, reading)
        return reading.refuse(
            path, "is no choice; give a list, e.g. [0.01, 0.1], or {low: 0.001, high: 0.1, log: true}"
        )

    def _between(self, node: Entries, path: str, reading: Reading) -> Any:
        given: dict[str, Any] = {name: _plain(value) for name, value in node.entries.items()}
        if unknown := [name for name in given if name not in _BETWEEN]:
            return reading.refuse(path, f"unknown key {unknown[0]!r}; a range has {', '.join(_BETWEEN)}")
        low, high, step, log = (given.get(name) for name in _BETWEEN)  # type: Any, Any, Any, Any
        for name, value in (("low", low), ("high", high), *((("step", step),) if step is not None else ())):
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
                shown = shortened(repr(value))
                return reading.refuse(path, f"{name}: {shown} is no finite number; give low and high")
        if not low < high:
            return reading.refuse(path, f"low {low} is not below high {high}")
        if not high - low <= sys.float_info.max:
            return reading.refuse(path, f"from low {low:g} to high {high:g} is more than a number can hold")
        if log is not None and not isinstance(log, bool):
            return reading.refuse(path, f"log: {log!r} is not true or false")
        if log and (low <= 0 or step is not None):
            return reading.refuse(path, "log needs a low above 0 and no step")
        if step is not None and not 0 < step <= high - low:
            return reading.refuse(path, f"step {step} is not above 0 and at most {high - low}")
        return Between(low, high, step, bool(log))

    def plain(self, value: Any) -> Any:
        return {
            name: list(each.values)
            if isinstance(each, Values)
            else {key: part for key, part in vars(each).items() if part is not None and part is not False}
            for name, each in value.items()
        }


def _plain(node: Any) -> Any:
    if isinstance(node, Items):
        return [_plain(item) for item in node.items]
    if isinstance(node, Entries):
        return {name: _plain(value) for name, value in node.entries.items()}
    return getattr(node, "value", None)


@dataclass(frozen=True, kw_only=True)
class Sweep(Keyed):
    """What a sweep's file says."""

    recipe: str = key(Text("a recipe's file or packaged name"), "What is trained.")
    overrides: tuple[str, ...] = key(Several(Text("a text such as epochs=3")), "Changes to it in every trial.", ())
    search: Frozen = key(Space(), "The keys that are varied.")
    sampler: str = key(Choice(("tpe", "random", "grid")), "How values are chosen.", "tpe")
    trials: int | None = key(Maybe(Whole(1, "give at least one", MOST_TRIALS)), "How many settings are tried.", None)
    seeds: int = key(
        Whole(1, "give at least one", 1000), "How often each setting is trained, with seeds of its own.", 1
    )
    seed: int = key(Whole(0, "give 0 or more"), "Where the choice of values starts.", 0)
    metric: str | None = key(Maybe(Monitor()), "What is made best.", None)
    mode: str | None = key(Maybe(Choice(("min", "max"))), "Which is better: lower or higher.", None)
    pruner: str = key(Choice(("none", "median", "hyperband")), "What ends a trial that is behind the others.", "none")
    storage: str | None = key(
        Maybe(Text("a URL that Optuna takes, or a file for its journal")), "Where the trials are kept.", None
    )

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, as Optuna's parameters, the last key varying fastest."""
        axes = [each.grid() for each in self.search.values()]
        return [dict(zip(self.search, values, strict=True)) for values in itertools.product(*axes)]


@dataclass(frozen=True)
class Plan:
    """A sweep with what its recipe settles: number of trials, metric and direction, epochs, seed.

    `settings` are the recipe's, by dotted key, without those that change no result.
    """

    sweep: Sweep
    recipe: str
    trials: int
    metric: str
    mode: str
    epochs: int
    seed: int
    settings: Mapping[str, Any]
    storage: str | None = None

    def arguments(self, values: Mapping[str, Any], seed: int) -> list[str]:
        """The overrides of one training: those of all, the values of its trial, its seed."""
        varied = [f"{name}={as_override(value)}" for name, value in values.items()]
        return [*self.sweep.overrides, *varied, *([f"seed={self.seed + seed}"] if self.sweep.seeds > 1 else [])]

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a sweep to go on: all but the number of trials and where they are kept."""
        plain = self.sweep.plain()
        return {name: value for name, value in plain.items() if name not in ("trials", "storage")}


def as_override(value: Any) -> str:
    """A value as it stands behind the = of an override.

    >>> as_override({"name": "StepLR", "step_size": 1}), as_override(0.01), as_override(None)
    ('{"name": "StepLR", "step_size": 1}', '0.01', 'null')
    """
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else flow(value)


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """The sweep in the file `path`, checked with its recipe. Raises Problems with every mistake."""
    if not os.path.lexists(path):
        raise UsageError(f"{path}: no such file; give the file of a sweep (docs/runs.md shows one)")
    return parse_plan(read_text(Path(path)), str(path))


def parse_plan(text: str, name: str = "sweep.yaml") -> Plan:
    """The sweep that a text stands for; `load_plan` reads one from a file. A recipe's path is relative to the file."""
    problems: list[Problem] = []
    try:
        tree = read_tree(text, name, problems)
    except Refused as error:
        raise Problems([*problems, error]) from None
    if not isinstance(tree, Entries):
        raise Problems([*problems, f"{name}:1:1: is no sweep; give recipe, search and trials"], code="sweep")
    reading = Reading(problems)
    sweep: Sweep = read_section(Sweep, tree, "", reading)
    if reading.problems:
        found: list[Problem] = sorted(set(reading.problems), key=lambda each: each.where)
        raise Problems(found)

    def wrong(path: str, message: str) -> Problems:
        return Problems([Problem(reading.where(path), path, message)], code="sweep")

    recipe = sweep.recipe if sweep.recipe in packaged_names() else str(Path(name).parent / sweep.recipe)
    base = load_recipe(recipe, [*sweep.overrides])
    before: list[str] = []
    for key_name, each in sweep.search.items():
        if lost := [name for name in before if name.startswith(f"{key_name}.")]:
            raise wrong(f"search.{key_name}", f"takes the place of {lost[0]}, which stands before it; put it first")
        before.append(key_name)
        if key_name in ("name", "seed", "device") or key_name.split(".")[0] in ("checkpoint", "tensorboard"):
            raise wrong(
                f"search.{key_name}", "is nothing to search over; `seeds` trains each setting with several seeds"
            )
        tried: dict[str, str] = {}
        for value in map(as_override, each.ends()):
            try:
                loaded = load_recipe(recipe, [*sweep.overrides, f"{key_name}={value}"])
            except UsageError as error:
                raise wrong(f"search.{key_name}", str(error).partition("\n")[0]) from None
            if (twin := tried.setdefault(known(settings_of_text(loaded.to_yaml())), value)) is not value:
                raise wrong(f"search.{key_name}", f"{twin} and {value} are one setting; give it once")
    metric, mode = _metric(sweep, base, wrong)
    storage = sweep.storage
    if storage is not None and "://" not in storage:
        storage = str(Path(name).parent / storage)
    return Plan(sweep, recipe, _trials(sweep, wrong), metric, mode, base.epochs, base.seed, _settings(base), storage)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe differs from the defaults, as JSON gives it back."""
    settings = settings_of_text(recipe.brief_yaml())
    kept = {key: value for key, value in settings.items() if key.split(".")[0] not in _NO_RESULT}
    return dict(json.loads(json.dumps(kept, default=str)))


def known(settings: Mapping[str, Any]) -> str:
    """A text that is equal for equal settings: 1 and 1.0 are one value, 1 and true are two."""
    plain = json.dumps(settings, default=str, sort_keys=True)

    def number(text: str) -> str:
        return f"number {Decimal(text).normalize()}"

    return str(json.loads(plain, parse_int=number, parse_float=number))


def _metric(sweep: Sweep, recipe: Recipe, wrong: Any) -> tuple[str, str]:
    from ...monitor import settled

    checkpoint = recipe.checkpoint
    metric = sweep.metric or (checkpoint.keep_best if checkpoint is not None else None)
    if metric is None:
        raise wrong("metric", "the recipe keeps no best model, so say what is made best, e.g. metric: val/accuracy")
    own = checkpoint.mode if checkpoint is not None and metric == checkpoint.keep_best else None
    try:
        return metric, settled(sweep.mode or own, metric, "metric")
    except UsageError as error:
        raise wrong("metric", str(error).removeprefix("metric: ")) from None


def _trials(sweep: Sweep, wrong: Any) -> int:
    if sweep.sampler != "grid":
        if sweep.trials is None:
            raise wrong("trials", f"missing; {sweep.sampler} needs to know how many settings are tried")
        return sweep.trials
    for name, each in sweep.search.items():
        if not each.grid():
            raise wrong(f"search.{name}", "a grid needs values: a list, or a range with a step")
    size = math.prod(len(each.grid()) for each in sweep.search.values())
    if size > MOST_TRIALS:
        raise wrong("search", f"the grid has {size:,} settings; {MOST_TRIALS:,} are the most")
    return size if sweep.trials is None else min(size, sweep.trials)
