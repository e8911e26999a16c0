"""The gallery: each file is short and says what it shows; one survives a kill here, two in the slow tests."""

from __future__ import annotations

import re

import pytest
from gallery import DOCS, GALLERY, OTHERS, lines_of, names, others_lines, show, title_of

MOST_LINES = 120


@pytest.mark.parametrize("name", names())
def test_a_file_is_short_and_says_what_it_shows(name):
    text = (GALLERY / f"{name}.py").read_text("utf-8")
    assert lines_of(name) <= MOST_LINES
    assert title_of(name) and f"python {name}.py" in text and "\nSTATED = " in text
    assert text.count("sys.exit(not ") == 1  # a figure that is NaN is not reached


@pytest.mark.parametrize("path", sorted((GALLERY / "by_hand").glob("*")), ids=lambda path: path.stem)
def test_a_file_by_hand_does_the_job_of_one_to_the_same_figure(path):
    name, _, kind = path.stem.rpartition("_")
    stated = re.search(r"^STATED = .*", (GALLERY / f"{name}.py").read_text("utf-8"), re.MULTILINE).group()
    assert kind in OTHERS and name in names()
    text = path.read_text("utf-8")
    assert stated.split("  #")[0] in text and f"python {path.name}" in text and "figure: " in text
    assert text.count("sys.exit(not ") == 1


def test_the_page_has_a_row_for_each_file_with_its_lines():
    page = (DOCS / "gallery.md").read_text("utf-8")
    for path in sorted([*GALLERY.glob("*.py"), *(GALLERY / "by_hand").glob("*.py")]):
        link = f"../{path.relative_to(DOCS.parent)}"
        cells = next(line for line in page.splitlines() if f"]({link})" in line).split(" | ")
        assert cells[2] == str(len(path.read_text("utf-8").splitlines())), link
        if path.parent == GALLERY:
            assert cells[4:7] == list(others_lines(path.stem)), link


def test_the_page_has_a_picture_or_a_text_of_each_file():
    page = (DOCS / "gallery.md").read_text("utf-8")
    for name in names():
        kept = [path for ending in ("png", "svg") if (path := DOCS / "gallery" / f"{name}.{ending}").exists()]
        assert all(f"(gallery/{path.name})" in page for path in kept)
        assert kept or f"<!-- {name} -->" in page, name


SLOW = [pytest.param(name, 2, marks=pytest.mark.slow) for name in ("regression", "time_sequence_prediction")]


@pytest.mark.parametrize(("name", "kills"), [("gcn", 1), *SLOW])
def test_it_reaches_its_figure_and_ends_in_the_same_bits_when_killed(name, kills, tmp_path):
    shown = show(name, tmp_path, kills=kills)
    assert shown.kills == kills and "(stated: " in shown.figure
