"""What a pickle would make, found out without running it: the check in front of `torch.load`.

A pickle is a program for a small stack machine. Here that program is followed with stand-ins: a tensor becomes
a `Stored` (which bytes, which shape), and a name that is not on the short list of what weights are made of
ends the reading. No object of the file's choice is ever made and no function of its choice called.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..safe_tensors import BadFile

MAX_BYTES = 64 * 1024 * 1024
MAX_OPERATIONS = 10_000_000

# Bytes an element; the names are torch's for dtypes, and its storage classes' without "Storage".
_DTYPE_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
_ALLOWED = {
    "collections.OrderedDict",
    "collections.Counter",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    "torch.storage.UntypedStorage",
    *(f"torch.{name}Storage" for name in _STORAGES),
    *(f"torch.{name}" for name in _DTYPE_BYTES),
}
_OPERATIONS = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
}  # fmt: skip
_LOCATION = re.compile(r"cpu|meta|cuda(:\d+)?|mps(:\d+)?|xpu(:\d+)?|hpu(:\d+)?")


@dataclass(frozen=True)
class Storage:
    """A block of `numel` elements, kept in the record ``data/KEY``."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class Stored:
    """A tensor that the file holds: a view of a storage."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    name: str


_MARK = object()


def names_in(data: bytes) -> list[str]:
    """The importable names that a pickle refers to, as far as it can be followed; nothing is imported.

    >>> import pickle
    >>> names_in(pickle.dumps(print, 0))
    ['__builtin__.print']
    """
    found: dict[str, None] = {}
    strings: list[str] = []
    memo: dict[int, str] = {}
    operation = None
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name in ("GLOBAL", "INST"):
                found[argument.replace(" ", ".", 1)] = None
            elif operation.name == "STACK_GLOBAL" and len(strings) >= 2:
                found[".".join(strings[-2:])] = None
            elif operation.name.startswith("EXT"):
                found[f"extension {argument}"] = None
            elif isinstance(argument, str) and "UNICODE" in operation.name or "STRING" in operation.name:
                strings.append(str(argument))
            elif operation.name == "MEMOIZE" and strings:
                memo[len(memo)] = strings[-1]
            elif operation.name in ("BINGET", "LONG_BINGET") and argument in memo:
                strings.append(memo[argument])
            if len(found) > 10_000 or len(strings) > 1_000_000:
                break
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError):
        pass  # a pickle that breaks off is told by its reader; here only the names up to there are wanted
    return list(found)


def followed(path: str | Path, data: bytes) -> Any:
    """What the pickle `data` of the file `path` would make, with `Stored` in the place of tensors.

    Dictionaries of any kind come as dict. Raises `BadFile`, whose message names what is not allowed.
    """
    names = names_in(data)
    foreign = [name for name in names if name not in _ALLOWED]
    if foreign:
        raise BadFile(path, explain(foreign))
    try:
        return _Machine(path).run(data)
    except BadFile:
        raise
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadFile(path, f"its pickle is damaged or made up ({type(error).__name__}: {error})") from error


def explain(foreign: list[str]) -> str:
    """What to tell about names that weights are not made of."""
    shown = ", ".join(name[:100] for name in foreign[:5])
    shown += f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
    if any(name.startswith(("torch.nn.", "__main__.")) for name in foreign):
        return (
            f"holds a whole model by pickle (it names {shown}); loading it would run code from the file, and breaks "
            "when that code moves. Where the class is at hand, run torch.save(model.state_dict(), 'weights.pth') "
            "and use that file"
        )
    return (
        f"names {shown}, which weights are not made of: loading it could run code, so it was not loaded. From a "
        "source that you trust, make a file of the state_dict alone: torch.save(model.state_dict(), 'weights.pth')"
    )


class _Machine:
    """The stack machine, with stand-ins."""

    def __init__(self, path: str | Path):
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, data: bytes) -> Any:
        for count, (operation, argument, position) in enumerate(pickletools.genops(data)):
            name = operation.name
            if name not in _OPERATIONS:
                raise self.bad(f"the operation {name}, which torch.save does not write")
            if count > MAX_OPERATIONS:
                raise self.bad(f"more than {MAX_OPERATIONS} operations")
            if name == "STOP":
                if position != len(data) - 1:
                    raise self.bad("something after its end")
                (result,) = self.stack
                return result
            self.do(name, argument)
        raise self.bad("no end: it was cut")

    def bad(self, what: str) -> BadFile:
        return BadFile(self.path, f"its pickle holds {what}")

    def do(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO":
                if argument != 2:
                    raise self.bad(f"protocol {argument}; torch.save writes 2")
            case "MARK":
                stack.append(_MARK)
            case "GLOBAL":
                stack.append(_Global(argument.replace(" ", ".", 1)))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                items = tuple(stack[-count:])
                if len(items) != count or _MARK in items:
                    raise self.bad("a tuple of nothing")
                stack[-count:] = [items]
            case "APPEND":
                value = self.pop()
                self.top(list).append(value)
            case "APPENDS":
                items = self.marked()
                self.top(list).extend(items)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.top(dict)[_key(key)] = value
            case "SETITEMS":
                items = self.marked()
                target = self.top(dict)
                for key, value in zip(items[::2], items[1::2], strict=True):
                    target[_key(key)] = value
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "BINPERSID":
                stack.append(self.storage(self.pop()))
            case "REDUCE":
                arguments, function = self.pop(), self.pop()
                stack.append(self.call(function, arguments))
            case "BUILD":
                # Only a state_dict's `_metadata` comes so; an attribute of anything else has no use here.
                state = self.pop()
                self.top(dict)
                if not isinstance(state, dict) or set(state) - {"_metadata"}:
                    raise self.bad("attributes for a dictionary other than _metadata")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise self.bad("a mark in the place of a value")
        return value

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise self.bad(f"items for something that is no {kind.__name__}")
        return self.stack[-1]

    def marked(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise self.bad("items without a mark")

    def storage(self, reference: Any) -> Storage:
        match reference:
            case ("storage", _Global(kind), str(key), str(location), int(numel)) if numel >= 0:
                if kind == "torch.storage.UntypedStorage":
                    dtype = "uint8"
                elif kind.endswith("Storage") and kind.startswith("torch."):
                    dtype = _STORAGES[kind.removeprefix("torch.").removesuffix("Storage")]
                else:
                    raise self.bad(f"a storage of the kind {kind[:80]}")
                if not re.fullmatch(r"\d{1,12}", key) or not _LOCATION.fullmatch(location):
                    raise self.bad(f"a storage named {key[:40]!r} on {location[:40]!r}")
                found = Storage(key, dtype, numel)
                if self.storages.setdefault(key, found) != found:
                    raise self.bad(f"two descriptions of the storage {key}")
                return found
        raise self.bad("a reference that is no storage")

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise self.bad("a call of something that is no function")
        match function.name, arguments:
            case "collections.OrderedDict", ():
                return {}
            case "collections.Counter", (dict() as counts,):
                return dict(counts)
            case "torch.Size", (tuple() as sizes,) if _whole(sizes):
                return sizes
            case "torch.device", (str(), *rest) if _whole(rest) and len(rest) < 2:
                return "device"
            case "torch._utils._rebuild_parameter", (Stored() as data, bool(), _):
                return data
            case "torch._utils._rebuild_tensor_v2", (Storage() as s, offset, shape, stride, bool(), _, *rest):
                self.no_metadata(rest)
                return self.tensor(s, s.dtype, offset, shape, stride)
            case (
                "torch._utils._rebuild_tensor_v3",
                (Storage() as s, offset, shape, stride, bool(), _, _Global(dtype), *rest),
            ):
                self.no_metadata(rest)
                return self.tensor(s, dtype.removeprefix("torch."), offset, shape, stride)
        raise self.bad(f"a call of {function.name} with unusual arguments")

    def no_metadata(self, rest: list[Any]) -> None:
        if any(item not in (None, {}) for item in rest) or len(rest) > 1:
            raise self.bad("a tensor with flags of its own")

    def tensor(self, storage: Storage, dtype: str, offset: Any, shape: Any, stride: Any) -> Stored:
        good = type(shape) is tuple and type(stride) is tuple and len(shape) == len(stride) <= 64
        if not good or not _whole((offset, *shape, *stride)) or dtype not in _DTYPE_BYTES:
            raise self.bad("a tensor whose shape is not made of whole numbers")
        elements = storage.numel * _DTYPE_BYTES[storage.dtype] // _DTYPE_BYTES[dtype]
        numel = 1
        for size in shape:
            numel *= size
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if numel and last >= elements or offset > elements:
            raise self.bad(f"a tensor of shape {_short(shape)} that reaches beyond its {elements} numbers")
        if numel > elements:
            raise self.bad(f"a tensor of shape {_short(shape)} made of only {elements} numbers")
        return Stored(storage, dtype, shape)


def _whole(values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _key(key: Any) -> Any:
    if isinstance(key, str | bytes | int | float | bool | None):
        return key
    raise TypeError("a key that is no text or number")


def _short(shape: tuple[int, ...]) -> str:
    text = str(list(shape))
    return text if len(text) < 80 else text[:77] + "..."


def record_bytes(storage: Storage) -> int:
    """How many bytes the record of `storage` must hold."""
    return storage.numel * _DTYPE_BYTES[storage.dtype]
