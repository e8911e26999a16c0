"""The site's parts that need no Sphinx: every public name is documented, every link of a page leads somewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import make_site  # noqa: E402
import reference  # noqa: E402

from surefoot.errors import CODES  # noqa: E402
from surefoot.losses import FINDINGS  # noqa: E402
from surefoot.planning import MISTAKES  # noqa: E402


def test_every_public_name_method_and_argument_is_documented():
    assert reference.undocumented() == []


def test_a_name_without_a_word_is_told(monkeypatch):
    def bare(number):
        return number

    def wordy(number):
        """Half of it."""
        return number

    monkeypatch.setattr(reference, "public", lambda: iter([("surefoot", "bare", bare), ("surefoot", "wordy", wordy)]))
    assert reference.undocumented() == ["surefoot.bare", "surefoot.wordy: its argument number"]


def test_a_public_name_without_a_word_fails_the_build_before_anything_is_made(monkeypatch, capsys):
    def planted(number):
        return number

    schedules = sys.modules["surefoot.schedules"]
    monkeypatch.setattr(schedules, "planted", planted, raising=False)
    monkeypatch.setattr(schedules, "__all__", [*schedules.__all__, "planted"])
    monkeypatch.setattr(make_site.subprocess, "run", lambda *words, **options: pytest.fail("something was made"))
    assert make_site.main([]) == 1
    assert "surefoot.schedules.planted" in capsys.readouterr().out


@pytest.mark.parametrize("language", make_site.LANGUAGES)
def test_every_page_is_laid_out_and_every_link_leads_somewhere(language, tmp_path):
    make_site.lay_out(tmp_path, language)
    made = {path.relative_to(tmp_path).with_suffix("").as_posix() for path in tmp_path.rglob("*")}
    assert set(make_site.pages().values()) <= made
    contents = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert all(page in contents for page in make_site.pages().values() if "/" not in page and page != "index")
    assert "README" not in contents and "Surefoot" in contents  # each language's own; the site has a switch
    chapters = (tmp_path / "course" / "index.md").read_text(encoding="utf-8")
    assert all(f"({path.stem}.ipynb): " in chapters for path in make_site.course.chapters())


def test_a_link_to_nothing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"docs/data.md: the link nothing.md leads to nothing"):
        make_site.linked("[this](nothing.md)", "docs/data.md", "data", tmp_path)


def test_a_link_of_a_built_page_that_leads_nowhere_is_told(tmp_path):
    (tmp_path / "one.html").write_text('<a href="two.html#here">two</a> <a href="#there" id="x">itself</a>')
    (tmp_path / "two.html").write_text('<p id="here">')
    assert list(make_site.broken_links(tmp_path)) == ["one.html: #there names no place on that page"]
    (tmp_path / "two.html").unlink()
    assert "one.html: two.html#here is not there" in make_site.broken_links(tmp_path)


def test_a_search_that_cannot_begin_is_told(tmp_path):
    script = tmp_path / "zh" / "_static" / "language_data.js"
    script.parent.mkdir(parents=True)
    script.write_text("var EnglishStemmer=function(){}\nwindow.Stemmer = ChineseStemmer;")
    assert list(make_site.broken_search(tmp_path)) == [
        "zh/_static/language_data.js: names ChineseStemmer, which is not there"
    ]
    script.write_text("var EnglishStemmer=function(){}\nwindow.Stemmer = EnglishStemmer;")
    assert not list(make_site.broken_search(tmp_path))


@pytest.mark.parametrize("language", make_site.LANGUAGES)
def test_trouble_has_every_name_that_is_printed(language):
    page = reference.trouble_page("Trouble", language)
    assert all(f"\n## {name}\n" in page for name in (*FINDINGS, *MISTAKES, *CODES.values()))


def test_the_reference_names_every_key_and_verb():
    from surefoot.cli import VERBS
    from surefoot.recipe import json_schema

    keys, command = reference.recipe_page("Keys", ""), reference.command_page("Command", "")
    assert all(f"| `{key}` |" in keys for key in json_schema()["properties"])
    assert all(f"\n## surefoot {verb}\n" in command for verb in VERBS)
