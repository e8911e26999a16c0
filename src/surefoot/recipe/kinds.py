"""The kinds of value that a recipe's keys take: how each is read, written, named in messages, and its schema."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..limits import MOST
from ..registry import Range, describe, did_you_mean
from .frozen import thaw
from .nodes import Broken, Entries, Items, Node, Scalar
from .reading import INVALID, Reading, describe_node, flag_remedy, number_remedy


class Kind:
    """What a value may be."""

    @property
    def expected(self) -> str:
        """Completes "... is not" in a message, and is the column "value" in the docs."""
        raise NotImplementedError

    @property
    def example(self) -> str:
        """A value that messages can show, or an empty text."""
        return ""

    def read(self, node: Node, path: str, reading: Reading) -> Any:
        """The value of `node`, or INVALID with every problem noted in `reading`."""
        reading.values[path] = node.where
        return INVALID if isinstance(node, Broken) else self.take(node, path, reading)

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        """As `read`, of a node that is not Broken and whose place is noted."""
        raise NotImplementedError

    def plain(self, value: Any) -> Any:
        """What `to_yaml` writes for `value`."""
        return thaw(value)

    def schema(self, builder: Any) -> dict[str, Any]:
        """The JSON Schema of the value; `builder` (a SchemaBuilder) has those of sections and parts."""
        raise NotImplementedError

    def mismatch(self, node: Node, path: str, reading: Reading, remedy: str = "") -> Any:
        """Note that `node` is not what was `expected`; returns INVALID."""
        return reading.refuse(path, f"{describe_node(node)} is not {self.expected}{remedy}")


class Flag(Kind):
    """true or false."""

    expected = "true or false"

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        return self.mismatch(node, path, reading, flag_remedy(node))

    def schema(self, builder: Any) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number of at least `low`; `hint` says what to give instead of a smaller one."""

    low: int
    hint: str = ""
    high: int = MOST

    @property
    def expected(self) -> str:
        return f"a whole number, {self.low} or more"

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, bool) or not isinstance(value, int):
            near = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
            return self.mismatch(node, path, reading, f"; write {value:.0f}" if near else number_remedy(node))
        if value < self.low:
            return reading.refuse(path, f"{value} is below {self.low}; {self.hint}")
        if value > self.high:
            return reading.refuse(path, f"{describe(value)} is above {self.high}")
        return value

    def schema(self, builder: Any) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Number(Kind):
    """A number within `range`, always read as a float; `hint` says what to give where the range itself does not."""

    range: Range
    hint: str = ""

    @property
    def expected(self) -> str:
        low, high = self.range.low, self.range.high
        bounds = []
        if low > float("-inf"):
            bounds.append(f"above {low:g}" if self.range.low_open else f"{low:g} or more")
        if high < float("inf"):
            bounds.append(f"below {high:g}" if self.range.high_open else f"at most {high:g}")
        return "a number" + (", " + " and ".join(bounds) if bounds else "")

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self.mismatch(node, path, reading, number_remedy(node))
        wrong = self.range.violation(value)
        if wrong is None and abs(value) > sys.float_info.max:
            wrong = f"{describe(value)} is not a finite number"
        return reading.refuse(path, f"{wrong}; {self.hint or self.range.hint}") if wrong else float(value)

    def schema(self, builder: Any) -> dict[str, Any]:
        return {"type": "number", **limits_schema(self.range)}


def limits_schema(limits: Range) -> dict[str, float]:
    """The JSON Schema of a number's limits."""
    schema = {}
    if limits.low > float("-inf"):
        schema["exclusiveMinimum" if limits.low_open else "minimum"] = limits.low
    if limits.high < float("inf"):
        schema["exclusiveMaximum" if limits.high_open else "maximum"] = limits.high
    return schema


