"""report.html: a run on one page that needs no network, made from its journal, recipe and run.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import files
from ..errors import RunFailed, UsageError
from . import charts
from .charts import Line, line_chart
from .journal import read_records
from .progress import duration

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1d2228; --dim: #6a7280; --line: #e3e6ea;
  --card: #f6f7f9; --c0: #2166c4; --c1: #d0590b; --c2: #23863b; --c3: #8a45c4; --heat: 33, 102, 196; }
@media (prefers-color-scheme: dark) { :root {
  --back: #14171b; --text: #e4e7eb; --dim: #98a1ad; --line: #2b3038; --card: #1c2026;
  --c0: #6ba7ff; --c1: #ffa25c; --c2: #66cc80; --c3: #c79bff; --heat: 107, 167, 255; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
.dim { color: var(--dim); } .scroll { overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; }
.tile b { display: block; font-size: 1.3rem; } .tile span { color: var(--dim); font-size: .85rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--dim); } th:first-child, td:first-child { text-align: left; }
table.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.confusion td { text-align: center; min-width: 2.2rem; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; color: var(--dim); }
"""


def write_report(
    run_dir: str | os.PathLike[str],
    *,
    confusion: Sequence[Sequence[int]] | None = None,
    classes: Sequence[str] = (),
) -> Path:
    """Write `run_dir`/report.html from what the directory holds, and return its path.

    `confusion` (C, C) counts samples, with true classes as rows, and `classes` names them. Only metrics.jsonl
    has to be there. Raises UsageError if it cannot be read, RunFailed if the report cannot be written.
    """
    run_dir = Path(run_dir)
    page = render_report(
        list(read_records(run_dir / "metrics.jsonl")),
        run=_json_of(run_dir / "run.json"),
        recipe=_text_of(run_dir / "recipe.yaml"),
        name=run_dir.resolve().name,
        confusion=confusion,
        classes=classes,
    )
    path = run_dir / "report.html"
    try:
        files.write_atomically(path, page.encode())
    except OSError as error:
        raise RunFailed(f"{path}: the report cannot be written: {error.strerror}") from error
    return path


def render_report(
    records: Sequence[Mapping[str, Any]],
    *,
    run: Mapping[str, Any],
    recipe: str,
    name: str,
    confusion: Sequence[Sequence[int]] | None = None,
    classes: Sequence[str] = (),
) -> str:
    """The page itself; the same arguments give the same page."""
    title = str(run.get("name") or name)
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{escape(_byline(run))}</p>',
        _tiles(records),
    ]
    for heading, body in (
        ("Training vs. Validation Loss", _metric_chart(records, "loss")),
        ("Accuracy", _metric_chart(records, "accuracy", percent=True)),
        ("Learning rate", _rate_chart(records)),
        ("Epochs", _epoch_table(records)),
        ("Who was taken for whom", _confusion_table(confusion, classes) if confusion is not None else ""),
        ("Recipe, every default filled in", f"<pre>{escape(recipe)}</pre>" if recipe else ""),
        ("The run", _settings(run)),
    ):
        if body:
            sections.append(f"<section><h2>{heading}</h2>\n{body}</section>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - surefoot</title>\n<style>{_STYLE}{charts.STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _byline(run: Mapping[str, Any]) -> str:
    parts = [f"{word} {run[key]}" for key, word in (("id", "run"), ("created", "begun")) if run.get(key)]
    if run.get("inexact"):
        parts.append("resumed inexactly: " + ", ".join(map(str, run["inexact"])))
    return " · ".join(parts)


def _tiles(records: Sequence[Mapping[str, Any]]) -> str:
    """The few figures that one looks for first."""
    epochs = [record for record in records if record["kind"] == "epoch"]
    tiles = []
    for split in ("val", "train"):
        own = [record for record in epochs if record["split"] == split]
        for key, best, show in (("accuracy", max, _percent), ("loss", min, _plain)):
            values = [
                (record[key], record["epoch"]) for record in own if isinstance(record.get(key), (int, float))
            ]
            finite = [value for value in values if value[0] == value[0]]
            if finite and not (tiles and split == "train"):
                value, epoch = best(finite, key=lambda pair: pair[0])
                tiles.append((show(finite[-1][0]), f"{split} {key}, last epoch"))
                tiles.append((show(value), f"{split} {key}, best (epoch {epoch + 1})"))
    if records:
        last = records[-1]
        tiles.append((f"{last['step']:,}", f"steps in {last['epoch'] + 1} epochs"))
        if "wall_s" in last:
            tiles.append((duration(float(last["wall_s"])), "of training"))
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
            for value, what in tiles
        )
        + "</div>"
    )


