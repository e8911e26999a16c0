"""Safetensors files: written as a stream, read only after the whole header has been checked.

The format is that of https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header,
then the tensors' bytes back to back). Reading is stricter than the library: regular files only, bounded
headers and counts, no gap, overlap or trailing byte, no key twice, booleans that are 0 or 1; all that is
known before the first tensor is made, so memory never exceeds the file's own size.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files
from .errors import UsageError
from .text import shortened

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 64
INFO_KEY = "surefoot"
"""The metadata key under which `info` lies, as one JSON string."""

# name in the file -> (name in torch, bytes an element)
DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "C64": ("complex64", 8),
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
}


class BadFile(UsageError):
    """A file that is refused: `path` and `reason`."""

    def __init__(self, path: str | Path, reason: str, *, code: str = "file-refused"):
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}", code=code)


@dataclass(frozen=True)
class Entry:
    """One tensor as the header tells it; `begin` and `end` are offsets in bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its dtype as torch names it."""
        import torch

        dtype: torch.dtype = getattr(torch, DTYPES[self.dtype][0])
        return dtype


@dataclass(frozen=True)
class Header:
    """A checked header: entries in the order of their bytes, the metadata, and the file's size in bytes."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]
    info: Any
    bytes: int


@dataclass(frozen=True)
class Loaded:
    """Tensors by name, metadata, `info` (what INFO_KEY held, parsed), the whole file's SHA-256 and size."""

    tensors: dict[str, torch.Tensor] = field(repr=False)
    metadata: dict[str, str]
    info: Any
    sha256: str
    bytes: int


# ---------------------------------------------------------------------------------------------- writing