@dataclass(frozen=True)
class Text(Kind):
    """A text; where there is a `pattern`, all of it must match, and `expected` says what that is."""

    expected: str = "a text"
    pattern: str = r"(?s).+"
    remedy: str = ""

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            quote = isinstance(node, Scalar) and node.text and node.value is not None
            return self.mismatch(node, path, reading, self.remedy or ("; put it in quotation marks" if quote else ""))
        return node.value if re.fullmatch(self.pattern, node.value) else self.mismatch(node, path, reading, self.remedy)

    def schema(self, builder: Any) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words; `synonyms` are what others call them."""

    options: tuple[str, ...]
    synonyms: Mapping[str, str] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        return self.options[0] if len(self.options) == 1 else "one of " + ", ".join(self.options)

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        if not isinstance(node, Scalar):
            return self.mismatch(node, path, reading)
        if node.value in self.options:
            return node.value
        if synonym := self.synonyms.get(node.text.lower()):
            return self.mismatch(node, path, reading, f"; write {synonym}")
        near = did_you_mean(node.value, self.options) if isinstance(node.value, str) else ""
        return self.mismatch(node, path, reading, near)

    def schema(self, builder: Any) -> dict[str, Any]:
        return {"enum": list(self.options)}


@dataclass(frozen=True)
class Monitor(Kind):
    """The name of something that is measured each epoch."""

    expected = "what is measured, val/NAME or train/NAME"

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, str) and re.fullmatch(r"(train|val)/[^/\s]+", value):
            return value
        bare = isinstance(value, str) and re.fullmatch(r"[^/\s]+", value)
        return self.mismatch(node, path, reading, f"; write val/{value}" if bare else "; e.g. val/loss")

    def schema(self, builder: Any) -> dict[str, Any]:
        return {"type": "string", "pattern": "^(train|val)/", "examples": ["val/loss", "val/accuracy"]}


# What people write for null who come from Python, or from YAML 1.1.
_NOTHING = ("none", "nil", "no", "off", "false")


@dataclass(frozen=True)
class Maybe(Kind):
    """null (None), or what `kind` takes."""

    kind: Kind

    @property
    def expected(self) -> str:
        return f"{self.kind.expected}, or null"

    @property
    def example(self) -> str:
        return self.kind.example

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        if isinstance(node, Scalar) and node.value is None:
            return None
        # A text may be "none" where any text may stand.
        free = isinstance(self.kind, Several) or self.kind == Text()
        if isinstance(node, Scalar) and node.text.lower() in _NOTHING and not free:
            return self.mismatch(node, path, reading, "; write null")
        return self.kind.take(node, path, reading)

    def plain(self, value: Any) -> Any:
        return None if value is None else self.kind.plain(value)

    def schema(self, builder: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "null"}, self.kind.schema(builder)]}


@dataclass(frozen=True)
class Or(Kind):
    """One of a few words, or what `kind` takes; with `flag`, true or false too."""

    words: tuple[str, ...]
    kind: Kind
    flag: bool = False

    @property
    def expected(self) -> str:
        flags = ", true, false" if self.flag else ""
        return f"{', '.join(self.words)}{flags} or {self.kind.expected}"

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        if self.flag and isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        if not isinstance(node, Scalar) or (isinstance(self.kind, Flag | Whole) and not isinstance(node.value, str)):
            return self.kind.take(node, path, reading)
        if node.value in self.words and isinstance(node.value, str):
            return node.value
        near = did_you_mean(node.value, self.words) if isinstance(node.value, str) else ""
        # A text without a pattern's signs that is close to one of the words is more likely that word, misspelt.
        misspelt = bool(near) and not set(node.text) & set("*?[.")
        if isinstance(self.kind, Several) and not misspelt:
            return self.kind.take(node, path, reading)
        return self.mismatch(
            node, path, reading, near or (flag_remedy(node) if isinstance(self.kind, Flag) or self.flag else "")
        )

    def plain(self, value: Any) -> Any:
        word = (isinstance(value, str) and value in self.words) or (self.flag and isinstance(value, bool))
        return value if word else self.kind.plain(value)

    def schema(self, builder: Any) -> dict[str, Any]:
        words = [*self.words, *([True, False] if self.flag else [])]
        return {"anyOf": [{"enum": words}, self.kind.schema(builder)]}


@dataclass(frozen=True)
class Several(Kind):
    """A list of what `kind` takes, as a tuple; with `one`, a single value stands for a list of one.

    It is then written as that value, unless it is to be written as a list always, `as_list`.
    """

    kind: Kind
    least: int = 0
    one: bool = False
    as_list: bool = False

    @property
    def expected(self) -> str:
        each = self.kind.expected
        return f"{each}, or a list of such" if self.one else f"a list, each {each}"

    @property
    def example(self) -> str:
        return self.kind.example if self.one else ""

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        if isinstance(node, Items):
            if len(node.items) < self.least:
                return reading.refuse(path, f"{len(node.items) or 'no'} items are fewer than {self.least}")
            values = [self.kind.read(item, f"{path}.{i}", reading) for i, item in enumerate(node.items)]
            return INVALID if any(value is INVALID for value in values) else tuple(values)
        if self.one and not (isinstance(node, Scalar) and node.value is None):
            value = self.kind.take(node, path, reading)
            return INVALID if value is INVALID else (value,)
        if isinstance(self.kind, Choice) and isinstance(node, Scalar):
            alone = Reading()
            if self.kind.read(node, path, alone) is INVALID:
                reading.problems += alone.problems  # in brackets it would be refused too
                return INVALID
        remedy = "begin each of its items with '- '" if isinstance(node, Entries) else "write [] for none"
        if isinstance(node, Scalar) and node.text and len(node.text) <= 40 and node.value is not None:
            remedy = f"write [{node.text}]"
        return reading.refuse(path, f"{describe_node(node)} is not a list; {remedy}")

    def plain(self, value: Any) -> Any:
        plain = [self.kind.plain(item) for item in value]
        return plain[0] if self.one and len(plain) == 1 and not self.as_list else plain

    def schema(self, builder: Any) -> dict[str, Any]:
        each = self.kind.schema(builder)
        several = {"type": "array", "items": each} | ({"minItems": self.least} if self.least else {})
        return {"anyOf": [each, several]} if self.one else several


class Argument(Kind):
    """Any plain value: an argument of a part, which its registry checks."""

    expected = "any value"

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        if isinstance(node, Scalar):
            return node.value
        if isinstance(node, Items):
            values = [self.read(item, f"{path}.{i}", reading) for i, item in enumerate(node.items)]
            return INVALID if any(value is INVALID for value in values) else tuple(values)
        taken = {key: self.read(value, f"{path}.{key}", reading) for key, value in node.entries.items()}
        return INVALID if any(value is INVALID for value in taken.values()) else taken

    def schema(self, builder: Any) -> dict[str, Any]:
        return {}
