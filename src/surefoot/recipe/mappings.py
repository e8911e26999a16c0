"""Mappings of a recipe, read: a section with keys of its own, and a part (a name and its arguments)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .frozen import Frozen
from .kinds import Arguments, Kind
from .nodes import Entries, Items, Node, Scalar
from .reading import INVALID, Reading, describe_node, join, shortened, unknown_key
from .sections import EXAMPLES, IMPORT_PATTERN, REQUIRED, TITLES, Part, a, keys_of, part_told

_ARGUMENT = Arguments()
# What others call the key that names a part.
FOR_NAME = {"type": "name", "class": "name", "_target_": "import", "target": "import"}


class Section(Kind):
    """A mapping with keys of its own, read by the dataclass that `cls` returns."""

    def __init__(self, cls: Callable[[], type]):
        self.cls = cls

    @property
    def told(self) -> str:
        return self.cls().told()

    @property
    def example(self) -> str:
        return self.cls().example()

    def take(self, node: Node, path: str, reading: Reading) -> Any:
        return read_section(self.cls(), node, path, reading)

    def plain(self, value: Any) -> Any:
        return value.plain()

    def schema(self, builder):
        return builder.section(self.cls())


class PartKind(Kind):
    """A name of one registry (``"model"``), or a mapping of it and its arguments."""

    def __init__(self, registry: str):
        self.registry = registry

    @property
    def told(self) -> str:
        return part_told(self.registry)

    @property
    def example(self) -> str:
        return EXAMPLES[self.registry]

    def take(self, node, path, reading):
        return read_part(node, path, reading, self.registry, {})

    def plain(self, value: Part) -> Any:
        return value.plain()

    def schema(self, builder):
        return builder.part(self.registry)


def read_section(cls: type, node: Node, path: str, reading: Reading) -> Any:
    """The section `cls` that `node` stands for, as far as it can be had; a key that is wrong has its default.

    Where a key without a default is wrong or missing, its field is None. INVALID where there is no section at all.
    """
    keys = keys_of(cls)
    registry = getattr(cls, "registry", "")
    reading.values[path] = node.where
    given: dict[str, Any] = {}
    if registry:
        part = read_part(node, path, reading, registry, keys)
        if part is INVALID and not isinstance(node, Entries):
            return INVALID
        given["part"] = None if part is INVALID else part
        node = node if isinstance(node, Entries) else Entries({}, node.where)
    elif not isinstance(node, Entries):
        return reading.refuse(node.where, path, f"{describe_node(node)} is not a mapping{_as_mapping(cls, node)}")
    rest: dict[str, Any] = {}
    takes_rest = cls.open_ended()
    meant: set[str] = set()
    for name, value in node.entries.items():
        here = join(path, name)
        reading.keys[here] = node.keys.get(name, node.where)
        if name in keys:
            given[keys[name].attribute] = keys[name].kind.read(value, here, reading)
        elif takes_rest:
            rest[name] = _ARGUMENT.read(value, here, reading)
        elif not registry:
            message = unknown_key(name, tuple(keys), reading.elsewhere(name, path, tuple(keys)))
            reading.refuse(reading.keys[here], path, message)
            meant |= {key for key in keys if f" {key!r}" in message}
    if takes_rest:
        given["args"] = Frozen({n: v for n, v in rest.items() if v is not INVALID})
    for key in keys.values():
        if given.get(key.attribute, INVALID) is INVALID:
            # A key that was misspelt is not told again as missing.
            if key.default is REQUIRED and key.name not in node.entries and key.name not in meant:
                example = key.kind.example
                told = f"missing; give {key.kind.told}" + (f", e.g. {key.name}: {example}" if example else "")
                reading.refuse(node.where, join(path, key.name), told)
            given[key.attribute] = None if key.default is REQUIRED else key.default
    return cls(**given)


def _as_mapping(cls: type, node: Node) -> str:
    """How a value that stands for a whole section would be written, if that is clear."""
    if not isinstance(node, Scalar) or not node.text:
        return ""
    if node.value is True:
        return "; write {} for its defaults"
    name, key = next(iter(keys_of(cls).items()))
    fits = key.kind.take(node, "", Reading()) is not INVALID or isinstance(node.value, int | str) and name == "every"
    return f"; write {{{name}: {node.text}}}" if fits and node.value is not False else ""


def read_part(node: Node, path: str, reading: Reading, registry: str, reserved: Mapping[str, Any]) -> Any:
    """The Part that `node` names: a bare name, ``{name: ..., **arguments}`` or ``{import: ..., **arguments}``.

    `reserved` are the keys of the section around it, which are no arguments. INVALID where it has no usable name.
    """
    if isinstance(node, Scalar) and isinstance(node.value, str) and node.value:
        return _named(node, {}, path, reading, registry)
    if not isinstance(node, Entries):
        message = f"{describe_node(node)} is not {part_told(registry)}, e.g. {EXAMPLES[registry]}"
        return reading.refuse(node.where, path, message)
    if "import" in node.entries:
        title, imported = node.entries["import"], True
    elif "name" in node.entries:
        title, imported = node.entries["name"], False
    else:
        near = next((k for k in node.entries if k not in reserved and k in FOR_NAME), None)
        only = next(iter(node.entries), "") if len(node.entries) == 1 else ""
        if near:
            remedy = f"write {FOR_NAME[near]!r} for {near!r}"
        elif only[:1].isupper() and only not in reserved:
            remedy = f"write {{name: {shortened(only)}, ...}} with the arguments beside the name"
        else:
            remedy = f"give its name, e.g. {EXAMPLES[registry]}"
        reading.refuse(node.where, path, f"no {TITLES[registry]} is named; {remedy}")
        return INVALID
    label = "import" if imported else "name"
    args: dict[str, Any] = {}
    for name, value in node.entries.items():
        if name != label and name not in reserved:
            here = join(path, name)
            reading.keys[here] = node.keys.get(name, node.where)
            args[name] = _ARGUMENT.read(value, here, reading)
    here = join(path, label)
    reading.keys[here] = node.keys.get(label, node.where)
    reading.values[here] = title.where
    if not isinstance(title, Scalar) or not isinstance(title.value, str) or not title.value:
        if isinstance(title, Scalar | Items | Entries):
            meant = "a text module:Name" if imported else f"the name of {a(TITLES[registry])}"
            reading.refuse(title.where, here, f"{describe_node(title)} is not {meant}")
        return INVALID
    if imported:
        if not re.fullmatch(IMPORT_PATTERN, title.value):
            return reading.refuse(title.where, here, _import_message(title.value))
        if any(value is INVALID for value in args.values()):
            return INVALID
        return Part(title.value, Frozen(args), True, str(title.where), path)
    return _named(title, args, path, reading, registry)


def _named(title: Scalar, args: dict[str, Any], path: str, reading: Reading, registry: str) -> Any:
    if ":" in title.value and re.fullmatch(IMPORT_PATTERN, title.value):
        message = f"{title.value!r} is not a registered name; to use your own, write {{import: {title.value}}}"
        return reading.refuse(title.where, path, message)
    if any(value is INVALID for value in args.values()):
        return INVALID
    return Part(title.value, Frozen(args), False, str(title.where), path)


def _import_message(text: str) -> str:
    shown = repr(text if len(text) <= 60 else text[:57] + "...")
    if re.fullmatch(r"\w+(\.\w+)+", text):
        module, _, name = text.rpartition(".")
        return f"{shown} has no colon; write {module}:{name}"
    if "/" in text or text.endswith(".py") or ".py:" in text:
        return f"{shown} is a file; give the module and the name in it, e.g. my_package.models:Net"
    return f"{shown} is not of the form module:Name, e.g. my_package.models:Net"
