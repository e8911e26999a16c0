"""The user's own code: which files a run's parts come from, their imports included, and what is in them."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from ..fingerprint import Fingerprint
from ..generators import names_of, walk
from ..own_code import MAIN, file_of, find, is_own
from ..variables import Variables

# Their versions are conditions of every run.
_COMPARED = ("torch", "numpy", "surefoot")


def code_of(parts: Iterable[Any]) -> dict[str, str]:
    """SHA-256 of the user's own code behind `parts` (objects, classes, functions), as conditions.

    ``code.models/net.py`` is a whole file, without comments and layout: that of a class, of its bases, of a function
    and of all that these files import below the user's project. What is installed counts by its version, as
    ``versions.transformers``: that of each library whose function, or part with a state, is among `parts`. Of a script
    or notebook only what the parts refer to counts (``code.__main__:Net``), so that another number of epochs is no
    change.
    """
    from ..step import TrainStep

    digests: dict[str, str] = {}
    files: dict[str, str] = {}
    # Of a step what it was made of counts. It also holds what a compiler made, which is other code after a cache hit.
    made_of = [(p.model, p.loss, p.optimizer) if isinstance(p, TrainStep) else (p,) for p in parts]
    parts = [each for group in made_of for each in group if not isinstance(each, Variables)]  # it holds whole modules
    reachable = [value for _, value in walk({str(number): part for number, part in enumerate(parts)})]
    for code in _definitions(parts, reachable):
        if code.__module__ == MAIN:
            _main(code, digests, files)
        else:
            _file(code.__module__, files)
    return digests | files | {f"versions.{name}": version for name, version in _libraries(reachable)}


def _definitions(parts: Iterable[Any], reachable: Iterable[Any]) -> Iterator[Any]:
    """The classes and functions behind objects and behind all that these hold."""
    done: set[int] = set()
    for value in reachable:
        functions = isinstance(value, types.FunctionType | types.MethodType)
        kinds = [value] if functions else type(value).__mro__
        for kind in kinds:
            if id(kind) not in done and is_own(getattr(kind, "__module__", None)):
                done.add(id(kind))
                yield kind
    for part in parts:
        if isinstance(part, type):
            yield from (kind for kind in part.__mro__ if is_own(kind.__module__))


def _libraries(reachable: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """The libraries, with their versions, that parts with a state, and functions, come from."""
    for value in reachable:
        if isinstance(value, types.FunctionType):
            modules = [value.__module__ or ""]  # none of one whose text was made at run time
        elif callable(getattr(type(value), "load_state_dict", None)):
            modules = [kind.__module__ for kind in type(value).__mro__]
        else:
            continue
        # Of a class the nearest base that is not the user's own: what that is made of is its library's affair.
        name = next((module for module in modules if not is_own(module)), "").partition(".")[0]
        version = getattr(sys.modules.get(name), "__version__", None)
        if name not in _COMPARED and isinstance(version, str):
            yield name, version


def _file(module: str, files: dict[str, str]) -> None:
    """Take in the file of a module and what it imports; each one once."""
    path = file_of(module)
    if path is None:
        return
    package = path.name == "__init__.py"
    name = f"code.{module.replace('.', '/')}{'/__init__' if package else ''}.py"
    if name in files:
        return
    try:
        files[name], imports = _parsed(path.read_bytes(), module if package else module.rpartition(".")[0])
    except (OSError, SyntaxError, ValueError):
        files[name] = "no source"
        return
    for imported in imports:
        if (imported in sys.modules or find(imported)) and is_own(imported):
            _file(imported, files)


@functools.lru_cache(maxsize=256)  # a run asks several times, and parsing is slow
def _parsed(source: bytes, home: str) -> tuple[str, tuple[str, ...]]:
    """SHA-256 of what a file means, and the modules that it may import into the package `home`."""
    tree = ast.parse(source)
    digest = hashlib.sha256(ast.dump(tree).encode("utf-8", "surrogatepass")).hexdigest()
    return digest, tuple(dict.fromkeys(_imports(tree, home)))


def _imports(tree: ast.Module, home: str) -> Iterator[str]:
    """The modules that a file may import, by full name; some of them are names within modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            try:
                base = importlib.util.resolve_name(relative, home) if node.level else relative
            except ImportError:
                continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _main(code: Any, digests: dict[str, str], files: dict[str, str]) -> None:
    """Take in a class or function of the script, and the helpers, constants and modules that it refers to."""
    name = f"code.{MAIN}:{code.__qualname__}"
    if name in digests:
        return
    digests[name] = _source(code)
    functions = [
        getattr(item, "__func__", getattr(item, "fget", None) or item)
        for item in (vars(code).values() if isinstance(code, type) else [code])
    ]
    for function in functions:
        if not isinstance(function, types.FunctionType):
            continue
        for reference in sorted(set(names_of(function.__code__))):
            if reference not in function.__globals__:
                continue
            value = function.__globals__[reference]
            if isinstance(value, types.ModuleType):
                if is_own(value.__name__) and value.__name__ != MAIN:
                    _file(value.__name__, files)
            elif isinstance(value, type | types.FunctionType):
                if value.__module__ == MAIN:
                    _main(value, digests, files)
                elif is_own(value.__module__):
                    _file(value.__module__, files)
            elif isinstance(value, bool | int | float | complex | str | bytes | tuple | frozenset | None):
                digests[f"code.{MAIN}:{reference}"] = Fingerprint.of(value)


def _source(code: Any) -> str:
    try:
        return hashlib.sha256(inspect.getsource(code).encode("utf-8", "surrogatepass")).hexdigest()
    except (OSError, TypeError):  # typed into a prompt, or made at run time
        return Fingerprint.of(code) if isinstance(code, types.FunctionType) else "no source"
