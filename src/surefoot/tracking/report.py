"""report.html: a run on one page that needs no network, made from its journal, recipe and run.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import files
from ..charts.interactive import chart
from ..charts.svg import Line, Mark
from ..errors import RunFailed, UsageError
from ..text import counted, duration, figure
from . import answers_shown, run_facts
from .confusion import confusion_table, figures_by_class
from .journal import metrics_of, run_records
from .page import anchor, html_table, page, section
from .reliability import diagram
from .run_numbers import RunNumbers
from .validation import read_validation

FILE = "report.html"
MOST_COURSES, MOST_COLUMNS, MOST_MARKS = 12, 40, 50
_TILES = ("accuracy", "f1_macro", "loss", "mae", "r2")
_MOST_BYTES = 16 * 1024 * 1024  # of run.json or recipe.yaml


def write_report(
    run_dir: str | os.PathLike[str], *, validation: Mapping[str, Any] | None = None, brief: str = ""
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
        run=json_of(run_dir / "run.json"),
        recipe=text_of(run_dir / "recipe.yaml"),
        name=run_dir.resolve().name,
        validation=found,
        brief=brief,
    )
    path = run_dir / FILE
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
    live: float | None = None,
    problems: Sequence[str] = (),
) -> str:
    """The page itself, asking for news every `live` seconds; the same arguments give the same page."""
    found = validation or {}
    confusion, classes, reliability = found.get("confusion"), found.get("classes") or (), found.get("reliability")
    title = str(run.get("name") or name)[:200]
    resumes = _resumes(run)
    parts = [
        ("Problems", _items([*problems, *run_facts.listed(run.get("damaged")), *numbers.left_out])),
        ("Training vs. Validation Loss", _metric_chart(numbers, "loss", resumes)),
        ("Accuracy", _metric_chart(numbers, "accuracy", resumes, percent=True)),
        ("Metrics", "".join(f"<h3>{escape(key)}</h3>{_metric_chart(numbers, key, resumes)}" for key in numbers.others)),
        ("By class", figures_by_class(confusion, classes) if confusion is not None else ""),
        ("Confusion matrix", confusion_table(confusion, classes) if confusion is not None else ""),
        ("Most wrongly answered", answers_shown.samples(found, "wrong")),
        ("Least surely answered", answers_shown.samples(found, "unsure")),
        ("Reliability", diagram(reliability) if reliability is not None else ""),
        ("Residuals", answers_shown.residuals(found)),
        ("Learning rate", _rate_chart(numbers, resumes)),
        ("Gradient norm", _metric_chart(numbers, "grad_norm", resumes)),
        ("Throughput", _speed_charts(numbers, run_facts.samples_a_step(run), resumes)),
        ("Epochs", _epoch_table(numbers)),
        ("What it cost", run_facts.cost_html(run, numbers)),
        ("Recipe", run_facts.recipe_html(recipe, brief)),
        ("Hardware and versions", run_facts.machine_html(run)),
        ("The run", run_facts.settings_html(run)),
    ]
    parts = [(heading, body) for heading, body in parts if body]
    links = "".join(f'<a href="#{anchor(heading)}">{escape(heading)}</a>' for heading, _ in parts)
    top = [f"<h1>{escape(title)}</h1>", f'<p class="dim">{escape(run_facts.byline(run))}</p>', _tiles(numbers)]
    if "step" in found and "epoch" in found and confusion is not None:
        top.append(f'<p class="dim">Single answers are of the validation after epoch {found["epoch"] + 1}.</p>')
    sections = [f'<section id="top">{"".join(top)}<nav>{links}</nav></section>', *(section(*part) for part in parts)]
    return page(title, sections, live=live)


def _items(lines: Iterable[str]) -> str:
    lines = list(dict.fromkeys(lines))
    items = "".join(f"<li>{escape(line[:300])}</li>" for line in lines[:50])
    more = f"<p>and {len(lines) - 50} more</p>" if len(lines) > 50 else ""
    return f"<ul>{items}</ul>{more}" if lines else ""


def _tiles(numbers: RunNumbers) -> str:
    """The few figures that one looks for first."""
    tiles: list[tuple[str, str]] = []
    split = "val" if any(split == "val" for split, _ in numbers.extremes) else "train"
    for key in _TILES:
        if (extreme := numbers.extremes.get((split, key))) is not None:
            best = f"best {figure(key, extreme.best)}, epoch {extreme.epoch + 1}"
            tiles.append((figure(key, extreme.last), f"{split} {key}; {best}"))
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


def _speed_charts(numbers: RunNumbers, samples: int, resumes: Sequence[Mark]) -> str:
    """Samples a second where it is known how many an update has, else updates; and the time of one."""
    points = numbers.speed.points()
    if len(points) < 2:
        return ""
    what = "samples a second" if samples else "steps a second"
    speed = Line(what, [(x, (samples or 1) * y) for x, y in points], 2)
    each = Line("milliseconds a step", [(x, 1000 / y) for x, y in points], 6)
    return "<h3>Speed</h3>" + "<h3>Step time</h3>".join(
        chart([line], x_label="step", y_label=line.label, marks=resumes) for line in (speed, each)
    )


def _metric_chart(numbers: RunNumbers, key: str, resumes: Sequence[Mark], percent: bool = False) -> str:
    """Means over epochs as lines with dots, over the steps between two records as a thin line."""
    lines = [
        Line("train, a few steps", numbers.points("step", "train", key), 0, faint=True),
        Line("train, the epoch", numbers.points("epoch", "train", key), 0, marks=True),
        Line("validation", numbers.points("epoch", "val", key), 1, marks=True),
    ]
    lines = [line for line in lines if line.points]
    return chart(lines, x_label="step", y_label=key, percent=percent, marks=resumes) if lines else ""


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
    return chart(lines, x_label="step", y_label="learning rate", log=log, marks=resumes) if lines else ""


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
                row[column] = figure(key, value)
            if "wall_s" in record:
                row["time"] = duration(float(record["wall_s"]))
    if not rows:
        return ""
    heads = ["epoch", "step", *columns, "time"]
    stride = numbers.epochs.stride
    note = f'<p class="dim">One epoch in {stride} is shown; metrics.jsonl has all.</p>' if stride > 1 else ""
    return note + html_table(heads, [[row.get(head, "") for head in heads] for row in rows.values()])


def json_of(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run; {} where there is none. Raises UsageError for what cannot be read."""
    text = text_of(path)
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}", code="journal") from error
    return value if isinstance(value, dict) else {}


def text_of(path: Path) -> str:
    """The text of a file of a run; "" where there is none. Raises UsageError for what cannot be read."""
    try:
        return files.read_bounded(path, _MOST_BYTES).decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}", code="journal") from error
