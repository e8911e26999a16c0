"""README.md and README.zh.md hold the same sections, blocks of code, tables, commands and links, in the same order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")]
HELD = {
    "sections": r"^(#+) ",
    "blocks of code": r"^```\w*\n.*?^```$",
    "indented blocks": r"^    .*$",
    "rows of tables": r"^(\|)",
    "paragraphs": r"\n\n(?=[^\n#|`\s])",
}


@pytest.mark.parametrize("what", HELD)
def test_both_readmes_have_the_same(what):
    english, chinese = (
        re.findall(HELD[what], text, re.M | re.S if what == "blocks of code" else re.M) for text in TEXTS
    )
    assert english == chinese and english


def test_both_readmes_name_the_same_code_and_lead_to_the_same_pages():
    for pattern in (r"(?<!`)`([^`\n]+)`(?!`)", r"\]\(([^)]+)\)"):
        english, chinese = (set(re.findall(pattern, text.replace(".zh.md", ".md"))) - {"README.md"} for text in TEXTS)
        assert english == chinese, f"README.zh.md lacks {english - chinese}, README.md lacks {chinese - english}"


def test_the_chinese_readme_leads_to_chinese_pages_where_there_are_any():
    links = [ROOT / link for link in re.findall(r"\]\((docs/[^)#]+\.md|src/[^)#]+\.md)\)", TEXTS[1])]
    missed = [str(path) for path in links if ".zh" not in path.name and path.with_suffix(".zh.md").exists()]
    assert links and not missed and all(path.exists() for path in links)


def test_the_chinese_readme_is_chinese():
    for paragraph in re.sub(r"^```.*?^```$|^    .*$", "", TEXTS[1], flags=re.M | re.S).split("\n\n")[2:]:
        prose = re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)|^#.*$|Apache-2.0.", "", paragraph, flags=re.M).strip()
        assert not prose or re.search("[\u4e00-\u9fff]", prose), paragraph
