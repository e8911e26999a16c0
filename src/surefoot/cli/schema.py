"""`surefoot schema`: the JSON Schema of a recipe, for an editor to check and complete by."""

from __future__ import annotations

import argparse
import json

from ..text import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Print the schema (draft 2020-12)."""
    from .. import recipe

    say(json.dumps(recipe.json_schema(), indent=2))
    return 0
