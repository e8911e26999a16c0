"""Running live objects without a trace: whatever a forward or backward pass changes is restored, to the last bit."""

from __future__ import annotations

import contextlib
import copy
import functools
import types
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import generators, rng
from .own_code import is_own
from .variables import CONTAINERS, MODULES_OWN, PLAIN, beside_attributes, is_array, is_value, refill
from .wrapping import is_spread, local

# Of more elements no running mean of batch normalization is.
_SMALL = 1 << 16
# What is looked into where a function closes over it, is given it or finds it by its name; also objects of the user's
# own classes, save of those that can be indexed: they may be a whole data set.
_LOOKED_INTO = (nn.Module, types.FunctionType, types.MethodType, functools.partial, weakref.WeakMethod, *CONTAINERS)
# What holds no state of its own, or is not ours to look into.
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, torch.dtype, torch.device, *PLAIN)


@contextlib.contextmanager
def untouched(*parts: Any) -> Iterator[Snapshot]:
    """Within it models, losses and optimizers may run and train; after it they are as before, to the last bit.

    Put back are the global random number generators, and of everything that `parts` hold (modules, optimizers,
    functions with what they close over, objects with attributes, containers): parameters and buffers with their
    classes, shapes, gradients and flags, optimizer state, training flags, hooks, every attribute and container that
    was rebound or changed, arrays and generators. Each tensor is copied once meanwhile.

    >>> model = nn.BatchNorm1d(2)
    >>> with untouched(model):
    ...     _ = model(torch.randn(8, 2))
    >>> model.num_batches_tracked
    tensor(0)
    """
    snapshot = Snapshot(*parts)
    try:
        yield snapshot
    finally:
        snapshot.put_back()


