"""A tree of nodes to a Recipe: every mistake is noted with its place, and all are reported at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from ..errors import Problems
from ..registry import Registry
from .check import check_parts, check_together, settle
from .frozen import Frozen
from .key_aliases import elsewhere
from .mappings import read_section
from .model import Recipe
from .nodes import Broken, Entries, Problem, Refused, Scalar, Where
from .overrides import apply_overrides
from .reading import Reading, describe_node
from .yaml_source import read_tree


def parse_recipe(
    text: str,
    name: str = "recipe.yaml",
    overrides: Sequence[str] = (),
    *,
    registries: Mapping[str, Registry] | None = None,
    source: str | None = None,
) -> Recipe:
    """The recipe that the YAML `text` stands for, changed by `overrides` (``"optimizer.lr=3e-4"``).

    `name` is how messages call the text; its stem is the recipe's default name. `registries` are those that
    parts are looked up in, by kind (``"model"``, ``"optimizer"``): all of Surefoot's unless given, and a kind that
    is left out is not checked. Raises Problems with every mistake, in the order of the text.

    >>> parse_recipe("epochs: 0\\nmodle: M\\nloss: L\\noptimizer: O\\nmodel: M", "r.yaml", registries={})
    Traceback (most recent call last):
    ...
    surefoot.errors.Problems: r.yaml:1:1: data: missing; give the name of a data set, or a mapping with it, \
e.g. data: garments
    r.yaml:1:9: epochs: 0 is below 1; give at least one epoch
    r.yaml:2:1: unknown key 'modle'; did you mean 'model'?
    """
    problems: list[Problem] = []
    try:
        tree = read_tree(text, name, problems)
    except Refused as error:
        raise Problems([*_in_order(problems), error]) from None
    if tree is None:
        tree = Entries({}, Where((0, 0, 0), f"{name}:1:1"))
        if not overrides:
            message = "the recipe is empty; `surefoot list recipes` shows some to begin with"
            raise Problems([Problem(tree.where, "", message, "recipe-missing-key")])
    if isinstance(tree, Broken):
        raise Problems(_in_order(problems))
    if not isinstance(tree, Entries):
        message = f"{describe_node(tree)} stands where the recipe's keys were expected; write 'epochs: 10' and so on"
        raise Problems([*problems, Problem(tree.where, "", message)])
    tree = apply_overrides(tree, overrides, problems)
    reading = Reading(problems, elsewhere=elsewhere)
    stem = Scalar(_directory_name(PurePath(name).stem), tree.where, "")
    named = Entries({"name": stem, **tree.entries}, tree.where, {"name": tree.where, **tree.keys})
    recipe = read_section(Recipe, named, "", reading)
    reading.code = "recipe-together"
    recipe = settle(recipe, reading)
    check_parts(recipe, reading, registries)
    check_together(recipe, reading)
    if reading.problems:
        raise Problems(_in_order(reading.problems))
    places = Frozen({path: str(where) for path, where in reading.values.items()})
    return dataclasses.replace(recipe, source=source, places=places)


def _directory_name(stem: str) -> str:
    """A file's stem as a name that a recipe may have: what it may not hold is an underscore."""
    return "".join(c if c.isprintable() and c not in "/\\" else "_" for c in stem)[:100].lstrip(".") or "recipe"


def _in_order(problems: list[Problem]) -> list[Problem]:
    """By place, each once: a mistake under an anchor is met once for every alias."""
    return sorted(dict.fromkeys(problems), key=lambda problem: problem.where)
