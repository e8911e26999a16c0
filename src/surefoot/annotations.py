"""What an annotated argument takes of the values that YAML gives, and the objects that some of them stand for."""

from __future__ import annotations

import enum
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
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
    if _is_union(annotation):
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
    if _is_list(plain):
        return _list_of([accepted(item) for item in inner if item is not Ellipsis], plain is tuple and ... not in inner)
    if _is_mapping(plain):
        return _mapping_of(accepted(inner[1] if len(inner) == 2 else Any))
    if (of_text := _of_text(plain)) is not None:
        return of_text
    if name == "Tensor":
        numbers = accepted(float | list)
        return Accepted(
            "a Tensor",  # `as_annotated` makes one of a list
            lambda value: (
                all(map(numbers.fits, value)) if isinstance(value, list | tuple) else isinstance(value, plain)
            ),
        )
    return Accepted(f"a {name}", lambda value: not inspect.isclass(plain) or _is_a(value, plain))


def as_annotated(value: Any, annotation: Any) -> Any:
    """The object that a text or a list stands for, where the annotation takes such objects and `value` itself not.

    That is a path, a device, a dtype, a member of an Enum, a tensor; also within lists and mappings whose items are
    annotated. All other values stay as they are. Raises ValueError for a list of which no tensor can be made.

    >>> as_annotated("data", Path | None), as_annotated("data", str | Path)
    (PosixPath('data'), 'data')
    >>> as_annotated({"train": ["a", "b"]}, dict[str, list[Path]])
    {'train': [PosixPath('a'), PosixPath('b')]}
    """
    if not isinstance(value, str | list | tuple | dict):
        return value
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    makers = [_maker(option, type(value)) for option in options]
    as_they_are = (option for option, make in zip(options, makers, strict=True) if make is None)
    if (taken := next((option for option in as_they_are if accepted(option).fits(value)), None)) is not None:
        return value if isinstance(value, str) else _items_as_annotated(value, taken)
    return next((made for make in makers if make is not None and (made := make(value)) is not None), value)


def _items_as_annotated(value: Any, annotation: Any) -> Any:
    kind, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(value, dict):
        if not _is_mapping(kind) or len(inner) != 2:
            return value
        return {key: as_annotated(item, inner[1]) for key, item in value.items()}
    if not _is_list(kind) or not inner:
        return value
    each = inner if kind is tuple and ... not in inner else inner[:1] * len(value)
    return type(value)([as_annotated(item, one) for item, one in zip(value, each, strict=True)])


def _is_list(kind: Any) -> bool:
    return kind in (list, tuple) or getattr(kind, "__name__", "") in ("Sequence", "Iterable")


def _is_mapping(kind: Any) -> bool:
    return kind is dict or getattr(kind, "__name__", "") == "Mapping"


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _maker(annotation: Any, given: type) -> Callable[[Any], Any] | None:
    """A function from a YAML value of type `given` to an object of the annotated class, None where no such is needed.

    It returns None for a value that stands for no object.
    """
    kind = typing.get_origin(annotation) or annotation
    if not inspect.isclass(kind):
        return None
    if given is not str:
        return _tensor if kind.__name__ == "Tensor" and given is not dict else None
    if kind is os.PathLike or issubclass(kind, PurePath):
        path: Any = Path if kind is os.PathLike else kind
        return lambda text: path(text) if text else None
    if issubclass(kind, enum.Enum):
        by_value = {member.value: member for member in kind if isinstance(member.value, str)}
        return {**by_value, **kind.__members__}.get
    if kind.__module__ == "torch" and kind.__name__ in ("device", "dtype"):
        return _device if kind.__name__ == "device" else _dtype
    return None


def _tensor(numbers: Any) -> Any:
    import torch

    return torch.tensor(numbers, dtype=torch.get_default_dtype(), device="cpu")


def _device(text: str) -> Any:
    import torch

    try:
        return torch.device(text)
    except RuntimeError:
        return None


def _dtype(text: str) -> Any:
    import torch

    found = getattr(torch, text.removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else None


def _of_text(kind: Any) -> Accepted | None:
    """What is taken for a class whose objects are given as texts."""
    if (make := _maker(kind, str)) is None:
        return None

    def fits(value: Any) -> bool:
        return isinstance(make(value) if isinstance(value, str) else value, kind)

    if issubclass(kind, enum.Enum):
        return Accepted("one of " + ", ".join(kind.__members__), fits, {"enum": list(kind.__members__)})
    name = "path" if kind is os.PathLike or issubclass(kind, PurePath) else f"torch.{kind.__name__}"
    return Accepted(f"a {name}, as text", fits, {"type": "string"})


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


def _mapping_of(values: Accepted) -> Accepted:
    """A mapping, of which each value is checked."""
    return Accepted(
        f"a mapping with {values.name} under each key" if values.schema else "a mapping",
        lambda value: isinstance(value, Mapping) and all(map(values.fits, value.values())),
        {"type": "object", **({"additionalProperties": values.schema} if values.schema else {})},
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
