"""Random number generators that objects hold beside the process's own: to find, seed, save and restore them."""

from __future__ import annotations

import functools
import itertools
import random
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .errors import UsageError
from .own_code import is_own
from .rng import fold

MAX_DEPTH = 12
# Of a list or dict so many entries are looked at: generators stand in attributes, not in a million samples.
MAX_ITEMS = 64
# What the classes and functions of these refer to is not the user's. No file of a user's can stand in their place.
_HOUSE = ("torch", "surefoot", "builtins", "numpy", "random", "collections", "functools", "typing", "abc", "weakref")
_SLOTS: weakref.WeakKeyDictionary[type, tuple[str, ...]] = weakref.WeakKeyDictionary()
_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType)


def held_by(**roots: Any) -> dict[str, Any]:
    """Every generator that can be reached from `roots`, by its place: ``{"model.noise.generator": ...}``.

    Looked through are attributes, lists, tuples, dicts, closures, functools.partial, and the globals that functions
    and methods of the user's own refer to, other functions among them. Kinds: torch.Generator, random.Random, numpy's
    Generator and RandomState. One that is held twice has one place; of several with one place (an attribute and its
    class's, a function's defaults) the second is ``PLACE-2``.
    """
    by_name: dict[str, Any] = {}
    for place, value in walk(roots, by_name=True):
        if is_generator(value):
            places = itertools.chain([place], (f"{place}-{number}" for number in itertools.count(2)))
            by_name[next(each for each in places if each not in by_name)] = value
    return by_name


def is_generator(value: Any) -> bool:
    """Whether `value` is a random number generator whose state can be kept."""
    import numpy
    import torch

    if isinstance(value, random.Random):
        return not isinstance(value, random.SystemRandom)
    return isinstance(value, torch.Generator | numpy.random.Generator | numpy.random.RandomState)


def walk(roots: Mapping[str, Any], *, by_name: bool = False) -> Iterator[tuple[str, Any]]:
    """Each object that is reachable from `roots` with its place, once; no property and no method is called.

    With `by_name` also what functions of the user's own find by a global name; without it only generators there.
    """
    import numpy
    import torch

    # The process's own generators are kept anyway (`rng`).
    done = {id(torch.default_generator), id(getattr(random, "_inst", None)), id(numpy.random.mtrand._rand)}
    kept: list[Any] = []  # ids are only good while the objects live
    waiting = [(name, value, 0) for name, value in reversed(list(roots.items()))]
    while waiting:
        place, value, depth = waiting.pop()
        if isinstance(value, _LEAVES) or id(value) in done:
            continue
        done.add(id(value))
        kept.append(value)
        yield place, value
        if depth < MAX_DEPTH and not isinstance(value, torch.Tensor | numpy.ndarray) and not is_generator(value):
            # Most of what a module holds are tables of hooks without any.
            found = _inside(value, by_name)
            inside = [(n, item) for n, item in found if not isinstance(item, _LEAVES) and not _is_empty(item)]
            waiting += [(f"{place}.{name}", item, depth + 1) for name, item in reversed(inside)]


def _inside(value: Any, by_name: bool) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in itertools.islice(value.items(), MAX_ITEMS))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(i), item) for i, item in zip(range(MAX_ITEMS), value, strict=False))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from (("self", value.__self__), ("func", value.__func__))
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value, by_name)
    module = isinstance(value, torch.nn.Module)
    for name, item in (getattr(value, "__dict__", None) or {}).items():
        yield from item.items() if module and _table(name, item) else [(name, item)]
    for name in slots_of(type(value)):
        if (item := getattr(value, name, None)) is not None:
            yield name, item
    if not isinstance(value, types.FunctionType) and not is_house(type(value).__module__):
        for kind in type(value).__mro__:
            for name, item in vars(kind).items() if not is_house(kind.__module__) else ():
                yield name, getattr(item, "__func__", item) if not isinstance(item, property) else item.fget


def _table(name: str, item: Any) -> bool:
    return name in ("_modules", "_buffers", "_parameters") and isinstance(item, dict)


def _is_empty(item: Any) -> bool:
    return isinstance(item, dict) and not item


def slots_of(kind: type) -> tuple[str, ...]:
    """The names of the slots that a class gives its objects; those of Python's and torch's bases are left out."""
    if kind not in _SLOTS:
        slots = [vars(base).get("__slots__", ()) for base in kind.__mro__ if not is_house(base.__module__)]
        names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
        _SLOTS[kind] = tuple(name for name in names if not name.startswith("__"))
    return _SLOTS[kind]


def _of_function(function: types.FunctionType, by_name: bool) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue  # not filled yet
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield "default", default
    if not is_house(function.__module__):
        own = by_name and is_own(function.__globals__.get("__name__"))
        for name in names_of(function.__code__):
            item = function.__globals__.get(name)
            if is_generator(item) or (own and _is_looked_into(item)):
                yield name, item


def _is_looked_into(item: Any) -> bool:
    """Whether what a user's function finds by a global name may hold what changes: no class, nothing of a library's."""
    import torch

    if isinstance(item, types.FunctionType):
        return is_own(item.__module__)
    return isinstance(item, list | tuple | dict | set | torch.nn.Module) or is_own(type(item).__module__)


def names_of(code: types.CodeType) -> Iterator[str]:
    """The global names and attributes that a function's code refers to, those of functions inside of it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_of(constant)


def is_house(module: str | None) -> bool:
    """Whether a module is torch's, Python's or this package's, so that what its code refers to is not the user's."""
    return (module or "builtins").partition(".")[0] in _HOUSE


def seed_each(all_generators: Sequence[Any], seed: int) -> None:
    """Seed each generator with its own number, derived from `seed` and its position."""
    import numpy
    import torch

    for number, generator in enumerate(all_generators):
        own = fold(seed, number)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(own)
        elif isinstance(generator, numpy.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(own).state
        else:
            generator.seed(own & 0xFFFFFFFF)


def state_of(generator: Any) -> Any:
    """A generator's state, as plain values and tensors."""
    import numpy
    import torch

    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, numpy.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, numpy.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.getstate()


def put_state(generator: Any, state: Any) -> None:
    """Set a generator to a state that `state_of` returned."""
    import numpy
    import torch

    if isinstance(generator, torch.Generator | numpy.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, numpy.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.setstate(state)


class Generators:
    """The generators that a run's objects hold, as one object with a state_dict."""

    def __init__(self, **roots: Any):
        self._roots = roots
        self._generators: dict[str, Any] = {}
        self._searches_left = 2

    def state_dict(self) -> dict[str, Any]:
        """Each one's state by its place."""
        # Searched once more after the first steps, since a forward pass may make one; later no save waits for it.
        if self._searches_left:
            self._searches_left -= 1
            self._generators = held_by(**self._roots)
        return {place: state_of(generator) for place, generator in self._generators.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put each one back. Raises UsageError for a generator that is not there, before any is changed."""
        here = held_by(**self._roots)
        if lost := [place for place in state if place not in here]:
            raise UsageError(
                f"random number generators of the saved run are not found here: {', '.join(lost)}; make them where "
                "the objects are made"
            )
        for place, saved in state.items():
            put_state(here[place], saved)
