"""What torch.save wrote, in each of its three forms (zip, before 1.6, tar): tensors are read, nothing is run."""

from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import torch

from ..safe_tensors import BadFile
from . import pickled
from .archive import Record, archive_in
from .pickled import Machine, Stored

_RECORD = re.compile(r"data\.pkl|data/\d{1,20}|version|byteorder|\.[A-Za-z_.]+|\.data/[A-Za-z_]+")
# The pickled number with which torch.save began its files before 1.6, by any protocol.
LEGACY_MAGIC = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\.", re.S)
_LEGACY_PROTOCOL = 1001
_MAX_BLOCKS = 200_000


@dataclass(frozen=True)
class TorchFile:
    """A checked file: `tree` is what it holds, with stand-ins (see `pickled`), `foreign` the names of other objects."""

    path: Path
    file: io.BufferedReader
    tree: Any
    foreign: tuple[str, ...]
    blocks: Mapping[str, Record]
    swapped: bool

    def tensors(self, state: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
        """The tensors of a state_dict, on the CPU, views of one storage sharing it. Raises `BadFile`."""
        raw: dict[str, torch.Tensor] = {}
        tensors = {}
        for name, stored in state.items():
            key = stored.storage.key
            if key not in raw:
                raw[key] = self._read(stored.storage)
            dtype = getattr(torch, stored.dtype)
            whole = raw[key].numel() // dtype.itemsize * dtype.itemsize
            tensor = raw[key][:whole].view(dtype).as_strided(stored.shape, stored.stride, stored.offset)
            tensor = tensor.conj_physical() if "conj" in stored.lazy else tensor
            tensor = -tensor if "neg" in stored.lazy else tensor
            if dtype is torch.bool and tensor.numel() and int(raw[key].max()) > 1:
                raise BadFile(self.path, f"{name[:80]!r} holds booleans other than 0 and 1")
            tensors[name] = tensor
        return tensors

    def _read(self, storage: pickled.Storage) -> torch.Tensor:
        record = self.blocks[storage.key]
        raw = torch.empty(record.size, dtype=torch.uint8, device="cpu")
        record.read_into(self.path, self.file, raw.numpy().data)
        if self.swapped and record.size:
            size = pickled.dtype_bytes(storage.dtype) // (2 if storage.dtype.startswith("complex") else 1)
            raw = raw.view(-1, size).flip(1).reshape(-1)
        return raw


def read_torch_file(path: Path, file: io.BufferedReader, kind: str) -> TorchFile:
    """The checked content of an open file of the form `kind` (zip, legacy or tar). Raises `BadFile`."""
    try:
        return {"zip": _read_zip, "legacy": _read_legacy, "tar": _read_tar}[kind](path, file)
    except BadFile:
        raise
    except (ValueError, OverflowError) as error:  # numbers too long to be written in a name
        raise BadFile(path, f"is damaged or made up: {error}") from error


def _read_zip(path: Path, file: io.BufferedReader) -> TorchFile:
    archive = archive_in(path, file)
    unknown = [name for name in archive.records if not _RECORD.fullmatch(name)]
    if unknown:
        raise BadFile(path, f"holds the record {unknown[0][:80]!r}, which torch.save does not write")
    order = archive.read("byteorder", 16) if "byteorder" in archive.records else b"little"
    if order not in (b"little", b"big"):
        raise BadFile(path, "its byteorder is neither little nor big")
    machine = Machine(path)
    tree = machine.run(archive.read("data.pkl", pickled.MAX_BYTES))
    blocks = {}
    for key, (dtype, numel) in machine.storages.items():
        record, expected = archive.records.get(f"data/{key}"), numel * pickled.dtype_bytes(dtype)
        if record is None or record.size != expected:
            there = "is missing" if record is None else f"holds {record.size} bytes"
            raise BadFile(path, f"data/{key} {there}; its pickle tells of {expected}")
        blocks[key] = record
    return TorchFile(path, file, tree, tuple(machine.foreign), blocks, order.decode() != sys.byteorder)


class _Window:
    """A part of a file, read by pickletools; reading beyond it is an error and takes no memory."""

    def __init__(self, path: Path, file: io.BufferedReader, begin: int, end: int):
        self.path, self.end = path, end
        self.file = file
        self.position = file.seek(begin)

    def follow(self, machine: Machine) -> Any:
        """What the pickle that begins here would make."""
        return machine.run(cast("IO[bytes]", self))

    def read(self, count: int) -> bytes:
        if count > min(self.end - self.position, pickled.MAX_BYTES):
            raise BadFile(self.path, "was cut, or claims more than it holds")
        data = self.file.read(count)
        self.position += len(data)
        return data

    def readline(self) -> bytes:
        data = self.file.readline(min(self.end - self.position, 1 << 20))
        self.position += len(data)
        return data

    def tell(self) -> int:
        return self.position

    def number(self, form: str) -> int:
        (number,) = struct.unpack(form, self.read(struct.calcsize(form)))
        return int(number)

    def skip(self, count: int) -> None:
        if count > self.end - self.position:
            raise BadFile(self.path, "was cut: a tensor reaches beyond its end")
        self.position += count
        self.file.seek(self.position)


def _read_legacy(path: Path, file: io.BufferedReader) -> TorchFile:
    window = _Window(path, file, 0, file.seek(0, 2))
    machine = Machine(path)
    head = [window.follow(machine) for _ in range(3)]
    if head[1] != _LEGACY_PROTOCOL or not isinstance(head[2], dict) or head[2].get("little_endian") is not True:
        raise BadFile(path, "begins as torch.save did before 1.6 and goes on otherwise (or with big-endian numbers)")
    tree = window.follow(machine)
    keys = window.follow(machine)
    if type(keys) is not list or len(keys) > _MAX_BLOCKS or not all(isinstance(key, str) for key in keys):
        raise BadFile(path, "has no list of storages where one should be")
    blocks: dict[str, Record] = {}
    for key in keys:
        if key not in machine.storages or key in blocks:
            raise BadFile(path, f"holds the storage {key[:40]!r} twice, or nothing tells of it")
        dtype, numel = machine.storages[key]
        if (count := window.number("<q")) != numel:
            raise BadFile(path, f"the storage {key} holds {count} numbers; its pickle tells of {numel}")
        blocks[key] = _block(window, key, dtype, numel)
    missing = [key for key in machine.storages if key not in blocks]
    if missing:
        raise BadFile(path, f"the storage {missing[0]} is missing; its pickle tells of it")
    if window.tell() != window.end:
        raise BadFile(path, f"holds {window.end - window.tell()} bytes after its last tensor")
    return TorchFile(path, file, tree, tuple(machine.foreign), blocks, sys.byteorder == "big")


def _block(window: _Window, key: str, dtype: str, numel: int) -> Record:
    """Where the bytes of a storage lie; they are stepped over."""
    size = numel * pickled.dtype_bytes(dtype)
    begin = window.tell()
    window.skip(size)
    return Record(key, begin, size)


def _read_tar(path: Path, file: io.BufferedReader) -> TorchFile:
    """The form before torch 0.2: storages, tensors and a pickle that refers to them by number, in a tar file."""
    parts = _tar_members(path, file)
    machine = Machine(path)
    blocks: dict[str, Record] = {}
    storages: dict[Any, Any] = {}
    window = _Window(path, file, *parts["storages"])
    for _ in range(_count(path, window.follow(machine))):
        match window.follow(machine):
            case (int() | str() as key, str(), pickled._Global(kind)):
                numel = window.number("<q")
                storages[key] = machine.described(kind, str(key), numel)
                if isinstance(storages[key], pickled.Opaque) or numel < 0 or str(key) in blocks:
                    raise BadFile(path, f"holds a storage of the kind {kind[:80]}, twice or of a size that is none")
                blocks[str(key)] = _block(window, str(key), storages[key].dtype, numel)
            case _:
                raise BadFile(path, "has storages that are not described as torch did")
    views = window.follow(machine)
    for view in views if isinstance(views, list | tuple) else ():
        match view:
            case (int() | str() as key, int() | str() as root, int(), int()) if root in storages:
                _, _, begin, length = view
                base = storages[root]
                if begin < 0 or length < 0 or begin + length > base.numel:
                    raise BadFile(path, "holds a view beyond the end of its storage")
                storages[key] = replace(base, begin=begin, length=length)
            case _:
                raise BadFile(path, "describes a view of a storage that is not there")
    tensors: dict[int, Stored] = {}
    window = _Window(path, file, *parts["tensors"])
    for _ in range(_count(path, window.follow(machine))):
        match window.follow(machine):
            case (int() | str() as key, int() | str() as storage, pickled._Global()) if storage in storages:
                dimensions = window.number("<i")
                window.read(4)
                if not 0 <= dimensions <= 64:
                    raise BadFile(path, f"holds a tensor of {dimensions} dimensions")
                shape, stride = (struct.unpack(f"<{dimensions}q", window.read(8 * dimensions)) for _ in range(2))
                base = storages[storage]
                tensors[int(key)] = machine.tensor(base, base.dtype, window.number("<q"), shape, stride)
            case _:
                raise BadFile(path, "has tensors that are not described as torch did")

    def referred(reference: Any) -> Any:
        match reference:
            case (pickled._Global() as kind, *_):
                return kind
            case int() | str() if str(reference).isdigit() and int(reference) in tensors:
                return tensors[int(reference)]
        raise BadFile(path, "has a pickle that refers to a tensor that is not there")

    main = Machine(path, referred)
    tree = _Window(path, file, *parts["pickle"]).follow(main)
    return TorchFile(path, file, tree, tuple(main.foreign), blocks, sys.byteorder == "big")


def _count(path: Path, found: Any) -> int:
    if type(found) is not int or not 0 <= found <= _MAX_BLOCKS:
        raise BadFile(path, "holds a count that is none")
    return found


def _tar_members(path: Path, file: io.BufferedReader) -> dict[str, tuple[int, int]]:
    """Where the members of torch's tar file begin and end; only plain files of plain names, each once."""
    size, at = file.seek(0, 2), 0
    found: dict[str, tuple[int, int]] = {}
    while at + 512 <= size and len(found) < 8:
        file.seek(at)
        head = file.read(512)
        if not head.strip(b"\0"):
            break
        name, length, kind = head[:100].rstrip(b"\0"), head[124:136].strip(b" \0"), head[156:157]
        if name not in (b"sys_info", b"pickle", b"tensors", b"storages") or kind not in (b"0", b"\0"):
            break
        begin = at + 512
        end = begin + (int(length, 8) if re.fullmatch(rb"[0-7]{1,12}", length) else size)
        if end > size or name.decode() in found:
            raise BadFile(path, f"is a tar file whose member {name.decode()} is cut or there twice")
        found[name.decode()] = (begin, end)
        at = begin + -(-(end - begin) // 512) * 512
    if not {"pickle", "tensors", "storages"} <= set(found):
        raise BadFile(path, "is a tar file, and not as torch wrote them before 0.2; unpack it first (tar -xf)")
    return found