def _points(
    records: Iterable[Mapping[str, Any]], kind: str, split: str, key: str
) -> list[tuple[float, float]]:
    return [
        (record["step"], record[key])
        for record in records
        if record["kind"] == kind and record["split"] == split and isinstance(record.get(key), (int, float))
    ]


def _metric_chart(records: Sequence[Mapping[str, Any]], key: str, percent: bool = False) -> str:
    """Means over epochs as lines with dots, over the steps between two records as a thin line."""
    lines = [
        Line("train, a few steps", _points(records, "step", "train", key), 0, faint=True),
        Line("train, the epoch", _points(records, "epoch", "train", key), 0, marks=True),
        Line("validation", _points(records, "epoch", "val", key), 1, marks=True),
    ]
    lines = [line for line in lines if line.points]
    return line_chart(lines, x_label="step", y_label=key, percent=percent) if lines else ""


def _rate_chart(records: Sequence[Mapping[str, Any]]) -> str:
    """The rate of each param group; groups that never differ share a line."""
    own = [record for record in records if record.get("lr") and record["split"] == "train"]
    # An epoch's record repeats a rate: steps alone are drawn, where there are any.
    own = [record for record in own if record["kind"] == "step"] or own
    courses: dict[tuple[float, ...], list[int]] = {}
    for group in range(max((len(record["lr"]) for record in own), default=0)):
        course = tuple(record["lr"][group] if group < len(record["lr"]) else float("nan") for record in own)
        courses.setdefault(course, []).append(group)
    lines = [
        Line(
            "lr" if len(courses) == 1 else "group " + ", ".join(map(str, groups)),
            [(record["step"], rate) for record, rate in zip(own, course, strict=True)],
            colour,
        )
        for colour, (course, groups) in enumerate(courses.items())
    ]
    # Logarithmic where rates are decades apart for most of the time, not just in the last steps of a cosine.
    rates = sorted(rate for course in courses for rate in course if rate > 0)
    log = bool(rates) and rates[-1] / rates[len(rates) // 10] > 50
    return line_chart(lines, x_label="step", y_label="learning rate", log=log) if lines else ""


def _epoch_table(records: Sequence[Mapping[str, Any]]) -> str:
    rows: dict[int, dict[str, Any]] = {}
    columns: dict[str, None] = {}
    for record in records:
        if record["kind"] != "epoch":
            continue
        row = rows.setdefault(record["epoch"], {"step": record["step"]})
        for key, value in record.items():
            if key not in ("kind", "split", "epoch", "step", "lr", "wall_s") and isinstance(
                value, (int, float)
            ):
                column = f"{record['split']} {key}"
                columns[column] = None
                row[column] = _percent(value) if key == "accuracy" else _plain(value)
        if "wall_s" in record:
            row["time"] = duration(float(record["wall_s"]))
    if not rows:
        return ""
    heads = ["epoch", "step", *columns, "time"]
    body = (
        "<tr>"
        + "".join(f"<td>{escape(str({'epoch': epoch + 1, **row}.get(head, '')))}</td>" for head in heads)
        + "</tr>"
        for epoch, row in rows.items()
    )
    head = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>\n' + "\n".join(body) + "</table></div>"


def _confusion_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Rows are true classes; a cell is the darker the larger its part of the row."""
    counts = [[int(cell) for cell in row] for row in confusion]
    names = [str(classes[i]) if i < len(classes) else str(i) for i in range(len(counts))]
    head = (
        "<tr><th>true \\ taken for</th>"
        + "".join(f"<th>{escape(name)}</th>" for name in names)
        + "<th>right</th></tr>"
    )
    rows = []
    for index, row in enumerate(counts):
        total = sum(row) or 1
        cells = "".join(
            f'<td style="background: rgba(var(--heat), {0.75 * cell / total:.3f})">{cell or ""}</td>'
            for cell in row
        )
        rows.append(f"<tr><th>{escape(names[index])}</th>{cells}<td>{_percent(row[index] / total)}</td></tr>")
    return f'<div class="scroll"><table class="confusion">{head}\n' + "\n".join(rows) + "</table></div>"


def _settings(run: Mapping[str, Any]) -> str:
    """run.json, one row a value."""
    rows = "\n".join(f"<tr><td>{escape(key)}</td><td>{escape(text)}</td></tr>" for key, text in _flat(run))
    if not rows:
        return ""
    table = f'<div class="scroll"><table class="settings">{rows}</table></div>'
    return f"<details><summary>run.json</summary>{table}</details>"


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _json_of(path: Path) -> dict[str, Any]:
    text = _text_of(path)
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _plain(value: float) -> str:
    return f"{value:.4g}"
