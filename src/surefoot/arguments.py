"""Arguments of public functions, checked as a recipe's keys are: every mistake of a call in one message."""

from __future__ import annotations

import inspect
import math
import numbers
import operator
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from .errors import Problems
from .registry import Range, describe, did_you_mean


class Arguments:
    """Collects what is wrong with the arguments of one call; `done` raises it all at once.

    Each check returns the value as plain Python has it (a NumPy number becomes an int or a float), or the value as
    it is where it was refused. With `none`, None is taken.

    >>> check = Arguments()
    >>> check.whole("epochs", 0, low=1), check.number("max_grad_norm", -1, Range(low=0, low_open=True))
    (0, -1)
    >>> check.done()
    Traceback (most recent call last):
    ...
    surefoot.errors.Problems: epochs: 0 is not a whole number of 1 or more
    max_grad_norm: -1 is below 0
    """

    def __init__(self, prefix: str = ""):
        self.prefix = prefix
        self.problems: list[str] = []

    def refuse(self, name: str, message: str) -> None:
        """Note a mistake that no other check covers."""
        self.problems.append(f"{self.prefix}{name}: {message}")

    def done(self) -> None:
        """Raise Problems where anything was refused."""
        if self.problems:
            raise Problems(self.problems)

    def whole(
        self, name: str, value: Any, *, low: int | None = None, high: int | None = None, none: bool = False
    ) -> Any:
        """A whole number; NumPy's and a tensor of one are taken."""
        if none and value is None:
            return None
        limits = "" if low is None else f" of {low} or more"
        try:
            number = None if _is_truth(value) or _shape(value) else operator.index(value)
        except TypeError:
            number = None
        if number is None or (low is not None and number < low):
            self.refuse(name, f"{_label(value)} is not a whole number{limits}{' (or None)' if none else ''}")
            return value
        if high is not None and number > high:
            self.refuse(name, f"{_label(value)} is above {high}")
            return value
        return number

    def number(self, name: str, value: Any, limits: Range | None = None, *, none: bool = False) -> Any:
        """A finite number within `limits`; NumPy's and a tensor of one are taken."""
        if none and value is None:
            return None
        number = as_number(value)
        if number is None:
            self.refuse(name, f"{_label(value)} is not a number{' (or None)' if none else ''}")
            return value
        limits = limits or Range()
        wrong = limits.violation(number) or (
            None if abs(number) <= sys.float_info.max else f"{_label(value)} is not finite"
        )
        if wrong:
            self.refuse(name, wrong + (f"; {limits.hint}" if limits.hint else ""))
            return value
        return number

    def flag(self, name: str, value: Any) -> Any:
        """True or False; NumPy's bool is taken."""
        if not _is_truth(value):
            self.refuse(name, f"{_label(value)} is neither True nor False")
            return value
        return bool(value)

    def choice(self, name: str, value: Any, options: Iterable[str], *, none: bool = False) -> Any:
        """One of a few words."""
        options = tuple(options)
        if none and value is None:
            return None
        if not isinstance(value, str) or value not in options:
            meant = did_you_mean(value, options) if isinstance(value, str) else ""
            self.refuse(name, f"{_label(value)} is not one of {', '.join(options)}{meant}")
        return value

    def text(self, name: str, value: Any, *, none: bool = False) -> Any:
        """A text."""
        if not isinstance(value, str) and not (none and value is None):
            self.refuse(name, f"{_label(value)} is not a text")
        return value

    def texts(self, name: str, value: Any) -> tuple[str, ...]:
        """A tuple of texts; one text stands for itself and never for its letters."""
        if isinstance(value, str):
            return (value,)
        try:
            items = tuple(value)
        except TypeError:
            items = (None,)
        if isinstance(value, bytes) or not all(isinstance(item, str) for item in items):
            self.refuse(name, f"{_label(value)} is not a list of texts")
            return ()
        return items

    def path(self, name: str, value: Any, *, none: bool = False) -> Any:
        """A path: a text or an object of pathlib's."""
        if (none and value is None) or hasattr(value, "__fspath__") or (isinstance(value, str) and value):
            return value
        self.refuse(name, f"{_label(value)} is not a path (a text or a pathlib.Path)")
        return value

    def mapping(self, name: str, value: Any, *, none: bool = False) -> Any:
        """A mapping."""
        if not isinstance(value, Mapping) and not (none and value is None):
            self.refuse(name, f"{_label(value)} is not a mapping")
        return value

    def instance(self, name: str, value: Any, kind: type | tuple[type, ...], like: str, *, none: bool = False) -> Any:
        """An object of `kind`; `like` shows how one is made. A class where an object is meant is named as such."""
        if isinstance(value, kind) or (none and value is None):
            return value
        self.refuse(name, f"{_label(value)} was given; give {'None or ' if none else ''}an object, e.g. {like}")
        return value

    def function(self, name: str, value: Any, like: str) -> Any:
        """Something to call that is not a class."""
        if not callable(value) or inspect.isclass(value):
            self.refuse(name, f"{_label(value)} was given; give an object or a function, e.g. {like}")
        return value


def as_metric(value: Any) -> float | int | None:
    """As `as_number`, with True and False as 1 and 0."""
    return int(value) if _is_truth(value) else as_number(value)


def metric_values(metrics: Any) -> dict[str, Any]:
    """Metrics by name as plain numbers: NumPy's, a tensor of one, a Decimal and a Fraction are taken, None stays.

    Raises Problems for values that are no numbers.

    >>> from fractions import Fraction
    >>> metric_values({"val/loss": Fraction(1, 4), "val/accuracy": True})
    {'val/loss': 0.25, 'val/accuracy': 1}
    """
    check = Arguments("metrics: ")
    if not isinstance(metrics, Mapping):
        check.refuse("metrics", f'{_label(metrics)} is not a mapping; give e.g. {{"val/loss": 0.5}}')
        check.done()
    numbers_by_name = {}
    for name, value in metrics.items():
        check.text("a name", name)
        number = as_metric(value)
        if number is None and value is not None:
            check.refuse(str(name), f"{_label(value)} is not a number")
        numbers_by_name[name] = number
    check.done()
    return numbers_by_name


def _label(value: Any) -> str:
    """A value as a message names it: a class, a small value as it is written, or the kind of a large one."""
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', 'without a name')}"
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, Mapping):
        return f"a mapping ({type(value).__name__})"
    if isinstance(value, str | int | float | complex):
        return repr(value) if len(repr(value)) <= 60 else describe(value)
    if isinstance(value, list | tuple):
        return describe(value)
    return f"an object of {type(value).__module__}.{type(value).__qualname__}"


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or (type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"))


def as_number(value: Any) -> float | int | None:
    """`value` as a plain number where it is one: also NumPy's, a tensor of one, a Decimal, a Fraction; else None."""
    if _is_truth(value) or isinstance(value, str) or _shape(value):
        return None
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    try:
        if hasattr(value, "dtype") and hasattr(value, "item"):
            value = value.item()  # of NumPy or torch, and one number
        elif not isinstance(value, numbers.Real | Decimal):
            return None
        if isinstance(value, bool | complex | str):
            return None
        return value if isinstance(value, int) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples and sets as lists, numbers that are not finite as words, the rest as text.

    >>> plain({"loss": float("nan"), "betas": (0.9, 1)})
    {'loss': 'nan', 'betas': [0.9, 1]}
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):  # whose order differs from process to process
        return sorted(map(plain, value), key=repr)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item())
    return str(value)
