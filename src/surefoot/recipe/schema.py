"""The JSON Schema of a recipe (draft 2020-12), for editors: keys, values, names and their arguments."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from ..annotations import accepted, type_hints
from ..registry import Entry, Registry
from .check import all_registries
from .kinds import limits_schema
from .model import Recipe
from .sections import IMPORT_PATTERN, REQUIRED, Keyed, keys_of, titled


def json_schema(registries: Mapping[str, Registry] | None = None) -> dict[str, Any]:
    """The schema of a recipe file; `registries` are those whose names and arguments it lists, all unless given.

    An editor that knows it (yaml-language-server: ``# yaml-language-server: $schema=recipe.schema.json``)
    completes keys and names and marks most mistakes; `surefoot check` knows more than a schema can say.

    >>> json_schema({})["properties"]["epochs"]["minimum"]
    1
    """
    builder = SchemaBuilder(all_registries() if registries is None else registries)
    body = builder.mapping(Recipe, {})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Surefoot recipe",
        **body,
        "required": [name for name, key in keys_of(Recipe).items() if key.default is REQUIRED and name != "name"],
        "$defs": builder.definitions,
    }


class SchemaBuilder:
    """Collects the definitions that the schema refers to, so that a section may hold itself."""

    def __init__(self, registries: Mapping[str, Registry]):
        self.registries = registries
        self.definitions: dict[str, Any] = {}

    def section(self, cls: type[Keyed]) -> dict[str, Any]:
        """A reference to the schema of a section."""
        if cls.__name__ not in self.definitions:
            self.definitions[cls.__name__] = {}  # known before it is made: SchedulerSection holds itself
            made = self.part(cls.registry, cls) if cls.registry else self.mapping(cls, {})
            self.definitions[cls.__name__] = made
        return {"$ref": f"#/$defs/{cls.__name__}"}

    def mapping(self, cls: type[Keyed], more: Mapping[str, Any]) -> dict[str, Any]:
        """The schema of a mapping with the keys of `cls` and `more` properties."""
        keys = keys_of(cls)
        one_of = [{"required": [n], "properties": {n: {"not": {"type": "null"}}}} for n in cls.one_of]
        return {
            "type": "object",
            "description": (cls.__doc__ or "").partition("\n")[0],
            "properties": {**more, **self.keys(cls)},
            "required": [name for name, key in keys.items() if key.default is REQUIRED],
            **({"oneOf": one_of} if cls.one_of else {}),
            **({} if cls.open_ended else {"additionalProperties": False}),
        }

    def keys(self, cls: type[Keyed] | None) -> dict[str, Any]:
        """The properties of a section's own keys."""
        properties = {}
        for name, key in keys_of(cls).items() if cls else ():
            properties[name] = {**key.kind.schema(self), "description": key.doc}
            if key.default is not REQUIRED and not key.shown:
                properties[name]["default"] = key.kind.plain(key.default)
        return properties

    def part(self, registry: str, cls: type[Keyed] | None = None) -> dict[str, Any]:
        """The schema of a name, a mapping with a name and its arguments, or one with an import."""
        own = self.keys(cls)
        known = self.registries.get(registry)
        # JavaScript's \\w is ASCII; a name in other letters is only marked by the editor.
        pattern = "^" + IMPORT_PATTERN.replace(r"[^\W\d]", "[A-Za-z_]") + "$"
        imported = {
            "type": "object",
            "properties": {
                "import": {"type": "string", "pattern": pattern, "description": "Your own: module:Name."},
                **own,
            },
            "required": ["import"],
        }
        if known is None:
            named = {"type": "object", "properties": {"name": {"type": "string"}, **own}, "required": ["name"]}
            return {"anyOf": [{"type": "string", "minLength": 1}, named, imported]}
        words = {"enum": known.names(), "description": f"The name of {titled(registry)}."}
        return {"anyOf": [words, *(_entry_schema(known, entry, own) for entry in known), imported]}


def _entry_schema(registry: Registry, entry: Entry, own: Mapping[str, Any]) -> dict[str, Any]:
    target = entry.load()
    hints = type_hints(target)
    arguments, required = {}, ["name"]
    missing = [problem.message for problem in registry.problems(entry.name, {}) if problem.argument is None]
    for name, parameter in entry.parameters().items():
        schema = copy.deepcopy(accepted(hints.get(name, parameter.annotation)).schema)
        if name in entry.limits:
            for option in schema.get("anyOf", [schema]):
                if option.get("type") in ("number", "integer"):
                    option |= limits_schema(entry.limits[name])
        default = parameter.default
        if isinstance(default, bool | int | str) or (isinstance(default, float) and math.isfinite(default)):
            schema["default"] = default
        arguments[name] = schema
        if any(repr(name) in message for message in missing):
            required.append(name)
    return {
        "type": "object",
        "description": entry.summary,
        "properties": {"name": {"const": entry.name, "description": entry.summary}, **arguments, **own},
        "required": required,
        "additionalProperties": False,
    }
