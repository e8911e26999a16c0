"""A model that knows what its constructor was called with."""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def keeps_arguments(kind: type[M]) -> type[M]:
    """A class whose models have `arguments`: what rebuilds them, by name, defaults included, as JSON has it.

    >>> @keeps_arguments
    ... class Net(nn.Linear):
    ...     def __init__(self, wide: int, bias: bool = True):
    ...         super().__init__(wide, 1, bias)
    >>> Net(3).arguments
    {'wide': 3, 'bias': True}
    """
    make = kind.__init__
    signature = inspect.signature(make)

    @functools.wraps(make)
    def init(self: M, *given: Any, **named: Any) -> None:
        bound = signature.bind(self, *given, **named)
        bound.apply_defaults()
        _, *values = bound.arguments.items()
        make(self, *given, **named)
        object.__setattr__(self, "arguments", {name: _as_json(value) for name, value in values})

    kind.__init__ = init  # type: ignore[method-assign, assignment]
    return kind


def _as_json(value: Any) -> Any:
    """Numbers and arrays of NumPy as Python's, tuples and ranges as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(map(_as_json, value)) if isinstance(value, tuple | list | range) else value
