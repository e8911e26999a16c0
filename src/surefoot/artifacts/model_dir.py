"""A saved model: a directory of model.safetensors, model.json, config.json and README.md."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import files, safe_tensors, trust
from ..errors import UsageError
from ..models import MODELS
from ..registry import as_given, import_object, with_imports
from ..safe_tensors import BadFile
from ..wrapping import unwrap
from . import weights
from .arguments import check_model, checked
from .card import config_json, model_card
from .info import ModelInfo, describe_model
from .swap import carry_over, is_temporary, new_directory

WEIGHTS = "model.safetensors"
INFO = "model.json"
_JSON_LIMIT = 16 * 1024 * 1024


def save_model(
    model: nn.Module,
    directory: str | Path,
    *,
    plots: Iterable[str | Path] = (),
    history: Sequence[Mapping[str, Any]] = (),
    **about: Any,
) -> Path:
    """Write `model` to `directory` so that no code but Surefoot is needed to read it; returns the directory.

    Any device, dtype and memory layout; tied weights are written once. A directory that already holds a model
    is replaced as a whole, so that at every instant either the old model or the new one is there, complete;
    other entries in it stay. When it returns, all is on the disk.

    `plots` are image files for the model card and `history` the epoch records of metrics.jsonl, from which it draws the
    losses; `about` is what the model says of itself, by the names of `describe_model`: `classes`, `preprocessing`,
    `input_shape`, `input_dtype`, `loss`, `metrics`, `title`, `dataset`, `averaged`, `columns`, `source`.
    Raises `UsageError` for a model or description that cannot be saved, `OSError` as the disk answers.

    >>> import tempfile; from surefoot.models import MLP
    >>> with tempfile.TemporaryDirectory() as d:
    ...     where = save_model(MLP(in_features=4, hidden=[], classes=2), Path(d, "m"), classes=["cat", "dog"])
    ...     load_model(where)(torch.zeros(1, 4)).shape
    torch.Size([1, 2])
    """
    checked({"directory": directory, "plots": plots, "history": history})
    info = info_of(model, **about)
    collected = weights.collect(weights.plain(model)[0])
    paths = list(map(Path, plots or ()))
    pictures = {path.name: path for path in paths}
    if len(pictures) < len(paths):
        raise UsageError("plots: two of them have one name; give each a name of its own", code="argument")
    directory = Path(directory)
    refuse_foreign(directory)
    with new_directory(directory) as new:
        written = files.write_new(new / WEIGHTS, safe_tensors.chunks(collected.tensors, metadata={"format": "pt"}))
        described = info.to_json() | {
            "weights": {
                "file": WEIGHTS,
                "bytes": written.bytes,
                "sha256": written.sha256,
                "parameters": sum(p.numel() for p in model.parameters()),
                "tied": collected.tied,
            }
        }
        if "class" in info.model:
            described["seal"] = trust.model_seal(new, described["model"])
        write_json(new / INFO, described)
        write_json(new / "config.json", config_json(info))
        card, drawn = model_card(info, described["weights"], history or (), sorted(pictures))
        if pictures or drawn:
            (new / "plots").mkdir()
        for name, path in pictures.items():
            files.write_new(new / "plots" / name, [path.read_bytes()])
        for name, text in drawn.items():
            files.write_new(new / "plots" / name, [text.encode()])
        files.write_new(new / "README.md", [card.encode(errors="backslashreplace")])
        for inner in (path.parent for path in directory.glob(f"*/{INFO}")):
            if not inner.is_symlink() and not is_temporary(inner.name):
                _keep_sealed(inner, new / inner.name)
    return directory


def info_of(model: nn.Module, **about: Any) -> ModelInfo:
    """What is saved of `model`, by `describe_model`. Raises UsageError for what `save_model` would refuse."""
    checked(about)
    check_model(model, none=False)
    weights.refuse_unsavable(weights.plain(model)[0])
    return describe_model(model, **about)


def _keep_sealed(old: Path, new: Path) -> None:
    """Let a model of this user's that lies in another one (a run's best) stay theirs: a seal is of one directory."""
    try:
        info, described = read_described(old)
    except BadFile:
        return
    if trust.holds_model(old, spec := info.to_json()["model"], described["seal"]):
        new.mkdir()
        data = safe_tensors.read_json(old / INFO, max_bytes=_JSON_LIMIT)
        write_json(new / INFO, data | {"seal": trust.model_seal(new, spec)})
        carry_over(old, new)


def load_model(directory: str | Path, model: nn.Module | None = None, trust_code: bool = False) -> nn.Module:
    """The model that `save_model` wrote to `directory`, on the CPU, in eval mode, with its weights' dtypes.

    `directory` may be a run's: it is then its last model. A registered model is rebuilt, and so is one of a user's own
    class that this user has saved here. For that of somebody else pass an instance as `model`, which is filled in
    place, or say ``trust_code=True`` to have the class that the file names imported and called: do so only for files
    that you would run as a program. Everything is checked first; a `model` passed in is untouched when anything does
    not fit. Raises `UsageError`.
    """
    checked(locals())
    check_model(model)
    directory = model_directory(directory) or Path(directory)
    info, state = read_model(directory)
    where = str(directory / WEIGHTS)
    if model is not None:
        weights.put(state, unwrap(model), where)
        return model.eval()
    built = build(info.model, directory / INFO, trust_code=trust_code or not needs_trust(directory))
    weights.put(state, built, where, adopt_dtypes=True)
    weights.take_form(built, info.buffer_dtypes, info.memory_format)
    return built.eval()


def model_directory(path: str | Path) -> Path | None:
    """The directory of the model at `path`, a model directory or a run; None where there is none."""
    return next((place for place in (Path(path), Path(path) / "model") if os.path.lexists(place / INFO)), None)


def read_model(directory: str | Path) -> tuple[ModelInfo, dict[str, torch.Tensor]]:
    """What the model in `directory` says about itself, and its tensors by each of their names. Raises `UsageError`."""
    info, described = read_described(directory)
    loaded = _read_weights(Path(directory) / WEIGHTS, described)
    return info, {**loaded.tensors, **{name: loaded.tensors[kept] for name, kept in described["tied"].items()}}


def read_info(directory: str | Path) -> ModelInfo:
    """What the model in `directory` says about itself; no weights are read. Raises `UsageError`."""
    return read_described(directory)[0]


def needs_trust(directory: str | Path) -> bool:
    """Whether the model in `directory` is of a class that Surefoot has not, and this user has not saved it here."""
    info, described = read_described(directory)
    own = trust.holds_model(Path(directory), info.to_json()["model"], described["seal"])
    return "class" in info.model and not own


def read_described(directory: str | Path) -> tuple[ModelInfo, dict[str, Any]]:
    """The info of a model directory, and what it says of its weights: bytes, sha256, tied; with the model's seal."""
    directory = Path(directory)
    path = directory / INFO
    if not directory.is_dir():
        kept = sorted(directory.parent.glob(f".{directory.name}.*.old")) if directory.parent.is_dir() else []
        # Only where the system cannot exchange two names, and only after a kill between two renames.
        hint = f"; the model before it lies at {kept[-1]}: rename it back" if kept else ""
        raise BadFile(directory, ("is not a directory" if directory.exists() else "does not exist") + hint)
    data = safe_tensors.read_json(path, max_bytes=_JSON_LIMIT)
    info = ModelInfo.from_json(data, path)
    described = data.get("weights")
    if not isinstance(described, dict) or described.get("file") != WEIGHTS:
        raise BadFile(path, f"weights: its file is not {WEIGHTS}, beside it")
    tied = described.get("tied", {})
    if not isinstance(tied, dict) or not all(isinstance(kept, str) for kept in tied.values()):
        raise BadFile(path, "weights.tied: not an object of names")
    if type(described.get("bytes")) is not int or not isinstance(described.get("sha256"), str):
        raise BadFile(path, "weights: bytes and sha256 are missing")
    return info, described | {"tied": tied, "seal": data.get("seal")}


