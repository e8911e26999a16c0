"""The optimizer's state in a checkpoint of a user's own training loop, read without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..safe_tensors import BadFile
from .pickled import Stored
from .torch_file import TorchFile


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's ``state_dict`` as torch saves it: `state` by position, the settings of each group, and the
    positions (or names, where the file has them) of each group's parameters."""

    state: dict[int, dict[str, Any]] = field(repr=False)
    groups: tuple[dict[str, Any], ...]
    positions: tuple[tuple[int, ...], ...]
    names: tuple[str, ...] | None


def is_optimizer(value: Any) -> bool:
    """Whether an entry of a checkpoint has the form of an optimizer's state."""
    return isinstance(value, dict) and {"state", "param_groups"} <= set(value)


def _is_plain(setting: Any) -> bool:
    """Whether a setting is a number, or several (Adam's betas)."""
    return all(isinstance(item, int | float) for item in (setting if isinstance(setting, tuple | list) else [setting]))


def read_optimizer(content: TorchFile, saved: Mapping[str, Any]) -> OptimizerState:
    """The state under one entry of a file by torch.save, checked. Raises `BadFile`."""

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
        {n: v for n, v in group.items() if n not in ("params", "param_names") and _is_plain(v)} for group in groups
    )
    whole = len(names) == len(flat) and all(isinstance(name, str) for name in names)
    return OptimizerState(read, plain, tuple(positions), tuple(names) if whole else None)
