"""Names of a package that are imported when they are first asked for, so that importing it imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of `package`, whose modules `homes` hold the names given beside them.

    >>> lazily("surefoot", {"text": "printable say", "rng": "fold"})("fold").__name__
    'fold'
    """
    modules = {name: module for module, names in homes.items() for name in names.split()}

    def member(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{modules[name]}", package), name)

    return member
