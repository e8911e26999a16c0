"""`surefoot explain NAME ...`: what a finding or a refusal means: its cause, and the cure."""

from __future__ import annotations

import argparse
import re
from importlib import resources

from ..errors import UsageError
from ..registry import did_you_mean
from ..text import say

LANGUAGES = ("en", "zh")
_PAGES = {"lint": "on the first batch", "schedules": "in the schedule", "refusals": "refusals"}
# Stands in a translation for the next block of code of the English page.
CODE = "{{code}}"
_LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)*([^)#]+)[^)]*\)")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAMES, or none for the list."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="as it is printed; without one, all names")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="English, or 简体中文 (default: en)")


def run(arguments: argparse.Namespace) -> int:
    """Print the sections, or every name. Raises UsageError for a name that nothing has."""
    texts = sections(arguments.lang)
    if not arguments.names:
        for page, heading in _PAGES.items():
            say(f"{heading}:")
            for name in (name for name, (where, _) in texts.items() if where == page):
                say(f"  {name}")
        return 0
    names = [name.strip().lower() for name in arguments.names]
    if unknown := [name for name in names if name not in texts]:
        suggestion = did_you_mean(unknown[0], texts) or "; without a name the command lists them all"
        raise UsageError(f"nothing is called {unknown[0]!r}{suggestion}")
    # A link as a terminal shows it: its text and the page.
    say(_LINK.sub(r"\1 (\2)", "\n\n".join(f"{name}\n\n{texts[name][1]}" for name in names)))
    return 0


def sections(language: str = "en") -> dict[str, tuple[str, str]]:
    """The page and text of each finding and refusal, in the order of the pages."""
    sections = {}
    for page in _PAGES:
        text = _text(f"{page}.md")
        if language != "en":
            text = with_code_of(text, _text(f"{page}.{language}.md"))
        _, *parts = re.split(r"^## ([a-z-]+)$", text, flags=re.M)
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            sections[name] = (page, body.strip())
    return sections


def with_code_of(english: str, translated: str) -> str:
    """A translated page with the English one's blocks of code where it says `CODE`, a line each. Raises ValueError
    where it has more or fewer of them.
    """
    blocks = _FENCE.findall(english)
    parts = translated.split(f"\n{CODE}\n")
    if len(parts) != len(blocks) + 1:
        raise ValueError(f"{len(blocks)} blocks of code in English, {len(parts) - 1} in the translation")
    return "".join(part + (f"\n{block}\n" if block else "") for part, block in zip(parts, [*blocks, ""], strict=True))


def _text(name: str) -> str:
    return resources.files("surefoot").joinpath("explanations", name).read_text(encoding="utf-8")
