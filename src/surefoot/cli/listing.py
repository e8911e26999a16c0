"""`surefoot list KIND`: what a recipe can name."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..registry import did_you_mean
from ..text import say

_REGISTRIES = "losses objectives metrics optimizers schedulers warmups models data augmentations"
KINDS = (*_REGISTRIES.split(), "recipes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """KIND and --json."""
    parser.add_argument("kind", metavar="KIND", type=_kind, help=", ".join(KINDS))
    parser.add_argument("--json", action="store_true", help="one JSON list for machines")


def _kind(word: str) -> str:
    if word not in KINDS:
        suggestion = did_you_mean(word, KINDS) or f"; the kinds are {', '.join(KINDS)}"
        raise argparse.ArgumentTypeError(f"there is no kind {word!r}{suggestion}")
    return word


def run(arguments: argparse.Namespace) -> int:
    """Print the entries of one kind: name, summary, arguments with their defaults, further facts."""
    from .. import recipe
    from ..metrics.registry import INSTALL, METRICS

    rows: list[dict[str, Any]] = [{"name": n, "summary": recipe.packaged_summary(n)} for n in recipe.packaged_names()]
    if arguments.kind != "recipes":
        rows = _entries(arguments.kind)
    if arguments.json:
        say(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        say(f"{row['name']}: {row['summary']}")
        for fact, value in row.items():
            if fact in ("name", "summary"):
                continue
            if fact == "arguments":
                value = ", ".join(n if d is None else f"{n}={d}" for n, d in value.items()) or "none"
            say(f"    {fact}: {value}")
    if arguments.kind == "metrics" and METRICS.remedy("F1Score"):
        say(f"torchmetrics' classes are listed too where it is installed: {INSTALL}")
    return 0


def _entries(kind: str) -> list[dict[str, Any]]:
    import inspect

    from ..recipe import all_registries

    rows = []
    for entry in next(registry for registry in all_registries().values() if registry.plural == kind):
        arguments = {
            name: None if parameter.default is inspect.Parameter.empty else repr(parameter.default)
            for name, parameter in entry.parameters().items()
        }
        rows.append({"name": entry.name, "summary": entry.summary, "arguments": arguments, **entry.facts})
    return rows
