"""YAML text to a tree of nodes: YAML 1.2 core-schema scalars, each with the file, line and column it stands at.

PyYAML reads the syntax; what a scalar means is decided here, because PyYAML follows YAML 1.1: it reads ``1e-3`` as
text, ``no`` as false, ``012`` as ten and ``1:30`` as ninety. Core schema: https://yaml.org/spec/1.2.2/#103-core-schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import UsageError
from ..files import TooLarge, read_bounded
from .nodes import Broken, Entries, Items, Node, Problem, Refused, Scalar, Where

# A recipe is written by hand; these bounds only stop files that were made to hurt.
MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 50_000


def read_text(path: Path) -> str:
    """The text of the file `path`, as UTF-8 with or without a byte order mark.

    Raises UsageError for a file that is missing, not a file, not readable, too large or not UTF-8.
    """
    try:
        raw = read_bounded(path, MAX_BYTES, follow=True)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except TooLarge:
        raise UsageError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no recipe is") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if path.is_dir():
            raise UsageError(f"{path}: this is a directory; give the recipe file in it") from None
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: cannot be read: {reason}") from None
    return decode(raw, str(path))


def decode(raw: bytes, name: str) -> str:
    """`raw` as UTF-8 text; Refused with line and column of the first byte that is not."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Refused(_at(name, 0, 0), "the file is UTF-16; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line = before.count(b"\n")
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace"))
        byte = error.object[error.start]
        message = f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
        raise Refused(_at(name, line, column), message) from None


def read_tree(text: str, name: str, problems: list[Problem]) -> Node | None:
    """The tree of the one YAML document in `text`; None for a text without one.

    `name` is how messages call the file. Keys given twice, keys that are not text, merge keys, tags beyond the
    core schema and not-a-numbers are added to `problems`. Raises Refused where no tree can be had: what is not
    YAML, several documents, huge or deep trees.

    >>> read_tree("lr: 1e-3", "recipe.yaml", []).entries["lr"]
    Scalar(value=0.001, where=Where(order=(0, 0, 4), text='recipe.yaml:1:5'), text='1e-3')
    """
    return _compose(text, lambda line, column: _at(name, line, column), problems)


def read_value(text: str, where: Where, problems: list[Problem]) -> Node:
    """The node that `text` stands for on a command line; every node in it is at `where`.

    A text that opens as a list, a mapping or a quotation is YAML; all else is one plain scalar, so that
    ``*.bias``, ``a: b`` and ``#1`` need no quotation marks.

    >>> here = Where((1, 0, 0), "argument 'lr=3e-4'")
    >>> read_value("3e-4", here, []).value
    0.0003
    """
    stripped = text.strip()
    if not stripped.startswith(("[", "{", '"', "'")):
        return _plain(stripped, where, problems)
    node = _compose(stripped, lambda line, column: where, problems)
    assert node is not None, "a bracket or a quotation mark begins a document"
    return node