class Snapshot:
    """Everything that `parts` hold, as it is now; see `untouched`."""

    def __init__(self, *parts: Any):
        self._random = rng.get_state()
        self._tensors: list[_Tensor] = []
        self._attributes: list[tuple[str | None, Any, type, dict[str, Any]]] = []
        self._named: list[tuple[str | None, Any, str, Any]] = []  # in closures, globals, classes and slots
        self._containers: list[tuple[str | None, Any, Any]] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._generators: list[tuple[str | None, Any, Any]] = []
        self._met: dict[int, Any] = {}
        names = ("model", "loss", "optimizer")
        roots = {names[i] if i < len(names) else f"part {i}": part for i, part in enumerate(parts)}
        todo: list[tuple[str | None, Any]] = list(reversed(roots.items()))
        while todo:
            name, value = todo.pop()
            if not isinstance(value, _OPAQUE) and id(value) not in self._met:
                self._met[id(value)] = value  # kept alive, so that no other object gets its id
                todo += self._take(name, value)
        for place, generator in generators.held_by(**roots).items():  # also those that functions find by global names
            if id(generator) not in self._met:
                self._met[id(generator)] = generator
                self._generators.append((place, generator, generators.state_of(generator)))

    def _take(self, name: str | None, value: Any) -> list[tuple[str | None, Any]]:
        """Note one object; what it holds is to be looked at next. Without a name it is torch's own bookkeeping."""
        if isinstance(value, Tensor):
            self._tensors.append(_Tensor(value))
            return []
        if isinstance(value, CONTAINERS):
            self._containers.append((name, value, value.copy()))
            return _contents(name, value)
        if isinstance(value, tuple):
            return _contents(name, value)
        if isinstance(value, torch.jit.ScriptModule):  # keeps its attributes elsewhere
            self._tensors += [_Tensor(tensor) for tensor in (*value.parameters(), *value.buffers())]
            self._attributes.append((None, value, type(value), {"training": value.training}))
            return []
        if generators.is_generator(value):
            self._generators.append((name, value, generators.state_of(value)))
            return []
        if is_array(value):
            if value.flags.writeable:
                self._arrays.append((value, value.copy()))
            return []
        if isinstance(value, functools.partial):
            given = [item for item in (*value.args, *value.keywords.values()) if _is_looked_into(item)]
            return [(name, item) for item in (value.func, *given)]
        if isinstance(value, types.MethodType):
            return [(name, value.__self__), (name, value.__func__)]
        if isinstance(value, weakref.WeakMethod):  # of what is called before each update: a schedule
            return [] if (method := value()) is None else [(None, method)]
        beside = self._take_beside(name, value)
        if isinstance(value, types.FunctionType):
            beside += [(name, item) for item in _closed_over(value) if _is_looked_into(item)]
        attributes = getattr(value, "__dict__", None)
        torchs = type(value).__module__.startswith("torch.") and not isinstance(
            value, nn.Module | torch.optim.Optimizer
        )
        if not isinstance(attributes, dict) or torchs:
            return beside
        self._attributes.append((name, value, type(value), dict(attributes)))
        own = MODULES_OWN if isinstance(value, nn.Module) else ()
        inside = [(None if k in own or name is None else f"{name}.{k}", v) for k, v in attributes.items()]
        if isinstance(value, nn.Module):  # its children by their names, before they are met as bookkeeping
            children = [(name and f"{name}.{key}", child) for key, child in value._modules.items()]
            return inside + children + beside
        return inside + beside

    def _take_beside(self, name: str | None, value: Any) -> list[tuple[str | None, Any]]:
        """Note what an object can change that is no attribute of its own; returns what is to be looked at next."""
        found: list[tuple[str | None, Any]] = []
        for place, (table, names) in beside_attributes(value, name or ""):
            for key in names or ():
                item = table[key]
                where = None if name is None else f"{place}{key}" if place.endswith(":") else f"{place}.{key}"
                if is_value(item):
                    self._named.append((where, table, key, item))
                if _is_looked_into(item):
                    found.append((where, item))
        methods = [item for kind in type(value).__mro__ if is_own(kind.__module__) for item in vars(kind).values()]
        functions = [getattr(item, "fget", None) or getattr(item, "__func__", item) for item in methods]
        return found + [(name, item) for item in functions if isinstance(item, types.FunctionType)]

    def put_back(self) -> str | None:
        """Restore everything. Returns which Python state had changed first (a counter, a list), in words, or None."""
        changed = None
        for name, value, kind, before in self._attributes:
            if type(value) is not kind:
                value.__class__ = kind  # a lazy module that became the one it stands for
            if isinstance(value, torch.jit.ScriptModule):
                value.train(before["training"])
                continue
            now = vars(value)
            own = MODULES_OWN if isinstance(value, nn.Module) else ()
            for key in [key for key in now if key not in before]:
                if name is not None and key not in own:
                    changed = changed or f"the forward pass sets {name}.{key}"
                del now[key]
            for key, old in before.items():
                if key not in now or not _same(now[key], old):
                    if name is not None and key not in own:
                        changed = changed or f"the forward pass changes {name}.{key}"
                    now[key] = old
        for name, table, key, before in self._named:
            if not (key in table and _same(table[key], before)):
                if name is not None:
                    changed = changed or f"the forward pass changes {name}"
                table[key] = before
        for name, value, before in self._containers:
            if not _same_content(value, before):
                if name is not None:
                    changed = changed or f"the forward pass changes {name}"
                refill(value, before)
        for name, generator, before in self._generators:
            if name is not None and not _equal(generators.state_of(generator), before):
                changed = changed or f"the forward pass draws from {name}"
            generators.put_state(generator, before)
        for array, before in self._arrays:
            array[...] = before
        for tensor in self._tensors:
            tensor.put_back()
        drawn = self._put_back_random()
        return changed or drawn

    def _put_back_random(self) -> str | None:
        now = rng.get_state()
        rng.set_state(self._random)
        if not _equal(now["python"], self._random["python"]):
            return "the forward pass draws from Python's random"
        if not _equal(now["numpy"], self._random["numpy"]):
            return "the forward pass draws from numpy's random"
        return None


