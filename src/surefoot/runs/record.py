"""One run as its directory tells it: what it is, who holds it, what it reached; read without changing anything."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import operator
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from .. import files
from ..checkpoint.run import JOURNAL, RUN, STATUSES, RunDirectory, holder, read_about
from ..errors import UsageError
from ..monitor import MODES, better
from ..tracking.journal import NOT_METRICS, encode, not_a_record, run_records
from ..version import __version__
from .labels import LABELS, Labels, read_labels

RECIPE = "recipe.yaml"
# A run's metric without a direction of its own is shown by the first of these that it has.
USUAL_METRICS = ("val/accuracy", "val/loss", "train/loss")
_KEPT_BY = ("checkpoint.keep_best", "checkpoint.mode")
_MOST_RECIPE_BYTES = 4 * 1024 * 1024
_MOST_SETTINGS = 5000
_MOST_METRICS = 200
_EPOCH_RECORD = b'"kind": "epoch"'
# Bytes of a journal that is read as one text: many lines at once are parsed faster than one by one.
_SHORT = 1 << 20
_RECORDS_AT_ONCE = 1000
_VALUE = operator.itemgetter(0)
_FILES = (RUN, JOURNAL, RECIPE, LABELS)


@dataclass
class Reached:
    """The values of one metric over the epochs: the last, and the lowest and highest with their epochs."""

    last: float
    low: float
    low_epoch: int
    high: float
    high_epoch: int

    def best(self, mode: str) -> tuple[float, int]:
        """The best value and its epoch, where `mode` is "min" or "max"."""
        return (self.low, self.low_epoch) if mode == "min" else (self.high, self.high_epoch)


@dataclass
class Content:
    """What the files of a run say: plain values, so that an index can keep them."""

    id: str | None = None
    name: str = ""
    created: str = ""
    status: str = "damaged"
    version: str = ""
    inexact: list[str] = field(default_factory=list)
    epochs: int = 0
    planned: int | None = None
    steps: int = 0
    wall_s: float = 0.0
    step_s: float | None = None
    metrics: dict[str, Reached] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    note: str = ""
    problems: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON would hold it."""
        return {**vars(self), "metrics": {name: list(vars(value).values()) for name, value in self.metrics.items()}}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Content:
        """Back from `plain`. Raises TypeError for anything else."""
        return cls(**{**plain, "metrics": {name: Reached(*value) for name, value in plain["metrics"].items()}})


@dataclass(frozen=True)
class Run:
    """A run directory, and what its files say; who holds it is asked each time."""

    path: Path
    content: Content
    # Which values of a metric are better, where a run that this one is compared with says so.
    directions: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def held_by(self) -> str | None:
        """The process that has the run's lock, in words."""
        return holder(self.path)

    @property
    def status(self) -> str:
        """running, interrupted, done, failed; killed where it says running and nobody has it; damaged."""
        return seen_status(self.content.status, self.held_by)

    def monitored(self, metric: str | None = None) -> tuple[str, str] | None:
        """The metric that this run is judged by, or `metric`, with "min" or "max"; None where it has no such."""
        for name in (self.own_metric[0], *USUAL_METRICS) if metric is None else (metric,):
            if isinstance(name, str) and name in self.content.metrics:
                return name, self.direction(name) or "min"
        return None

    def direction(self, metric: str) -> str | None:
        """Which values of a metric are better, "min" or "max"; None where neither a run nor its name says so."""
        own, mode = self.own_metric
        direction = self.directions.get(metric) or (mode if metric == own else None) or better(metric)
        return direction if direction in MODES else None

    @property
    def own_metric(self) -> tuple[Any, Any]:
        """The metric that the run keeps the best model by, and its mode."""
        metric, mode = (self.content.settings.get(key) for key in _KEPT_BY)
        return metric, mode

    def best(self, metric: str | None = None) -> tuple[str, float, int] | None:
        """Name, best value and epoch (from 0) of the metric that `monitored` gives."""
        monitored = self.monitored(metric)
        return None if monitored is None else (monitored[0], *self.content.metrics[monitored[0]].best(monitored[1]))

    @functools.cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe's settings by dotted key; {} for a run without a recipe, or whose recipe cannot be read."""
        return recipe_settings(self.path)

    def to_json(self, metric: str | None = None) -> dict[str, Any]:
        """The run as a plain mapping for machines; NaN and infinities as the journal writes them."""
        best = self.best(metric)
        content = {name: value for name, value in vars(self.content).items() if name != "settings"}
        metrics = {name: asdict(value) for name, value in self.content.metrics.items()}
        whole = {
            "path": str(self.path),
            **content,
            "metrics": metrics,
            "status": self.status,
            "held_by": self.held_by,
            "best": None if best is None else dict(zip(("metric", "value", "epoch"), best, strict=True)),
            "recipe": self.content.settings,
        }
        found: dict[str, Any] = json.loads(encode(whole))
        return found


