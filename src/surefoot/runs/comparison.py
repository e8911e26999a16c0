"""Several runs beside one another: what differs, what each reached, which is better, and whether seeds explain it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..build.conditions import is_harmless
from ..checkpoint.run import RunDirectory, read_about
from ..errors import UsageError
from ..metrics.by_class import by_class
from ..text import counted, figure
from .curves import epoch_curves, last_confusion
from .listing import list_runs
from .record import Run, judged_alike, no_direction, open_run
from .seeds import Difference, Spread, difference

MOST_RUNS = 40
# Where the conditions of a run belong, by how their names begin. What follows from the recipe is not shown twice.
_PARTS = (
    ("data", ("data.",)),
    ("code", ("code.", "model", "loss")),
    ("versions", ("versions.",)),
    ("machine", ("device.", "threads", "flags.", "parallel.", "execution.", "variables.")),
)
_FROM_RECIPE = ("recipe.", "fit.", "loader.", "val.", "optimizer.", "checkpoint.", "metrics.")
_SEEDS = ("seed", "fit.seed", "loader.seed", "val.seed")
# How long a run is may change at a resume, and is nothing that seeds do.
_LENGTHS = ("epochs", "early_stopping.patience")


@dataclass(frozen=True)
class Row:
    """One thing that differs: the part of the run that it belongs to, its key, and its value in each run."""

    part: str
    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed and have a value; `name` is the first one's path."""

    name: str
    runs: tuple[int, ...]
    spread: Spread


