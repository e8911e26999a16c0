"""A checkpoint of a user's own training loop: weights, optimizer state and epoch, read without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..safe_tensors import BadFile
from .archive import open_file
from .formats import recognise
from .pickled import Stored
from .torch_file import TorchFile, read_torch_file
from .weight_selection import select


@dataclass(frozen=True)
class OptimizerFile:
    """An optimizer's ``state_dict`` as torch saves it: `state` by position, the settings of each group, and the
    positions (or names, where the file has them) of each group's parameters."""

    state: dict[int, dict[str, Any]] = field(repr=False)
    groups: tuple[dict[str, Any], ...]
    positions: tuple[tuple[int, ...], ...]
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class TrainingFile:
    """The parts of a checkpoint; `others` are the entries that were not used. `epoch` is as the file has it."""

    path: Path
    tensors: dict[str, torch.Tensor] = field(repr=False)
    key: str | None
    optimizer: OptimizerFile | None
    epoch: int | None
    others: tuple[str, ...]


def read_training(path: str | Path, *, key: str | None = None) -> TrainingFile:
    """The tutorial's ``{"epoch", "model_state_dict", "optimizer_state_dict", "loss"}`` and its like, by torch.save.

    Weights are found as by `read_state`; the optimizer's state is the one dictionary of ``state`` and
    ``param_groups``. Raises `BadFile`.
    """
    path = Path(path)
    form = recognise(path)
    if form.kind == "safetensors":
        raise BadFile(path, "holds weights alone: use surefoot import")
    if form.kind not in ("zip", "legacy", "tar"):
        raise BadFile(path, form.explanation)
    with open_file(path) as file:
        content = read_torch_file(path, file, form.kind)
        stored, where, others = select(path, content.tree, key, content.foreign)
        tree = content.tree if isinstance(content.tree, dict) and where is not None else {}
        found = [name for name, value in tree.items() if isinstance(name, str) and _is_optimizer(value)]
        if len(found) > 1:
            raise BadFile(path, f"holds the states of several optimizers ({', '.join(map(repr, found[:5]))})")
        optimizer = _optimizer(content, tree[found[0]]) if found else None
        epoch = tree.get("epoch")
        epoch = epoch if type(epoch) is int and 0 <= epoch < 2**31 else None
        used = {*found, *(["epoch"] if epoch is not None else [])}
        left = tuple(name for name in others if name not in used)
        return TrainingFile(path, content.tensors(stored), where, optimizer, epoch, left)


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and {"state", "param_groups"} <= set(value)


def _optimizer(content: TorchFile, saved: Mapping[str, Any]) -> OptimizerFile:
    def bad(what: str) -> BadFile:
        return BadFile(content.path, f"its optimizer's state {what}")

    state, groups = saved["state"], saved["param_groups"]
    if not isinstance(state, dict) or not isinstance(groups, list):
        raise bad("is not {state, param_groups} as torch writes it")
    positions, names = [], []
    for group in groups:
        params = group.get("params") if isinstance(group, dict) else None
        if not isinstance(params, list) or not all(type(n) is int for n in params):
            raise bad("has a group without its parameters")
        positions.append(tuple(params))
        group_names = group.get("param_names")
        names += group_names if isinstance(group_names, list) and len(group_names) == len(params) else []
    flat = [n for group in positions for n in group]
    all_positions = set(flat)
    if len(all_positions) != len(flat) or not all(type(n) is int and n in all_positions for n in state):
        raise bad("names a parameter twice, or one that no group has")
    stored: dict[str, Stored] = {}
    read: dict[int, dict[str, Any]] = {}
    for position, entries in state.items():
        if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
            raise bad(f"of parameter {position} is no dictionary")
        read[position] = dict(entries)
        for name, value in entries.items():
            if isinstance(value, Stored):
                stored[f"{position}.{name}"] = value
            elif not isinstance(value, int | float | bool | None):
                raise bad(f"of parameter {position} holds a {type(value).__name__} under {name[:40]!r}")
    for name, tensor in content.tensors(stored).items():
        position, _, entry = name.partition(".")
        read[int(position)][entry] = tensor.clone()
    plain = tuple(
        {n: v for n, v in group.items() if n not in ("params", "param_names") and isinstance(v, int | float | bool)}
        for group in groups
    )
    whole = len(names) == len(flat) and all(isinstance(name, str) for name in names)
    return OptimizerFile(read, plain, tuple(positions), tuple(names) if whole else None)
