"""The course: every chapter runs as it stands, and nothing of it is missing in either language."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import course  # noqa: E402

CHAPTERS = course.chapters()
CHINESE = re.compile("[\u4e00-\u9fff]")


def ids(path: Path) -> str:
    return path.stem


def cells_of(path: Path) -> list[course.Cell]:
    return course.cells(path.read_text(encoding="utf-8"))


def shape(words: str) -> dict[str, object]:
    """What both languages must have alike: headings, lists, tables, blocks, formulas, links, names in code."""
    blocks = re.findall(r"^```.*?^```$", words, re.M | re.S)
    prose = re.sub(r"^```.*?^```$", "", words, flags=re.M | re.S)
    return {
        "headings": [len(mark) for mark in re.findall(r"^(#+) ", prose, re.M)],
        "list items": len(re.findall(r"^ *(?:[-*]|\d+\.) ", prose, re.M)),
        "rows of tables": len(re.findall(r"^\|", prose, re.M)),
        "blocks of code": blocks,
        "formulas": sorted(re.findall(r"\$\$.*?\$\$|\$[^$]+\$", prose, re.S)),
        "links": sorted(re.findall(r"\]\(([^)]+)\)", prose)),
        "names in code": sorted(set(re.findall(r"`([^`]+)`", prose))),
    }


@pytest.mark.filterwarnings("ignore:Using a target size")  # what the chapter on losses shows
@pytest.mark.parametrize("path", CHAPTERS, ids=ids)
def test_a_chapter_runs_from_top_to_bottom(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    chapter = types.ModuleType("chapter")  # one that its classes can be found in, as in a notebook's
    monkeypatch.setitem(sys.modules, "chapter", chapter)
    for cell in cells_of(path):
        if not cell.is_words:
            exec(compile("\n" * cell.line + cell.text, str(path), "exec"), vars(chapter))
    assert torch.get_num_threads() == threads and capsys.readouterr().out


@pytest.mark.parametrize("path", CHAPTERS, ids=ids)
def test_words_come_in_both_languages_side_by_side_and_say_the_same(path):
    words = [cell for cell in cells_of(path) if cell.is_words]
    assert [cell.language for cell in words] == ["en", "zh"] * (len(words) // 2)
    for english, chinese in zip(words[::2], words[1::2], strict=True):
        assert shape(english.text) == shape(chinese.text), f"{path.name}:{english.line}"
        assert CHINESE.search(chinese.text) and not CHINESE.search(english.text), f"{path.name}:{english.line}"


@pytest.mark.parametrize("path", CHAPTERS, ids=ids)
def test_figures_have_a_caption_in_both_languages(path):
    figures = [
        cell for cell in cells_of(path) if not cell.is_words and cell.text.splitlines()[-1].startswith("figure(")
    ]
    captioned = [cell for cell in cells_of(path) if cell.captions]
    assert captioned and all(
        set(cell.captions) == set(course.LANGUAGES) and all(cell.captions.values()) for cell in captioned
    )
    assert {cell.line for cell in figures} <= {cell.line for cell in captioned}
    assert all(CHINESE.search(cell.captions["zh"]) for cell in captioned)


@pytest.mark.parametrize("path", CHAPTERS, ids=ids)
def test_the_notebooks_of_both_languages_have_the_same_code(path):
    text = path.read_text(encoding="utf-8")
    english, chinese = (course.notebook(text, language)["cells"] for language in course.LANGUAGES)
    assert [cell["cell_type"] for cell in english] == [cell["cell_type"] for cell in chinese]
    for one, other in zip(english, chinese, strict=True):
        if one["cell_type"] == "code":
            assert one["source"] == other["source"]


def test_a_chapter_starts_with_its_heading_and_number():
    for path in CHAPTERS:
        for language in course.LANGUAGES:
            assert course.title(path.read_text(encoding="utf-8"), language).startswith(f"{path.name[0]}. "), path.name


def test_a_chinese_line_break_is_no_space():
    (cell,) = course.cells('# %% [markdown] lang="zh"\n# \u4e00\n# \u4e8c a\n# b\n')
    assert course.words(cell) == "\u4e00\u4e8c a\nb"
