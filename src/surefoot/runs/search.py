"""Which runs are asked for, and in which order: `optimizer.lr>0.01`, `--best val/accuracy`."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..registry import did_you_mean
from .record import Run

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_CONDITION = re.compile(r"(?P<key>[^<>=!]+?)\s*(?P<sign><=|>=|!=|==|=|<|>)\s*(?P<value>.*)", re.DOTALL)
# Properties of a run that are no setting of its recipe.
COLUMNS = ("path", "id", "name", "created", "status", "epochs", "steps", "step_s", "wall_s", "tags", "note", "version")
_NOTHING = object()


@dataclass(frozen=True)
class Condition:
    """One condition on a run's column, metric (its best value) or recipe key.

    A text is compared with what is written, which may look like a number: ``tags=1e-3``.

    >>> Condition.parse("optimizer.lr > 1e-2")
    Condition(key='optimizer.lr', sign='>', value=0.01, text='1e-2')
    """

    key: str
    sign: str
    value: Any
    text: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """From ``KEY SIGN VALUE``. Raises UsageError for anything else."""
        match = _CONDITION.fullmatch(text.strip())
        if match is None or not match["key"]:
            raise UsageError(
                f"--where {text!r}: is not KEY=VALUE with one of = != < <= > >=, e.g. 'optimizer.lr>0.01' "
                "(in quotes: a shell takes < and > for itself)"
            )
        value = _value(match["value"])
        text = value if isinstance(value, str) else match["value"]
        return cls(match["key"], match["sign"].replace("==", "="), value, text)

    def holds(self, run: Run) -> bool:
        """Whether it is so of `run`; False where the run has no such key."""
        found = value_of(run, self.key)
        if found is _NOTHING:
            return False
        if self.sign in ("=", "!="):
            return self._same(found) == (self.sign == "=")
        try:
            return bool(_OPERATORS[self.sign](found, self.text if isinstance(found, str) else self.value))
        except TypeError:  # a text and a number
            return False

    def _same(self, found: Any) -> bool:
        if isinstance(found, list) and not isinstance(self.value, list):
            return any(map(self._same, found))
        if isinstance(found, str):
            return found == self.text
        if isinstance(found, bool) or isinstance(self.value, bool):
            return found is self.value
        return bool(found == self.value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def value_of(run: Run, key: str) -> Any:
    """The value of a column, the best value of a metric, or a setting of the recipe; a mark where there is none."""
    if key in COLUMNS:
        return {"path": str(run.path), "status": run.status}.get(key, getattr(run.content, key, None))
    if (best := run.best(key)) is not None:
        return best[1]
    name = key.removeprefix("recipe.")
    for settings in (run.content.settings, {"epochs": run.content.planned}):
        if name in settings:
            return settings[name]
    return run.recipe.get(name, run.recipe.get(f"{name}.name", _NOTHING))


def select(runs: Sequence[Run], conditions: Sequence[Condition]) -> list[Run]:
    """The runs that every condition holds for. Raises UsageError for a key that none of them has."""
    for condition in conditions:
        _require_key(runs, condition.key, "--where")
    return [run for run in runs if all(condition.holds(run) for condition in conditions)]


def in_order(runs: Sequence[Run], *, best: str | None = None, key: str | None = None) -> list[Run]:
    """The best by the metric `best` first; or by the value of `key`, lowest first; else the newest first.

    Runs without a value come last. Raises UsageError for a metric or key that none of them has.
    """
    if best is None and key is None:
        return sorted(runs, key=lambda run: (run.content.created, str(run.path)), reverse=True)
    if best is not None:
        _require_key(runs, best, "--best", metric=True)
        return sorted(runs, key=lambda run: (_badness(run, best), str(run.path)))
    assert key is not None
    _require_key(runs, key, "--sort")
    return sorted(runs, key=lambda run: (*_rank(value_of(run, key)), str(run.path)))


def _badness(run: Run, metric: str) -> float:
    monitored = run.monitored(metric)
    if monitored is None:
        return math.inf
    value = run.content.metrics[metric].best(monitored[1])[0]
    return math.inf if math.isnan(value) else value if monitored[1] == "min" else -value


def _rank(value: Any) -> tuple[int, float, str]:
    """A place in an order of numbers, then texts, then what is missing."""
    if isinstance(value, int | float) and not math.isnan(value):
        return 0, float(value), ""
    return (2, 0.0, "") if value is _NOTHING or value is None else (1, 0.0, str(value))


def _require_key(runs: Sequence[Run], key: str, option: str, metric: bool = False) -> None:
    if not runs or any(run.best(key) if metric else value_of(run, key) is not _NOTHING for run in runs):
        return
    metrics = sorted({name for run in runs for name in run.content.metrics})
    keys = metrics if metric else sorted({*COLUMNS, *metrics, *(name for run in runs for name in run.recipe)})
    meant = did_you_mean(key, keys) or (f"; there are {', '.join(metrics[:12])}" if metrics else "")
    raise UsageError(f"{option} {key}: no run has this {'metric' if metric else 'key'}{meant}")