def judged_alike(runs: Iterable[Run]) -> list[Run]:
    """The same runs, a metric having one direction in all of them: that of the first run that gives it one."""
    runs, directions = list(runs), dict[str, str]()
    for run in runs:
        own, mode = run.own_metric
        if isinstance(own, str) and mode in MODES:
            directions.setdefault(own, mode)
    return [replace(run, directions=directions) for run in runs]


def no_direction(runs: Iterable[Run], metric: str) -> str:
    """The message that nothing says which values of a metric are better; "" where a run or its name does."""
    known = any(run.direction(metric) for run in runs)
    return "" if known else f"neither a run nor the name of {metric} says which values are better"


def seen_status(status: str, held_by: str | None) -> str:
    """The status of a run that run.json gives as `status`, or as damaged, seen from outside."""
    if held_by is not None and status != "damaged":
        return "running"
    return "killed" if status == "running" else status


def open_run(path: str | Path) -> Run:
    """The run in the directory `path`. Raises UsageError where there is none."""
    path = Path(path)
    if not path.is_dir():
        what = "is a file, not a run directory" if path.exists() else "no such run directory"
        raise UsageError(f"{path}: {what}; `surefoot runs` lists what there is")
    if not RunDirectory.holds_run(path):
        raise UsageError(f"{path}: holds no run ({RUN} is missing); `surefoot runs {path}` lists those below it")
    return Run(path, read_content(path))


def signature(path: Path) -> list[list[int] | None]:
    """What tells that the files that `read_content` reads are the same as before."""
    found: list[list[int] | None] = []
    for name in _FILES:
        try:
            status = os.lstat(os.path.join(path, name))
        except OSError:
            found.append(None)
        else:
            found.append([status.st_mtime_ns, status.st_size, status.st_ino])
    return found


def read_content(path: Path) -> Content:
    """What the files of a run say; what is lost, damaged or of another form is named in `problems`, never raised."""
    about = read_about(path)
    content = _of_about(about) if about is not None else Content()
    if about is None:
        lost = "is damaged" if os.path.lexists(path / RUN) else "is missing"
        content.problems.append(f"{RUN} {lost}")
    if _is_newer(content.version):
        content.problems.append(
            f"made by surefoot {content.version}, newer than this {__version__}: shown as far as it is understood"
        )
    content.planned = _planned_epochs(path)
    _add_journal(content, path / JOURNAL)
    labels = Labels()
    try:
        labels = read_labels(path)
    except UsageError as error:
        content.problems.append(str(error))
    content.tags, content.note = list(labels.tags), labels.note
    return content


def _of_about(about: Mapping[str, Any]) -> Content:
    conditions = about.get("conditions")
    conditions = conditions if isinstance(conditions, dict) else {}
    name, created = (about[key][:200] if isinstance(about.get(key), str) else "" for key in ("name", "created"))
    status = about.get("status")
    inexact = about.get("inexact")
    settings = {key.removeprefix("recipe."): value for key, value in conditions.items() if key.startswith("recipe.")}
    # What they came to; of a run from Python they are all that there is.
    settings |= {key: conditions[key] for key in _KEPT_BY if key in conditions}
    return Content(
        id=str(about["id"])[:80],
        name=name,
        created=created,
        status=status if status in STATUSES else "damaged",
        version=str(conditions.get("versions.surefoot", ""))[:40],
        inexact=[str(item)[:200] for item in inexact] if isinstance(inexact, list) else [],
        settings=settings,
        problems=[] if status in STATUSES else [f"{RUN}: its status is none that this version knows"],
    )


