"""The named tensors of a file or folder from elsewhere: .pth, .safetensors, shards, folders of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .. import files, safe_tensors
from ..errors import UsageError
from ..safe_tensors import BadFile
from ..text import printable, typed
from .archive import open_file
from .formats import READ, recognise
from .info import ModelInfo
from .model_dir import INFO, WEIGHTS, model_directory, read_model
from .optimizer_state import OptimizerState, is_optimizer, read_optimizer
from .torch_file import TorchFile, read_torch_file
from .weight_selection import select

# In a folder, the first of these that is there: Hugging Face's and Accelerate's names, diffusers'.
FOLDER_FILES = tuple(
    f"{stem}{ending}"
    for stem, endings in (
        ("model", (".safetensors.index.json", ".safetensors")),
        ("pytorch_model", (".bin.index.json", ".bin")),
        ("diffusion_pytorch_model", (".safetensors.index.json", ".safetensors", ".bin")),
    )
    for ending in endings
)
MAX_INDEX_BYTES = 16 * 1024 * 1024
MAX_SHARDS = 2000
_PEFT = (
    "holds an adapter of PEFT (changes to another model's weights), not a model: with PEFT, "
    "PeftModel.from_pretrained(base, DIR).merge_and_unload(), then save that model's state_dict()"
)


@dataclass(frozen=True)
class State:
    """Named tensors as a file holds them. `key` is the entry of a checkpoint that they were under, `others` the
    entries left aside, `foreign` the names of objects that were not made, `info` what a Surefoot export tells;
    `optimizer` and `epoch` are those of a training loop's checkpoint, as it has them, where they were asked for."""

    path: Path
    tensors: dict[str, torch.Tensor] = field(repr=False)
    key: str | None = None
    others: tuple[str, ...] = ()
    info: ModelInfo | None = None
    foreign: tuple[str, ...] = ()
    optimizer: OptimizerState | None = None
    epoch: int | None = None


def read_state(path: str | Path, *, key: str | None = None, training: bool = False) -> State:
    """The named tensors of a file or folder, on the CPU; `key` names the entry of a checkpoint that holds them.

    Raises `UsageError`; no code from `path` is run, ever.

    With `training` it is a checkpoint of a training loop: the tutorial's ``{"epoch", "model_state_dict",
    "optimizer_state_dict", "loss"}`` and its like; the optimizer's state is the one dictionary of ``state`` and
    ``param_groups``.
    """
    path = Path(path)
    weights_alone = BadFile(path, "holds weights alone: give it as weights of the recipe's model (weights: FILE)")
    if path.is_dir():
        if (directory := model_directory(path)) is not None:
            if training:
                raise weights_alone
            info, tensors = read_model(directory)
            return State(directory / WEIGHTS, tensors, info=info)
        path = weights_in(path)
    kind = (form := recognise(path)).kind
    if kind not in READ:
        raise BadFile(path, form.explanation)
    if training and kind in ("index", "safetensors"):
        raise weights_alone
    if kind == "index":
        state = _read_shards(path, key)
    elif kind == "safetensors":
        state = _read_safetensors(path, key)
    else:
        with open_file(path) as file:
            content = read_torch_file(path, file, kind)
            stored, where, others = select(path, content.tree, key, content.foreign)
            state = State(path, content.tensors(stored), where, others, foreign=content.foreign)
            state = _with_training(state, content) if training else state
    adapter = any(name.endswith((".lora_A.weight", ".lora_A.default.weight")) for name in state.tensors)
    if adapter and all("lora_" in name or ".modules_to_save." in name for name in state.tensors):
        raise BadFile(path, _PEFT)
    return state


def _with_training(state: State, content: TorchFile) -> State:
    """The same with what else a training loop's checkpoint holds."""
    tree = content.tree if isinstance(content.tree, dict) and state.key is not None else {}
    names = [name for name, value in tree.items() if isinstance(name, str) and is_optimizer(value)]
    if len(names) > 1:
        raise BadFile(state.path, f"holds the states of several optimizers ({', '.join(map(repr, names[:5]))})")
    epoch = tree.get("epoch")
    epoch = epoch if type(epoch) is int and 0 <= epoch < 2**31 else None
    used = {*names, *(["epoch"] if epoch is not None else [])}
    return replace(
        state,
        others=tuple(name for name in state.others if name not in used),
        optimizer=read_optimizer(content, tree[names[0]]) if names else None,
        epoch=epoch,
    )


