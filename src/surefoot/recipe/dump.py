"""Plain values to YAML that every reader takes alike, be it of YAML 1.1 or 1.2."""

from __future__ import annotations

from typing import Any

import yaml

from .yaml_source import WIDE, resolve


class _Dumper(yaml.SafeDumper):
    """Quotes a text that YAML 1.1 (PyYAML's own rules) or YAML 1.2 would take for something else, and one with
    full-width signs, which are refused in a bare key; uses no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = None
    if not value.isprintable():
        style = '"'  # line breaks of every kind (YAML 1.1 folds NEL and U+2028) as escapes
    elif WIDE.search(value) or not isinstance(_resolved(value), str):
        style = "'"  # 1e-3 and 0o17 are text in YAML 1.1, so PyYAML would leave them bare
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _resolved(value: str) -> Any:
    try:
        return resolve(value)
    except ValueError:  # digits beyond what Python reads as a number
        return None


def _list(dumper: _Dumper, value: list[Any]) -> yaml.SequenceNode:
    flat = not any(isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


def _mapping(dumper: _Dumper, value: dict[str, Any]) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=not value)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(dict, _mapping)


def to_yaml(plain: dict[str, Any]) -> str:
    """`plain` (dicts, lists, scalars) as block YAML, keys in their order."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


def flow(plain: Any) -> str:
    """A value on one line, as it would stand in a recipe.

    >>> flow(["a", 1e-05, None])
    '[a, 1.0e-05, null]'
    """
    text = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")
