"""Names to classes: one mechanism for losses, optimizers, schedulers, models and data.

An entry knows a class by its import path, so that listing names imports nothing; arguments are checked
against the class's own signature, so that torch's names are the interface and nothing is written twice.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import Problems, UsageError


@dataclass(frozen=True)
class Range:
    """The values that a number may have, ends included unless said to be open.

    >>> Range(low=0).violation(-0.1)
    '-0.1 is below 0'
    >>> Range(low=0, high=1, high_open=True).violation(1)
    '1 is not below 1'
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    hint: str = ""

    def violation(self, value: float) -> str | None:
        """What is wrong with `value`, or None."""
        if value != value:
            return f"{value} is not a number"
        if value < self.low:
            return f"{value!r} is below {self.low:g}"
        if value > self.high:
            return f"{value!r} is above {self.high:g}"
        if self.low_open and value == self.low:
            return f"{value!r} is not above {self.low:g}"
        if self.high_open and value == self.high:
            return f"{value!r} is not below {self.high:g}"
        return None


@dataclass(frozen=True)
class ArgumentProblem:
    """One mistake in the arguments of an entry; `argument` is None where it concerns the whole."""

    argument: str | None
    message: str


@dataclass(frozen=True)
class Entry:
    """One name of a registry.

    `target` is a callable or its import path ``"torch.nn:CrossEntropyLoss"``; `provided` names the parameters
    that the house fills in (``params``, ``optimizer``) and a user may not give; `limits` gives the range of
    numeric arguments; `facts` are further columns for ``surefoot list``.
    """

    name: str
    target: str | Callable[..., Any]
    summary: str = ""
    provided: tuple[str, ...] = ()
    limits: Mapping[str, Range] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """The class or function itself."""
        if not isinstance(self.target, str):
            return self.target
        return _load(self.target)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The arguments that a user may give, by name."""
        parameters = inspect.signature(self.load()).parameters
        hidden = {*self.provided, "self"}
        skip = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {n: p for n, p in parameters.items() if n not in hidden and p.kind not in skip}

    def problems(self, arguments: Mapping[str, Any]) -> list[ArgumentProblem]:
        """Every mistake in `arguments`: unknown names, missing ones, wrong types, values out of range."""
        return argument_problems(self.name, self.load(), arguments, self.parameters(), self.limits)


class Registry:
    """All entries of one kind.

    >>> shapes = Registry("shape", "shapes", [Entry("Fraction", "fractions:Fraction", "a ratio")])
    >>> shapes.build("Fraction", {"numerator": 1, "denominator": 2})
    Fraction(1, 2)
    >>> shapes["Fractoin"]
    Traceback (most recent call last):
    ...
    surefoot.errors.UsageError: unknown shape 'Fractoin'; did you mean 'Fraction'? `surefoot list shapes` shows all
    """

    def __init__(self, kind: str, plural: str, entries: Iterable[Entry]):
        self.kind = kind
        self.plural = plural
        self._entries = {entry.name: entry for entry in entries}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """The names, in the registry's order."""
        return list(self._entries)

    def __getitem__(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            meant = did_you_mean(name, self._entries)
            raise UsageError(f"unknown {self.kind} {name!r}{meant or ';'} `surefoot list {self.plural}` shows all")
        return entry

    def problems(self, name: str, arguments: Mapping[str, Any]) -> list[ArgumentProblem]:
        """Every mistake in a name and its arguments; empty when it can be built."""
        try:
            entry = self[name]
        except UsageError as error:
            return [ArgumentProblem(None, str(error))]
        return entry.problems(arguments)

    def build(self, name: str, arguments: Mapping[str, Any] | None = None, /, **provided: Any) -> Any:
        """The object that `name` stands for, made from checked arguments and what the house provides.

        Raises UsageError for every mistake that `problems` finds and for whatever the class itself refuses.
        """
        arguments = dict(arguments or {})
        entry = self[name]
        found = entry.problems(arguments)
        if found:
            raise Problems([f"{p.argument}: {p.message}" if p.argument else p.message for p in found])
        arguments = {n: _tensor_from_list(v, entry.load(), n) for n, v in arguments.items()}
        try:
            return entry.load()(**provided, **arguments)
        except UsageError:
            raise
        except _REFUSAL as error:
            raise UsageError(f"{name}: {error}") from error


# What a constructor raises when it does not like an argument's value; anything else is a bug and stays loud.
_REFUSAL = (ValueError, TypeError)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the option closest to `word`, or an empty string.

    >>> did_you_mean("momentun", ["lr", "momentum"])
    "; did you mean 'momentum'?"
    >>> did_you_mean("zzz", ["lr", "momentum"])
    ''
    """
    options = list(options)
    by_lower = {option.lower(): option for option in reversed(options)}
    word = str(word).lower()
    close = difflib.get_close_matches(word, by_lower, n=5, cutoff=0.6)
    return f"; did you mean {by_lower[min(close, key=lambda option: _slips(word, option))]!r}?" if close else ""


def _slips(a: str, b: str) -> int:
    """Letters to add, leave out, change or swap with their neighbour to make `b` of `a`.

    >>> _slips("adma", "adam"), _slips("adma", "adamax")
    (1, 2)
    """
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        earlier, before, row = before, row, [i + 1]
        for j, y in enumerate(b):
            row.append(min(before[j + 1] + 1, row[j] + 1, before[j] + (x != y)))
            if i and j and x == b[j - 1] and a[i - 1] == y:
                row[-1] = min(row[-1], earlier[j - 1] + 1)
    return row[-1]


def import_object(path: str) -> Any:
    """The object that ``module:Name`` stands for; the current directory is searched too, as `python` does.

    `sys.path` is as before when this returns. Raises UsageError for a module or name that is not there; what a
    user's module itself raises comes through.
    """
    module_name, _, attribute = path.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.split(".")[: error.name.count(".") + 1] == error.name.split("."):
            raise UsageError(
                f"import: no module {error.name!r} in {here} or among the installed packages; "
                "give it as package.module:Name and run where it can be found"
            ) from error
        raise
    finally:
        with contextlib.suppress(ValueError):  # the module may have changed sys.path itself
            sys.path.remove(here)
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            raise UsageError(f"import: {module_name} has no {name!r}{did_you_mean(name, public)}")
        found = getattr(found, name)
    return found


def argument_problems(
    name: str,
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter] | None = None,
    limits: Mapping[str, Range] | None = None,
) -> list[ArgumentProblem]:
    """What is wrong with `arguments` for `target`, by its signature; also for a user's own imported callable."""
    signature = inspect.signature(target)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    if parameters is None:
        skip = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = {n: p for n, p in signature.parameters.items() if p.kind not in skip}
    limits = limits or {}
    hints = _hints(target)
    problems = []
    for argument, value in arguments.items():
        if argument not in parameters:
            if not takes_any:
                known = ", ".join(parameters) or "none"
                meant = did_you_mean(argument, parameters) or f"; it takes: {known}"
                problems.append(ArgumentProblem(argument, f"{name} has no argument {argument!r}{meant}"))
            continue
        parameter = parameters[argument]
        expected = type_violation(value, hints.get(argument, parameter.annotation), parameter.default)
        if expected:
            problems.append(ArgumentProblem(argument, f"{describe(value)} is not {expected}"))
        elif argument in limits and isinstance(value, int | float) and not isinstance(value, bool):
            limit = limits[argument]
            wrong = limit.violation(value)
            if wrong:
                problems.append(ArgumentProblem(argument, wrong + (f"; {limit.hint}" if limit.hint else "")))
    for argument, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and argument not in arguments:
            problems.append(ArgumentProblem(None, f"{name} needs the argument {argument!r}"))
    return problems


def describe(value: Any) -> str:
    """A value as a user would recognise it, with its type where that is the point, at most about 60 characters.

    >>> describe("fast")
    "the text 'fast'"
    """
    if isinstance(value, str):
        return f"the text {_short(repr(value))}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"the list {_short(repr(list(value)))}"
    return _short(repr(value))


def type_violation(value: Any, annotation: Any, default: Any = inspect.Parameter.empty) -> str | None:
    """What `value` should have been (``"a number"``), or None where it fits or nothing is known.

    The annotation decides; where there is none, the default's own type does. Values are what YAML gives:
    numbers, strings, booleans, null, lists and mappings. An int fits where a float is meant.
    """
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        if default is inspect.Parameter.empty or default is None:
            return None
        annotation = type(default)
        if annotation is tuple:
            annotation = list
    if _fits(value, annotation):
        return None
    return _name(annotation)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


@functools.cache
def _load(path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(":")
    maker: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return maker


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        # A foreign class whose annotations cannot be resolved is checked by its defaults alone.
        return {}


def _fits(value: Any, annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if annotation is Any or isinstance(annotation, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(annotation)
        if float in options and isinstance(value, list | tuple):
            # `lr: float | Tensor` means one number; a list fits only where nothing but a tensor is taken.
            options = tuple(o for o in options if getattr(o, "__name__", "") != "Tensor")
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in typing.get_args(annotation))
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    plain = origin or annotation
    if plain in (list, tuple) or getattr(plain, "__name__", "") in ("Sequence", "Iterable"):
        if not isinstance(value, list | tuple):
            return False
        inner = [a for a in typing.get_args(annotation) if a is not Ellipsis]
        if plain is tuple and inner and Ellipsis not in typing.get_args(annotation):
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return not inner or all(_fits(item, inner[0]) for item in value)
    if plain is dict or getattr(plain, "__name__", "") == "Mapping":
        return isinstance(value, Mapping)
    if getattr(plain, "__name__", "") == "Tensor" and isinstance(value, list | tuple):
        return all(_fits(item, float | list) for item in value)  # `build` makes the tensor
    if inspect.isclass(plain):
        return isinstance(value, plain)
    return True


def _tensor_from_list(value: Any, target: Callable[..., Any], argument: str) -> Any:
    """A list given where the class takes only a tensor (class weights) becomes one; all else stays."""
    if not isinstance(value, list | tuple):
        return value
    hint = _hints(target).get(argument)
    names = {getattr(option, "__name__", "") for option in (typing.get_args(hint) or (hint,))}
    if "Tensor" not in names or names & {"float", "list", "tuple", "List", "Tuple"}:
        return value
    import torch

    return torch.tensor(value, dtype=torch.get_default_dtype())


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}


def _name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        names = [_name(option) for option in typing.get_args(annotation)]
        if "a number" in names and "a whole number" in names:
            names.remove("a whole number")
        return " or ".join(dict.fromkeys(names))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(annotation))
    if annotation in _NAMES:
        return _NAMES[annotation]
    plain = origin or annotation
    if plain in (list, tuple) or getattr(plain, "__name__", "") in ("Sequence", "Iterable"):
        inner = [a for a in typing.get_args(annotation) if a is not Ellipsis]
        if plain is tuple and inner and Ellipsis not in typing.get_args(annotation):
            return f"a list of {len(inner)} ({', '.join(_name(a) for a in inner)})"
        return f"a list of {_name(inner[0]).removeprefix('a ')}s" if inner else "a list"
    if plain is dict:
        return "a mapping"
    return f"a {getattr(plain, '__name__', str(plain))}"
