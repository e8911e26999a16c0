"""One reading of a recipe: its problems, where each key stands, and the wording of mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..registry import describe, did_you_mean
from ..text import shortened
from .nodes import Entries, Items, Node, Problem, Scalar, Where
from .yaml_source import resolve

INVALID: Any = type("Invalid", (), {"__repr__": lambda self: "INVALID"})()


@dataclass
class Reading:
    """One reading of a recipe: the problems found so far, and where each key and value stands.

    `elsewhere` says where a key that is unknown at a path belongs, given the keys of that path; "" if unclear.
    """

    problems: list[Problem] = field(default_factory=list)
    values: dict[str, Where] = field(default_factory=dict)
    keys: dict[str, Where] = field(default_factory=dict)
    elsewhere: Callable[[str, str, Collection[str]], str] = lambda name, path, keys: ""
    code: str = "recipe-value"  # of what is refused now

    def refuse(self, path: str, message: str, where: Where | None = None, *, code: str = "") -> Any:
        """Note a problem with the key `path`, at `where` or where its value stands; returns INVALID."""
        place, key = where or self.where(path), shortened(path, 120)
        self.problems.append(Problem(place, key, shortened(message, 600), code or self.code))
        return INVALID

    def where(self, path: str) -> Where:
        """Where the value of `path` stands, or the nearest thing around it where it was left out."""
        while path not in self.values:
            path = path.rpartition(".")[0]
        return self.values[path]


def describe_node(node: Node) -> str:
    """A node as a user would recognise it."""
    if isinstance(node, Entries):
        return "a mapping"
    if isinstance(node, Items):
        return "a list"
    assert isinstance(node, Scalar)
    return "an empty value" if node.value is None and not node.text else describe(node.value)


def flag_remedy(node: Node) -> str:
    """What to write for a truth value of YAML 1.1, or a quoted one."""
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        return ""
    words = {"yes": "true", "on": "true", "no": "false", "off": "false", "true": "true", "false": "false"}
    word = words.get(node.value.strip().lower())
    return f"; write {word}" if word else ""


def text_remedy(text: str, expected: str) -> str:
    """What to write in place of `text` where a number, a truth value or null was expected, if that is clear.

    >>> text_remedy("yes", "true or false"), text_remedy("0,1", "a number"), text_remedy("None", "a number or null")
    ('; write true', '; write 0.1', '; write null')
    """
    node = Scalar(text, Where((0, 0, 0), ""), text)
    if "null" in expected and text.lower() in ("none", "nil"):
        return "; write null"
    if "a list" in expected and text.startswith("(") and text.endswith(")"):
        return f"; write [{text[1:-1].strip().rstrip(',')}]"
    return (flag_remedy(node) if "true or false" in expected else "") or (
        number_remedy(node) if "number" in expected else ""
    )


# 1_000, 60,000 and 60'000; and a decimal comma.
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}([,'_][0-9]{3})+(\.[0-9]*)?|[-+]?[0-9]+(_[0-9]+)+")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]*,[0-9]+([eE][-+]?[0-9]+)?")


def number_remedy(node: Node) -> str:
    """What to write for a number that was quoted or written with separators."""
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        return ""
    text = node.value.strip().rstrip(",;")
    if len(text) > 40:
        return ""
    if _GROUPED.fullmatch(text):
        return f"; write {re.sub('[,_]|' + chr(39), '', text)}"
    if _DECIMAL_COMMA.fullmatch(text):
        return f"; write {text.replace(',', '.')}"
    if text and isinstance(resolve(text), int | float):
        return "; write it without quotation marks" if text == node.value else f"; write {text}"
    return ""


def join(path: str, key: str) -> str:
    """`path` extended by `key`; a key that cannot be shown as it is, is shown as Python would."""
    shown = key if key.isprintable() and key else repr(key)
    return f"{path}.{shown}" if path else shown


def unknown_key(key: str, known: Mapping[str, Any] | tuple[str, ...], elsewhere: str) -> str:
    """The message for a key that is not one of `known`; `elsewhere` is where it would belong, if anywhere."""
    shown = repr(shortened(key))
    if elsewhere:
        return f"unknown key {shown}; {elsewhere}"
    meant = did_you_mean(key, known)
    return f"unknown key {shown}{meant or '; the keys here are: ' + ', '.join(known)}"
