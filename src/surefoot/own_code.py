"""Which modules are the user's own, and where they stand."""

from __future__ import annotations

import functools
import sys
import sysconfig
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

MAIN = "__main__"
_HOUSE = Path(__file__).resolve().parent
_INSTALLED = ("site-packages", "dist-packages")


@functools.cache
def is_own(module: str | None) -> bool:
    """Whether a module is the user's: neither installed, nor Python's, nor this package."""
    if module == MAIN:
        return True
    if (module or "").partition(".")[0] == "torch":  # what a compiler wrote into its cache counts by torch's version
        return False
    path = file_of(module)
    if path is None or path.is_relative_to(_HOUSE) or any(part in _INSTALLED for part in path.parts):
        return False
    return not path.is_relative_to(Path(sysconfig.get_path("stdlib")).resolve())


def file_of(module: str | None) -> Path | None:
    """The file of Python that a module stands in, or None."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
    else:
        file = getattr(find(module) if module else None, "origin", None)
    return Path(file).resolve() if file and file.endswith(".py") else None


def find(module: str) -> ModuleSpec | None:
    """Where a module is that is not imported yet, as one is within a function: found without importing it."""
    package = module.rpartition(".")[0]
    inside = None
    if package:
        known = sys.modules.get(package)
        inside = getattr(known or find(package), "__path__" if known else "submodule_search_locations", None)
        if inside is None:
            return None
    return PathFinder.find_spec(module, inside)
