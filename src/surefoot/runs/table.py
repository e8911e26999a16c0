"""Tables for a terminal: as wide as it is; of too many columns the least important ones give way."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ..text import printable, shortened

_NARROWEST = 12


@dataclass(frozen=True)
class Column:
    """A column: its head, whether its values stand on the right, and how important it is (0 stays to the last)."""

    head: str
    right: bool = False
    rank: int = 0


def width_of_terminal() -> int | None:
    """How many columns there are; None where standard output is no terminal, and lines are as long as they need."""
    try:
        if not sys.stdout.isatty():
            return None
    except ValueError:  # closed
        return None
    return shutil.get_terminal_size((80, 24)).columns if "COLUMNS" in os.environ else _asked()


def _asked() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def rendered(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """The lines of a table within `width`, every cell made harmless; an empty column is left out.

    >>> for line in rendered([Column("run"), Column("epochs", right=True)], [["a", "3"], ["b", "10"]]):
    ...     print(line)
    run  epochs
    a         3
    b        10
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    kept = [i for i, column in enumerate(columns) if any(row[i] for row in cells) or not column.rank]
    wide = {i: max([_cells(columns[i].head), *(_cells(row[i]) for row in cells)]) for i in kept}

    def total() -> int:
        return sum(wide[i] for i in kept) + 2 * (len(kept) - 1)

    while width is not None and total() > width and any(columns[i].rank for i in kept):
        kept.remove(max(kept, key=lambda i: (columns[i].rank, i)))
    if width is not None and kept and total() > width:
        widest = max(kept, key=lambda i: wide[i])
        wide[widest] = max(_NARROWEST, wide[widest] - (total() - width))
    lines = []
    for row in [[column.head for column in columns], *cells]:
        parts = []
        for i in kept:
            text = row[i] if _cells(row[i]) <= wide[i] else shortened(row[i], wide[i])
            blank = " " * (wide[i] - _cells(text))
            parts.append(blank + text if columns[i].right else text + blank)
        lines.append("  ".join(parts).rstrip())
    return lines


def in_stripes(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """A table of which every column stays: where it is too wide, columns go on below, each time after the first."""
    lines = rendered(columns, rows)
    if max(map(_cells, lines)) <= width or len(columns) < 3:
        return rendered(columns, rows, width)
    most = len(columns) - 1
    while most > 2 and max(map(_cells, rendered(columns[:most], [row[:most] for row in rows]))) > width:
        most -= 1
    rest = [columns[0], *columns[most:]]
    first = rendered(columns[:most], [row[:most] for row in rows], width)
    return [*first, "", *in_stripes(rest, [[row[0], *row[most:]] for row in rows], width)]


def _cells(text: str) -> int:
    """How many places of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