class Comparison:
    """Runs to be compared, judged by `metric` (else the first one's own). Raises UsageError where they cannot be."""

    def __init__(self, runs: Sequence[Run], metric: str | None = None):
        if len(runs) < 2:
            raise UsageError(f"compare: {len(runs)} run is too few; name two or more, or a directory that holds them")
        if len(runs) > MOST_RUNS:
            raise UsageError(f"compare: {len(runs)} runs; {MOST_RUNS} is the most that a chart can show")
        runs = self.runs = judged_alike(runs)
        self.conditions = [(read_about(run.path) or {}).get("conditions") or {} for run in runs]
        # Of a run from Python, what its conditions say in place of a recipe.
        self.settings = [
            run.recipe or _starting(conditions, _FROM_RECIPE)
            for run, conditions in zip(runs, self.conditions, strict=True)
        ]
        monitored = next((found for run in runs if (found := run.monitored(metric)) is not None), None)
        if monitored is None:
            what = "none has finished an epoch" if metric is None else f"none has the metric {metric!r}"
            there = sorted({name for run in runs for name in run.content.metrics})
            raise UsageError(f"compare: {what}" + (f"; they have {', '.join(there[:12])}" if there else ""))
        self.metric, self.mode = monitored
        self.curves = [epoch_curves(run.path) for run in runs]
        self.confusions = [last_confusion(run.path) for run in runs]

    def values(self, metric: str) -> list[float | None]:
        """The best value of a metric in each run."""
        bests = [run.best(metric) for run in self.runs]
        return [None if best is None else best[1] for best in bests]

    def metrics(self) -> list[str]:
        """The metrics that at least two runs have, the one that they are judged by first."""
        names = list(dict.fromkeys(name for run in self.runs for name in run.content.metrics))
        shared = [name for name in names if sum(name in run.content.metrics for run in self.runs) > 1]
        return [self.metric, *(name for name in shared if name != self.metric)]

    def differences(self) -> list[Row]:
        """What is not the same in all runs: the recipe's settings, then data, code, versions and machine."""
        rows = [*_differing("recipe", self.settings)]
        for part, beginnings in _PARTS:
            rows += _differing(part, [_starting(conditions, beginnings) for conditions in self.conditions])
        return rows

    def order(self) -> list[int]:
        """The numbers of the runs, the best first; those without a value last."""
        sign = 1.0 if self.mode == "min" else -1.0
        values = self.values(self.metric)

        def badness(index: int) -> float:
            value = values[index]
            return float("inf") if value is None or value != value else sign * value

        return sorted(range(len(self.runs)), key=lambda index: (badness(index), index))

    def groups(self) -> list[Group]:
        """The runs by what they are apart from their seed, the best group first."""
        kinds: dict[str, list[int]] = {}
        for index, (settings, conditions) in enumerate(zip(self.settings, self.conditions, strict=True)):
            others = _starting(conditions, tuple(b for part, names in _PARTS if part != "machine" for b in names))
            kept = {name: value for name, value in settings.items() if _sets_a_run_apart(name)}
            kinds.setdefault(json.dumps([kept, others], sort_keys=True, default=str), []).append(index)
        values = self.values(self.metric)
        groups = []
        for members in kinds.values():
            if numbers := {index: value for index in members if (value := values[index]) is not None}:
                groups.append(Group(str(self.runs[min(numbers)].path), tuple(numbers), Spread(tuple(numbers.values()))))
        sign = 1.0 if self.mode == "min" else -1.0
        # One that has NaN comes last: it has no place in an order.
        return sorted(groups, key=lambda group: (math.isnan(group.spread.mean), sign * group.spread.mean))

    def by_class(self) -> list[tuple[str, list[float | None]]]:
        """The recall of each class in each run, the class that differs most first; [] where runs lack them."""
        known = [found for found in self.confusions if found is not None]
        if len(known) < 2 or len({tuple(names) for names, _ in known}) > 1:
            return []
        tables = [None if found is None else by_class(*found) for found in self.confusions]
        rows = [
            (name, [None if table is None else table[index]["recall"] for table in tables])
            for index, name in enumerate(known[0][0])
        ]

        def apart(row: tuple[str, list[float | None]]) -> float:
            there = [value for value in row[1] if value is not None]
            return max(there) - min(there) if there else 0.0

        return sorted(rows, key=lambda row: -apart(row))

    def verdict(self, seeds: bool) -> list[str]:
        """Which is better, in sentences."""
        reason = no_direction(self.runs, self.metric)
        guessed = [f"{reason}; the lower are taken for it."] if reason else []
        return [*guessed, *(self._of_groups() if seeds else self._of_runs())]

    def _of_runs(self) -> list[str]:
        values, order = self.values(self.metric), self.order()
        best, second = order[0], order[1]
        first, other = values[best], values[second]
        if first is None or math.isnan(first):
            return [f"no run has a value of {self.metric} that is a number: there is nothing to compare"]
        if other is None or math.isnan(other):
            return [f"only {self.runs[best].path} has a value of {self.metric}: there is nothing to compare it with"]
        what = f"{figure(self.metric, first)} against {figure(self.metric, other)}"
        if first == other:
            return [f"{self.runs[best].path} and {self.runs[second].path} are equally good: {self.metric} {what}"]
        return [
            f"{self.runs[best].path} is the best: {self.metric} {what} of the next ({self.runs[second].path})",
            "Whether seeds alone make such a difference is not known from one run each; train each with several seeds "
            "and give --seeds.",
        ]

    def _of_groups(self) -> list[str]:
        groups = self.groups()
        if len(groups) < 2:
            return ["The runs differ in nothing but the seed: one group, and nothing to compare it with."]
        return [self._against(groups[0], group) for group in groups[1:]]

    def _against(self, best: Group, other: Group) -> str:
        found: Difference | None = difference(best.spread.values, other.spread.values)
        seeds = [f"{group.name} ({counted(len(group.runs), 'seed')})" for group in (best, other)]
        head = f"{seeds[0]} against {seeds[1]}: {self.metric}"
        if math.isnan(other.spread.mean):
            lost = sum(math.isnan(value) for value in other.spread.values)
            return f"{head} is NaN in all epochs of {lost} of the {counted(len(other.runs), 'seed')} of {other.name}"
        if found is None:
            apart = best.spread.mean - other.spread.mean
            return f"{head} {_signed(self.metric, apart)}; one seed in a group says nothing of what seeds make"
        interval = f"95 % interval {_signed(self.metric, found.low)} to {_signed(self.metric, found.high)}"
        size = "larger than seeds make" if found.beyond_seeds else "not larger than what seeds make"
        return f"{head} {_signed(self.metric, found.value)} ({interval}, p = {found.p:.2g}): {size}"

    def to_json(self, seeds: bool) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "metric": self.metric,
            "mode": self.mode,
            "runs": [run.to_json(self.metric) for run in self.runs],
            "order": [str(self.runs[index].path) for index in self.order()],
            "differences": [vars(row) for row in self.differences()],
            "recall_by_class": [{"class": name, "recall": values} for name, values in self.by_class()],
            "groups": [
                {
                    "runs": [str(self.runs[index].path) for index in group.runs],
                    "values": group.spread.values,
                    "mean": group.spread.mean,
                    "deviation": group.spread.deviation,
                }
                for group in self.groups()
            ],
            "verdict": self.verdict(seeds),
        }


def runs_named(paths: Sequence[str], passed_over: Callable[[str], None]) -> list[Run]:
    """The runs in `paths`: each a run, or a directory that holds runs. What is none in such a one is printed."""
    runs: dict[str, Run] = {}
    for path in paths:
        if RunDirectory.holds_run(path) or not Path(path).is_dir():
            found = [open_run(path)]
        else:
            listing = list_runs(path)
            found = listing.runs
            for line in listing.passed_over:
                passed_over(line)
            if not found:
                raise UsageError(f"{path}: holds no run, nor does any directory below it", code="run-missing")
        runs |= {str(run.path.resolve()): run for run in found}
    return list(runs.values())


def _sets_a_run_apart(key: str) -> bool:
    """Whether runs that differ in this setting differ in more than the seed, the machine and how they are watched."""
    return key not in _SEEDS and (key in _LENGTHS or not is_harmless(key))


def _starting(conditions: Mapping[str, Any], beginnings: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in conditions.items() if name.startswith(beginnings)}


def _differing(part: str, tables: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for key in dict.fromkeys(key for table in tables for key in table):
        values = tuple(table.get(key) for table in tables)
        if len({json.dumps(value, sort_keys=True, default=str) for value in values}) > 1:
            yield Row(part, key, values)


def _signed(metric: str, value: float) -> str:
    return ("+" if value > 0 else "") + figure(metric, value)