def resolve(text: str) -> Any:
    """The value of a plain (unquoted) scalar in YAML 1.2's core schema.

    >>> [resolve(t) for t in ("1e-3", "012", "0x1F", "no", "1:30", "true", "~")]
    [0.001, 12, 31, 'no', '1:30', True, None]
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
# [0-9], not \d: other scripts' digits are text.
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")

At = Callable[[int, int], Where]

_TAG = "tag:yaml.org,2002:"
_TYPES: dict[str, Any] = {"null": type(None), "bool": bool, "int": int, "float": float}


def _at(name: str, line: int, column: int) -> Where:
    return Where((0, line, column), f"{name}:{line + 1}:{column + 1}")


def _plain(text: str, where: Where, problems: list[Problem]) -> Scalar | Broken:
    try:
        value = resolve(text)
    except ValueError:  # Python refuses to read integers of more than 4,300 digits
        problems.append(Problem(where, "", f"a number of {len(text)} digits is more than can be read"))
        return Broken(where)
    if isinstance(value, float) and math.isnan(value):
        problems.append(Problem(where, "", f"{text} (not a number) is no setting; give a number"))
        return Broken(where)
    if isinstance(value, str) and _SURROGATE.search(value):
        problems.append(Problem(where, "", "half of a surrogate pair is no character"))
        return Broken(where)
    return Scalar(value, where, text)


def _compose(text: str, at: At, problems: list[Problem]) -> Node | None:
    builder = _Builder(at, problems)
    try:
        return builder.document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.reader.ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        line = before.count("\n")
        where = at(line, len(before) - before.rfind("\n") - 1)
        raise Refused(where, f"the character U+{ord(text[error.position]):04X} cannot stand in YAML") from None
    except yaml.MarkedYAMLError as error:
        mark = error.context_mark if _names_anchor(error) else error.problem_mark or error.context_mark
        where = at(mark.line, mark.column) if mark else at(0, 0)
        raise Refused(where, _syntax_message(error, text)) from None
    except (ValueError, OverflowError) as error:
        # PyYAML's scanner leaves these bare: an escape beyond Unicode, a %YAML version of too many digits.
        if isinstance(error, UsageError):
            raise
        raise Refused(builder.last, f"not valid YAML after this: {error}") from None


def _names_anchor(error: yaml.MarkedYAMLError) -> bool:
    """Whether an unquoted text beginning with * or & was taken for an alias or an anchor."""
    return (error.context or "").startswith(("while scanning an alias", "while scanning an anchor"))


def _syntax_message(error: yaml.MarkedYAMLError, text: str) -> str:
    """PyYAML's words, put plainly, with the remedy where one is known."""
    problem, mark = error.problem or "it cannot be read", error.problem_mark
    lines = text.splitlines()
    wide = WIDE.search(lines[mark.line]) if mark and mark.line < len(lines) else None
    if wide is None:
        wide = WIDE.search(lines[mark.line - 1]) if mark and 0 < mark.line <= len(lines) else None
    if wide:
        return f"not valid YAML: {_wide_remedy(wide.group())}"
    before = lines[mark.line][: mark.column + 1] if mark and mark.line < len(lines) else ""
    if "'\\t'" in problem or "\t" in before:
        return "a tab stands where YAML wants spaces; indent with spaces"
    if _names_anchor(error):
        return "not valid YAML: a text that begins with * or & needs quotation marks"
    if "mapping values are not allowed" in problem:
        return (
            "not valid YAML: a ':' that nothing expects; look at the indentation here and on the line above, "
            "and put a text that holds ': ' in quotation marks"
        )
    if "cannot start any token" in problem:
        return f"not valid YAML: {problem}; a text that begins so needs quotation marks"
    if "<block end>" in problem:
        return "not valid YAML: the indentation of this line matches no line above it"
    began = ""
    if error.context_mark and mark and error.context_mark.line != mark.line:
        began = f" that begins on line {error.context_mark.line + 1}"
    context = f"{error.context}{began}, " if error.context else ""
    return f"not valid YAML: {context}{problem.replace('<stream end>', 'the end of the file')}"


# Full-width signs, as a Chinese or Japanese keyboard gives them.
WIDE = re.compile("[\uff1a\uff0c\u3001\u201c\u201d\uff08\uff09\u3010\u3011]")
_NARROW = dict(
    zip(
        "\uff1a\uff0c\u3001\u201c\u201d\uff08\uff09\u3010\u3011",
        [": ", ", ", ", ", '"', '"', "[", "]", "[", "]"],
        strict=True,
    )
)


def _wide_remedy(sign: str) -> str:
    return f"{sign!r} is a full-width sign; write {_NARROW[sign]!r}"


