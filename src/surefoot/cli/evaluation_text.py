"""What eval prints for people: the figures, a row for each class or target, the confusion matrix."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from ..runs.table import Column, rendered
from ..text import counted, figure, say, visible
from ..tracking.answers_shown import answer_text
from ..tracking.confusion import most_mistaken

_SHARES = ("precision", "recall", "f1")


def show(report: dict[str, Any]) -> None:
    """The figures for people: a line of totals, a row for each class or target."""
    say(f"{report['model']} on {counted(report['samples'], 'sample')} ({report['split']})")
    names = list(report["metrics"])
    width = max(map(len, names))
    for name in names:
        say(f"  {name:<{width}}  {figure(name, report['metrics'][name])}")
    if rows := report.get("by_class"):
        say()
        titles = ["class", "samples", "precision", "recall", "F1", "mostly mistaken for"]
        cells = [
            [visible(row["class"]), f"{row['samples']:,}"]
            + ["-" if row[name] is None else f"{100 * row[name]:.1f} %" for name in _SHARES]
            + [visible(row["mistaken_for"]) if row.get("mistaken_for") else "-"]
            for row in rows
        ]
        _table(titles, cells) if "confusion" in report else _table(titles[:-1], [row[:-1] for row in cells])
    if rows := report.get("by_target"):
        say()
        cells = [
            [visible(row["target"]), f"{row['samples']:,}"]
            + ["-" if row[name] is None else f"{row[name]:.4g}" for name in ("mae", "rmse", "r2")]
            for row in rows
        ]
        _table(["target", "samples", "MAE", "RMSE", "R2"], cells)
    for name, title in (("wrong", "most wrongly answered"), ("unsure", "least surely answered")):
        if entries := report.get(name):
            say()
            say(f"  {title}")
            _table(["sample", "true", "predicted", "sure", "loss"], [_answer(e, report["classes"]) for e in entries])
    if "confusion" in report:
        columns = shutil.get_terminal_size((100, 24)).columns
        for line in matrix_lines([visible(name) for name in report["classes"]], report["confusion"], columns):
            say(line)


def _answer(entry: dict[str, Any], classes: Sequence[str]) -> list[str]:
    answers = [visible(answer_text(entry[key], classes)) if key in entry else "-" for key in ("true", "predicted")]
    sure = f"{100 * entry['confidence']:.1f} %" if "confidence" in entry else "-"
    return [f"{entry['index']:,}", *answers, sure, f"{entry['loss']:.4g}"]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of texts: the first and a sixth to the left, numbers to the right."""
    for line in rendered([Column(title, right=place not in (0, 5)) for place, title in enumerate(titles)], rows):
        say(f"  {line}")


def matrix_lines(names: Sequence[str], matrix: Sequence[Sequence[int]], width: int) -> list[str]:
    """The confusion matrix as text; the most frequent confusions instead where it is wider than `width`.

    >>> print("\\n".join(matrix_lines(["cat", "dog"], [[9, 1], [0, 10]], 60)).lstrip())
    confusion matrix (rows: true class, columns: predicted)
              0   1
      0 cat   9   1
      1 dog   .  10
    """
    labels = [f"{i} {name}" for i, name in enumerate(names)]
    cell = 2 + max(len(str(value)) for row in [*matrix, [len(names) - 1]] for value in row)
    label = max(map(len, labels))
    if 2 + label + cell * len(names) <= width:
        lines = ["", "  confusion matrix (rows: true class, columns: predicted)"]
        lines.append("  " + " " * label + "".join(f"{i:>{cell}}" for i in range(len(names))))
        for text, row in zip(labels, matrix, strict=True):
            lines.append(f"  {text:<{label}}" + "".join(f"{value or '.':>{cell}}" for value in row))
        return lines
    pairs = most_mistaken(matrix)
    if not pairs:
        return []
    lines = ["", f"  most frequent confusions (of {len(pairs)}; the whole matrix: --json)"]
    return lines + [f"  {n:>7,}  {names[i]} predicted as {names[j]}" for n, i, j in pairs[:10]]
