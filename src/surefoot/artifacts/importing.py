"""Weights from elsewhere: .pth, .pt and .safetensors, checked in full before a model is touched."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import safe_tensors
from ..errors import Problems, UsageError
from ..models import MODELS
from ..safe_tensors import BadFile
from . import pickled, weights
from .archive import Archive, open_archive, open_file
from .info import ModelInfo

# Prefixes that wrappers leave before every name: DistributedDataParallel, torch.compile, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_RECORD = re.compile(r"data\.pkl|data/\d{1,12}|version|byteorder|\.[A-Za-z_.]+|\.data/[A-Za-z_]+")


@dataclass(frozen=True)
class State:
    """Named tensors as a file holds them. `key` is the entry of a checkpoint dictionary that they were under,
    `others` its other entries, `info` what a Surefoot export says about itself."""

    path: Path
    tensors: dict[str, torch.Tensor] = field(repr=False)
    key: str | None = None
    others: tuple[str, ...] = ()
    info: ModelInfo | None = None


@dataclass(frozen=True)
class Imported:
    """A filled model and what was done to get there: `prefix` was taken off each name, `others` left aside."""

    model: nn.Module = field(repr=False)
    path: Path
    tensors: int
    key: str | None
    prefix: str
    others: tuple[str, ...]
    info: ModelInfo | None


def import_weights(
    path: str | Path,
    model: nn.Module | str | None = None,
    *,
    key: str | None = None,
    cast: bool = False,
) -> Imported:
    """Fill `model` with the weights of a file from elsewhere; it is left untouched unless everything fits.

    `model` is an instance (filled in place), a catalogue name, or None for a file that names its own. `path` is
    a ``.safetensors`` or a ``.pth``/``.pt`` that holds a state_dict, bare or in a checkpoint dictionary such as
    the tutorial's ``{"epoch", "model_state_dict", ...}``; `key` picks the entry where several hold weights.
    Prefixes of wrappers (``module.``, ``_orig_mod.``) are taken off. `cast` accepts other dtypes. The model
    comes back in eval mode. Raises `UsageError` with every difference at once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     torch.save(MODELS.build("LeNet5").state_dict(), Path(d, "model_params.pth"))
    ...     import_weights(Path(d, "model_params.pth"), "LeNet5").tensors
    10
    """
    path = Path(path)
    state = read_state(path, key=key)
    if model is None:
        if state.info is None:
            raise UsageError(
                f"{path}: does not name its model; say which one it is for (one of {', '.join(MODELS.names())})"
            )
        from .model_dir import build

        model = build(state.info, path)
        cast = False
        adopt = True
    else:
        adopt = False
        if isinstance(model, str):
            model = MODELS.build(model)
    target = weights.unwrap(model)
    tensors, prefix = without_prefix(state.tensors, target)
    if cast:
        wanted = target.state_dict()
        tensors = {n: t.to(wanted[n].dtype) if n in wanted else t for n, t in tensors.items()}
    try:
        weights.put(tensors, target, str(path), adopt_dtypes=adopt)
    except Problems as problems:
        name = type(target).__name__
        raise Problems([f"{path}: does not fit {name}; the model is as it was", *problems.problems]) from None
    return Imported(model.eval(), path, len(tensors), state.key, prefix, state.others, state.info)


def without_prefix(
    tensors: Mapping[str, torch.Tensor], model: nn.Module
) -> tuple[dict[str, torch.Tensor], str]:
    """The same tensors without the wrappers' prefixes that all names share and the model's do not.

    >>> t = torch.zeros(1)
    >>> without_prefix({"module._orig_mod.weight": t, "module._orig_mod.bias": t}, nn.Linear(1, 1))[1]
    'module._orig_mod.'
    """
    wanted = model.state_dict().keys()
    names = {name: name for name in tensors}
    taken = ""
    while names:
        shared = [p for p in _PREFIXES if all(name.startswith(p) for name in names.values())]
        if not shared or any(name.startswith(shared[0]) for name in wanted):
            break
        taken += shared[0]
        names = {old: new.removeprefix(shared[0]) for old, new in names.items()}
    return {new: tensors[old] for old, new in names.items()}, taken


def read_state(path: str | Path, *, key: str | None = None) -> State:
    """The named tensors of a file, on the CPU. Raises `UsageError`; no code from the file is run, ever."""
    path = Path(path)
    with open_file(path) as file:
        head = file.read(512)
    kind = sniff(head)
    if kind == "safetensors":
        return _read_safetensors(path, key)
    if kind == "zip":
        return _read_torch(path, key)
    raise BadFile(path, _REFUSED.get(kind, _REFUSED["unknown"]).format(names=_names(path, kind)))


def sniff(head: bytes) -> str:
    """The format of a file from its first 512 bytes: zip, safetensors, legacy, pickle, tar, gzip or unknown."""
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(_LEGACY_MAGIC):
        return "legacy"
    if len(head) >= 9 and head[8:9] == b"{":
        return "safetensors"
    if head[257:262] == b"ustar":
        return "tar"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head[:1] == b"\x80" or re.match(rb"c[A-Za-z_][\w.]*\n|\([a-zA-Z(]|[\]}][q.(]", head):
        return "pickle"
    return "unknown"


# The pickled number with which torch.save began its files before 1.6.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_RESAVE = "torch.save(torch.load(FILE, weights_only=True, map_location='cpu'), 'weights.pth')"
_REFUSED = {
    "legacy": "is in the form that torch.save had before version 1.6{names}; write it again with a current torch: "
    + _RESAVE,
    "pickle": "is a bare pickle{names}; loading it would run whatever it says. Make a file of the state_dict alone: "
    "torch.save(model.state_dict(), 'weights.pth')",
    "tar": "is in the tar form of torch before 0.4; write it again with torch.save(model.state_dict(), ...)",
    "gzip": "is compressed by gzip; unpack it first (gunzip FILE)",
    "unknown": "is no file of weights that Surefoot knows (.safetensors, or .pth/.pt by torch.save)",
}


def _names(path: Path, kind: str) -> str:
    if kind not in ("pickle", "legacy"):
        return ""
    with open_file(path) as file:
        names = pickled.names_in(file.read(1 << 20))
    foreign = [name for name in names if name not in pickled._ALLOWED]
    return f" (it names {', '.join(name[:100] for name in foreign[:5])})" if foreign else ""


def _read_safetensors(path: Path, key: str | None) -> State:
    if key is not None:
        raise UsageError(f"{path}: is a .safetensors file, which holds one set of weights; leave key={key!r} out")
    loaded = safe_tensors.load(path.resolve())
    info = None
    tensors = loaded.tensors
    if isinstance(loaded.info, Mapping) and loaded.info.get("format") == "surefoot-model":
        info = ModelInfo.from_json(loaded.info, path)
        tied = loaded.info.get("tied", {})
        good = isinstance(tied, Mapping) and all(isinstance(kept, str) for kept in tied.values())
        if not good or any(kept not in tensors or name in tensors for name, kept in tied.items()):
            raise BadFile(path, "its metadata ties tensors that are not there")
        tensors = {**tensors, **{name: tensors[kept] for name, kept in tied.items()}}
    return State(path, tensors, info=info)


def _read_torch(path: Path, key: str | None) -> State:
    with open_archive(path) as archive:
        tree = check_torch_archive(archive)
        found, others = _select(path, tree, key)
        archive.verify()
        archive.file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch would warn of has been checked already
            try:
                loaded = torch.load(archive.file, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises many kinds here; each means that the file is not usable
                raise BadFile(path, f"torch.load(weights_only=True) refuses it: {error}") from error
    tensors = loaded if found is None else loaded[found]
    return State(path, {name: t.detach() for name, t in tensors.items()}, found, others)


def check_torch_archive(archive: Archive) -> Any:
    """Follow the pickle of a torch.save archive and compare it with the records; see `pickled.followed`."""
    path = archive.path
    if "constants.pkl" in archive.records or any(name.startswith("code/") for name in archive.records):
        raise BadFile(
            path,
            "is a TorchScript program, not a file of weights; where it can be trusted, make one: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        )
    if "models/model.json" in archive.records or "archive_format" in archive.records:
        raise BadFile(path, "is an exported program (.pt2), not a file of weights; name it FILE.pt2 to use it")
    unknown = [name for name in archive.records if not _RECORD.fullmatch(name)]
    if unknown:
        raise BadFile(path, f"holds the record {unknown[0][:80]!r}, which torch.save does not write")
    if "byteorder" in archive.records and archive.read("byteorder", 16) not in (b"little", b"big"):
        raise BadFile(path, "its byteorder is neither little nor big")
    tree = pickled.followed(path, archive.read("data.pkl", pickled.MAX_BYTES))
    for storage in _storages(tree):
        record = archive.records.get(f"data/{storage.key}")
        expected = pickled.record_bytes(storage)
        if record is None or record.size != expected:
            there = "is missing" if record is None else f"holds {record.size} bytes"
            raise BadFile(path, f"data/{storage.key} {there}; its pickle tells of {expected}")
    return tree


def _storages(tree: Any) -> set[pickled.Storage]:
    """Every storage in the tree; each container is visited once, however often it is referred to."""
    found: set[pickled.Storage] = set()
    seen: set[int] = set()
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, pickled.Stored):
            found.add(item.storage)
        elif isinstance(item, pickled.Storage):
            found.add(item)
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)
    return found


def _select(path: Path, tree: Any, key: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Under which key the weights are (None: the file is a bare state_dict), and the other keys."""
    if not isinstance(tree, dict):
        kind = "one tensor" if isinstance(tree, pickled.Stored) else f"a {type(tree).__name__}"
        raise BadFile(path, f"holds {kind}, not a state_dict")
    sets = [name for name, value in tree.items() if isinstance(name, str) and _is_state(value)]
    if key is not None:
        if key not in sets:
            known = ", ".join(map(repr, sets)) or "none"
            raise BadFile(path, f"holds no weights under {key!r}; entries that do: {known}")
        return key, _others(tree, key)
    if _is_state(tree):
        return None, ()
    if len(sets) == 1:
        return sets[0], _others(tree, sets[0])
    if sets:
        shown = ", ".join(map(repr, sets[:20]))
        raise BadFile(path, f"holds several sets of weights ({shown}); say which one with key={sets[0]!r}")
    wrong = [str(n)[:60] for n, v in tree.items() if not isinstance(v, pickled.Stored)][:5]
    what = f"entries that are no tensors: {', '.join(wrong)}" if wrong else "nothing"
    raise BadFile(path, f"holds no state_dict (a dictionary of names and tensors) but {what}")


def _others(tree: Mapping[Any, Any], key: str) -> tuple[str, ...]:
    return tuple(str(name)[:80] for name in tree if name != key)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(n, str) and isinstance(v, pickled.Stored) for n, v in value.items())
    )