class _Builder:
    """Parse events to nodes; counts what aliases would unfold to."""

    def __init__(self, at: At, problems: list[Problem]):
        self.at = at
        self.problems = problems
        self.last = at(0, 0)
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.open_anchors: list[str] = []

    def document(self, events: Iterator[yaml.Event]) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in events:
            self.last = self.place(event)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise Refused(self.last, "a second document begins here; a recipe is one")
            elif isinstance(event, yaml.NodeEvent):
                root, _ = self.node(event, events, 0)
        if isinstance(root, Scalar) and root.text == "" and root.value is None:
            return None
        if isinstance(root, Scalar) and isinstance(root.value, str) and (wide := WIDE.search(root.text)):
            raise Refused(root.where, _wide_remedy(wide.group()))
        return root

    def place(self, event: yaml.Event) -> Where:
        assert event.start_mark is not None, "parsed text has places"
        return self.at(event.start_mark.line, event.start_mark.column)

    def node(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> tuple[Node, int]:
        """The node that starts with `event`, and how many nodes it is when every alias is unfolded."""
        where = self.last = self.place(event)
        assert isinstance(event, yaml.NodeEvent)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self.open_anchors:
                return self.anchors[event.anchor]
            if event.anchor in self.open_anchors:
                message = f"*{event.anchor} stands inside the value that it names"
            else:
                remedy = "a text that begins with * needs quotation marks"
                message = f"*{event.anchor} names no &{event.anchor} above it; {remedy}"
            return self.broken(where, message), 1
        if depth > MAX_DEPTH:
            raise Refused(where, f"nested more than {MAX_DEPTH} deep, which no recipe needs")
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.anchor:
            self.open_anchors.append(event.anchor)
        built: tuple[Node, int]
        if isinstance(event, yaml.ScalarEvent):
            built = self.scalar(event, where), 1
        elif isinstance(event, yaml.SequenceStartEvent):
            built = self.sequence(events, where, depth)
        else:
            built = self.mapping(events, where, depth)
        if event.tag is not None and not self.known_tag(event, event.tag):
            shown = event.tag.replace(_TAG, "!!", 1)
            message = f"the tag {shown!r} is not supported; a recipe holds plain values only"
            built = self.broken(where, message), 1
        if event.anchor:
            self.open_anchors.pop()
            self.anchors[event.anchor] = built
        return built

    def sequence(self, events: Iterator[yaml.Event], where: Where, depth: int) -> tuple[Items, int]:
        items, size = [], 1
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            item, inner = self.node(event, events, depth + 1)
            items.append(item)
            size = self.bounded(size + inner, where)
        return Items(tuple(items), where), size

    def mapping(self, events: Iterator[yaml.Event], where: Where, depth: int) -> tuple[Entries, int]:
        entries: dict[str, Node] = {}
        keys: dict[str, Where] = {}
        size = 1
        last = ""
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            here = self.place(event)
            text = event.value if isinstance(event, yaml.ScalarEvent) and event.style is None else ""
            split = self.split_value(entries.get(last), text, here)
            key = None if split else self.key(event, events, depth)
            value, inner = self.node(next(events), events, depth + 1)
            if split:
                entries[last] = Broken(here)
                continue
            last = key or ""
            size = self.bounded(size + 1 + inner, where)
            if key in keys:
                self.broken(here, f"{key!r} is given twice; it first stands at {keys[key]}")
            elif key is not None:
                entries[key], keys[key] = value, here
        return Entries(entries, where, keys), size

    def split_value(self, before: Node | None, text: str, where: Where) -> bool:
        """Whether a comma within a value cut it, ``{lr: 0,1}`` or ``{betas: (0.9, 0.999)}``: `text` is no key."""
        if not isinstance(before, Scalar) or not text:
            return False
        if before.text.startswith("(") and text.endswith(")"):
            self.broken(before.where, f"({before.text[1:]}, {text} is not YAML; write [{before.text[1:]}, {text[:-1]}]")
        elif type(before.value) is int and re.fullmatch(r"[0-9]+([eE][-+]?[0-9]+)?", text):
            number = f"{before.text},{text}"
            self.broken(before.where, f"a comma separates keys here; write {before.text}.{text} for {number}")
        else:
            return False
        return True

    def key(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> str | None:
        """The text of a key; None for one that cannot be used."""
        where = self.place(event)
        if isinstance(event, yaml.ScalarEvent) and event.style is None and event.value == "<<":
            self.broken(where, "merge keys (<<) are not in YAML 1.2; write the keys out")
            return None
        node, _ = self.node(event, events, depth + 1)
        if isinstance(node, Broken):
            return None
        if not isinstance(node, Scalar):
            self.broken(where, "a list or a mapping cannot be a key")
            return None
        if not isinstance(node.value, str):
            self.broken(where, f"the key {node.text or 'null'} is not text; put it in quotation marks")
            return None
        bare = isinstance(event, yaml.ScalarEvent) and event.style is None
        if bare and (wide := WIDE.search(node.value)):
            self.broken(where, _wide_remedy(wide.group()))
            return None
        return node.value

    def bounded(self, size: int, where: Where) -> int:
        if size > MAX_NODES:
            raise Refused(where, f"more than {MAX_NODES:,} values, counting each use of an alias")
        return size

    def broken(self, where: Where, message: str) -> Broken:
        self.problems.append(Problem(where, "", message, "recipe-yaml"))
        return Broken(where)

    def known_tag(self, event: yaml.NodeEvent, tag: str) -> bool:
        if isinstance(event, yaml.ScalarEvent):
            known: tuple[str, ...] = (*_TYPES, "str")
        else:
            known = ("seq",) if isinstance(event, yaml.SequenceStartEvent) else ("map",)
        return tag == "!" or (tag.startswith(_TAG) and tag.removeprefix(_TAG) in known)

    def scalar(self, event: yaml.ScalarEvent, where: Where) -> Scalar | Broken:
        text = event.value
        kind = (event.tag or "").removeprefix(_TAG)
        if kind in _TYPES:
            node = _plain(text, where, self.problems)
            if isinstance(node, Broken):
                return node
            value = float(node.value) if kind == "float" and type(node.value) is int else node.value
            if type(value) is not _TYPES[kind]:
                return self.broken(where, f"{text!r} is no !!{kind}")
            return Scalar(value, where, text)
        if event.tag is not None or event.style is not None:  # !!str, ! or a quotation
            if _SURROGATE.search(text):
                return self.broken(where, "half of a surrogate pair is no character")
            return Scalar(text, where, text)
        return _plain(text, where, self.problems)
