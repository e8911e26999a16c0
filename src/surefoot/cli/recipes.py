"""The recipe that a verb is given: a name, a file, or a run's own, whose code is imported only where it is trusted."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..registry import imports_in
from ..text import draw, note, say, shortened

if TYPE_CHECKING:
    from ..planning import LrFind, PlanReport
    from ..recipe import Recipe

FILE = "recipe.yaml"


def add_recipe_arguments(parser: argparse.ArgumentParser, example: str, *, optional: bool = False) -> None:
    """RECIPE, overrides such as `example`, --trust-code."""
    help_text = "a recipe's file or packaged name"
    parser.add_argument("recipe", metavar="RECIPE", nargs="?" if optional else None, help=help_text)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"overrides such as {example}")
    add_trust_argument(parser)


def add_chart_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """--json and --svg; and --png, which is answered by what to give instead."""
    parser.add_argument("--svg", metavar="FILE", help="draw the chart into an .svg file as well")
    parser.add_argument("--png", dest="svg", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=f"{what} as one JSON object for machines")


def show_chart(result: LrFind | PlanReport, picture: Path | None, *, as_json: bool) -> None:
    """Draw `result` into the file `picture`, if there is one, and print it as JSON or as a chart."""
    if picture is not None:
        result.save_svg(picture)
    if as_json:
        say(json.dumps(result.to_json(), indent=2))
        return
    draw(result.render_terminal)
    if picture is not None:
        say(f"drawn: {picture}")


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """--trust-code."""
    parser.add_argument(
        "--trust-code", action="store_true", help="import the code that a saved file names (a model's, a run's recipe)"
    )


def named_recipe(name: str, overrides: Sequence[str], *, trust_code: bool) -> Recipe:
    """The recipe `name`: packaged, or a file. One that lies beside a run or a model is theirs; see `recipe_of_run`."""
    from .. import recipe

    path = Path(name)
    if path.name == FILE and any(os.path.lexists(path.with_name(name)) for name in ("run.json", "model.json")):
        return recipe_of_run(path.parent, overrides, trust_code=trust_code)
    return recipe.load_recipe(name, overrides)


def recipe_of_run(run_dir: Path, overrides: Sequence[str] = (), *, trust_code: bool = False) -> Recipe:
    """The resolved recipe that a run directory holds. Raises UsageError where there is no run or no recipe.

    Also where it imports code and nobody vouches for it: neither `trust_code` nor a seal, which says that this user
    trained the run with this very recipe on this machine.
    """
    from .. import files, recipe, trust
    from ..checkpoint import RunDirectory, read_about

    if not run_dir.is_dir():
        raise UsageError(f"{run_dir}: no such run directory")
    path = run_dir / FILE
    if not os.path.lexists(path):
        what = (
            "the run was made from Python (go on with it there, by fit(..., resume=True))"
            if RunDirectory.holds_run(run_dir)
            else "it is not a run directory"
        )
        raise UsageError(f"{run_dir}: holds no {FILE}: {what}")
    try:
        text = files.read_bounded(path, recipe.MAX_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    loaded = recipe.parse_recipe(text, str(path), overrides, source=str(path))
    imported = sorted({*imports_in(loaded.plain())})
    command = None if any(each.startswith("on_end=") for each in overrides) else loaded.on_end
    trusted = trust_code or not (imported or command) or trust.holds(run_dir, read_about(run_dir) or {}, text)
    if command and not trusted:
        note(f"{path}: its on_end ({shortened(command)}) is somebody else's and not run; --trust-code runs it")
        loaded = dataclasses.replace(loaded, on_end=None)
    if imported and not trusted:
        raise UsageError(
            f"{path}: imports {', '.join(map(repr, imported))}, and this user has not trained this run with this "
            "recipe on this machine (it was copied, edited or made by somebody else); give --trust-code if you would "
            "run that code as your own",
            code="trust",
        )
    return loaded
