"""From a name in a recipe to what it stands for: a registry's entry, or a user's own import."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import Problems, UsageError, first_line
from ..registry import Registry, argument_problems, as_given, import_object, parameters_of, with_imports

if TYPE_CHECKING:
    from ..recipe import Part, Recipe


def make(part: Part, registry: Registry, defaults: Mapping[str, Any] | None = None, /, **provided: Any) -> Any:
    """The object of a part: from the registry, or imported and called with its arguments.

    `defaults` are arguments that the data decide unless the recipe does, `provided` those that Surefoot fills in.
    """
    if not part.imported:
        return registry.build(part.name, {**(defaults or {}), **resolved(part)}, **provided)
    target = imported(part)
    return call(target, part.name, {**(defaults or {}), **resolved(part)}) if callable(target) else target


def imported(part: Part, *, called: bool = False) -> Any:
    """What a part imports. Raises UsageError where it would be `called`, or has arguments, and cannot be called."""
    target = import_object(part.name)
    if not callable(target) and (called or part.arguments()):
        advice = "name a class or a function" if called else "name a class or a function, or give no arguments"
        what = f"is an object of {type(target).__name__}, which cannot be called; {advice}"
        raise UsageError(f"{part.name}: {what}", code="own-import")
    return target


def function_of(part: Part, registry: Registry, given: int) -> Any:
    """What a part that is a function stands for: a class's object, or the function with the part's arguments.

    The function is called with `given` arguments beside these (outputs and targets, model and batch).
    """
    target = imported(part) if part.imported else registry[part.name].load()
    arguments = resolved(part)
    if inspect.isclass(target):
        return call(target, part.name, arguments)
    _check(target, part.name, arguments, given)
    return functools.partial(target, **as_given(arguments, target)) if arguments else target


def call(target: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> Any:
    """A user's own class or function, called; the arguments are checked by its signature first."""
    from torch import nn

    from ..own_code import is_own

    if isinstance(target, nn.Module):
        what = f"is an object of {type(target).__name__}, made when its module is imported"
        raise UsageError(f"{name}: {what}; name the class, or a function that makes one", code="own-import")
    _check(target, name, arguments)
    try:
        return target(**as_given(arguments, target))
    except Exception as error:
        if isinstance(error, UsageError) or is_own(getattr(target, "__module__", None)):
            raise  # the user's own code is shown where it went wrong
        raise UsageError(f"{name}: {type(error).__name__}: {first_line(error)}", code="part-arguments") from error


def _check(target: Callable[..., Any], name: str, arguments: Mapping[str, Any], given: int = 0) -> None:
    """Raise Problems where `target` does not take these arguments after `given` of ours."""
    try:
        parameters = dict(list(parameters_of(target).items())[given:])
    except (TypeError, ValueError):  # a function of C, which has no signature
        return
    if problems := argument_problems(name, target, arguments, parameters):
        raise Problems(problems, code="part-arguments")


def named(part: Part) -> Any:
    """The class that a part imports, or its registered name."""
    return imported(part, called=True) if part.imported else part.name


def resolved(part: Part) -> dict[str, Any]:
    """A part's arguments, with what they import (``{import: module:name}``) in its place."""
    arguments: dict[str, Any] = with_imports(part.arguments())
    return arguments


@contextlib.contextmanager
def at(recipe: Recipe, path: str) -> Iterator[None]:
    """Give every UsageError from within the place in the recipe that it is about."""
    try:
        yield
    except Problems as error:
        raise Problems([_placed(recipe, path, text) for text in error.problems], code=error.code) from error
    except UsageError as error:
        raise UsageError(_placed(recipe, path, str(error)), code=error.code) from error


def _placed(recipe: Recipe, path: str, text: str) -> str:
    """`text` with its place: that of the key below `path` that it begins with, where it does."""
    text = text.removeprefix(f"{path}: ")
    below = text.removeprefix(f"{path}.")
    key, colon, rest = below.partition(": ")
    if colon and (below != text or f"{path}.{key}" in recipe.places):
        return recipe.problem(f"{path}.{key}", rest)
    return recipe.problem(path, text)
