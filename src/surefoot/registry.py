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
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .annotations import accepted, as_annotated, type_hints
from .errors import Problems, UsageError
from .text import shortened


@dataclass(frozen=True)
class Range:
    """The values that a number may have, ends included unless said to be open; `high_open` alone: a finite number.

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
        if self.high_open and self.high == math.inf and value > sys.float_info.max:
            return f"{describe(value)} is not a finite number"
        if self.high_open and value == self.high:
            return f"{value!r} is not below {self.high:g}"
        return None


@dataclass(frozen=True)
class ArgumentProblem:
    """One mistake in the arguments of an entry; `argument` is None where it concerns the whole."""

    argument: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.argument}: {self.message}" if self.argument else self.message


@dataclass(frozen=True)
class Entry:
    """One registered name.

    `target` is a callable or its import path ``"torch.nn:CrossEntropyLoss"``; `provided` names the parameters
    that Surefoot fills in (``params``, ``optimizer``) and a user may not give; `limits` gives the range of
    numeric arguments; `facts` are further columns for ``surefoot list``; with `closed`, its ``**kwargs`` take nothing
    that a user would give.
    """

    name: str
    target: str | Callable[..., Any]
    summary: str = ""
    provided: tuple[str, ...] = ()
    limits: Mapping[str, Range] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False

    def load(self) -> Callable[..., Any]:
        """The class or function itself."""
        if not isinstance(self.target, str):
            return self.target
        return _load(self.target)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The arguments that a user may give, by name."""
        hidden = {*self.provided, "self"}
        return {n: p for n, p in parameters_of(self.load()).items() if n not in hidden}

    def problems(self, arguments: Mapping[str, Any]) -> list[ArgumentProblem]:
        """Every mistake in `arguments`: unknown names, missing ones, wrong types, values out of range."""
        return argument_problems(self.name, self.load(), arguments, self.parameters(), self.limits, closed=self.closed)


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

    def entries(self) -> Mapping[str, Entry]:
        """All entries by name, in the registry's order."""
        return self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries().values())

    def __len__(self) -> int:
        return len(self.entries())

    def __contains__(self, name: object) -> bool:
        return name in self.entries()

    def names(self) -> list[str]:
        """The names, in the registry's order."""
        return list(self.entries())

    def __getitem__(self, name: str) -> Entry:
        entry = self.entries().get(name)
        if entry is None:
            meant = did_you_mean(name, self.names()) or self.remedy(name)
            raise UsageError(
                f"unknown {self.kind} {name!r}{meant or ';'} `surefoot list {self.plural}` shows all",
                code="unknown-name",
            )
        return entry

    def remedy(self, name: str) -> str:
        """What to do for an unknown name that resembles no other; "" where nothing is known."""
        return ""

    def problems(self, name: str, arguments: Mapping[str, Any]) -> list[ArgumentProblem]:
        """Every mistake in a name and its arguments; empty when it can be built."""
        try:
            entry = self[name]
        except UsageError as error:
            return [ArgumentProblem(None, str(error))]
        return entry.problems(arguments)

    def build(self, name: str, arguments: Mapping[str, Any] | None = None, /, **provided: Any) -> Any:
        """The object that `name` stands for, made from checked arguments and what Surefoot provides.

        Raises UsageError for every mistake that `problems` finds and for whatever the class itself refuses.
        """
        arguments = dict(arguments or {})
        entry = self[name]
        if problems := entry.problems(arguments):
            raise Problems([*map(str, problems)])
        arguments = as_given(arguments, entry.load())
        try:
            return entry.load()(**provided, **arguments)
        except UsageError:
            raise
        except _REFUSAL as error:
            raise UsageError(f"{name}: {error}") from error


# What a constructor raises when it does not like an argument's value; anything else is a bug and stays loud.
_REFUSAL = (ValueError, TypeError)