def chunks(
    tensors: Mapping[str, torch.Tensor], info: Any = None, metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, piece by piece: the header, then each tensor's own memory.

    `info` is anything that JSON can hold; it lies as one string under the metadata key "surefoot". `metadata`
    adds plain strings. The same tensors give the same bytes, always: larger elements first, then by name.
    A tensor may lie on any device, with any strides. Raises `UsageError` for a dtype that the format lacks.

    >>> import torch
    >>> data = b"".join(chunks({"w": torch.tensor([1.0, 2.0])}, info={"step": 3}))
    >>> len(data), data[-8:] == torch.tensor([1.0, 2.0]).numpy().tobytes()
    (120, True)
    """
    header, ordered = layout(tensors, info, metadata)
    yield header
    for _, tensor in ordered:
        if tensor.numel():
            yield _bytes_of(tensor)


def layout(
    tensors: Mapping[str, torch.Tensor], info: Any = None, metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[tuple[str, torch.Tensor]]]:
    """The head of a file of these tensors (length and header), and the tensors in the order of their bytes.

    The layout depends only on names, dtypes and shapes. Arguments and errors as for `chunks`.
    """
    names = _dtype_names()
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            raise UsageError(f"tensor {name!r}: safetensors cannot hold {tensor.dtype}")
        if not name or name == "__metadata__":
            raise UsageError(f"tensor {name!r}: this name is not allowed in a safetensors file")
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    strings = dict(sorted((metadata or {}).items()))
    if info is not None:
        strings[INFO_KEY] = json.dumps(info, separators=(",", ":"), sort_keys=True, allow_nan=False)
    header: dict[str, Any] = {"__metadata__": strings} if strings else {}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the format's own padding: tensors stay aligned
    if len(text) > MAX_HEADER_BYTES or len(ordered) > MAX_TENSORS:
        raise UsageError(
            f"{len(ordered)} tensors with a header of {len(text)} bytes: at most {MAX_TENSORS} tensors and "
            f"{MAX_HEADER_BYTES} bytes can be read back; make one tensor of many small ones, or several files"
        )
    return len(text).to_bytes(8, "little") + text, ordered


def dumps(tensors: Mapping[str, torch.Tensor], info: Any = None, metadata: Mapping[str, str] | None = None) -> bytes:
    """`chunks` as one bytes object, for what is small."""
    return b"".join(bytes(chunk) for chunk in chunks(tensors, info, metadata))


def save(
    path: str | Path, tensors: Mapping[str, torch.Tensor], info: Any = None, metadata: Mapping[str, str] | None = None
) -> files.Written:
    """Write the file durably: replaced as a whole, or left as it was. Raises `OSError` as the disk answers.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as d:
    ...     _ = save(Path(d, "w.safetensors"), {"w": torch.arange(3)}, info=[1])
    ...     found = load(Path(d, "w.safetensors"))
    >>> found.tensors["w"], found.info
    (tensor([0, 1, 2]), [1])
    """
    return files.replace_durably(path, chunks(tensors, info, metadata))


def _dtype_names() -> dict[torch.dtype, str]:
    import torch

    return {getattr(torch, known): name for name, (known, _) in DTYPES.items() if hasattr(torch, known)}


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


# ---------------------------------------------------------------------------------------------- reading


def read_header(path: str | Path) -> Header:
    """Check a file's header against its size and return it; no tensor is made. Raises `BadFile`."""
    descriptor = _open(path)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return _header(path, file, hashlib.sha256())


def load(path: str | Path) -> Loaded:
    """Read all tensors of a checked file, in one pass. Raises `BadFile` before the first tensor is made.

    Tensors lie contiguous in memory of their own on the CPU; the file is not mapped, so one that is cut
    while it is read gives an error and not a crash.
    """
    import torch

    digest = hashlib.sha256()
    with os.fdopen(_open(path), "rb", buffering=0) as file:
        header = _header(path, file, digest)
        tensors: dict[str, torch.Tensor] = {}
        for entry in header.entries:
            try:
                tensor = torch.empty(entry.shape, dtype=entry.torch_dtype, device="cpu")
            except (RuntimeError, AttributeError) as error:  # sizes or a dtype beyond this torch
                raise BadFile(path, f"tensor {_shown(entry.name)} cannot be made: {error}") from error
            if tensor.numel():
                view = tensor.view(-1).view(torch.uint8).numpy().data
                _read_into(path, file, view)
                digest.update(view)
                if entry.dtype == "BOOL" and int(tensor.view(torch.uint8).max()) > 1:
                    raise BadFile(path, f"tensor {_shown(entry.name)} holds booleans other than 0 and 1")
            tensors[entry.name] = tensor
        if file.read(1):
            raise BadFile(path, "grew while it was read")
    return Loaded(tensors, header.metadata, header.info, digest.hexdigest(), header.bytes)


def _open(path: str | Path) -> int:
    try:
        return files.open_regular(path)
    except FileNotFoundError:
        raise BadFile(path, "is missing") from None
    except OSError as error:
        raise BadFile(path, error.strerror or str(error)) from error


def _read_into(path: str | Path, file: Any, view: memoryview) -> None:
    while view.nbytes:
        try:
            count = file.readinto(view)
        except OSError as error:
            raise BadFile(path, f"cannot be read: {error.strerror}") from error
        if not count:
            raise BadFile(path, "was cut while it was read")
        view = view[count:]


def _header(path: str | Path, file: Any, digest: Any) -> Header:
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise BadFile(path, f"holds {size} bytes; a safetensors file has at least 8: it was cut")
    start = bytearray(8)
    _read_into(path, file, memoryview(start))
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        raise BadFile(path, f"claims a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    if length > size - 8:
        raise BadFile(path, f"claims a header of {length} bytes and holds {size} bytes in all: it was cut")
    text = bytearray(length)
    _read_into(path, file, memoryview(text))
    digest.update(start)
    digest.update(text)
    fields = parse_json(path, bytes(text), "the header", max_containers=3 * MAX_TENSORS + 16)
    if not isinstance(fields, dict):
        raise BadFile(path, "the header is not a JSON object")
    metadata, info = _metadata(path, fields.pop("__metadata__", {}))
    if len(fields) > MAX_TENSORS:
        raise BadFile(path, f"lists {len(fields)} tensors; at most {MAX_TENSORS} are read")
    entries = sorted(
        (_entry(path, name, entry_fields, 8 + length) for name, entry_fields in fields.items()),
        key=lambda entry: (entry.begin, entry.end),
    )
    position = 8 + length
    for entry in entries:
        if entry.begin != position:
            problem = "overlaps the one before it" if entry.begin < position else "leaves a gap before it"
            where = f"(starts at byte {entry.begin}, not {position})"
            raise BadFile(path, f"tensor {_shown(entry.name)} {problem} {where}")
        position = entry.end
    if position > size:
        raise BadFile(path, f"holds {size} bytes; its header tells of {position}: it was cut")
    if position < size:
        raise BadFile(path, f"holds {size - position} bytes after the last tensor")
    return Header(tuple(entries), metadata, info, size)


def read_json(path: str | Path, *, max_bytes: int, max_containers: int = 100_000) -> Any:
    """The JSON file at `path`, from outside: a regular file of at most `max_bytes`. Raises `BadFile`."""
    try:
        data = files.read_bounded(path, max_bytes)
    except FileNotFoundError:
        raise BadFile(path, "is missing") from None
    except OSError as error:
        raise BadFile(path, error.strerror or str(error)) from error
    return parse_json(path, data, "the file", max_containers=max_containers)


def parse_json(path: str | Path, data: bytes, what: str, *, max_containers: int) -> Any:
    """Parse JSON from outside in bounded memory: no key twice, no NaN, no depth that breaks the parser.

    Raises `BadFile`, which calls the text `what`.
    The containers are counted before any is made: an empty object costs 2 bytes on disk and 64 in memory.
    """
    if data.count(b"{") + data.count(b"[") > max_containers:
        raise BadFile(path, f"{what} holds more than {max_containers} objects and lists")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except RecursionError:
        raise BadFile(path, f"{what} is nested too deeply") from None
    except UnicodeDecodeError:
        raise BadFile(path, f"{what} is not UTF-8 text") from None
    except ValueError as error:
        raise BadFile(path, f"{what} is not the JSON expected: {error}") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return table


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _metadata(path: str | Path, found: Any) -> tuple[dict[str, str], Any]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise BadFile(path, "its __metadata__ is not a table of strings")
    info = None
    if INFO_KEY in found:
        text = found[INFO_KEY].encode("utf-8", "replace")
        info = parse_json(path, text, "its metadata", max_containers=MAX_TENSORS)
    return found, info


def _entry(path: str | Path, name: str, fields: Any, data_start: int) -> Entry:
    def bad(reason: str) -> BadFile:
        return BadFile(path, f"tensor {_shown(name)}: {reason}")

    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise bad("its entry is not {dtype, shape, data_offsets}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise bad(f"unknown dtype {str(dtype)[:40]!r}")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise bad(f"its shape is not a list of at most {MAX_DIMENSIONS} sizes")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad("its data_offsets are not [begin, end]")
    expected = math.prod(shape) * DTYPES[dtype][1]
    if offsets[1] - offsets[0] != expected:
        raise bad(f"{dtype} of shape {shape} takes {expected} bytes, not {offsets[1] - offsets[0]}")
    return Entry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _shown(name: str) -> str:
    return repr(shortened(name, 80))


def _sizes(sizes: Any) -> bool:
    return isinstance(sizes, list) and all(type(n) is int and 0 <= n < 2**63 for n in sizes)
