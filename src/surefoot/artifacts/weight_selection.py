"""Which tensors of a checkpoint are the weights: at its top, under a key, nested, or in a whole pickled module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..registry import did_you_mean
from ..safe_tensors import BadFile
from . import pickled
from .pickled import Opaque, Stored

MAX_DEPTH = 6
# Modules and entries looked at in one file: a made-up pickle can hold itself.
_MAX_VISITED = 500_000


class _Endless(ValueError):
    pass


class _Budget:
    """How much of a tree may still be looked at."""

    def __init__(self) -> None:
        self.left = _MAX_VISITED

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _Endless


def select(
    path: Path, tree: Any, key: str | None, foreign: tuple[str, ...]
) -> tuple[dict[str, Stored], str | None, tuple[str, ...]]:
    """The weights in the tree, under which key they are (None: at its top), and the entries left aside.

    `key` is a path of keys joined by dots; without it the weights nearest to the top are taken, if they are the
    only ones there. Raises `BadFile`.
    """
    try:
        return _select(path, tree, key, foreign, _Budget())
    except _Endless:
        raise BadFile(path, "is nested too deeply, or inside itself") from None


def _select(
    path: Path, tree: Any, key: str | None, foreign: tuple[str, ...], budget: _Budget
) -> tuple[dict[str, Stored], str | None, tuple[str, ...]]:
    state = _state(tree, budget)
    if key is not None:
        item = _at(tree, key)
        state = None if item is None else _state(item, budget)
        if not state:
            known = [name for level in _levels(tree, budget) for name, _ in level]
            listing = ", ".join(map(repr, known[:20])) or "none"
            raise BadFile(path, f"holds no weights under {key!r}{did_you_mean(key, known)}; entries that do: {listing}")
        return state, key, _others(tree, key)
    if state:
        return state, None, ()
    for level in _levels(tree, budget):
        if len(level) == 1:
            name, state = level[0]
            return state, name, _others(tree, name)
        if level:
            listing = ", ".join(repr(name) for name, _ in level[:20])
            raise BadFile(path, f"holds several sets of weights ({listing}); say which one with key={level[0][0]!r}")
    raise BadFile(path, _nothing(tree, foreign))


def _state(value: Any, budget: _Budget) -> dict[str, Stored] | None:
    """The state_dict that a value is, or that a whole pickled module would give; None for anything else."""
    if isinstance(value, Opaque):
        return _of_module(value, budget)
    if not isinstance(value, dict):
        return None
    budget.spend(len(value))
    tensors = {n: v for n, v in value.items() if isinstance(v, Stored) and isinstance(n, str)}
    # What modules add by get_extra_state is none of the weights.
    rest = [n for n in value if n not in tensors and not (isinstance(n, str) and n.endswith("_extra_state"))]
    return tensors if tensors and not rest else None


def _of_module(value: Opaque, budget: _Budget) -> dict[str, Stored] | None:
    """What `state_dict()` of the pickled module would hold: its parameters and buffers, in order."""
    by_name: dict[str, Stored] = {}
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        prefix, module = waiting.pop()
        state = module.state if isinstance(module, Opaque) else None
        if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict):
            continue
        budget.spend(1 + len(state["_modules"]) + len(prefix) // 20)
        hidden = state.get("_non_persistent_buffers_set")
        hidden = hidden.arguments if isinstance(hidden, Opaque) else ()
        if isinstance(hidden, tuple) and hidden and isinstance(hidden[0], list):
            hidden = hidden[0]
        hidden = {name for name in hidden if isinstance(name, str)} if isinstance(hidden, list) else set()
        for kind in ("_parameters", "_buffers"):
            entries = state.get(kind)
            entries = entries if isinstance(entries, dict) else {}
            budget.spend(len(entries))
            for name, tensor in entries.items():
                if isinstance(tensor, Stored) and isinstance(name, str) and (kind != "_buffers" or name not in hidden):
                    by_name[prefix + name] = tensor
        inner = [(f"{prefix}{name}.", m) for name, m in state["_modules"].items() if isinstance(name, str)]
        waiting += reversed(inner)
    return by_name or None


def _levels(tree: Any, budget: _Budget) -> Iterator[list[tuple[str, dict[str, Stored]]]]:
    """The sets of weights below the top, level by level; what an optimizer keeps is none."""
    level: list[tuple[str, Any]] = [("", tree)]
    visited: set[int] = set()
    for _ in range(MAX_DEPTH):
        states, deeper = [], []
        for prefix, value in level:
            for name, item in _entries(value):
                if id(item) in visited or not isinstance(item, dict | Opaque):
                    continue
                budget.spend(1)
                visited.add(id(item))
                where = prefix + name
                state = _state(item, budget)
                if state:
                    states.append((where, state))
                elif not {"state", "param_groups"} <= {n for n, _ in _entries(item)}:
                    deeper.append((where + ".", item))
        yield states
        level = deeper


def _entries(value: Any) -> list[tuple[str, Any]]:
    """The named things in a dictionary, or in an object that was not made."""
    if isinstance(value, Opaque):
        value = value.state
    return [(n, v) for n, v in value.items() if isinstance(n, str)] if isinstance(value, dict) else []


def _at(tree: Any, key: str) -> Any:
    """What lies under a path of keys; a key may hold dots itself."""
    waiting = [(tree, key)]
    for _ in range(1000):
        if not waiting:
            break
        value, rest = waiting.pop()
        for name, item in _entries(value):
            if name == rest:
                return item
            if rest.startswith(name + "."):
                waiting.append((item, rest[len(name) + 1 :]))
    return None


def _others(tree: Any, key: str) -> tuple[str, ...]:
    return tuple(name[:80] for name, _ in _entries(tree) if name != key and not key.startswith(name + "."))


def _nothing(tree: Any, foreign: tuple[str, ...]) -> str:
    """Why there are no weights in a tree."""
    names = f"; it names {pickled.listed(foreign)}, which are never made" if foreign else ""
    if not isinstance(tree, dict | Opaque):
        kind = "one tensor" if isinstance(tree, Stored) else f"a {type(tree).__name__.lstrip('_').lower()}"
        return f"holds {kind}, not a state_dict{names}"
    if isinstance(tree, Opaque):
        return f"holds a {tree.name[:100]}, not a state_dict{names}"
    wrong = [f"{str(n)[:60]} ({_kind(v)})" for n, v in tree.items() if not isinstance(n, Opaque | int | float)]
    wrong = [line for line in wrong if not line.endswith("(a tensor)")][:5]
    what = f"entries that are no tensors: {', '.join(wrong)}" if wrong else "nothing"
    return f"holds no state_dict (a dictionary of names and tensors) but {what}{names}"


def _kind(value: Any) -> str:
    if isinstance(value, Stored):
        return "a tensor"
    name = value.name if isinstance(value, Opaque) else ""
    if name.startswith("torch._utils._rebuild_"):
        return f"a tensor of another kind, {name.removeprefix('torch._utils._rebuild_')}: make it dense and plain"
    return name[:80] or type(value).__name__.lstrip("_")
