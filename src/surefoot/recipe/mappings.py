"""Mappings of a recipe, read: a section with keys of its own, and a part (a name and its arguments)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..registry import imports_in
from ..text import shortened
from .frozen import Frozen
from .kinds import Argument, Kind
from .nodes import Broken, Entries, Items, Node, Scalar
from .reading import INVALID, Reading, describe_node, join, unknown_key
from .sections import EXAMPLES, IMPORT_PATTERN, REQUIRED, Keyed, Part, keys_of, part_expected, title, titled

_ARGUMENT = Argument()
# What others call the key that names a part.
FOR_NAME = {"type": "name", "class": "name", "_target_": "import", "target": "import"}


class Section(Kind):
    """A mapping with keys of its own, read by the dataclass that `cls` returns."""

    def __init__(self, cls: Callable[[], type[Keyed]]):
        self.cls = cls

    @property
    def registry(self) -> str:
        """The registry that its part is from; "" for a section without one."""
        return self.cls().registry

    @property
    def expected(self) -> str:
        return part_expected(self.registry) if self.registry else "a mapping"

    @property
    def example(self) -> str:
        return EXAMPLES.get(self.registry, "")

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        return read_section(self.cls(), node, path, reading)

    def plain(self, value: Any) -> Any:
        return value.plain()

    def schema(self, builder: Any) -> dict[str, Any]:
        schema: dict[str, Any] = builder.section(self.cls())
        return schema


class PartKind(Kind):
    """A name of one registry (``"model"``), or a mapping of it and its arguments."""

    def __init__(self, registry: str):
        self.registry = registry

    @property
    def expected(self) -> str:
        return part_expected(self.registry)

    @property
    def example(self) -> str:
        return EXAMPLES[self.registry]

    def take(self, node: Scalar | Items | Entries, path: str, reading: Reading) -> Any:
        return read_part(node, path, reading, self.registry, {})

    def plain(self, value: Any) -> Any:
        return value.plain()

    def schema(self, builder: Any) -> dict[str, Any]:
        schema: dict[str, Any] = builder.part(self.registry)
        return schema


def innermost(kind: Any) -> Any:
    """The kind of a list's items, or of what may also be null or a word."""
    while hasattr(kind, "kind"):
        kind = kind.kind
    return kind


def read_section(cls: type[Keyed], node: Node, path: str, reading: Reading) -> Any:
    """The section `cls` that `node` stands for, as far as it can be had; a key that is wrong has its default.

    Where a key without a default is wrong or missing, its field is None. INVALID where there is no section at all.
    """
    keys = keys_of(cls)
    reading.values[path] = node.where
    fields: dict[str, Any] = {}
    if cls.registry:
        part = read_part(node, path, reading, cls.registry, keys)
        if part is INVALID and not isinstance(node, Entries):
            return INVALID
        fields["part"] = None if part is INVALID else part
        node = node if isinstance(node, Entries) else Entries({}, node.where)
    elif not isinstance(node, Entries):
        return reading.refuse(path, f"{describe_node(node)} is not a mapping{_as_mapping(cls, node)}")
    rest: dict[str, Any] = {}
    meant: set[str] = set()
    for name, value in node.entries.items():
        here = join(path, name)
        reading.keys[here] = node.keys.get(name, node.where)
        if name in keys:
            fields[keys[name].attribute] = keys[name].kind.read(value, here, reading)
        elif cls.open_ended:
            rest[name] = _ARGUMENT.read(value, here, reading)
        elif not cls.registry:
            message = unknown_key(name, tuple(keys), reading.elsewhere(name, path, tuple(keys)))
            reading.refuse(path, message, reading.keys[here], code="recipe-unknown-key")
            meant |= {key for key in keys if f" {key!r}" in message}
    if cls.open_ended:
        fields["args"] = Frozen({n: v for n, v in rest.items() if v is not INVALID})
    for key in keys.values():
        if fields.get(key.attribute, INVALID) is INVALID:
            # A key that was misspelt is not reported again as missing.
            if key.default is REQUIRED and key.name not in node.entries and key.name not in meant:
                example = f", e.g. {key.name}: {key.kind.example}" if key.kind.example else ""
                missing = f"missing; give {key.kind.expected}{example}"
                reading.refuse(join(path, key.name), missing, node.where, code="recipe-missing-key")
            fields[key.attribute] = None if key.default is REQUIRED else key.default
    _require_one(cls, node, path, reading, meant)
    return cls(**fields)


