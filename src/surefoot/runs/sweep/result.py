"""What a sweep found: a table, the importance of each key, the best recipe as a file, a page with all of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ... import files
from ...errors import RunFailed
from ...recipe import load_recipe
from ...text import figure
from ...tracking.page import html_table, page, section
from ..table import Column, rendered
from .study import Study

_WIDTH, _HEIGHT, _MARGIN = 720, 320, 60
_MOST_LINES = 400


@dataclass(frozen=True)
class Trial:
    """One trial: its number, values by key, state, and the mean of its trainings' best."""

    number: int
    values: dict[str, Any]
    state: str
    value: float | None


class Result:
    """The trials of a study that have been told, the best first."""

    def __init__(self, study: Study):
        self.study, plan = study, study.plan
        sign = 1.0 if plan.mode == "min" else -1.0
        trials = [Trial(t.number, study.values_of(t), t.state.name.lower(), t.value) for t in study.trials()]
        self.trials = sorted(
            trials,
            key=lambda trial: (math.inf if _value(trial) is None else sign * trial.value, trial.number),  # type: ignore[operator]
        )
        self.best = next((trial for trial in self.trials if _value(trial) is not None), None)

    def importance(self) -> dict[str, float]:
        """How much of the difference between good and other trials each key explains (PED-ANOVA); {} of too few."""
        import optuna

        if sum(_value(trial) is not None for trial in self.trials) < 4:
            return {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an evaluator is called experimental
                evaluator = optuna.importance.PedAnovaImportanceEvaluator()
                found = optuna.importance.get_param_importances(self.study.study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # values of one kind only
            return {}
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of the table."""
        keys, metric = list(self.study.plan.sweep.search), self.study.plan.metric
        heads = ["trial", metric, *keys, "state"]
        rows = [
            [
                str(trial.number),
                "" if _value(trial) is None else figure(metric, trial.value or 0.0),
                *(_shown(trial.values.get(key)) for key in keys),
                "" if trial.state == "complete" else trial.state,
            ]
            for trial in self.trials
        ]
        return heads, rows

    def as_text(self, width: int | None, most: int = 20) -> list[str]:
        """Table and importance for a terminal."""
        heads, rows = self.rows()
        columns = [Column(heads[0], right=True), Column(heads[1], right=True), *(Column(head) for head in heads[2:-1])]
        lines = rendered([*columns, Column("", rank=1)], rows[:most], width)
        if len(rows) > most:
            lines.append(f"and {len(rows) - most} more")
        if importance := self.importance():
            lines += ["", "importance"]
            lines += rendered(
                [Column(""), Column("", right=True)], [[key, f"{100 * part:.0f} %"] for key, part in importance.items()]
            )[1:]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        plan = self.study.plan
        return {
            "metric": plan.metric,
            "mode": plan.mode,
            "trials": [vars(trial) for trial in self.trials],
            "importance": self.importance(),
            "best": None if self.best is None else vars(self.best),
        }

    def write(self) -> list[Path]:
        """Write best.yaml and sweep.html into the sweep's directory. Raises RunFailed where that fails."""
        directory, plan = self.study.directory, self.study.plan
        texts = {directory / "sweep.html": self.as_page()}
        if self.best is not None:
            recipe = load_recipe(plan.recipe, plan.arguments(self.best.values, 0))
            texts[directory / "best.yaml"] = recipe.to_yaml()
        for path, text in texts.items():
            try:
                files.write_durably(path, text.encode(errors="backslashreplace"))
            except OSError as error:
                raise RunFailed(f"{path}: cannot be written: {error.strerror}", code="cannot-write") from error
        return sorted(texts)

    def as_page(self) -> str:
        """One page that needs no network."""
        plan = self.study.plan
        heads, rows = self.rows()
        importance = [[key, f"{100 * part:.1f} %"] for key, part in self.importance().items()]
        name = self.study.directory.name
        better = "lower" if plan.mode == "min" else "higher"
        what = f"{plan.sweep.sampler} over {plan.recipe}, by {plan.metric}: {better} is better"
        sections = [
            f"<h1>{escape(name)}</h1>",
            f'<p class="dim">{escape(what)}</p>',
            section("Importance", html_table(["key", "part"], importance) if importance else ""),
            section("Every trial as a line", parallel_coordinates(self)),
            section("Trials", html_table(heads, rows)),
        ]
        return page(name, sections)


def parallel_coordinates(result: Result) -> str:
    """An SVG of the trials as lines over one axis for each key and one for the metric; the best is drawn strongest."""
    done = [trial for trial in result.trials if _value(trial) is not None][:_MOST_LINES]
    keys = list(result.study.plan.sweep.search)
    if len(done) < 2:
        return ""
    columns = [[trial.values.get(key) for trial in done] for key in keys] + [[trial.value for trial in done]]
    log = [getattr(each, "log", False) for each in result.study.plan.sweep.search.values()] + [False]
    places = [_places(column, is_log) for column, is_log in zip(columns, log, strict=True)]
    across = [_MARGIN + index * (_WIDTH - 2 * _MARGIN) / len(keys) for index in range(len(keys) + 1)]
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="trials">']
    top, base = 40, _HEIGHT - 40

    def height(place: float) -> float:
        return base - place * (base - top)

    for rank, trial in reversed(list(enumerate(done))):
        spots = " ".join(f"{x:.1f},{height(axis[rank]):.1f}" for x, axis in zip(across, places, strict=True))
        strength = 1.0 if rank == 0 else 0.7 - 0.5 * rank / len(done)
        label = f"trial {trial.number}: {result.study.plan.metric} {trial.value:.5g}; " + ", ".join(
            f"{key}={_shown(trial.values.get(key))}" for key in keys
        )
        parts.append(
            f'<polyline class="c{0 if rank else 1}" style="fill:none;opacity:{strength:.2f}" points="{spots}">'
            f"<title>{escape(label)}</title></polyline>"
        )
    names = [*keys, result.study.plan.metric]
    for x, name, column in zip(across, names, columns, strict=True):
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{base}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 28}" text-anchor="middle">{escape(name)}</text>')
        low, high = _ends(column)
        parts.append(f'<text x="{x:.1f}" y="{base + 14}" text-anchor="middle">{escape(low)}</text>')
        parts.append(f'<text x="{x:.1f}" y="{top - 8}" text-anchor="middle">{escape(high)}</text>')
    return "\n".join([*parts, "</svg>"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _places(column: Sequence[Any], log: bool) -> list[float]:
    """Where each value lies between 0 and 1: by size, or by its place among the different values."""
    if all(map(_is_number, column)):
        numbers = [math.log(value) if log else float(value) for value in column]
        low, high = min(numbers), max(numbers)
        return [0.5 if high == low else (value - low) / (high - low) for value in numbers]
    names = sorted({_shown(value) for value in column})
    return [0.5 if len(names) == 1 else names.index(_shown(value)) / (len(names) - 1) for value in column]


def _ends(column: Sequence[Any]) -> tuple[str, str]:
    if all(map(_is_number, column)):
        return f"{min(column):.4g}", f"{max(column):.4g}"
    names = sorted({_shown(value) for value in column})
    return names[0][:16], names[-1][:16]


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)


def _value(trial: Trial) -> float | None:
    return trial.value if trial.state == "complete" and trial.value is not None else None
