"""The confusion matrix as a table: rows are true classes, and a cell is the darker the larger its part of the row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..text import counted

STYLE = """
table.confusion td { text-align: center; padding: .2rem .35rem; }
table.confusion th.class { vertical-align: bottom; padding: .3rem .1rem; text-align: left; font-weight: 400; }
table.confusion th.class span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11rem;
  overflow: hidden; text-overflow: ellipsis; }
table.confusion tr > :first-child { position: sticky; left: 0; background: var(--back); max-width: 11rem;
  overflow: hidden; text-overflow: ellipsis; }
"""
MOST_CLASSES = 40
_MOST_PAIRS = 50


def confusion_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The table, as HTML; of more than MOST_CLASSES classes, the pairs that are mistaken most often."""
    names = [str(classes[i]) if i < len(classes) else str(i) for i in range(len(confusion))]
    if len(names) > MOST_CLASSES:
        return _worst_pairs(confusion, names)
    head = (
        "<tr><th>true \\ predicted</th>"
        + "".join(f'<th class="class"><span>{escape(name)}</span></th>' for name in names)
        + "<th>right</th></tr>"
    )
    rows = []
    for index, row in enumerate(confusion):
        total = sum(row) or 1
        cells = "".join(
            f'<td style="background: rgba(var(--heat), {0.75 * cell / total:.3f})">{int(cell) or ""}</td>'
            for cell in row
        )
        rows.append(f"<tr><th>{escape(names[index])}</th>{cells}<td>{100 * row[index] / total:.2f} %</td></tr>")
    return f'<div class="scroll"><table class="confusion">{head}\n' + "\n".join(rows) + "</table></div>"


def most_mistaken(confusion: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """How often, true class, predicted class: the pairs that were mistaken, the most frequent first.

    >>> most_mistaken([[9, 1, 0], [0, 10, 3], [0, 0, 5]])
    [(3, 1, 2), (1, 0, 1)]
    """
    pairs = [(int(n), i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if i != j and n]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))


def _worst_pairs(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    worst = most_mistaken(confusion)[:_MOST_PAIRS]
    rows = "\n".join(
        f"<tr><td>{escape(names[i])}</td><td>{escape(names[j])}</td><td>{n}</td></tr>" for n, i, j in worst
    )
    note = f'<p class="dim">{counted(len(names), "class")}: the {len(worst)} pairs that were mistaken most often.</p>'
    head = "<tr><th>true</th><th>predicted</th><th>samples</th></tr>"
    return f'{note}<div class="scroll"><table>{head}\n{rows}</table></div>'