def build(spec: Mapping[str, Any], where: str | Path, *, trust_code: bool = False) -> nn.Module:
    """The model of a `ModelInfo`, with fresh weights; a user's class only with `trust_code`. Raises `UsageError`."""
    if "name" in spec:
        name, args = spec["name"], spec["args"]
        if name not in MODELS:
            raise BadFile(where, f"model: {name!r} is not a model that this Surefoot knows; update it")
        _refuse_giant(name, args, where)
        try:
            model: nn.Module = MODELS.build(name, args)
            return model
        except UsageError as error:
            raise BadFile(where, f"model: {error}") from error
    path, args = spec["class"], spec["args"]
    if not trust_code:
        raise BadFile(
            where,
            f"the model is of the class {path}, which is not part of Surefoot; if you trust whoever made the file, "
            "say so with --trust-code (in Python: trust_code=True), or pass an instance of it in Python (model=...)",
        )
    if args is None:
        raise BadFile(where, f"the arguments of {path} were not saved; in Python, pass an instance as `model`")
    try:
        target = import_object(path)
    except (ImportError, UsageError) as error:
        raise BadFile(
            where, f"{path} cannot be imported here ({error}); in Python, pass an instance as `model`"
        ) from error
    try:
        built = target(**as_given(with_imports(args), target))
    except (TypeError, ValueError, UsageError) as error:
        raise BadFile(where, f"{path} did not take the saved arguments: {error}") from error
    if not isinstance(built, nn.Module):
        raise BadFile(where, f"{path} made a {type(built).__name__}, not a torch.nn.Module")
    return built


