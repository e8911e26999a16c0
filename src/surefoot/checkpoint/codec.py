"""Plain state to JSON and a table of tensors, and back, bit for bit; no pickle, and nothing is guessed.

JSON's own types stand for themselves. Everything else is an object with the key "$":

    {"$": "tuple", "v": [...]}             {"$": "dict", "v": [[key, value], ...]}   keys that are not strings
    {"$": "float", "v": "nan"}             {"$": "tensor", "at": name, "stride": [...], "dtype": ..., "shape": ...}

A tensor that occurs twice is stored once and comes back as one tensor; tensors that overlap in memory come back as
views of one block ({"$": "view", "at": name, "dtype": ..., "offset": bytes, "shape": ..., "stride": ...}).
"""

from __future__ import annotations

import base64
import functools
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy
import torch

from ..errors import UsageError
from ..safe_tensors import DTYPES
from ..wrapping import is_spread
from .pieces import Pieces, cut_of

MAX_DEPTH = 100
_STORABLE = {getattr(torch, name) for name, _ in DTYPES.values() if hasattr(torch, name)}
_JSON_INT = 2**63


class Encoder:
    """Turns values into JSON-able trees; `tensors` collects what they refer to, not yet copied.

    `pieces` says of those that are spread over ranks how.

    >>> encoder = Encoder()
    >>> encoder.encode({"lr": 0.1, "betas": (0.9, float("inf")), 3: None}, "optimizer")["v"][1]
    ['betas', {'$': 'tuple', 'v': [0.9, {'$': 'float', 'v': 'inf'}]}]
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.pieces: Pieces = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._by_memory: dict[tuple[Any, ...], list[tuple[dict[str, Any], torch.Tensor, str]]] = {}

    def encode(self, value: Any, path: str, depth: int = 0) -> Any:
        """The JSON form of `value`; `path` names it in errors and in the table of tensors.

        Raises `UsageError` for a type that cannot be kept without pickle, naming where it was found.
        """
        kind = type(value)
        if kind is str or kind is bool or value is None:
            return value
        if kind is int:
            if -_JSON_INT <= value < _JSON_INT:
                return value
            return {"$": "int", "v": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if depth >= MAX_DEPTH:
            raise UsageError(f"{path}: nested deeper than {MAX_DEPTH} levels, or refers to itself; flatten it")
        if kind is dict:
            if all(type(key) is str and key != "$" for key in value):
                return {key: self.encode(item, f"{path}/{key}", depth + 1) for key, item in value.items()}
            return {"$": "dict", "v": self._pairs(value.items(), path, depth)}
        if kind is list:
            return self._items(value, path, depth)
        if kind is tuple:
            return {"$": "tuple", "v": self._items(value, path, depth)}
        return self._rarer(value, path, depth)

    def _items(self, values: Iterable[Any], path: str, depth: int) -> list[Any]:
        return [self.encode(item, f"{path}/{i}", depth + 1) for i, item in enumerate(values)]

    def _pairs(self, items: Iterable[tuple[Any, Any]], path: str, depth: int) -> list[list[Any]]:
        pairs = []
        for key, item in items:
            if isinstance(key, torch.Tensor):
                raise UsageError(f"{path}: a tensor cannot be kept as a key")
            encoded = self.encode(key, f"{path} (key)", depth + 1)
            pairs.append([encoded, self.encode(item, f"{path}/{key}", depth + 1)])
        return pairs

    def _rarer(self, value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        if kind is Counter:
            return {"$": "counter", "v": self._pairs(value.items(), path, depth)}
        if kind is OrderedDict:
            return {"$": "ordered", "v": self._pairs(value.items(), path, depth)}
        if kind is torch.Size:
            return {"$": "size", "v": list(value)}
        if kind is set or kind is frozenset:
            # A set of strings iterates in another order in every process; equal states give equal files.
            return {"$": kind.__name__, "v": self._items(sorted(value, key=repr), path, depth)}
        if kind is deque:
            return {"$": "deque", "v": self._items(value, path, depth), "maxlen": value.maxlen}
        if kind is bytes or kind is bytearray:
            return {"$": kind.__name__, "v": base64.b64encode(value).decode("ascii")}
        if kind is complex:
            return {"$": "complex", "v": [value.real.hex(), value.imag.hex()]}
        if kind is torch.dtype:
            return {"$": "dtype", "v": str(value).removeprefix("torch.")}
        if kind is torch.device:
            return {"$": "device", "v": str(value)}
        if isinstance(value, numpy.generic) and value.dtype.kind in "biufc":
            packed = base64.b64encode(value.tobytes()).decode("ascii")
            return {"$": "numpy", "dtype": value.dtype.str, "v": packed}
        if kind is numpy.ndarray and value.dtype.kind in "biufc":
            packed = base64.b64encode(numpy.ascontiguousarray(value).tobytes()).decode("ascii")
            return {"$": "ndarray", "dtype": value.dtype.str, "shape": list(value.shape), "v": packed}
        raise UsageError(
            f"{path}: a {kind.__module__}.{kind.__qualname__} cannot be saved without pickle; let state_dict() "
            "give numbers, strings, lists, dicts and tensors"
        )

    def _tensor(self, tensor: torch.Tensor, path: str) -> dict[str, Any]:
        if is_spread(tensor):
            return self._spread(tensor, path)
        refuse = None
        if tensor.layout in SPARSE and type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            return self._sparse(tensor.detach(), path)
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            refuse = f"a tensor of class {type(tensor).__name__}"
        elif tensor.layout is not torch.strided or tensor.is_quantized:
            refuse = f"a {tensor.layout} tensor" if not tensor.is_quantized else "a quantized tensor"
        elif tensor.is_meta:
            refuse = "a tensor on the meta device, which holds no numbers"
        if refuse:
            raise UsageError(f"{path}: {refuse} cannot be saved; convert it to a plain tensor")
        shape, stride = tuple(tensor.shape), tensor.stride()
        expanded = 0 in stride and not is_dense(shape, stride)  # one number stands for many
        if expanded and (base := _unexpanded(tensor)).shape != tensor.shape:
            return {"$": "expanded", "v": self._tensor(base, path), "shape": list(shape)}
        identity = (tensor.data_ptr(), tensor.device, tensor.dtype, shape, stride, tensor.is_conj(), tensor.is_neg())
        name = self._names.get(identity) if tensor.numel() else None
        if name is None:
            name = path
            while name in self.tensors:  # a key with a slash can meet a nested one
                name += "~"
            self.tensors[name] = tensor
            self._names[identity] = name
        node: dict[str, Any] = {"$": "tensor", "at": name}
        if stride != contiguous_stride(shape) and is_dense(shape, stride):
            node["stride"] = list(stride)
        if tensor.dtype not in _STORABLE:
            node["dtype"] = str(tensor.dtype).removeprefix("torch.")
            node["shape"] = list(shape)
        if tensor.numel():
            memory = tensor.device, tensor.untyped_storage().data_ptr()
            self._by_memory.setdefault(memory, []).append((node, tensor.detach(), path))
        return node

    def _spread(self, tensor: torch.Tensor, path: str) -> dict[str, Any]:
        """A tensor of which each rank writes its piece: decoded it is whole."""
        cut = cut_of(tensor, path)
        if tensor.dtype not in _STORABLE:
            raise UsageError(f"{path}: a tensor of {tensor.dtype} that is spread over ranks cannot be saved")
        name = self._names.setdefault(("spread", id(tensor)), path)
        self.tensors.setdefault(name, tensor)
        self.pieces[name] = cut
        return {"$": "tensor", "at": name}

    def share_memory(self) -> None:
        """Store tensors that overlap in memory once, as one block, so that they are decoded as views of one another.

        Changes the trees that `encode` gave. Raises `UsageError` for an overlap that cannot be kept.
        """
        for entries in self._by_memory.values():
            together: list[tuple[dict[str, Any], torch.Tensor, str]] = []
            end = 0
            for entry in sorted(entries, key=lambda entry: entry[1].data_ptr()) if len(entries) > 1 else ():
                if entry[1].data_ptr() >= end:
                    self._as_views(together)
                    together = []
                together.append(entry)
                end = max(end, _end(entry[1]))
            self._as_views(together)

    def _as_views(self, entries: list[tuple[dict[str, Any], torch.Tensor, str]]) -> None:
        names = list(dict.fromkeys(node["at"] for node, _, _ in entries))
        if len(names) < 2:
            return
        if lazy := [path for _, tensor, path in entries if tensor.is_conj() or tensor.is_neg()]:
            raise UsageError(f"{lazy[0]}: shares its memory with {names[0]}, conjugated or negated; save a clone of it")
        first = entries[0][1]
        memory = first.untyped_storage()
        offset = (first.data_ptr() - memory.data_ptr()) // 16 * 16  # aligned for every dtype
        start = memory.data_ptr() + offset
        for name in names:
            del self.tensors[name]
        size = max(_end(tensor) for _, tensor, _ in entries) - start
        block = torch.empty(0, dtype=torch.uint8, device=first.device)
        self.tensors[names[0]] = block.set_(memory, offset, (size,), (1,))
        for node, tensor, _ in entries:
            node.clear()
            node |= {"$": "view", "at": names[0], "dtype": str(tensor.dtype).removeprefix("torch.")}
            node |= {"offset": tensor.data_ptr() - start, "shape": list(tensor.shape), "stride": list(tensor.stride())}

    def _sparse(self, tensor: torch.Tensor, path: str) -> dict[str, Any]:
        layout = str(tensor.layout).removeprefix("torch.")
        node: dict[str, Any] = {"$": "sparse", "layout": layout, "shape": list(tensor.shape)}
        if tensor.layout is torch.sparse_coo:
            node["coalesced"] = tensor.is_coalesced()
        for name in SPARSE[tensor.layout]:
            node[name] = self._tensor(getattr(tensor, name)(), f"{path}/{name}")
        return node


# The parts of a sparse tensor, in the order in which its maker takes them.
SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
_LAYOUTS = {str(layout).removeprefix("torch."): layout for layout in SPARSE}


def _end(tensor: torch.Tensor) -> int:
    """The address behind a tensor's last element."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def _unexpanded(tensor: torch.Tensor) -> torch.Tensor:
    """The part of an expanded tensor that has memory of its own."""
    for dim, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if step == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def storable(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself, or its bytes where safetensors has no name for its dtype."""
    if tensor.dtype in _STORABLE:
        return tensor.resolve_conj().resolve_neg()
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


class Corrupt(ValueError):
    """A tree that no encoder wrote."""


class Decoder:
    """Turns an encoded tree back into values; `tensors` are handed out as they are, each one made once.

    >>> Decoder({}).decode({"$": "tuple", "v": [1, {"$": "float", "v": "-inf"}]})
    (1, -inf)
    """

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._made: dict[str, torch.Tensor] = {}
        self._views: dict[str, torch.Tensor] = {}

    @property
    def unused(self) -> set[str]:
        """Names of tensors that nothing has referred to so far."""
        return set(self._tensors) - set(self._made)

    def decode(self, value: Any, depth: int = 0) -> Any:
        """The value behind one node. Raises `Corrupt`."""
        if depth > 2 * MAX_DEPTH:
            raise Corrupt("nested too deeply")
        if isinstance(value, list):
            return [self.decode(item, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        if "$" not in value:
            return {key: self.decode(item, depth + 1) for key, item in value.items()}
        tag = value["$"]
        if tag == "tensor":
            return self._tensor(value)
        try:
            if tag == "expanded":
                return self.decode(value["v"], depth + 1).expand(value["shape"])
            if tag == "sparse":
                return self._sparse(value, depth)
            if tag == "view":
                return self._view(value)
            if tag in _CONTAINERS:
                items = value["v"]
                if not isinstance(items, list):
                    raise Corrupt(f"a {tag} without its list")
                return _CONTAINERS[tag]([self.decode(item, depth + 1) for item in items], value)
            return _SCALARS[tag](value)
        except Corrupt:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise Corrupt(f"{str(tag)[:40]!r} cannot be read: {error}") from error

    def _tensor(self, node: dict[str, Any]) -> torch.Tensor:
        name = node.get("at")
        if not isinstance(name, str) or name not in self._tensors:
            raise Corrupt(f"tensor {str(name)[:80]!r} is missing")
        if name in self._made:
            return self._made[name]
        tensor = self._tensors[name]
        if "dtype" in node:
            dtype = getattr(torch, str(node["dtype"]), None)
            if not isinstance(dtype, torch.dtype) or tensor.dtype != torch.uint8:
                raise Corrupt(f"tensor {name[:80]!r} has an unknown dtype")
            try:
                tensor = tensor.view(dtype).reshape(node["shape"])
            except (RuntimeError, KeyError, TypeError) as error:
                raise Corrupt(f"tensor {name[:80]!r} does not fit its shape") from error
        if "stride" in node:
            stride = node["stride"]
            if not isinstance(stride, list) or not is_dense(tuple(tensor.shape), stride):
                raise Corrupt(f"tensor {name[:80]!r} has impossible strides")
            tensor = torch.empty_strided(tuple(tensor.shape), stride, dtype=tensor.dtype, device="cpu").copy_(tensor)
        self._made[name] = tensor
        return tensor

    def _view(self, node: dict[str, Any]) -> torch.Tensor:
        name = node["at"]
        if name not in self._made:
            self._made[name] = self._tensor({"at": name}).clone()  # memory of its own, aligned
        dtype, key = _dtype({"v": node["dtype"]}), repr(sorted(node.items()))
        if key not in self._views:
            block, item = self._made[name], dtype.itemsize
            if block.dtype != torch.uint8 or block.dim() != 1 or node["offset"] % item:
                raise Corrupt(f"tensor {name[:80]!r} is not a block of bytes for its views")
            typed = block[: len(block) // item * item].view(dtype)
            self._views[key] = typed.as_strided(node["shape"], node["stride"], node["offset"] // item)
        return self._views[key]

    def _sparse(self, node: dict[str, Any], depth: int) -> torch.Tensor:
        layout = _LAYOUTS[node["layout"]]
        parts = [self.decode(node[name], depth + 1) for name in SPARSE[layout]]
        if not all(isinstance(part, torch.Tensor) for part in parts):
            raise Corrupt("a sparse tensor without its parts")
        with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
            if layout is torch.sparse_coo:
                indices, values = parts
                made = torch.sparse_coo_tensor(indices, values, node["shape"])
                return made._coalesced_(node["coalesced"] is True)
            lines, places, values = parts
            return torch.sparse_compressed_tensor(lines, places, values, node["shape"], layout=layout)


@functools.lru_cache(maxsize=4096)
def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a freshly made tensor of this shape."""
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


def is_dense(shape: tuple[int, ...], stride: Any) -> bool:
    """Whether a tensor of this shape and stride fills its memory exactly, in some order of dimensions."""
    if len(stride) != len(shape) or not all(type(n) is int and 0 <= n < 2**62 for n in stride):
        return False
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size != 1):
        if step != expected:
            return False
        expected *= size
    return True


