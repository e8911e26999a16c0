"""report.html: a run on one page that needs no network, made from its journal, recipe and run.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import files
from ..charts.svg import Line, Mark, line_chart
from ..errors import RunFailed, UsageError
from ..text import counted, duration
from .confusion import STYLE as _CONFUSION_STYLE
from .confusion import confusion_table, figures_by_class
from .journal import metrics_of, run_records
from .page import html_table, page, section
from .reliability import diagram
from .run_numbers import RunNumbers
from .validation import read_validation

MOST_COURSES, MOST_COLUMNS, MOST_TEXT, MOST_MARKS = 12, 40, 200_000, 50

_MOST_BYTES = 16 * 1024 * 1024  # of run.json or recipe.yaml


def write_report(
    run_dir: str | os.PathLike[str],
    *,
    validation: Mapping[str, Any] | None = None,
    brief: str = "",
) -> Path:
    """Write `run_dir`/report.html from what the directory holds, and return its path.

    `validation` is what a validation found, by the names of `read_validation`, else it is read from the directory;
    `brief` is what of the recipe differs from its defaults. Only metrics.jsonl has to be there; lines of it that are
    no records are named on the page. However long the run, this takes little memory and gives a page of at most 2 MB.
    Raises UsageError if the journal cannot be read, RunFailed if the report cannot be written.
    """
    run_dir = Path(run_dir)
    numbers = RunNumbers()
    found = read_validation(run_dir, numbers.leave_out) if validation is None else validation
    for record in run_records(run_dir / "metrics.jsonl", numbers.leave_out):
        numbers.add(record)
    page = render_report(
        numbers,
        run=_json_of(run_dir / "run.json"),
        recipe=_text_of(run_dir / "recipe.yaml"),
        name=run_dir.resolve().name,
        validation=found,
        brief=brief,
    )
    path = run_dir / "report.html"
    try:
        files.write_atomically(path, page.encode(errors="backslashreplace"))
    except OSError as error:
        raise RunFailed(
            f"{path}: the report cannot be written: {error.strerror}; make room or mend the disk, then resume the run"
        ) from error
    return path


def render_report(
    numbers: RunNumbers,
    *,
    run: Mapping[str, Any],
    recipe: str,
    name: str,
    validation: Mapping[str, Any] | None = None,
    brief: str = "",
) -> str:
    """The page itself; the same arguments give the same page."""
    found = validation or {}
    confusion, classes, reliability = found.get("confusion"), found.get("classes") or (), found.get("reliability")
    title = str(run.get("name") or name)
    resumes = _resumes(run)
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{escape(_byline(run))}</p>',
        _tiles(numbers),
    ]
    for heading, body in (
        ("Damaged", _listed([*map(str, run.get("damaged") or []), *numbers.left_out])),
        ("Training vs. Validation Loss", _metric_chart(numbers, "loss", resumes)),
        ("Accuracy", _metric_chart(numbers, "accuracy", resumes, percent=True)),
        ("Metrics", "".join(f"<h3>{escape(key)}</h3>{_metric_chart(numbers, key, resumes)}" for key in numbers.others)),
        ("Learning rate", _rate_chart(numbers, resumes)),
        ("Gradient norm", _metric_chart(numbers, "grad_norm", resumes)),
        ("Throughput", _speed_chart(numbers, resumes)),
        ("Epochs", _epoch_table(numbers)),
        ("By class", figures_by_class(confusion, classes) if confusion is not None else ""),
        ("Confusion matrix", confusion_table(confusion, classes) if confusion is not None else ""),
        ("Reliability", diagram(reliability) if reliability is not None else ""),
        ("Recipe", _recipe(recipe, brief)),
        ("Hardware and versions", _machine(run)),
        ("The run", _settings(run)),
    ):
        sections.append(section(heading, body))
    return page(title, sections, style=_CONFUSION_STYLE)


def _byline(run: Mapping[str, Any]) -> str:
    parts = [
        f"{word} {run[key]}"
        for key, word in (("id", "run"), ("created", "begun"), ("status", "status"))
        if run.get(key)
    ]
    if run.get("inexact"):
        parts.append("resumed inexactly: " + ", ".join(map(str, run["inexact"])))
    return " · ".join(parts)


def _listed(lines: Iterable[str]) -> str:
    lines = list(dict.fromkeys(lines))
    items = "".join(f"<li>{escape(line[:300])}</li>" for line in lines[:50])
    more = f"<p>and {len(lines) - 50} more</p>" if len(lines) > 50 else ""
    return f"<ul>{items}</ul>{more}" if lines else ""


def _tiles(numbers: RunNumbers) -> str:
    """The few figures that one looks for first."""
    tiles: list[tuple[str, str]] = []
    for split in ("val", "train"):
        for key, show in (("accuracy", _percent), ("loss", _plain)):
            extreme = numbers.extremes.get((split, key))
            if extreme is not None and not (tiles and split == "train"):
                tiles.append((show(extreme.last), f"{split} {key}, last epoch"))
                tiles.append((show(extreme.best), f"{split} {key}, best (epoch {extreme.epoch + 1})"))
    if numbers.last is not None:
        last = numbers.last
        tiles.append((f"{last['step']:,}", f"steps in {counted(last['epoch'] + 1, 'epoch')}"))
        if "wall_s" in last:
            tiles.append((duration(float(last["wall_s"])), "of training"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in tiles)
        + "</div>"
    )


def _resumes(run: Mapping[str, Any]) -> list[Mark]:
    """Where the run was resumed, as marks for its charts."""
    steps = run.get("resumes")
    whole = [step for step in steps if type(step) is int and 0 < step < 2**53] if isinstance(steps, list) else []
    return [Mark(step, "resumed") for step in whole[-MOST_MARKS:]]


def _recipe(recipe: str, brief: str) -> str:
    """What differs from the defaults, then everything; the whole recipe alone where nobody has told what differs."""
    if not recipe:
        return ""
    whole = f"<pre>{escape(_limited(recipe, 'recipe.yaml'))}</pre>"
    if not brief:
        return whole
    shown = f"<pre>{escape(_limited(brief, 'recipe.yaml'))}</pre>"
    return f"{shown}<details><summary>Every default filled in</summary>{whole}</details>"


def _machine(run: Mapping[str, Any]) -> str:
    """Processor, accelerator, versions, execution settings: of the conditions that a resume compares."""
    conditions = run.get("conditions")
    beginnings = ("device.", "threads", "versions.", "execution.", "variables.")
    rows = (
        [[name, str(value)[:200]] for name, value in conditions.items() if name.startswith(beginnings)]
        if isinstance(conditions, dict)
        else []
    )
    return html_table(["", "value"], rows[:MOST_COLUMNS]) if rows else ""


def _speed_chart(numbers: RunNumbers, resumes: Sequence[Mark]) -> str:
    points = numbers.speed.points()
    line = Line("steps a second", points, 2)
    return line_chart([line], x_label="step", y_label="steps a second", marks=resumes) if len(points) > 1 else ""


def _metric_chart(numbers: RunNumbers, key: str, resumes: Sequence[Mark], percent: bool = False) -> str:
    """Means over epochs as lines with dots, over the steps between two records as a thin line."""
    lines = [
        Line("train, a few steps", numbers.points("step", "train", key), 0, faint=True),
        Line("train, the epoch", numbers.points("epoch", "train", key), 0, marks=True),
        Line("validation", numbers.points("epoch", "val", key), 1, marks=True),
    ]
    lines = [line for line in lines if line.points]
    return line_chart(lines, x_label="step", y_label=key, percent=percent, marks=resumes) if lines else ""


def _rate_chart(numbers: RunNumbers, resumes: Sequence[Mark]) -> str:
    """The rate of each param group; groups that never differ share a line."""
    courses = numbers.rate_courses()
    lines = [
        Line("lr" if len(courses) == 1 else "group " + _numbers(groups), points, colour)
        for colour, (groups, points) in enumerate(courses[:MOST_COURSES])
    ]
    # Logarithmic where rates are decades apart for most of the time, not just in the last steps of a cosine.
    rates = sorted(rate for line in lines for _, rate in line.points if rate > 0)
    log = bool(rates) and rates[-1] / rates[len(rates) // 10] > 50
    return line_chart(lines, x_label="step", y_label="learning rate", log=log, marks=resumes) if lines else ""


def _numbers(groups: Sequence[int]) -> str:
    return ", ".join(map(str, groups[:8])) + (", ..." if len(groups) > 8 else "")


def _epoch_table(numbers: RunNumbers) -> str:
    columns: dict[str, None] = {}
    rows: dict[int, dict[str, str]] = {}
    for epoch, records in numbers.epochs.kept():
        row = rows.setdefault(epoch, {"epoch": str(epoch + 1)})
        for record in records:
            row.setdefault("step", str(record["step"]))
            for key, value in metrics_of(record).items():
                column = f"{record['split']} {key}"[:80]
                if len(columns) < MOST_COLUMNS:
                    columns[column] = None
                row[column] = _percent(value) if key == "accuracy" else _plain(value)
            if "wall_s" in record:
                row["time"] = duration(float(record["wall_s"]))
    if not rows:
        return ""
    heads = ["epoch", "step", *columns, "time"]
    stride = numbers.epochs.stride
    note = f'<p class="dim">One epoch in {stride} is shown; metrics.jsonl has all.</p>' if stride > 1 else ""
    return note + html_table(heads, [[row.get(head, "") for head in heads] for row in rows.values()])


def _settings(run: Mapping[str, Any]) -> str:
    """run.json, folded away."""
    text = _limited(json.dumps(run, indent=2, ensure_ascii=False), "run.json") if run else ""
    return f"<details><summary>run.json</summary><pre>{escape(text, quote=False)}</pre></details>" if text else ""


def _json_of(path: Path) -> dict[str, Any]:
    text = _text_of(path)
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}", code="journal") from error
    return value if isinstance(value, dict) else {}


def _text_of(path: Path) -> str:
    try:
        return files.read_bounded(path, _MOST_BYTES).decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}", code="journal") from error


def _limited(text: str, file: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}\n... ({file} has all of it)"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _plain(value: float) -> str:
    return f"{value:.4g}"