def not_there(path: Path) -> str:
    """``does not exist``, and which name beside it, or which directory, is the one that was meant."""
    if not os.path.isdir(path.parent):
        return f"does not exist, nor does the directory {path.parent}"
    beside = os.listdir(path.parent) if os.access(path.parent, os.R_OK) else []
    return f"does not exist{did_you_mean(path.name, beside)}"


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
    if not attribute or not all(module_name.split(".")):
        raise UsageError(
            f"import: {path!r} is not module:Name; give a file models/net.py as models.net:Name, run where models is",
            code="own-import",
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.split(".")[: error.name.count(".") + 1] == error.name.split("."):
            raise UsageError(
                f"import: no module {error.name!r} in {here} or among the installed packages; "
                "give it as package.module:Name and run where it can be found",
                code="own-import",
            ) from error
        raise
    finally:
        with contextlib.suppress(ValueError):  # the module may have changed sys.path itself
            sys.path.remove(here)
    for name in attribute.split("."):
        if not hasattr(target, name):
            public = [n for n in vars(target) if not n.startswith("_")] if hasattr(target, "__dict__") else []
            raise UsageError(f"import: {module_name} has no {name!r}{did_you_mean(name, public)}", code="own-import")
        target = getattr(target, name)
    return target


def package(name: str, missing: str) -> Any:
    """The module `name` of a package that may be missing; raises UsageError with the message `missing` where it is."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(missing, code="package-missing") from None


def imports_in(value: Any) -> Iterator[str]:
    """What a value names to be imported (``{import: module:Name}``), wherever it stands."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from [str(item)] if key == "import" else imports_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from imports_in(item)


def with_imports(value: Any) -> Any:
    """`value` with what is imported in place of each ``{import: module:Name}``; further keys are arguments of a call.

    Raises UsageError for what is not there or does not take its arguments.

    >>> with_imports([{"import": "math:pi"}, {"import": "fractions:Fraction", "numerator": 1, "denominator": 2}])
    [3.141592653589793, Fraction(1, 2)]
    """
    if isinstance(value, list | tuple):
        return [with_imports(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    arguments = {key: with_imports(item) for key, item in value.items() if key != "import"}
    if "import" not in value:
        return arguments
    path = str(value["import"])
    target = import_object(path)
    try:
        return target(**as_given(arguments, target)) if arguments else target
    except _REFUSAL as error:
        raise UsageError(f"{path}: {error}", code="own-import") from error


def parameters_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What `target` takes by name, without its ``*args`` and ``**kwargs``."""
    skip = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in inspect.signature(target).parameters.items() if p.kind not in skip}


def argument_problems(
    name: str,
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter] | None = None,
    limits: Mapping[str, Range] | None = None,
    *,
    closed: bool = False,
) -> list[ArgumentProblem]:
    """What is wrong with `arguments` for `target`, by its signature; also for a user's own imported callable."""
    kinds = {parameter.kind for parameter in inspect.signature(target).parameters.values()}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds and not closed
    if parameters is None:
        parameters = parameters_of(target)
    limits = limits or {}
    hints = type_hints(target)
    problems = []
    for argument, value in arguments.items():
        if argument not in parameters:
            if not takes_any:
                meant = did_you_mean(argument, parameters) or f"; it takes: {', '.join(parameters) or 'none'}"
                problems.append(ArgumentProblem(argument, f"{name} has no argument {argument!r}{meant}"))
            continue
        if expected := type_violation(value, _annotation(parameters[argument], hints)):
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
        return f"the text {shortened(repr(value))}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"the list {shortened(repr(list(value)))}"
    return shortened(repr(value))


def as_given(arguments: Mapping[str, Any], target: Callable[..., Any]) -> dict[str, Any]:
    """Checked arguments as `target` takes them: YAML has no paths and no tensors (`as_annotated`).

    Raises UsageError for a list of which no tensor can be made.
    """
    hints = type_hints(target)
    given: dict[str, Any] = {}
    try:
        parameters = parameters_of(target)
    except (TypeError, ValueError):  # a function of C, which has no signature
        parameters = {}
    for name, value in arguments.items():
        annotation = _annotation(parameters[name], hints) if name in parameters else None
        try:
            given[name] = value if annotation is None else as_annotated(value, annotation)
        except (ValueError, TypeError, OverflowError) as error:
            what = f"{describe(value)} is no tensor; give numbers, in lists of one length"
            raise UsageError(f"{name}: {what}", code="part-arguments") from error
    return given


def _annotation(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    """What a parameter is annotated with, else its default's own type, else None."""
    annotation = hints.get(parameter.name, parameter.annotation)
    if annotation is not inspect.Parameter.empty and not isinstance(annotation, str):
        return annotation
    if parameter.default is inspect.Parameter.empty or parameter.default is None:
        return None
    return list if isinstance(parameter.default, tuple) else type(parameter.default)


def type_violation(value: Any, annotation: Any) -> str | None:
    """What `value` should have been (``"a number"``), or None where it fits or no annotation is known.

    Values are what YAML gives: numbers, strings, booleans, null, lists and mappings. An int fits where a float is
    meant.
    """
    if annotation is None:
        return None
    expected = accepted(annotation)
    return None if expected.fits(value) else expected.name


@functools.cache
def _load(path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(":")
    maker: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return maker
