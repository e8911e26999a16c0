"""The gallery: each file is short and says what it shows; three of them reach their figure and survive kills here."""

from __future__ import annotations

import pytest
from gallery import GALLERY, lines_of, names, show, title_of

MOST_LINES = 120


@pytest.mark.parametrize("name", names())
def test_a_file_is_short_and_says_what_it_shows(name):
    text = (GALLERY / f"{name}.py").read_text("utf-8")
    assert lines_of(name) <= MOST_LINES
    assert title_of(name) and f"python {name}.py" in text and "\nSTATED = " in text


@pytest.mark.parametrize("name", ["gcn", "regression", "time_sequence_prediction"])
def test_it_reaches_its_figure_and_ends_in_the_same_bits_when_killed(name, tmp_path):
    shown = show(name, tmp_path, kills=2)
    assert shown.kills == 2 and "(stated: " in shown.figure
