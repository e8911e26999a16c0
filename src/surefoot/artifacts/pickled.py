"""What a pickle would make, without running it: a stack machine with stand-ins.

A pickle is a program for a small stack machine. Here that program is followed with stand-ins: a tensor becomes
a `Stored` (which bytes, which shape), any object of a class that weights are not made of an `Opaque` with its name.
No object of the file's choice is ever made, nothing is imported and no function of its choice called.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from ..safe_tensors import BadFile

MAX_BYTES = 64 * 1024 * 1024
MAX_OPERATIONS = 2_000_000
MAX_OBJECTS = 500_000

# Bytes an element; the names are torch's for dtypes, and its storage classes' without "Storage".
_DTYPE_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
_STORAGE_CLASS = re.compile(rf"torch\.(?:cuda\.)?({'|'.join(_STORAGES)})Storage")
_DICTS = ("collections.OrderedDict", "collections.Counter", "collections.defaultdict")
_KNOWN = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)|torch\._utils\._rebuild_(tensor(_v[23])?|parameter(_with_state)?)"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.(Size|device|Tensor|nn\.parameter\.Parameter)"
    r"|torch\.storage\.UntypedStorage"
    rf"|{_STORAGE_CLASS.pattern}|torch\.({'|'.join(_DTYPE_BYTES)})"
)
_TEXTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_LAZY = ("conj", "neg")
_LOCATION = re.compile(r"[a-z_]{1,20}(:\d{1,4})?")


@dataclass(frozen=True)
class Storage:
    """A block of `numel` elements that the file keeps under `key`, of which `length` from `begin` on are seen."""

    key: str
    dtype: str
    numel: int
    begin: int
    length: int


@dataclass(frozen=True)
class Stored:
    """A tensor that the file holds: a view of a storage; `offset` and `stride` count elements of `dtype`.

    `lazy` holds "conj" and "neg" where the numbers are still to be conjugated or negated.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    lazy: tuple[str, ...] = ()


@dataclass(eq=False, slots=True)
class Opaque:
    """An object that was not made: what it is called, what it would be made from, and the state it would get."""

    name: str
    arguments: Any = ()
    state: Any = None


@dataclass(frozen=True)
class _Global:
    name: str


_MARK = object()