def _require_one(cls: type[Keyed], node: Entries, path: str, reading: Reading, meant: set[str]) -> None:
    """Note where none of the keys `one_of` is given, or more than one."""
    kinds = {name: key.kind for name, key in keys_of(cls).items() if name in cls.one_of}
    given = [
        n for n in kinds if n in node.entries and not (isinstance(v := node.entries[n], Scalar) and v.value is None)
    ]
    if len(given) > 1:
        both = f"stands beside {given[0]}; give one of the two (null for the other)"
        reading.refuse(join(path, given[1]), both, reading.keys[join(path, given[1])], code="recipe-together")
    elif kinds and not given and not meant & set(kinds):
        ways = " or ".join(f"{name}: {kind.example}" for name, kind in kinds.items())
        missing = f"missing; give one of {', '.join(kinds)}, e.g. {ways}"
        reading.refuse(join(path, next(iter(kinds))), missing, node.where, code="recipe-missing-key")


def _as_mapping(cls: type[Keyed], node: Node) -> str:
    """How a value that stands for a whole section would be written, if that is clear."""
    if not isinstance(node, Scalar) or not node.text:
        return ""
    if node.value is True:
        return "; write {} for its defaults"
    name, key = next(iter(keys_of(cls).items()))
    fits = key.kind.read(node, "", Reading()) is not INVALID or isinstance(node.value, int | str) and name == "every"
    return f"; write {{{name}: {node.text}}}" if fits and node.value is not False else ""


def read_part(node: Node, path: str, reading: Reading, registry: str, reserved: Mapping[str, Any]) -> Any:
    """The Part that `node` names: a bare name, ``{name: ..., **arguments}`` or ``{import: ..., **arguments}``.

    `reserved` are the keys of the section around it, which are no arguments. INVALID where it has no usable name.
    """
    if isinstance(node, Scalar) and isinstance(node.value, str) and node.value:
        return _part(node.value, False, {}, path, path, reading)
    if not isinstance(node, Entries):
        return reading.refuse(
            path, f"{describe_node(node)} is not {part_expected(registry)}, e.g. {EXAMPLES[registry]}"
        )
    label = "import" if "import" in node.entries else "name"
    if label not in node.entries:
        message = f"no {title(registry)} is named; {_naming_remedy(node, registry, reserved)}"
        return reading.refuse(path, message)
    args: dict[str, Any] = {}
    for name, value in node.entries.items():
        here = join(path, name)
        if name != label and name not in reserved:
            reading.keys[here] = node.keys.get(name, node.where)
            args[name] = _ARGUMENT.read(value, here, reading)
    name_node, here = node.entries[label], join(path, label)
    reading.keys[here] = node.keys.get(label, node.where)
    reading.values[here] = name_node.where
    if isinstance(name_node, Scalar) and isinstance(name_node.value, str) and name_node.value:
        return _part(name_node.value, label == "import", args, path, here if label == "import" else path, reading)
    if isinstance(name_node, Broken):
        return INVALID
    expected = "a text module:Name" if label == "import" else f"the name of {titled(registry)}"
    return reading.refuse(here, f"{describe_node(name_node)} is not {expected}")


def _naming_remedy(node: Entries, registry: str, reserved: Mapping[str, Any]) -> str:
    """What to write in a mapping that names no part."""
    near = next((k for k in node.entries if k not in reserved and k in FOR_NAME), None)
    if near:
        return f"write {FOR_NAME[near]!r} for {near!r}"
    only = next(iter(node.entries), "") if len(node.entries) == 1 else ""
    if only[:1].isupper() and only not in reserved:
        return f"write {{name: {shortened(only)}, ...}} with the arguments beside the name"
    return f"give its name, e.g. {EXAMPLES[registry]}"


def _part(name: str, imported: bool, args: dict[str, Any], path: str, place: str, reading: Reading) -> Any:
    """The Part of this name, or INVALID with a message at the key `place` where the name is not of its form."""
    importable = ":" in name and re.fullmatch(IMPORT_PATTERN, name)
    if imported and not importable:
        return reading.refuse(place, _import_message(name))
    if importable and not imported:
        message = f"{name!r} is not a registered name; to use your own, write {{import: {name}}}"
        return reading.refuse(place, message, reading.values.get(join(path, "name")))
    for key, value in args.items():
        for text in imports_in(value):
            if not re.fullmatch(IMPORT_PATTERN, text):
                args[key] = reading.refuse(join(path, key), _import_message(text))
    if any(value is INVALID for value in args.values()):
        return INVALID
    return Part(name, Frozen(args), imported, path)


def _import_message(text: str) -> str:
    shown = repr(shortened(text))
    if re.fullmatch(r"\w+(\.\w+)+", text):
        module, _, name = text.rpartition(".")
        return f"{shown} has no colon; write {module}:{name}"
    if "/" in text or text.endswith(".py") or ".py:" in text:
        return f"{shown} is a file; give the module and the name in it, e.g. my_package.models:Net"
    return f"{shown} is not of the form module:Name, e.g. my_package.models:Net"
