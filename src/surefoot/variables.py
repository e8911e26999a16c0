"""What Python alone sees change in a model or a loss: counters in attributes, closures, globals, classes."""

from __future__ import annotations

import contextlib
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UsageError
from .generators import Generators, held_by, is_house, names_of, slots_of, walk
from .own_code import is_own
from .wrapping import submodules, unwrap

# Attributes of torch's own modules; recurrent ones look their weights up anew whenever others are put in their place.
MODULES_OWN = frozenset({*vars(nn.Module()), "_flat_weights", "_flat_weight_refs"})
PLAIN = (int, float, complex, str, bytes, bool, type(None))
CONTAINERS = (list, dict, set, deque)
# What is larger is no counter, and is not kept.
_MOST_ITEMS = 1000
_MOST_ELEMENTS = 1 << 20
_MOST_DEEP = 4
_NOT_KEPT = object()


class Attributes:
    """Values that stand in attributes of several objects, as a table: {name: (object, name of the attribute)}."""

    def __init__(self, places: Mapping[str, tuple[Any, str]]):
        self._places = places

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(*self._places[name])
        except (AttributeError, ValueError):  # a cell without content raises the latter
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(*self._places[name], value)

    def get(self, name: str) -> Any:
        """A value, or None where there is none."""
        with contextlib.suppress(KeyError):
            return self[name]
        return None

    def __iter__(self) -> Iterator[str]:
        return (name for name, place in self._places.items() if _is_bound(*place))


# A table, and which of its names count; None: all but those of torch's own.
Table = tuple[dict[str, Any] | Attributes, Iterable[str] | None]


class Variables:
    """The values that training changes in what `roots` hold, beside tensors of modules, as one object with a state.

    They are numbers, words, flags, small tensors and arrays, and lists, tuples, dicts and sets of such. They stand in
    attributes of modules and of objects of the user's own classes, in these classes, in closures, and in global names
    that the user's functions read. Kept is what differs from what it was when this object was made.
    """

    can_lack = True  # in checkpoints of before there were any

    def __init__(self, **roots: Any):
        self._roots = roots
        self._tables: dict[str, list[Table]] = {}
        self._searches_left = 2
        self._before = self._now()

    def _now(self) -> dict[str, dict[str, Any]]:
        # Searched once more after the first steps, since a forward pass may make an object; no later save waits for it.
        if self._searches_left:
            self._searches_left -= 1
            self._tables = _tables(self._roots)
        own = _memory_of(self._roots.values())
        now: dict[str, dict[str, Any]] = {}
        for place, tables in self._tables.items():
            for table, names in tables:
                for name in _all(table) if names is None else names:
                    with contextlib.suppress(KeyError):  # bound no more
                        if (value := _copied(table[name], own)) is not _NOT_KEPT:
                            now.setdefault(place, {})[name] = value
        return now

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """What has changed, by the place of its object and its name there."""
        state: dict[str, dict[str, Any]] = {}
        for place, values in self._now().items():
            before = self._before.get(place, {})
            changed = {k: value for k, value in values.items() if k not in before or not _equal(value, before[k])}
            if changed:
                state[place] = changed
        return state

    def go_back(self) -> None:
        """Make all as they were when this object was made."""
        self.load_state_dict(self._before)

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Put each one back. Raises UsageError for one whose object is not there, before any is changed."""
        here = _tables(self._roots)
        if lost := [f"{place}.{name}" for place, values in state.items() if place not in here for name in values]:
            raise UsageError(
                f"values of the saved run have no place here: {', '.join(lost)}; make the objects that hold them where "
                "the model and the loss are made"
            )
        parts = [part for part in self._roots.values() if isinstance(part, nn.Module)]
        device = next((tensor.device for part in parts for tensor in part.parameters()), torch.device("cpu"))
        for place, values in state.items():
            tables = [table for table, _ in here[place]]
            for name, value in values.items():
                _put(next((table for table in tables if name in table), tables[-1]), name, value, device)


def hidden(**roots: Any) -> dict[str, Any]:
    """What is to be kept of `roots` (model, loss) beside their tensors: "generators" and "variables"."""
    return {"generators": Generators(**roots), "variables": Variables(**roots)}


def with_hidden(objects: Mapping[str, Any]) -> dict[str, Any]:
    """`objects`, and what is `hidden` in the modules among them."""
    roots = {key: value for key, value in objects.items() if isinstance(value, nn.Module)}
    found = hidden(**roots) if roots else {}
    if not held_by(**roots):
        found.pop("generators", None)
    return {**found, **objects}


def beside_attributes(value: Any, place: str) -> Iterator[tuple[str, Table]]:
    """What an object can change that is in no `__dict__` of its own, in tables by their places.

    Of a function these are the names that it closes over and, of the user's own, the global ones that it reads; of an
    object of the user's own class its slots, and the values that its classes hold.
    """
    if isinstance(value, types.FunctionType):
        if is_house(value.__module__):
            return
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        closed = Attributes({name: (cell, "cell_contents") for name, cell in cells})
        yield place, (closed, closed)
        if is_own(module := value.__globals__.get("__name__")):
            yield f"{module}:", (value.__globals__, sorted({*names_of(value.__code__)} & {*value.__globals__}))
        return
    for kind in type(value).__mro__:
        if is_own(kind.__module__):
            names = sorted(name for name, item in vars(kind).items() if is_value(item) and not name.startswith("__"))
            yield f"{kind.__module__}:{kind.__qualname__}", (Attributes({n: (kind, n) for n in names}), names)
    slots = Attributes({name: (value, name) for name in slots_of(type(value))})
    yield place, (slots, slots)


def is_value(item: Any) -> bool:
    """Whether this is of a kind that is kept: a number, a word, a flag, a tensor, an array, a container."""
    return isinstance(item, (*PLAIN, *CONTAINERS, tuple, Tensor)) or is_array(item)


def is_array(value: Any) -> bool:
    """Whether this is an array of numpy's, of which nothing is where it was never imported."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def refill(container: Any, content: Any) -> None:
    """Let a list, a dict, a set or a deque hold what another one does."""
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(content)