def _is_newer(version: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d{1,6}", text)[:3]]

    return numbers(version) > numbers(__version__)


def _planned_epochs(path: Path) -> int | None:
    """The recipe's epochs, which are no condition of a run: they may change at a resume."""
    with contextlib.suppress(OSError):
        if match := re.search(rb"^epochs: (\d{1,9})$", files.read_bounded(path / RECIPE, _MOST_RECIPE_BYTES), re.M):
            return int(match[1])
    return None


def _add_journal(content: Content, path: Path) -> None:
    """Add what the epochs' records say; `epochs`, `metrics`, times, and what is no record."""
    damaged: list[str] = []
    try:
        short = _short_journal(path)
        records = run_records(path, damaged.append, only=_EPOCH_RECORD) if short is None else short
        _add_records(content, records)
    except FileNotFoundError:
        return
    except OSError as error:
        content.problems.append(f"{path}: {error.strerror or error}")
    except UsageError as error:
        content.problems.append(str(error))
    except OverflowError:  # an integer that no float holds
        content.problems.append(f"{path}: a number in it is out of range")
    if damaged:
        content.problems.append(f"{damaged[0]}{f' (and {len(damaged) - 1} more)' if len(damaged) > 1 else ''}")


def _short_journal(path: Path) -> list[dict[str, Any]] | None:
    """The epochs' records of a journal that is short, read as one text; None where it is long or anything is odd."""
    descriptor = files.open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, size) if size <= _SHORT else b""
    finally:
        os.close(descriptor)
    if size > _SHORT or b'NaN"' in data or b'Infinity"' in data:
        return None
    whole = data[: data.rfind(b"\n") + 1]
    lines = [line for line in whole.split(b"\n") if _EPOCH_RECORD in line]
    try:
        records = json.loads(b"[%b]" % b",".join(lines))
    except (ValueError, RecursionError):
        return None
    right = len(records) == len(lines) and not any(
        type(record) is not dict or not_a_record(record) for record in records
    )
    return records if right else None


def _add_records(content: Content, records: Iterable[Mapping[str, Any]]) -> None:
    step, wall, times = 0, 0.0, list[float]()
    columns: dict[str, dict[str, list[tuple[float, int]]]] = {}
    for number, record in enumerate(records, 1):
        before, at = step, wall
        step, wall, split, epoch = record["step"], float(record.get("wall_s", 0.0)), record["split"], record["epoch"]
        if split == "train" and step > before and wall > at:
            times.append((wall - at) / (step - before))
        if epoch >= content.epochs:
            content.epochs = epoch + 1
        own = columns.get(split)
        if own is None:
            own = columns[split] = {}
        for name, value in record.items():
            if name not in NOT_METRICS and isinstance(value, (int, float)):
                column = own.get(name)
                if column is None:
                    column = own[name] = []
                column.append((float(value), epoch))
        if number % _RECORDS_AT_ONCE == 0:
            _note(content.metrics, columns)
            times = times[-5:]
    _note(content.metrics, columns)
    content.steps, content.wall_s = step, wall
    # The last few epochs: the first one may have compiled or measured.
    content.step_s = statistics.median(times[-5:]) if times else None


def _note(metrics: dict[str, Reached], columns: dict[str, dict[str, list[tuple[float, int]]]]) -> None:
    """Take in the values (with their epochs) of metrics by split and name, and empty `columns`."""
    for split, own in columns.items():
        for key, column in own.items():
            name = f"{split}/{key}"[:100]
            known = [(value, epoch) for value, epoch in column if value == value] or column[:1]
            low, high = min(known, key=_VALUE), max(known, key=_VALUE)  # of equals the first
            entry = metrics.get(name)
            if entry is None and len(metrics) < _MOST_METRICS:
                metrics[name] = Reached(column[-1][0], *low, *high)
            elif entry is not None:
                entry.last = column[-1][0]
                if low[0] < entry.low or math.isnan(entry.low):
                    entry.low, entry.low_epoch = low
                if high[0] > entry.high or math.isnan(entry.high):
                    entry.high, entry.high_epoch = high
    columns.clear()


def recipe_settings(path: Path) -> dict[str, Any]:
    """The settings of a run's recipe.yaml by dotted key; {} where there is none that can be read."""
    try:
        return settings_of_text(files.read_bounded(path / RECIPE, _MOST_RECIPE_BYTES))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}


def settings_of_text(text: str | bytes) -> dict[str, Any]:
    """The settings by dotted key of a recipe that Surefoot has written. Raises YAMLError or ValueError for no YAML."""
    # Plain scalars, lists and mappings only. Surefoot writes it so that YAML 1.1 and 1.2 mean the same.
    tree = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text).get_single_data()
    return dict(itertools.islice(_flat(tree, ""), _MOST_SETTINGS)) if isinstance(tree, dict) else {}


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{path}.{number}")
    else:
        yield path, value


def shown_time(created: str) -> str:
    """A run's time of creation as a clock on this wall shows it.

    >>> shown_time("yesterday")
    'yesterday'
    """
    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return created[:16]
