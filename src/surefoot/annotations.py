"""What an annotated argument takes of the values that YAML gives: a test of a value, its name, its JSON Schema."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a class's constructor or a function; {} where they cannot be resolved."""
    function: Any = target
    if inspect.isclass(target):  # whichever of the two its signature is of
        function = target.__new__ if "__new__" in vars(target) and "__init__" not in vars(target) else target.__init__
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        # A foreign class whose annotations cannot be resolved is checked by its defaults alone.
        return {}


@dataclass(frozen=True)
class Accepted:
    """What an annotated argument takes: how messages call it, a test of a value, and its JSON Schema ({}: anything)."""

    name: str
    fits: Callable[[Any], bool]
    schema: dict[str, Any] = field(default_factory=dict)


_SCALARS = {
    bool: Accepted("true or false", lambda v: isinstance(v, bool), {"type": "boolean"}),
    int: Accepted("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool), {"type": "integer"}),
    float: Accepted("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool), {"type": "number"}),
    str: Accepted("text", lambda v: isinstance(v, str), {"type": "string"}),
    type(None): Accepted("null", lambda v: v is None, {"type": "null"}),
}


def accepted(annotation: Any) -> Accepted:
    """What an argument with this annotation takes of the values that YAML gives.

    >>> accepted(int | None).name, accepted(tuple[float, float]).fits([0.9, 0.999])
    ('a whole number or null', True)
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or isinstance(annotation, typing.TypeVar):
        return Accepted("any value", lambda value: True)
    if origin in (typing.Union, types.UnionType):
        return _one_of([accepted(option) for option in inner])
    if origin is typing.Literal:
        return Accepted(
            "one of " + ", ".join(map(repr, inner)),
            lambda value: any(value == option and type(value) is type(option) for option in inner),
            {"enum": list(inner)},
        )
    if (scalar := next((s for kind, s in _SCALARS.items() if annotation is kind), None)) is not None:
        return scalar
    plain = origin or annotation
    name = getattr(plain, "__name__", str(plain))
    if plain in (list, tuple) or name in ("Sequence", "Iterable"):
        return _list_of([accepted(item) for item in inner if item is not Ellipsis], plain is tuple and ... not in inner)
    if plain is dict or name == "Mapping":
        return Accepted("a mapping", lambda value: isinstance(value, Mapping), {"type": "object"})
    if name == "Tensor":
        numbers = accepted(float | list)
        return Accepted(
            "a Tensor",  # `build` makes one of a list
            lambda value: (
                all(map(numbers.fits, value)) if isinstance(value, list | tuple) else isinstance(value, plain)
            ),
        )
    return Accepted(f"a {name}", lambda value: not inspect.isclass(plain) or _is_a(value, plain))


def _is_a(value: Any, kind: type) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # of a TypedDict or a Protocol only its own code can tell
        return True


def _one_of(options: list[Accepted]) -> Accepted:
    names = list(dict.fromkeys(option.name for option in options))
    no_tensors = [option for option in options if option.name != "a Tensor"]
    # `lr: float | Tensor` means one number; a list fits only where nothing but a tensor is taken.
    for_lists = no_tensors if "a number" in names else options
    if "a number" in names and "a whole number" in names:
        names.remove("a whole number")
    schemas = [option.schema for option in no_tensors]
    # `weight: Tensor | None` may be a list, or a word such as balanced.
    if not all(schemas) or (len(schemas) < len(options) and all(schema == {"type": "null"} for schema in schemas)):
        schemas = [{}]
    return Accepted(
        " or ".join(names),
        lambda value: any(o.fits(value) for o in (for_lists if isinstance(value, list | tuple) else options)),
        schemas[0] if len(schemas) == 1 else {"anyOf": schemas},
    )


def _list_of(items: list[Accepted], fixed: bool) -> Accepted:
    """A list: of `items` one by one where its length is `fixed`, else of any number of the first of them."""
    if not items:
        return Accepted("a list", lambda value: isinstance(value, list | tuple), {"type": "array"})
    schema = {"type": "array", **({"items": items[0].schema} if items[0].schema else {})}
    if not fixed:
        name = f"a list of {items[0].name.removeprefix('a ')}s"
        return Accepted(name, lambda v: isinstance(v, list | tuple) and all(map(items[0].fits, v)), schema)

    def fits(value: Any) -> bool:
        same_length = isinstance(value, list | tuple) and len(value) == len(items)
        return same_length and all(item.fits(each) for item, each in zip(items, value, strict=True))

    return Accepted(f"a list of {len(items)} ({', '.join(item.name for item in items)})", fits, schema)