def _is_bound(holder: Any, name: str) -> bool:
    try:
        return hasattr(holder, name)
    except ValueError:  # of a cell
        return False


def _all(table: Any) -> Iterable[str]:
    return [name for name in table if name not in MODULES_OWN]


def _tables(roots: Mapping[str, Any]) -> dict[str, list[Table]]:
    """Every table of values that `roots` lead to, by its place; of modules by the names without wrappers."""
    bare = {name: unwrap(root) if isinstance(root, nn.Module) else root for name, root in roots.items()}
    places: dict[int, str] = {}
    for root, part in bare.items():
        for name, child in submodules(part) if isinstance(part, nn.Module) else ():
            places.setdefault(id(child), f"{root}.{name}" if name else root)
    tables: dict[str, list[Table]] = {}
    for at, value in walk(bare, by_name=True):
        # A library's objects are looked through, and what they count is theirs: DDP does so behind its hooks.
        function = isinstance(value, types.FunctionType)
        own = is_own(value.__module__) if function else is_own(type(value).__module__)
        if not (own or id(value) in places) or isinstance(value, Tensor | torch.jit.ScriptModule) or is_array(value):
            continue
        place = places.get(id(value), at)
        for where, table in beside_attributes(value, place):
            tables.setdefault(where, []).append(table)
        if isinstance(attributes := getattr(value, "__dict__", None), dict):
            tables.setdefault(place, []).append((attributes, None))  # last of its place: what is new is set there
    return tables


def _memory_of(parts: Iterable[Any]) -> set[int]:
    """Where the parameters and buffers of modules lie, which are kept by themselves."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    tensors = [tensor for part in modules for tensor in (*part.parameters(), *part.buffers())]
    return {pointer for tensor in tensors if (pointer := _pointer(tensor))}


def _pointer(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError, ValueError):  # lazy, sparse, in pieces
        return None


def _copied(value: Any, own: set[int], depth: int = 0) -> Any:
    """A value as it is now, or _NOT_KEPT for one that is of another kind, too large, or part of a graph or a module."""
    if type(value) in PLAIN:
        return value
    if type(value) is Tensor:
        pointer = _pointer(value)
        if value.requires_grad or value.numel() > _MOST_ELEMENTS or not pointer or pointer in own:
            return _NOT_KEPT
        return value.clone()
    if is_array(value):
        return value.copy() if value.size <= _MOST_ELEMENTS and value.dtype.kind in "biufc" else _NOT_KEPT
    if depth == _MOST_DEEP or type(value) not in (*CONTAINERS, tuple) or len(value) > _MOST_ITEMS:
        return _NOT_KEPT
    items = [_copied(item, own, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
    keys = list(value) if isinstance(value, dict) else []
    if any(item is _NOT_KEPT for item in items) or any(type(key) not in PLAIN for key in keys):
        return _NOT_KEPT
    return _like(value, items)


def _like(container: Any, items: Iterable[Any]) -> Any:
    """A container of the same kind, with the same keys, and other items."""
    if isinstance(container, dict):
        return dict(zip(container, items, strict=True))
    return deque(items, container.maxlen) if isinstance(container, deque) else type(container)(items)


def _equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if is_array(a):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list | deque):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _put(table: Any, name: str, value: Any, device: torch.device) -> None:
    """Set a value, in the place of the one that is there where it is of the same form: others may refer to it."""
    now = table.get(name)
    if type(now) is Tensor and isinstance(value, Tensor):
        if now.shape == value.shape and now.dtype == value.dtype and not (now.requires_grad or now.is_inference()):
            now.copy_(value)
            return
        device = now.device
    if isinstance(value, CONTAINERS) and type(now) is type(value):
        refill(now, _on(value, device))
    elif is_array(value) and is_array(now) and now.shape == value.shape and now.dtype == value.dtype:
        now[...] = value
    else:
        table[name] = _on(value, device)


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return _like(value, [_on(item, device) for item in value.values()])
    if isinstance(value, list | tuple | deque):
        return _like(value, [_on(item, device) for item in value])
    return value