def listed(names: Any) -> str:
    """A few names, each cut to a length that a message can bear."""
    names = list(names)
    shown = ", ".join(name[:100] for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class Machine:
    """The stack machine. `foreign` collects the names met that weights are not made of, in order, each once.

    Dictionaries of any kind come as dict; `persistent` gives what a reference to something outside the pickle
    stands for (a storage, as a rule).

    >>> import pickle
    >>> Machine("w").run(pickle.dumps({"a": range(3)}))
    {'a': Opaque(name='builtins.range', arguments=(0, 3, 1), state=None)}
    """

    def __init__(self, path: str | Path, persistent: Callable[[Any], Any] | None = None):
        self.path = path
        self.persistent = persistent or self.storage
        self.foreign: dict[str, None] = {}
        self.storages: dict[str, tuple[str, int]] = {}
        self.operations = self.objects = 0

    def run(self, source: bytes | IO[bytes]) -> Any:
        """What the pickle in `source` would make; bytes are read to their end, a file only as far as needed."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        try:
            for operation, argument, position in pickletools.genops(source):
                self.operations += 1
                if self.operations > MAX_OPERATIONS or max(self.objects, len(self.memo) // 2) > MAX_OBJECTS:
                    raise self._bad(f"more than {MAX_OPERATIONS} operations or {MAX_OBJECTS} objects")
                if operation.name == "STOP":
                    if isinstance(source, bytes) and position != len(source) - 1:
                        raise self._bad("something after its end")
                    (result,) = self.stack
                    if result is _MARK:
                        raise self._bad("a mark in the place of a value")
                    return result
                self._do(operation.name, argument)
        except BadFile:
            raise
        except (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            names = f"; it names {listed(self.foreign)}" if self.foreign else ""
            raise BadFile(
                self.path, f"its pickle is damaged or made up ({type(error).__name__}: {str(error)[:200]}){names}"
            ) from error
        raise self._bad("no end: it was cut")

    def _bad(self, what: str) -> BadFile:
        return BadFile(self.path, f"its pickle holds {what}")

    def _do(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case _ if name in _TEXTS:  # first, since a match compares one after the other, and most are these
                stack.append(argument)
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "GLOBAL":
                stack.append(self._named(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                stack.append(self._named(f"{_text(module)}.{_text(attribute)}"))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                self._push({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
            case "EMPTY_SET":
                self._push(Opaque("builtins.set", []))
            case "FROZENSET":
                self._push(Opaque("builtins.frozenset", self._marked()))
            case "TUPLE" | "LIST":
                items = self._marked()
                self._push(tuple(items) if name == "TUPLE" else items)
            case "DICT":
                items = self._marked()
                self._push(dict(_pairs(items)))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self._pop() for _ in range(int(name[-1]))]
                self._push(tuple(reversed(items)))
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = [self._pop()] if name == "APPEND" else self._marked()
                target = self._top(list, Opaque)
                if isinstance(target, list):
                    target.extend(items)
                elif isinstance(target.arguments, list):
                    target.arguments.extend(items)
            case "SETITEM" | "SETITEMS":
                items = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._marked()
                target = self._top(dict, Opaque)
                pairs = _pairs(items)
                if isinstance(target, dict):
                    target.update(pairs)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._marked()
            case "DUP":
                stack.append(stack[-1])
            case "BINPERSID":
                stack.append(self.persistent(self._pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self._pop(), self._pop()
                self._push(self._call(function, arguments))
            case "NEWOBJ_EX":
                _, arguments, function = self._pop(), self._pop(), self._pop()
                self._push(self._call(function, arguments))
            case "INST":
                arguments = tuple(self._marked())
                self._push(self._call(self._named(argument.replace(" ", ".", 1)), arguments))
            case "OBJ":
                function, *rest = self._marked()
                self._push(self._call(function, tuple(rest)))
            case "BUILD":
                state = self._pop()
                target = self._top(dict, list, Opaque, Stored, str)
                if isinstance(target, Opaque):
                    target.state = state
                # An attribute of a dictionary (a state_dict's `_metadata`) or of a tensor has no use here.
            case _:
                raise self._bad(f"the operation {name}, which torch.save does not write")

    def _push(self, value: Any) -> None:
        self.objects += 1
        self.stack.append(value)

    def _named(self, name: str) -> _Global:
        if not _KNOWN.fullmatch(name) and len(self.foreign) < 10_000:
            self.foreign[name] = None
        return _Global(name)

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise self._bad("a mark in the place of a value")
        return value

    def _top(self, *kinds: type) -> Any:
        if type(self.stack[-1]) not in kinds:
            raise self._bad(f"items for something that is no {kinds[0].__name__}")
        return self.stack[-1]

    def _marked(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise self._bad("items without a mark")

    def storage(self, reference: Any) -> Any:
        """The storage that a reference of torch.save stands for; of a kind that is not known, an `Opaque`."""
        match reference:
            case ("module", _Global() as kind, *_):  # a class with its source beside it, before torch 1.6
                return kind
            case ("storage", _Global(kind), str(key), str(location), int(numel), *view) if numel >= 0:
                if not re.fullmatch(r"\d{1,20}", key) or not _LOCATION.fullmatch(location):
                    raise self._bad(f"a storage named {key[:40]!r} on {location[:40]!r}")
                return self.described(kind, key, numel, *view)
        raise self._bad("a reference that is no storage")

    def described(self, kind: str, key: str, numel: int, view: Any = None) -> Any:
        """The storage `key`; described twice it must be the same. `view` is (key, offset, length) or None."""
        storage_class = _STORAGE_CLASS.fullmatch(kind)
        if not storage_class and kind != "torch.storage.UntypedStorage":
            return Opaque(kind)
        dtype = _STORAGES[storage_class[1]] if storage_class else "uint8"
        if self.storages.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise self._bad(f"two descriptions of the storage {key}")
        begin, length = (0, numel) if view is None else view[1:]
        if not _whole((begin, length)) or begin + length > numel:
            raise self._bad(f"a view beyond the end of the storage {key}")
        return Storage(key, dtype, numel, begin, length)

    def _call(self, function: Any, arguments: Any) -> Any:
        """What a call would give: a stand-in, for every function."""
        if not isinstance(function, _Global | Opaque) or type(arguments) is not tuple:
            raise self._bad("a call of something that is no function")
        name = function.name
        match name, arguments:
            case _, _ if isinstance(function, Opaque):
                pass
            case "collections.OrderedDict", (list() as pairs,):  # as Python 2 wrote it
                return dict(_pairs([part for pair in pairs for part in _two(pair)]))
            case "collections.Counter", (dict() as counts,):
                return dict(counts)
            case _, _ if name in _DICTS:
                return {}
            case "torch.Size", (tuple() as sizes,) if _whole(sizes):
                return sizes
            case "torch.device", (str(), *rest) if _whole(rest) and len(rest) < 2:
                return "device"
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (
                Stored() as data,
                *_,
            ):
                return data
            case "torch._utils._rebuild_tensor", (Storage() as s, offset, shape, stride):
                return self.tensor(s, s.dtype, offset, shape, stride)
            case "torch._utils._rebuild_tensor_v2", (Storage() as s, offset, shape, stride, bool(), _, *rest):
                return replace(self.tensor(s, s.dtype, offset, shape, stride), lazy=self._lazy(rest))
            case (
                "torch._utils._rebuild_tensor_v3",
                (Storage() as s, offset, shape, stride, bool(), _, _Global(dtype), *rest),
            ):
                found = self.tensor(s, dtype.removeprefix("torch."), offset, shape, stride)
                return replace(found, lazy=self._lazy(rest))
            case "torch._tensor._rebuild_from_type_v2", (_Global(inner) as rebuild, _Global(), tuple() as inside, _):
                if inner.startswith("torch._utils._rebuild_"):
                    return self._call(rebuild, inside)
        return Opaque(name, arguments)

    def _lazy(self, rest: list[Any]) -> tuple[str, ...]:
        """The flags of a tensor, from the metadata that may stand behind its other arguments."""
        flags = rest[0] if rest and rest[0] is not None else {}
        if len(rest) > 1 or type(flags) is not dict or not all(v is True and k in _LAZY for k, v in flags.items()):
            raise self._bad("a tensor with flags of its own")
        return tuple(flags)

    def tensor(self, storage: Storage, dtype: str, offset: Any, shape: Any, stride: Any) -> Stored:
        """A checked view of a storage. Raises `BadFile` for one that reaches beyond it."""
        good = type(shape) is tuple and type(stride) is tuple and len(shape) == len(stride) <= 64
        if dtype not in _DTYPE_BYTES:
            raise self._bad(f"a tensor of {dtype[:40]!r}, which is none of the dtypes that are read")
        if not good or not _whole((offset, *shape, *stride)):
            raise self._bad("a tensor whose shape is not made of whole numbers")
        size = _DTYPE_BYTES[storage.dtype]
        elements = storage.length * size // _DTYPE_BYTES[dtype]
        numel = 1
        for count in shape:
            numel *= count
        last = offset + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
        if numel and last >= elements or offset > elements:
            raise self._bad(f"a tensor of shape {_short(shape)} that reaches beyond its {elements} numbers")
        if numel > elements:
            raise self._bad(f"a tensor of shape {_short(shape)} made of only {elements} numbers")
        return Stored(storage, dtype, offset + storage.begin * size // _DTYPE_BYTES[dtype], shape, stride)


def _whole(values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name that is no text")
    return value


def _two(pair: Any) -> Any:
    if type(pair) not in (list, tuple) or len(pair) != 2:
        raise ValueError("a pair that is none")
    return pair


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    """Keys and values, one after the other; a key that has no simple value is one by identity (hashing stays cheap)."""
    pairs = []
    for key, value in zip(items[::2], items[1::2], strict=True):
        simple = isinstance(key, str | bytes | float | bool | None) or (type(key) is int and key.bit_length() <= 1024)
        pairs.append((key if simple else Opaque("key", key), value))
    return pairs


def _short(shape: tuple[int, ...]) -> str:
    text = str(list(shape))
    return text if len(text) < 80 else text[:77] + "..."


def dtype_bytes(dtype: str) -> int:
    """How many bytes one element takes.

    >>> dtype_bytes("bfloat16")
    2
    """
    return _DTYPE_BYTES[dtype]
