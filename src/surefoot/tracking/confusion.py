"""The confusion matrix as a table: rows are true classes, and a cell is the darker the larger its part of the row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..metrics.by_class import by_class
from ..text import counted
from .page import html_table

MOST_CLASSES = 40
_MOST_PAIRS, _FEW_PAIRS = 50, 10
MOST_ROWS = 200


def confusion_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The matrix in parts of each row, as HTML, and the pairs that are mistaken most often.

    A page's script shows its counts too, and the classes that are mistaken most often first.

    Of more than MOST_CLASSES classes, the pairs only.
    """
    names = class_names(confusion, classes)
    if len(names) > MOST_CLASSES:
        return _worst_pairs(confusion, names, _MOST_PAIRS)
    note = '<p class="dim">Rows are true classes, columns what was predicted; in percent of each row.</p>'
    return f"{note}<div data-matrix>{_matrix(confusion, names)}</div>" + _worst_pairs(confusion, names, _FEW_PAIRS)


def class_names(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[str]:
    """A name for each class of the matrix: its number where `classes` has none."""
    return [str(classes[i]) if i < len(classes) else str(i) for i in range(len(confusion))]


def figures_by_class(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Samples, precision, recall and F1 of each class as a table of HTML, the lowest F1 first."""
    rows = sorted(by_class(class_names(confusion, classes), confusion), key=lambda row: row["f1"] or 0.0)
    shown = [
        [row["class"], str(row["samples"]), *(_part(row[key]) for key in ("precision", "recall", "f1"))]
        + [row["mistaken_for"] or ""]
        for row in rows[:MOST_ROWS]
    ]
    more = f'<p class="dim">The {MOST_ROWS} with the lowest F1 of {len(rows):,}.</p>' if len(rows) > MOST_ROWS else ""
    return more + html_table(["class", "samples", "precision", "recall", "F1", "mostly mistaken for"], shown)


def _part(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _matrix(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """The table; a cell says how often in `data-n`, for the script that shows counts and sorts."""
    head = (
        "<tr><th>true \\ predicted</th>"
        + "".join(f'<th class="class"><span>{escape(name)}</span></th>' for name in names)
        + "<th>right</th></tr>"
    )
    rows = []
    for index, row in enumerate(confusion):
        total = sum(row) or 1
        cells = "".join(_cell(int(cell), cell / total, index == column) for column, cell in enumerate(row))
        rows.append(f"<tr><th>{escape(names[index])}</th>{cells}<td>{100 * row[index] / total:.2f} %</td></tr>")
    return f'<div class="scroll"><table class="confusion">{head}\n' + "\n".join(rows) + "</table></div>"


def _cell(count: int, share: float, right: bool) -> str:
    """What is right is as dark as its share; what is not by its root, since a few percent matter there."""
    how = f' style="--{"right" if right else "wrong"}: {share if right else share**0.5:.2f}"' if count else ""
    return f'<td data-n="{count}"{how}>{f"{100 * share:.1f}" if count else ""}</td>'


def most_mistaken(confusion: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """How often, true class, predicted class: the pairs that were mistaken, the most frequent first.

    >>> most_mistaken([[9, 1, 0], [0, 10, 3], [0, 0, 5]])
    [(3, 1, 2), (1, 0, 1)]
    """
    pairs = [(int(n), i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if i != j and n]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))


def _worst_pairs(confusion: Sequence[Sequence[int]], names: Sequence[str], most: int) -> str:
    pairs = most_mistaken(confusion)
    worst = pairs[:most]
    if not worst:
        return ""
    rows = [[names[i], names[j], str(n)] for n, i, j in worst]
    note = f"{counted(len(names), 'class')}: the {counted(len(worst), 'pair')} mistaken most often."
    return f'<p class="dim">{escape(note)}</p>' + html_table(["true", "predicted", "samples"], rows)
