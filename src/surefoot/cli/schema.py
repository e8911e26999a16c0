"""`surefoot schema`: the JSON Schema of a recipe, for an editor to check and complete by."""

from __future__ import annotations

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Print the schema (draft 2020-12)."""
    from .. import recipe

    json.dump(recipe.json_schema(), sys.stdout, indent=2)
    print()
    return 0
