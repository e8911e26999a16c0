"""Changes to a recipe from the command line: ``optimizer.lr=3e-4`` applied to the tree before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..text import shortened
from .mappings import innermost
from .model import Recipe
from .nodes import Broken, Entries, Items, Node, Problem, Refused, Scalar, Where
from .reading import describe_node
from .sections import keys_of
from .yaml_source import read_value

# Keys whose value may be a bare name, which a dotted override turns into a mapping with that name.
_PARTS = frozenset(name for name, key in keys_of(Recipe).items() if getattr(innermost(key.kind), "registry", ""))


def apply_overrides(tree: Entries, overrides: Sequence[str], problems: list[Problem]) -> Entries:
    """`tree` with each ``key.key=value`` set, later ones over earlier ones; mistakes are added to `problems`.

    A part of a path is a key, or the index of a list's item, counted from 0. What is absent or null on the way
    becomes a mapping, and a bare name (``loss: CrossEntropyLoss``) a mapping with that name. The value is YAML: a
    list, a mapping or a quoted text where it opens as one, else one plain scalar. Every node of it is placed at
    the argument, so that messages name it.
    """
    for index, text in enumerate(overrides):
        where = Where((1, index, 0), f"argument {shortened(text, 80)!r}")
        dotted, equals, value = text.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            problems.append(Problem(where, "", "not of the form key=value or section.key=value", "recipe-override"))
            continue
        if len(keys) > 20:
            problems.append(Problem(where, "", "names a key deeper than any recipe has", "recipe-override"))
            continue
        try:
            node = read_value(value, where, problems)
            changed = _set(tree, keys, 0, node, where)
        except Refused as error:
            problems.append(Problem(where, "", str(error).removeprefix(f"{where}: "), "recipe-override"))
            continue
        assert isinstance(changed, Entries)
        tree = changed
    return tree


def _set(node: Node, keys: list[str], at: int, value: Node, where: Where) -> Node:
    """A copy of `node` in which ``keys[at:]`` lead to `value`; copies, because aliases share nodes."""
    if at == len(keys):
        return value
    key, path = keys[at], ".".join(keys[:at])
    if isinstance(node, Items):
        position = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= position < len(node.items):
            count = len(node.items)
            held = f"its items are 0 to {count - 1}" if count else f"it is empty; give the whole list: {path}=[...]"
            raise Refused(where, f"{path!r} is a list and has no item {key!r}; {held}")
        items = list(node.items)
        items[position] = _set(items[position], keys, at + 1, value, where)
        return replace(node, items=tuple(items))
    if isinstance(node, Scalar):
        node = _as_mapping(node, keys, at, where)
    elif isinstance(node, Broken):
        return node
    inner = node.entries.get(key, Scalar(None, where))
    changed = _set(inner, keys, at + 1, value, where)
    return replace(node, entries={**node.entries, key: changed}, keys={**node.keys, key: where})


def _as_mapping(node: Scalar, keys: list[str], at: int, where: Where) -> Entries:
    path = ".".join(keys[:at])
    if node.value is None:
        if keys[at].isdigit():
            raise Refused(where, f"{path!r} has no item {keys[at]!r}; give the whole list: {path}=[...]")
        return Entries({}, where)
    if node.value in ("auto", "plain"):  # execution, data.normalize
        return Entries({}, where)
    if path == "tensorboard" and node.value is True:
        return Entries({}, where)
    if path == "tensorboard" and node.value == "together":
        return Entries({"together": Scalar(True, node.where, "true")}, where)
    part = keys[0] in _PARTS and (at == 1 or keys[at - 1].isdigit())
    if part and isinstance(node.value, str) and not keys[at].isdigit():
        return Entries({"name": node}, node.where, {"name": node.where})
    raise Refused(where, f"{path!r} is {describe_node(node)}, and has no {keys[at]!r} in it")
