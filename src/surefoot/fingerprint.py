"""SHA-256 of the content of values: every byte of tensors and arrays, of other objects what a copy would be made of."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Mapping
from typing import Any

# How an object without state of its own is copied: `copyreg.__newobj__(class)`.
_NEW_OBJECT = object().__reduce_ex__(4)[0]
_PLAIN = (int, float, complex, str, bytes, bool, type(None))


class Fingerprint:
    """A running SHA-256 over values; equal values give an equal `digest`, on any machine.

    An object of any class counts by its class and by what `copy` would take of it (its attributes, `__getstate__`,
    `__reduce_ex__`). `unseen` holds the names of classes whose content cannot be read: their changes are not noticed.

    >>> import numpy
    >>> Fingerprint.of([numpy.zeros(2), "a"]) == Fingerprint.of([numpy.zeros(2), "b"])
    False
    """

    def __init__(self) -> None:
        self.unseen: set[str] = set()
        self._hash = hashlib.sha256()
        self._places: dict[int, int] = {}
        self._kept: list[Any] = []  # ids are only good while the objects live

    @classmethod
    def of(cls, value: Any) -> str:
        """The hex digest of one value."""
        fingerprint = cls()
        fingerprint.add(value)
        return fingerprint.digest()

    def digest(self) -> str:
        """Hex digits; with the classes that could not be looked into, where there are such."""
        blind = f" (blind to {', '.join(sorted(self.unseen))})" if self.unseen else ""
        return self._hash.hexdigest() + blind

    def add(self, value: Any) -> None:
        """Take in one more value."""
        import numpy
        import torch

        if isinstance(value, _PLAIN):
            self._word(type(value).__name__, value if isinstance(value, bytes) else repr(value))
        elif id(value) in self._places:  # the same object again, perhaps inside of itself
            self._word("again", self._places[id(value)])
        else:
            if not isinstance(value, torch.Tensor | numpy.ndarray | numpy.generic):
                self._places[id(value)] = len(self._places)
                self._kept.append(value)
            self._add(value, numpy, torch)

    def _add(self, value: Any, numpy: Any, torch: Any) -> None:
        if isinstance(value, torch.Tensor):
            self._tensor(value, torch)
        elif isinstance(value, numpy.ndarray | numpy.generic) and not value.dtype.hasobject:
            self._word("array", value.dtype.str, getattr(value.dtype, "names", None), value.shape)
            self._hash.update(numpy.ascontiguousarray(value).tobytes())
        elif isinstance(value, numpy.ndarray):
            self._word("objects", value.shape)
            self._all(value.reshape(-1).tolist())
        elif type(value) in (list, tuple):
            self._word("sequence", len(value))
            self._all(value)
        elif isinstance(value, set | frozenset):
            # A set iterates in another order in every process.
            self._word("set", sorted(map(self._apart, value)))
        elif type(value) is dict:
            self._word("mapping", len(value))
            for pair in value.items():
                self._all(pair)
        elif isinstance(value, types.FunctionType):
            self._word("function", value.__module__, value.__qualname__)
            self._code(value.__code__)
            self._all([value.__defaults__, value.__kwdefaults__])
            self._all([cell.cell_contents for cell in value.__closure__ or () if _filled(cell)])
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
            self._word("name", getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__))
        else:
            self._object(value)

    def _all(self, values: Any) -> None:
        for value in values:
            self.add(value)

    def _apart(self, item: Any) -> str:
        """The digest of one item of a set, whichever were before it."""
        part, before = Fingerprint(), len(self._places)
        part._places, part.unseen = self._places, self.unseen  # it may refer to what it lies in
        part.add(item)
        while len(self._places) > before:
            self._places.popitem()
        return part._hash.hexdigest()

    def _word(self, *words: Any) -> None:
        text = repr(words).encode("utf-8", "surrogatepass")
        self._hash.update(b"%d:" % len(text) + text)

    def _code(self, code: types.CodeType) -> None:
        self._hash.update(code.co_code)
        self._all([*code.co_consts, *code.co_names])

    def _tensor(self, tensor: Any, torch: Any) -> None:
        tensor = tensor.detach()
        if tensor.is_nested:  # its shape has another name each time
            self._word("nested")
            self._all(tensor.unbind())
            return
        self._word("tensor", str(tensor.dtype), tuple(tensor.shape))
        if tensor.is_meta:
            return
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_quantized:
            self._word("quantized", str(tensor.qscheme()))
            tensor = tensor.int_repr()
        hash_bytes(self._hash, tensor)

    def _object(self, value: Any) -> None:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        self._word("object", name)
        try:
            made = value.__reduce_ex__(4)
        except Exception:  # a lock, a socket, a file: whatever cannot be copied
            made = None
        if made is None:
            state = getattr(value, "__dict__", None)
            if not state:
                self.unseen.add(name)
            self.add(state)
        elif isinstance(made, str):
            self._word("global", made)
        else:
            maker, arguments, *rest = made
            self._all([getattr(maker, "__qualname__", str(maker)), arguments])
            state = rest[0] if rest else None
            self.add(dict(state) if isinstance(state, Mapping) else state)
            for items in rest[1:3]:
                self.add(list(items) if items is not None else None)
            holds_nothing = len(arguments) == 1 and all(part is None for part in made[2:])
            if maker is _NEW_OBJECT and holds_nothing and _opaque(kind):
                self.unseen.add(name)


def hash_bytes(digest: Any, tensor: Any) -> None:
    """Let `digest` take the bytes of a dense tensor, in the order of its elements."""
    import torch

    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy())


def _opaque(kind: type) -> bool:
    """Whether objects of a class may hold data outside of Python attributes, which no method of theirs returns."""
    return kind.__flags__ & (1 << 9) == 0 and kind.__basicsize__ > object.__basicsize__ + 16


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