def weights_in(folder: Path) -> Path:
    """The file in a folder that has its weights. Raises `BadFile` that says what the folder is, where there is none."""
    there = set(os.listdir(folder))
    if "adapter_config.json" in there:
        raise BadFile(folder, _PEFT)
    for name in FOLDER_FILES:
        if name in there:
            return folder / name
    if "run.json" in there and "checkpoints" in there:
        raise BadFile(folder, _of_run(folder))
    for name, explanation in _FOLDERS.items():
        if name in there:
            raise BadFile(folder, explanation)
    endings = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
    named = sorted(name for name in there if name.endswith(endings))
    hint = f"; name one of its files: {', '.join(named[:10])}" if named else ""
    what = f"no model (model.json) and no weights by a name that is known ({FOLDER_FILES[1]}, ...)"
    raise BadFile(folder, f"holds {what}{hint}")


def _of_run(run: Path) -> str:
    """What is said of a run whose final model is not there."""
    by_recipe, best = (run / "recipe.yaml").is_file(), run / "model" / "best"
    way_on = f"`{typed('surefoot', 'resume', run)}`" if by_recipe else "fit(..., resume=True)"
    also = f", or use its best model so far: {printable(best)}" if (best / INFO).is_file() else ""
    return f"is a run that has no final model yet; finish it with {way_on}{also}"


_FOLDERS = {
    "MANIFEST.json": "is a checkpoint in shards, none of which has a whole tensor; name its run, or go on with that: "
    "surefoot resume RUN",
    "saved_model.pb": "is a SavedModel of TensorFlow; write its variables with safetensors.numpy.save_file",
    "keras_metadata.pb": "is a SavedModel of Keras; write its variables with safetensors.numpy.save_file",
    ".metadata": "is a checkpoint of torch.distributed in several files; make one of it: "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR weights.pth",
}


def _read_safetensors(path: Path, key: str | None, *, link: bool = True) -> State:
    if key is not None:
        raise UsageError(f"{path}: is a .safetensors file, which holds one set of weights; leave key={key!r} out")
    loaded = safe_tensors.load(path.resolve() if link else path)
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


def _read_shards(path: Path, key: str | None) -> State:
    """Weights in several files, which the index `path` lists; each must hold exactly what it is said to hold."""
    shards = _index(path)
    tensors: dict[str, torch.Tensor] = {}
    foreign: dict[str, None] = {}
    for name, wanted in shards.items():
        shard = path.parent / name
        try:
            os.close(files.open_regular(shard))  # a link could lead out of the folder
        except FileNotFoundError:
            raise BadFile(path, f"lists {name[:100]!r}, which is missing") from None
        except OSError as error:
            hint = "; get the files themselves with: hf download NAME --local-dir DIR" if shard.is_symlink() else ""
            raise BadFile(shard, f"{error.strerror or error}{hint}") from error
        if shard.name.endswith(".index.json"):
            raise BadFile(path, "lists an index as one of its files")
        if recognise(shard).kind == "safetensors":
            state = _read_safetensors(shard, key, link=False)
        else:
            state = read_state(shard, key=key)
        differing = sorted(wanted ^ set(state.tensors))
        if differing:
            word = "lacks" if differing[0] in wanted else "does not list"
            raise BadFile(shard if word == "lacks" else path, f"{word} {differing[0][:100]!r}: index and file differ")
        tensors |= state.tensors
        foreign |= dict.fromkeys(state.foreign)
    return State(path, tensors, foreign=tuple(foreign))


def _index(path: Path) -> dict[str, set[str]]:
    """The names of the tensors by the file that holds them."""
    contents: Any = safe_tensors.read_json(path, max_bytes=MAX_INDEX_BYTES, max_containers=1000)
    names = contents.get("weight_map") if isinstance(contents, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise BadFile(path, "has no weight_map of tensors and the files that hold them")
    shards: dict[str, set[str]] = {}
    for tensor, name in names.items():
        if name != os.path.basename(name) or name in ("", ".", "..") or "\\" in name or "\0" in name:
            raise BadFile(path, f"lists {name[:100]!r}, which is no file beside it")
        shards.setdefault(name, set()).add(tensor)
    if len(shards) > MAX_SHARDS:
        raise BadFile(path, f"lists {len(shards)} files; at most {MAX_SHARDS} are read")
    return shards


def under_prefix(state: State, prefix: str) -> State:
    """Only the tensors whose names begin with `prefix`, without it. Raises `UsageError` if there are none."""
    if prefix and not prefix.endswith("."):
        prefix += "."
    kept = {name.removeprefix(prefix): t for name, t in state.tensors.items() if name.startswith(prefix)}
    if not kept:
        heads = sorted({name.partition(".")[0] + "." for name in state.tensors if "." in name})
        listed = ", ".join(heads[:20]) or "no prefix at all"
        raise UsageError(f"{state.path}: no name begins with {prefix!r}; they begin with {listed}")
    left = sorted({name.partition(".")[0] for name in state.tensors if not name.startswith(prefix)})
    return replace(state, tensors=kept, others=(*state.others, *left))
