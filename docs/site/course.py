"""The course's chapters: one file of code each, with the words in English and in Chinese, read in one of them.

A chapter is a .py file in percent format. Cells of words come in pairs, `# %% [markdown] lang="en"` and then
`lang="zh"`; a cell of code that draws has a caption in both, `# %% en="..." zh="..."`; one that only holds a promise
(`# %% tags=["remove-cell"]`) runs and is not shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COURSE = Path(__file__).resolve().parents[1] / "course"
LANGUAGES = ("en", "zh")
_HEAD = re.compile(r"^# %%(.*)$", re.MULTILINE)
_WIDE = "[\u2014\u201c\u201d\u3000-\u9fff\uff00-\uffef]"


@dataclass(frozen=True)
class Cell:
    """A cell: its text without comment signs, its line, its `language` (words only) and its captions (figures only)."""

    text: str
    line: int
    language: str | None
    captions: dict[str, str]
    hidden: bool = False

    @property
    def is_words(self) -> bool:
        """Whether it is text and not code."""
        return self.language is not None


def chapters() -> list[Path]:
    """The chapters, in order."""
    return sorted(COURSE.glob("[0-9]_*.py"))


def cells(text: str) -> list[Cell]:
    """The cells of a chapter, in order; raises ValueError for one whose head is neither words nor code."""
    heads = list(_HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    found = []
    for head, end in zip(heads, ends, strict=True):
        body, line = text[head.end() + 1 : end].strip("\n"), text[: head.start()].count("\n") + 1
        options = dict(re.findall(r'(\w+)="([^"]*)"', head[1]))
        if "[markdown]" in head[1]:
            if options.get("lang") not in LANGUAGES:
                raise ValueError(f'line {line}: words say no language; write [markdown] lang="en"')
            words = "\n".join(row.removeprefix("#").removeprefix(" ") for row in body.splitlines())
            found.append(Cell(words, line, options["lang"], {}))
        else:
            found.append(Cell(body, line, None, options, "remove-cell" in head[1]))
    return found


def words(cell: Cell) -> str:
    """The Markdown of a cell."""
    return joined(cell.text) if cell.language == "zh" else cell.text


def joined(text: str) -> str:
    """Chinese lines joined without the space that a line break between them would be."""
    return re.sub(f"(?<={_WIDE})\n(?={_WIDE})", "", text)


def notebook(text: str, language: str) -> dict[str, Any]:
    """The chapter in one `language` as a notebook (nbformat 4), without outputs."""
    made: list[dict[str, Any]] = []
    for number, cell in enumerate(each for each in cells(text) if each.language in (None, language)):
        common: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}}
        if cell.is_words:
            made.append({**common, "cell_type": "markdown", "source": words(cell)})
            continue
        if cell.hidden:
            common["metadata"]["tags"] = ["remove-cell"]
        if cell.captions:
            caption = cell.captions[language]
            common["metadata"]["mystnb"] = {"figure": {"caption": caption}, "image": {"alt": caption}}
        made.append({**common, "cell_type": "code", "source": cell.text, "execution_count": None, "outputs": []})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": made}


def title(text: str, language: str) -> str:
    """The chapter's heading."""
    first = next(cell for cell in cells(text) if cell.language == language)
    return first.text.splitlines()[0].removeprefix("# ")


def lead(text: str, language: str) -> str:
    """The chapter's first sentence."""
    first = words(next(cell for cell in cells(text) if cell.language == language))
    paragraph = first.split("\n\n")[1].replace("\n", " ")
    return re.match(r".*?(?:[.?!](?=\s|$)|[\u3002\uff1f\uff01])", paragraph)[0]