class Buffers:
    """The buffers of model and loss as they were before an update, for one that does not happen."""

    def __init__(self, *parts: Any):
        modules = [m for part in parts if isinstance(part, nn.Module) for m in part.modules()]
        self._places = [(m._buffers, name) for m in modules for name, _ in m._buffers.items()]
        self._kept: dict[int, tuple[Tensor | None, int, Tensor | None]] = {}

    def note(self, always: bool) -> None:
        """Copy what changed since the last time; `always` where writes do not show in a tensor's version.

        Those of torch's batch normalization never do, so that what is small is always copied.
        """
        for place, (buffers, name) in enumerate(self._places):
            tensor = buffers[name] if name in buffers else None  # noqa: SIM401  (a scripted module's have no `get`)
            kept = self._kept.get(place)
            version = -1 if tensor is None or tensor.is_inference() else tensor._version
            shaped = None if tensor is None or is_lazy(tensor) else tensor
            small = shaped is not None and shaped.numel() <= _SMALL
            if always or small or kept is None or kept[0] is not tensor or kept[1] != version:
                self._kept[place] = tensor, version, None if shaped is None else shaped.detach().clone()

    def put_back(self) -> None:
        """Make them as they were when `note` was called."""
        with torch.no_grad():
            for (buffers, name), (tensor, _, value) in zip(self._places, self._kept.values(), strict=True):
                buffers[name] = tensor
                if tensor is None or value is None:
                    continue
                if tensor.shape != value.shape:
                    tensor.data = value.clone()
                elif tensor.layout is not torch.strided or not torch.equal(tensor, value):
                    tensor.copy_(value)


@contextlib.contextmanager
def put_back_on(error: type[Exception], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it `optimizer` may update; where `error` is raised, its parameters and its state are as they were."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    values, state = [p.detach().clone() for p in parameters], copy.deepcopy(optimizer.state_dict())
    try:
        yield
    except error:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(state)
        raise


class _Tensor:
    """One tensor as it is now: class, memory, values, gradient."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.kind = tensor, type(tensor)
        # The same memory under a version counter of its own; of a tensor in pieces, of this rank's.
        self.memory = local(tensor) if is_spread(tensor) else tensor.data
        lazy = is_lazy(tensor)
        self.value = None if lazy or tensor.is_meta else self.memory.clone()
        self.flag = tensor.requires_grad
        self.leaf = tensor.is_leaf
        grad = tensor.grad if self.leaf and not lazy else None
        self.grad = None if grad is None else _Tensor(grad)

    def put_back(self) -> None:
        tensor = self.tensor
        if self.kind is not type(tensor):
            tensor.__class__ = self.kind
            tensor.data = self.memory
        elif self.value is not None:
            if not is_spread(tensor) and not _same_place(tensor, self.memory):
                tensor.data = self.memory
            # Nothing is written where several elements share one place (an expanded buffer) and nothing changed.
            if self.memory.layout is not torch.strided or not torch.equal(self.memory, self.value):
                self.memory.copy_(self.value)
        if self.leaf:
            if tensor.requires_grad is not self.flag:
                tensor.requires_grad_(self.flag)
            if self.value is not None and (self.grad is not None or tensor.grad is not None):
                tensor.grad = None if self.grad is None else self.grad.tensor
                if self.grad is not None:
                    self.grad.put_back()


def is_lazy(tensor: Tensor) -> bool:
    """Whether a parameter or buffer of a lazy module waits for the first batch to have a shape."""
    return nn.parameter.is_lazy(tensor)


def _same_place(a: Tensor, b: Tensor) -> bool:
    if a.layout is not torch.strided:
        return a.layout is b.layout
    return a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr()


def _contents(name: str | None, value: Any) -> list[tuple[str | None, Any]]:
    if isinstance(value, dict):
        return [(name, item) for pair in value.items() for item in pair]
    return [(name, item) for item in value]


def _same(now: Any, before: Any) -> bool:
    return now is before or (type(now) is type(before) and isinstance(now, PLAIN) and now == before)


def _same_content(value: Any, before: Any) -> bool:
    if len(value) != len(before):
        return False
    if isinstance(value, set):
        return bool(value == before)
    if isinstance(value, dict):
        pairs = zip(value.items(), before.items(), strict=True)
        return all(_same(a, c) and _same(b, d) for (a, b), (c, d) in pairs)
    return all(map(_same, value, before))


def _closed_over(function: types.FunctionType) -> Iterator[Any]:
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name that is not bound yet
            yield cell.cell_contents


def _is_looked_into(item: Any) -> bool:
    return isinstance(item, _LOOKED_INTO) or (is_own(type(item).__module__) and not hasattr(type(item), "__getitem__"))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return all(map(_equal, a, b))
    return bool(a.tobytes() == b.tobytes() if hasattr(a, "tobytes") else a == b)
