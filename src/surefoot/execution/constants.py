"""What a graph of model and loss has as constants (attributes, names, modes, hooks), and whether one has changed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter, getitem, is_
from typing import Any

import torch
from torch import Tensor, nn

from ..generators import is_house, names_of
from ..untouched import is_lazy
from ..variables import MODULES_OWN

# The hooks of a module by the names that torch keeps them under, and those of a parameter.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BACKWARD_HOOKS, _LATE_HOOKS = attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks")
# Values of these are the same where they are equal.
_PLAIN = (int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
_MOST_ARRAY_BYTES = 1 << 16
_ABSENT = object()

Named = tuple[str, Any]


class Constants:
    """What a graph made of `parts` now would not see change.

    That is what their modules hold beside parameters and buffers (numbers, flags, words, lists, tensors); which
    children, parameters and hooks they have; and the global and enclosing names and the attributes of classes that
    `forward`, a loss and the functions that they call read. Attributes of other objects are not seen, save of
    dataclasses and namespaces.

    >>> model = nn.Sequential(nn.Dropout(0.5))
    >>> constants = Constants(model=model)
    >>> model[0].p = 0.1
    >>> constants.changed()
    'model.0.p was changed, which a graph would not see'
    """

    def __init__(self, **parts: Any):
        whole = [(name, part) for name, part in parts.items() if isinstance(part, nn.Module)]
        named = [(f"{name}.{path}" if path else name, m) for name, part in whole for path, m in part.named_modules()]
        self._modes = [(module, module.training) for _, module in named]
        ours = [(name, m) for name, m in named if not isinstance(m, torch.jit.ScriptModule)]  # others hold none of it
        self._hooks = [(name, table) for name, m in ours for kind in HOOKS if not (table := getattr(m, kind))]
        self._hook_tables = [table for _, table in self._hooks]
        registered = [(f"{name}.{key}", p) for name, m in ours for key, p in m._parameters.items() if p is not None]
        self._parameters = dict(registered)
        self._trained = list(self._parameters.values())
        # What holds values, beside copies: all are compared at once, without a line of Python for each.
        self._live: list[Any] = []
        self._kept: list[Any] = []
        self._about: list[tuple[str, bool]] = []
        # Single values, by where they stand.
        self._tables: list[Mapping[str, Any]] = []
        self._keys: list[str] = []
        self._values: list[Any] = []
        self._names: list[str] = []
        self._tensors: list[tuple[str, Tensor, int]] = []
        self._computed: list[tuple[str, Callable[[], Any], Any]] = []
        own = [tensor for _, m in ours for tensor in (*m._parameters.values(), *m._buffers.values())]
        self._met: dict[int, Any] = {id(tensor): tensor for tensor in own}
        todo = [each for name, part in parts.items() for each in ((name, part), *self._called(name, part))]
        while todo:
            name, value = todo.pop(0)
            if not isinstance(value, _PLAIN) and id(value) not in self._met:
                self._met[id(value)] = value  # kept alive, so that no other object gets its id
                todo += self._note(name, value)

    def modes_hold(self) -> bool:
        """Whether each module is in the mode in which it was. Another mode may be for a while; what changed is not."""
        return all([module.training is training for module, training in self._modes])

    def changed(self) -> str | None:
        """What is not as it was any more, with what that means; None where nothing changed."""
        if (name := self._changed()) is not None:
            return f"{name} was changed, which a graph would not see"
        if (name := self._hooked()) is not None:
            return f"{name} was given a hook, which a graph would not call"
        return None

    def _hooked(self) -> str | None:
        if any(self._hook_tables):
            return next(name for name, table in self._hooks if table)
        if any(map(_BACKWARD_HOOKS, self._trained)) or any(map(_LATE_HOOKS, self._trained)):
            return next(name for name, p in self._parameters.items() if _BACKWARD_HOOKS(p) or _LATE_HOOKS(p))
        return None

    def _changed(self) -> str | None:
        try:
            same = self._live == self._kept and all(map(is_, map(getitem, self._tables, self._keys), self._values))
        except Exception:  # of values that cannot be compared, or of a name that is gone
            same = False
        if not same and (name := self._first()) is not None:
            return name
        for name, tensor, version in self._tensors:
            if tensor._version != version:
                return name
        for name, compute, before in self._computed:
            if compute() != before:
                return name
        return None

    def _first(self) -> str | None:
        """The first that changed, one by one. What is equal and another object is kept: it is met from now on."""
        for place, (live, kept, (name, attributes)) in enumerate(zip(self._live, self._kept, self._about, strict=True)):
            if attributes:
                keys = [key for key in {**kept, **live} if not _same(live.get(key, _ABSENT), kept.get(key, _ABSENT))]
                mode = "training" if "_modules" in live else None  # of a module: see `modes_hold`
                if (key := next((key for key in keys if key != mode), None)) is not None:
                    return f"{name}.{key}"
            elif not _same_content(live, kept):
                return name
            self._kept[place] = live.copy()
        for place, (table, key) in enumerate(zip(self._tables, self._keys, strict=True)):
            if not _same(value := table.get(key, _ABSENT), self._values[place]):
                return self._names[place]
            self._values[place] = value
        return None

    def _note(self, name: str, value: Any) -> Iterable[Named]:
        """Note one object; returns what it holds, which is to be looked at next."""
        if isinstance(value, Tensor):
            if not (value.is_inference() or is_lazy(value)):
                self._tensors.append((name, value, value._version))
            return ()
        if isinstance(value, list | deque | set | dict):
            self._keep(name, value)
            return [(name, item) for item in (value.values() if isinstance(value, dict) else value)]
        if isinstance(value, tuple):
            return [(name, item) for item in value]
        if isinstance(value, torch.jit.ScriptModule):
            return ()
        if isinstance(value, nn.Module):
            return self._module(name, value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return [(name, value.__self__), (name, value.__func__)]
        if isinstance(value, functools.partial):
            return [(name, item) for item in (value.func, *value.args, *value.keywords.values())]
        if isinstance(value, _NAMESPACES) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
            return self._attributes(name, getattr(value, "__dict__", {}))
        numpy = sys.modules.get("numpy")  # what was never imported is nowhere
        if numpy is not None and isinstance(value, numpy.ndarray) and value.nbytes <= _MOST_ARRAY_BYTES:
            self._computed.append((name, value.tobytes, value.tobytes()))
        return ()

    def _called(self, name: str, part: Any) -> Iterable[Named]:
        """What an object of a class of one's own holds and reads when it is called."""
        attributes = getattr(part, "__dict__", None)
        if attributes is None or isinstance(
            part, nn.Module | functools.partial | types.FunctionType | types.MethodType
        ):
            return ()
        return [*self._attributes(name, attributes), *self._methods(type(part), "__call__")]

    def _module(self, name: str, module: nn.Module) -> Iterator[Named]:
        for table in (module._parameters, module._modules):
            if table:
                yield from self._attributes(name, table)
        yield from self._attributes(name, vars(module))
        yield from self._methods(type(module), "forward")

    def _attributes(self, name: str, table: Mapping[str, Any]) -> Iterator[Named]:
        self._keep(name, table, attributes=True)
        for key, value in table.items():
            if key not in MODULES_OWN:  # hooks, children and parameters are looked at by themselves
                if isinstance(value, Tensor) and not is_lazy(value) and value.numel() < 2:  # more cannot be equal
                    self._at(table, key, f"{name}.{key}")
                yield f"{name}.{key}", value

    def _keep(self, name: str, live: Any, attributes: bool = False) -> None:
        self._live.append(live)
        self._kept.append(live.copy())
        self._about.append((name, attributes))

    def _at(self, table: Mapping[str, Any], key: str, name: str) -> None:
        self._tables.append(table)
        self._keys.append(key)
        self._values.append(table[key])
        self._names.append(name)

    def _methods(self, kind: type, first: str) -> Iterator[Named]:
        """The methods of a class that are called from `first` on, and the class's own attributes that they read."""
        todo, met = [first], {first}
        while todo:
            wanted = todo.pop()
            for each in kind.__mro__:
                if wanted not in vars(each) or is_house(each.__module__):
                    continue
                value = vars(each)[wanted]
                value = getattr(value, "fget", None) or getattr(value, "__func__", value)  # of a property, of a class
                if isinstance(value, types.FunctionType):
                    yield wanted, value
                    new = set(names_of(value.__code__)) - met
                    met |= new
                    todo += sorted(new)
                else:
                    yield from self._reads(vars(each), f"{each.__name__}.", wanted)

    def _function(self, function: types.FunctionType) -> Iterator[Named]:
        """The names that a function reads, and what they stand for."""
        own = function.__globals__
        if is_house(own.get("__name__")):
            return
        for name in sorted(set(names_of(function.__code__)) & {*own}):
            yield from self._reads(own, "", name)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a name that is not bound yet
                yield name, cell.cell_contents
                self._computed.append((name, functools.partial(_value_in, cell), _value_in(cell)))

    def _reads(self, table: Mapping[str, Any], prefix: str, name: str) -> Iterator[Named]:
        value = table[name]
        # What was defined or imported by its own name is no setting.
        if not isinstance(value, _CODE) or getattr(value, "__name__", "").rpartition(".")[2] != name:
            self._at(table, name, f"{prefix}{name}")
        if not isinstance(value, types.ModuleType | type):
            yield f"{prefix}{name}", value


def _value_in(cell: types.CellType) -> Any:
    """Something to compare by `==`: a plain value with its type, or which object it is."""
    value = cell.cell_contents
    return (type(value), value) if isinstance(value, _PLAIN) else id(value)


def _same(now: Any, before: Any) -> bool:
    """Whether two are one object, or equal where they hold nothing that could change later."""
    if now is before:
        return True
    if isinstance(now, tuple) and isinstance(before, tuple):
        return len(now) == len(before) and all(map(_same, now, before))
    return type(now) is type(before) and isinstance(now, _PLAIN) and bool(now == before)


def _same_content(live: Any, kept: Any) -> bool:
    if isinstance(live, dict):
        return live.keys() == kept.keys() and all(_same(value, kept[key]) for key, value in live.items())
    if isinstance(live, set):
        return bool(live == kept)
    return len(live) == len(kept) and all(map(_same, live, kept))
