"""Mappings and lists that cannot change, and back to plain ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Frozen(Mapping[str, Any]):
    """A mapping that cannot change: equal to a dict with the same items, hashable, copied and pickled as any value.

    >>> Frozen({"lr": 0.1}) == {"lr": 0.1}
    True
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any] = {}):  # noqa: B006 (read only)
        self._items = {key: freeze(value) for key, value in items.items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"Frozen({self._items!r})"

    def __reduce__(self) -> tuple[type[Frozen], tuple[dict[str, Any]]]:
        return Frozen, (self._items,)


def freeze(value: Any) -> Any:
    """`value` with its mappings as Frozen and its lists as tuples, all the way down."""
    if isinstance(value, Mapping):
        return value if isinstance(value, Frozen) else Frozen(value)
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """`value` with plain dicts and lists, all the way down; what `freeze` was given.

    >>> thaw(freeze({"hidden": [256, 64]}))
    {'hidden': [256, 64]}
    """
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value
