"""The tree that a recipe is read from: nodes, each with its place, and the problems found in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError


@dataclass(frozen=True, order=True)
class Where:
    """A place that a message can point at: a position in a file, or an argument of the command line.

    Places sort in the order in which a reader meets them: the file from its top, then the arguments.
    """

    order: tuple[int, int, int]
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Scalar:
    """A leaf: its value (None, bool, int, float or str), and the text it was written as."""

    value: Any
    where: Where
    text: str = ""


@dataclass(frozen=True)
class Items:
    """A list of nodes."""

    items: tuple[Node, ...]
    where: Where


@dataclass(frozen=True)
class Entries:
    """A mapping: the nodes by key, and where each key stands."""

    entries: dict[str, Node]
    where: Where
    keys: dict[str, Where] = field(default_factory=dict)


@dataclass(frozen=True)
class Broken:
    """Stands where a value was refused, so that the rest is still read and checked."""

    where: Where


Node = Scalar | Items | Entries | Broken


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, the key it concerns ("" for none), what to do about it, and its code."""

    where: Where
    path: str
    message: str
    code: str = "recipe-value"

    def __str__(self) -> str:
        return f"{self.where}: {self.path}: {self.message}" if self.path else f"{self.where}: {self.message}"


class Refused(UsageError):
    """A text that is no tree at all; unlike a wrong value, it hides what comes after it."""

    def __init__(self, where: Where, message: str):
        self.where = where
        super().__init__(f"{where}: {message}", code="recipe-yaml")
