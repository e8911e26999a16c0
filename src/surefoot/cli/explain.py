"""`surefoot explain NAME`: what a finding means: what it is about, why it is wrong, the fix."""

from __future__ import annotations

import argparse
import re
from importlib import resources

from ..text import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME, or none for the list."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="as the finding is called; without one, all names")


def run(arguments: argparse.Namespace) -> int:
    """Print one section, or every name. Raises UsageError for a name that no finding has."""
    from ..errors import UsageError
    from ..registry import did_you_mean

    texts = sections()
    if arguments.name is None:
        for page, names in _PAGES.items():
            say(f"{names}:")
            for name in (name for name, (where, _) in texts.items() if where == page):
                say(f"  {name}")
        return 0
    name = arguments.name.strip().lower()
    if name not in texts:
        suggestion = did_you_mean(name, texts) or "; without a name the command lists them all"
        raise UsageError(f"no finding is called {arguments.name!r}{suggestion}")
    say(f"{name}\n\n{texts[name][1]}")
    return 0


_PAGES = {"lint": "on the first batch", "schedules": "in the schedule"}


def sections() -> dict[str, tuple[str, str]]:
    """Each finding's page and text, in the order of the pages."""
    sections = {}
    for page in _PAGES:
        text = resources.files("surefoot").joinpath("explanations", f"{page}.md").read_text(encoding="utf-8")
        _, *parts = re.split(r"^## ([a-z-]+)$", text, flags=re.M)
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            sections[name] = (page, body.strip())
    return sections