def _refuse_giant(name: str, args: Mapping[str, Any], where: str | Path) -> None:
    """Refuse arguments that would take all memory before the weights could show that they do not fit."""
    if len(repr(args)) > MAX_ARGUMENTS:
        raise BadFile(where, f"model: the arguments of {name} are longer than {MAX_ARGUMENTS} characters")
    with torch.device("meta"):
        try:
            size = sum(t.numel() for t in MODELS.build(name, args).state_dict().values())
        except UsageError as error:
            raise BadFile(where, f"model: {error}") from error
        except (RuntimeError, OverflowError) as error:  # sizes beyond what torch can count
            raise BadFile(where, f"model: {name} cannot be built with these arguments: {error}") from error
    if size > MAX_REBUILT:
        raise BadFile(where, f"model: {name} with these arguments holds {size} numbers; at most {MAX_REBUILT}")


# Far above what the registered models are for; a user's own class is not bound by it.
MAX_REBUILT = 2**30
MAX_ARGUMENTS = 4000


def _read_weights(path: Path, described: Mapping[str, Any]) -> safe_tensors.Loaded:
    header = safe_tensors.read_header(path)
    names = {entry.name for entry in header.entries}
    for name, kept in described["tied"].items():
        if kept not in names or name in names:
            raise BadFile(path, f"does not go with {INFO}: {name!r} is tied to {kept!r} there")
    if header.bytes != described["bytes"]:
        raise BadFile(path, f"holds {header.bytes} bytes, {INFO} tells of {described['bytes']}: damaged or mixed up")
    loaded = safe_tensors.load(path)
    if loaded.sha256 != described["sha256"]:
        raise BadFile(path, f"its SHA-256 is not the one in {INFO}: damaged, or not the file it was saved with")
    return loaded


def refuse_foreign(directory: Path) -> None:
    """Raise UsageError for a directory that holds other things than a model: it is not taken over."""
    if not os.path.lexists(directory):
        return
    if directory.is_symlink() or not directory.is_dir():
        raise UsageError(
            f"{directory}: is not a directory; give a name that is free or holds a saved model", code="output-file"
        )
    entries = [entry for entry in directory.iterdir() if not is_temporary(entry.name)]
    if (directory / INFO).exists() or all((entry / INFO).is_file() for entry in entries):
        return
    raise UsageError(
        f"{directory}: holds files and no model ({INFO}); give a name that is free or holds a saved model",
        code="output-file",
    )


def write_json(path: Path, data: Any) -> None:
    """Write a new file, durably."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    # A lone surrogate is then JSON's own escape of it.
    files.write_new(path, [text.encode(errors="backslashreplace") + b"\n"])
