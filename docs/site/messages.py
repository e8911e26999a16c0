"""Every message that the source can raise, by its code, with … for what differs from case to case."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import surefoot
from surefoot.errors import code_of_module

PACKAGE = Path(surefoot.__file__).parent
PATHS = sorted(PACKAGE.rglob("*.py"))
# Errors that set their code themselves; and what stands for `code=error.code`.
OWN = {"BadFile": "file-refused", "Refused": "recipe-yaml", "RankFailed": "rank-failed"}
ANOTHERS = "another error's"
# Where mistakes are collected before they are raised together.
_COLLECTED = {"refuse": 1, "append": 0, "Problem": 2, "ArgumentProblem": 1}


def module(path: Path) -> str:
    """`data.tables` of the file `data/tables.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed source of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _error_classes() -> set[str]:
    """The names of our error classes but `Stopped`, which is no mistake."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for path in PATHS
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
    }
    found = {"SurefootError"}
    while more := {name for name, its in bases.items() if its & found} - found:
        found |= more
    return found - {"Stopped"}


def raised(tree: ast.AST) -> Iterator[tuple[ast.Call, str | None]]:
    """Each error of ours that is made, with the code that is given there; None for its module's."""
    classes = _error_classes()
    for node in ast.walk(tree):
        name = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        if name in classes:
            given = next((word.value for word in node.keywords if word.arg == "code"), None)
            code = OWN.get(name) if given is None else getattr(given, "value", ANOTHERS)
            yield node, code if code is None or isinstance(code, str) else ANOTHERS


def by_code() -> dict[str, list[str]]:
    """The messages of each code, in the order of the source."""
    found: dict[str, dict[str, None]] = {}
    for path in PATHS:
        tree = tree_of(path)
        values, scopes = _assigned(tree)
        default = "recipe-together" if module(path) == "recipe.check" else code_of_module(module(path))
        for call, code in [*raised(tree), *_collected(tree)]:
            at = 1 if isinstance(call.func, ast.Name) and call.func.id in OWN else 0
            name = ast.unparse(call.func).rpartition(".")[2]
            at = _COLLECTED.get(name, at)
            message = call.args[at] if len(call.args) > at else None
            if isinstance(message, ast.Name):
                texts = values.get((scopes.get(call), message.id)) or values.get((None, message.id), [])
            else:
                texts = [] if message is None else [message]
            for each in texts:
                if len((text := _text(each)).replace("…", "").strip(" :;,")) > 8:
                    found.setdefault(code or default, {})[text] = None
    return {code: list(texts) for code, texts in found.items()}


def _assigned(tree: ast.Module) -> tuple[dict[Any, list[ast.expr]], dict[ast.AST, ast.AST]]:
    """What names are given by (function or None for the module, name), and the function that each node stands in."""
    values: dict[Any, list[ast.expr]] = {}
    scopes: dict[ast.AST, ast.AST] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            scopes |= dict.fromkeys(ast.walk(function), function)  # inner functions come later and go before
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values.setdefault((scopes.get(node), node.targets[0].id), []).append(node.value)
    return values, scopes


def _collected(tree: ast.AST) -> Iterator[tuple[ast.Call, str | None]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.rpartition(".")[2] in ("refuse", "Problem", "ArgumentProblem") or name.endswith("problems.append"):
            words = [word.value for word in node.keywords if word.arg == "code"] + node.args[3:4]
            yield node, next((word.value for word in words if isinstance(word, ast.Constant)), None)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(map(_text, node.values)))
    return _text(node.left) + _text(node.right) if isinstance(node, ast.BinOp) else "…"