def _hashable_pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    if not all(isinstance(item, list) and len(item) == 2 for item in items):
        raise Corrupt("a dict whose items are not pairs")
    return [(key, item) for key, item in items]


def _float(node: dict[str, Any]) -> float:
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[node["v"]]


def _numpy(node: dict[str, Any]) -> Any:
    dtype = numpy.dtype(node["dtype"])
    if dtype.kind not in "biufc":
        raise Corrupt("an array that holds objects")
    array = numpy.frombuffer(base64.b64decode(node["v"], validate=True), dtype)
    return array[0] if node["$"] == "numpy" else array.reshape(node["shape"]).copy()


def _dtype(node: dict[str, Any]) -> torch.dtype:
    dtype = getattr(torch, node["v"])
    if not isinstance(dtype, torch.dtype):
        raise Corrupt("not a dtype")
    return dtype


_CONTAINERS: dict[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    "tuple": lambda items, _: tuple(items),
    "dict": lambda items, _: dict(_hashable_pairs(items)),
    "counter": lambda items, _: Counter(dict(_hashable_pairs(items))),
    "ordered": lambda items, _: OrderedDict(_hashable_pairs(items)),
    "size": lambda items, _: torch.Size(items),
    "set": lambda items, _: set(items),
    "frozenset": lambda items, _: frozenset(items),
    "deque": lambda items, node: deque(items, node["maxlen"]),
}
_SCALARS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "int": lambda node: int(node["v"], 16),
    "float": _float,
    "bytes": lambda node: base64.b64decode(node["v"], validate=True),
    "bytearray": lambda node: bytearray(base64.b64decode(node["v"], validate=True)),
    "complex": lambda node: complex(float.fromhex(node["v"][0]), float.fromhex(node["v"][1])),
    "dtype": _dtype,
    "device": lambda node: torch.device(node["v"]),
    "numpy": _numpy,
    "ndarray": _numpy,
}
