"""The Chinese pages have every heading, block of code, table and figure of the English ones, in their order."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import make_site  # noqa: E402

from surefoot.cli.explain import CODE, with_code_of  # noqa: E402

FOLDERS = ("docs", "docs/guides", "src/surefoot/explanations")
CHINESE = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.zh.md"))]
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"\$\$.*?\$\$", re.DOTALL)
# The pages that are in both languages; one more may be translated at any time.
WANTED = {
    *("other_trainers", "which_loss", "which_optimizer", "which_schedule", "lint", "refusals", "schedules"),
    *("data", "losses", "models", "objectives", "optimizers", "recipe", "runs", "saving", "tracking"),
}


def english(path: Path) -> Path:
    return path.with_name(path.name.replace(".zh.md", ".md"))


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def skeleton(text: str) -> list[str]:
    """What both languages must have alike, in order: headings, code, rows of tables with their names, figures."""
    found = []
    for line in FENCE.sub(CODE, text).splitlines():
        names = re.findall(r"`([^`]+)`", line)
        if heading := re.match(r"#+ ", line):
            found.append(f"{heading[0]}{names}")
        elif line == CODE or line.startswith("<!--"):
            found.append(line)
        elif line.startswith("|"):
            found.append(f"row of {line.count('|')}: {re.findall('`([^`]+)`', line.split('|')[1])}")
        elif line.startswith("    "):
            found.append(re.sub(r" +#.*", "", line))
        found += re.findall(r"!\[[^]]*\]\(([^)]+)\)", line)
    return found


def paragraphs(text: str) -> list[set[str]]:
    """What each paragraph, item of a list and row of a table names in code and by links, in order."""
    parts = [part for part in re.split(r"\n\s*\n|\n(?=- |\|)", FENCE.sub(CODE, text)) if part.strip()]
    return [
        {" ".join(name.split()) for found in re.findall(r"`([^`]+)`|\]\(([^)]+)\)", part) for name in found}
        for part in parts
    ]


def names(text: str) -> set[str]:
    prose = FENCE.sub("", text)
    return {" ".join(name.split()) for name in re.findall(r"`([^`]+)`|(\$[^$\n]+\$)", prose) for name in name}


def test_the_pages_for_learners_are_in_both_languages():
    assert {path.name.removesuffix(".zh.md") for path in CHINESE} >= WANTED


@pytest.mark.parametrize("path", CHINESE, ids=ids)
def test_nothing_is_missing_in_a_translation(path):
    text, original = path.read_text(encoding="utf-8"), english(path).read_text(encoding="utf-8")
    assert not FENCE.search(text), f"write {CODE} for a block of code: it is the English page's"
    assert skeleton(text) == skeleton(original)
    assert paragraphs(text) == paragraphs(original)
    assert FORMULA.findall(text) == FORMULA.findall(original)
    assert not (more := names(text) - names(original)), f"names that the English page has not: {more}"
    links = set(re.findall(r"\]\(([^)]+)\)", text)) - set(re.findall(r"\]\(([^)]+)\)", original))
    assert not links, f"links that the English page has not: {links}"


@pytest.mark.parametrize("path", CHINESE, ids=ids)
def test_a_translation_is_chinese(path):
    """No sentence was left in English: four English words in a row are the name of something, not of a sentence."""
    prose = re.sub(r"`[^`]*`|\([^)\s]+\)|<!--.*?-->", "", path.read_text(encoding="utf-8"))
    left = re.findall(r"(?:\b[a-z]{2,}\b[ ,]+){4}", re.sub(r"^(#.*| {4}.*)$", "", prose, flags=re.M))
    assert not left


def test_what_is_missing_would_be_found():
    original = "# A\n\n```python\nx\n```\n\n## `b`\n\n| `c` | d |\n"
    assert skeleton(original) == ["# []", CODE, "## ['b']", "row of 3: ['c']"]
    assert paragraphs("a `b`\nc\n- `d` [e](f.md)\n- g") == [{"b", ""}, {"d", "", "f.md"}, set()]
    with pytest.raises(ValueError, match="1 blocks of code in English, 0 in the translation"):
        with_code_of(original, "# 甲\n")


def test_the_site_shows_a_translation_with_the_code_of_the_english_page(tmp_path):
    make_site.lay_out(tmp_path, "zh")
    for path in CHINESE:
        if path.is_relative_to(ROOT / "docs"):
            page = (
                (tmp_path / path.relative_to(ROOT / "docs")).with_name(english(path).name).read_text(encoding="utf-8")
            )
            assert FENCE.findall(page) == FENCE.findall(english(path).read_text(encoding="utf-8"))
            assert CODE not in page and make_site.ENGLISH_ONLY not in page
