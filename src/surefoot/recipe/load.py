"""A recipe by name or path: the packaged ones, and files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from ..arguments import Arguments
from ..errors import UsageError
from ..registry import Registry, did_you_mean
from .model import Recipe
from .parse import parse_recipe
from .yaml_source import read_text

_SUFFIXES = (".yaml", ".yml")
# Surefoot is installed as plain files (torch cannot live in a zip either), so resources have paths.
_FOLDER = Path(str(resources.files("surefoot") / "recipes"))


def load_recipe(
    source: str | os.PathLike[str], overrides: Sequence[str] = (), *, registries: Mapping[str, Registry] | None = None
) -> Recipe:
    """The recipe `source`, changed by `overrides` (``"optimizer.lr=3e-4"``) and checked.

    A bare word is the name of a packaged recipe; anything with a slash or a suffix is a file. Raises UsageError
    for a name or file that is not there or cannot be read, Problems with every mistake in it; see `parse_recipe`.
    `registries` are those that names are looked up in, by their kind; without them all that Surefoot knows.

    >>> load_recipe("quickstrat")
    Traceback (most recent call last):
    ...
    surefoot.errors.UsageError: no packaged recipe 'quickstrat'; did you mean 'quickstart'? packaged \
are: fashion_mnist, fashion_mnist_best, gpt_text, quickstart; a file is given by its path, e.g. recipe.yaml
    """
    check = Arguments()
    check.path("recipe", source)
    overrides = check.texts("overrides", overrides)
    check.done()
    path = Path(source)
    if isinstance(source, str) and source in packaged_names():
        path = _FOLDER / f"{source}.yaml"
        source = path.name
    elif not os.path.lexists(path):
        raise UsageError(_not_found(str(source)))
    return parse_recipe(read_text(path), str(source), overrides, registries=registries, source=str(path))


def packaged_names() -> list[str]:
    """The names of the recipes that come with Surefoot."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def packaged_summary(name: str) -> str:
    """The first line of a packaged recipe, which says what it is for. Raises UsageError for an unknown name."""
    if name not in packaged_names():
        raise UsageError(_not_found(name))
    first = read_text(_FOLDER / f"{name}.yaml").partition("\n")[0]
    return first.lstrip("# ").strip()


def _not_found(name: str) -> str:
    packaged = packaged_names()
    names = ", ".join(packaged)
    if "/" not in name and os.sep not in name and not name.endswith(_SUFFIXES):
        near = [n for n in (name + suffix for suffix in _SUFFIXES) if Path(n).is_file()]
        if near:
            return f"no packaged recipe {name!r}; for the file, give {near[0]}"
        meant = did_you_mean(name, packaged) or ";"
        remedy = f"packaged are: {names}; a file is given by its path, e.g. recipe.yaml"
        return f"no packaged recipe {name!r}{meant} {remedy}"
    path = Path(name)
    if path.parent.is_dir():
        beside = [p.name for p in path.parent.iterdir() if p.suffix in _SUFFIXES]
        meant = did_you_mean(path.name, beside)
        if meant:
            return f"{name}: no such file{meant}"
    if path.stem in packaged:
        return f"{name}: no such file; the packaged recipe is called {path.stem}"
    return f"{name}: no such file; a packaged recipe goes by its name: {names}"
