"""Optimizers to plain state by parameter name, and back, with what they hold beside torch's state_dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..sharding import piece_of
from ..text import counted
from ..wrapping import is_spread

Tree = dict[str, Any]


def _group_names(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> list[list[str]]:
    return [
        [names.get(id(parameter), f"#{g}.{i}") for i, parameter in enumerate(group["params"])]
        for g, group in enumerate(optimizer.param_groups)
    ]


def is_plain(value: Any) -> bool:
    """Whether this is an optimizer that keeps its state as torch's do.

    A wrapper around an optimizer that numbers its state its own way is kept by its own state_dict.
    """
    return isinstance(value, torch.optim.Optimizer) and type(value).state_dict is torch.optim.Optimizer.state_dict


def capture(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Tree:
    """State by parameter name, groups, own attributes, and the optimizers within; `names` are by id of a parameter."""
    inner = {name: _capture(held, names) for name, held in _inner(optimizer).items() if _has_own(held, optimizer)}
    return _capture(optimizer, names) | ({"inner": inner} if inner else {})


def _inner(optimizer: torch.optim.Optimizer) -> dict[str, torch.optim.Optimizer]:
    """The optimizers that one holds, as SAM its base optimizer."""
    return {name: value for name, value in vars(optimizer).items() if is_plain(value)}


def _has_own(inner: torch.optim.Optimizer, optimizer: torch.optim.Optimizer) -> bool:
    return inner.state is not optimizer.state


def _capture(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Tree:
    state = optimizer.state_dict()
    groups = _group_names(optimizer, names)
    by_number = {
        number: name
        for group, group_names in zip(state["param_groups"], groups, strict=True)
        for number, name in zip(group["params"], group_names, strict=True)
    }
    return {
        "class": type(optimizer).__name__,
        "state": {by_number.get(key, key): value for key, value in state["state"].items()},
        "groups": [
            {**group, "params": group_names} for group, group_names in zip(state["param_groups"], groups, strict=True)
        ],
        "attributes": _own_attributes(optimizer),
    }


def problems(optimizer: torch.optim.Optimizer, saved: Any, names: Mapping[int, str]) -> list[str]:
    """What keeps `saved` from being put into `optimizer`, one message each."""
    if texts := _problems(optimizer, saved, names):
        return texts
    here = {name: held for name, held in _inner(optimizer).items() if _has_own(held, optimizer)}
    inner = saved.get("inner", {})
    if not isinstance(inner, dict) or set(inner) != set(here):
        return [f"the optimizers within are {sorted(inner)} in the checkpoint and {sorted(here)} here"]
    return [f"{name}: {text}" for name, held in here.items() for text in _problems(held, inner[name], names)]


def _problems(optimizer: torch.optim.Optimizer, saved: Any, names: Mapping[int, str]) -> list[str]:
    if not has(saved, state=dict, groups=list) or "class" not in saved:
        return ["its state is not that of an optimizer"]
    if saved["class"] != type(optimizer).__name__:
        return [f"is {saved['class']} in the checkpoint and {type(optimizer).__name__} here"]
    here = _group_names(optimizer, names)
    if len(here) != len(saved["groups"]):
        text = f"has {counted(len(saved['groups']), 'parameter group')} in the checkpoint and {len(here)} here"
        more = "; add those that the run added later (add_param_group) before resume()"
        return [text + (more if len(saved["groups"]) > len(here) else "")]
    texts = []
    shapes: dict[str, torch.Size] = {}
    for g, (group, live) in enumerate(zip(saved["groups"], optimizer.param_groups, strict=True)):
        if not isinstance(group, dict) or not are_names(group.get("params")):
            return [f"group {g} is not a parameter group"]
        if set(group["params"]) != set(here[g]) or len(group["params"]) != len(here[g]):
            other = sorted(map(str, set(group["params"]) ^ set(here[g])))
            texts.append(f"group {g} holds other parameters than in the checkpoint: {', '.join(other[:5])}")
        own = type(optimizer).__module__.startswith("torch.optim")
        if own and (lacking := set(live) - set(group)):
            texts.append(f"group {g} lacks {', '.join(sorted(lacking))} in the checkpoint")
        for field in (set(live) & set(group) - {"params"}) if own else ():
            if not _alike(live[field], group[field]):
                saved_value = str(group[field])[:40]
                texts.append(f"group {g}: {field} is {saved_value!r} in the checkpoint, {live[field]!r} here")
        shapes |= {name: parameter.shape for name, parameter in zip(here[g], live["params"], strict=True)}
    for name, state in saved["state"].items() if own else ():
        if name not in shapes and not texts:
            texts.append(f"holds state for {name!r}, which is no parameter of it")
        if not isinstance(state, dict):
            texts.append(f"the state of {name!r} is no table")
            continue
        for field, value in state.items():
            if isinstance(value, torch.Tensor) and field in _LIKE_PARAMETER and value.shape != shapes.get(name):
                texts.append(f"state {field!r} of {name!r} has shape {tuple(value.shape)} in the checkpoint")
    # Anybody else's may keep what it likes, in whatever shape, and takes back what it gave.
    return texts


def _alike(live: Any, saved: Any) -> bool:
    """Whether a saved setting could be this one with another value: numbers stand for numbers, and so on."""
    if live is None or saved is None or type(live) is type(saved):
        return not isinstance(live, tuple) or saved is None or len(live) == len(saved)
    numbers = (int, float, torch.Tensor)
    return isinstance(live, numbers) and isinstance(saved, numbers) and bool not in (type(live), type(saved))


# Fields that torch's own optimizers keep in the parameter's shape.
_LIKE_PARAMETER = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "acc_delta"}


def restore(optimizer: torch.optim.Optimizer, saved: Tree, names: Mapping[int, str]) -> None:
    """Put back what `capture` gave and in which there are no `problems`.

    torch makes a new state and new groups; an optimizer within that had a part in the old ones has it in these.
    """
    state, groups, one_by_one = optimizer.state, optimizer.param_groups, [*map(id, optimizer.param_groups)]
    shared = [
        (name, inner, inner.state is state, inner.param_groups is groups, [*map(id, inner.param_groups)] == one_by_one)
        for name, inner in _inner(optimizer).items()
    ]
    _restore(optimizer, saved, names)
    for name, inner, one_state, one_list, same_groups in shared:
        if one_state:
            inner.state = optimizer.state
        else:
            _restore(inner, saved["inner"][name], names)
        if same_groups:
            inner.param_groups = optimizer.param_groups if one_list else list(optimizer.param_groups)


def _restore(optimizer: torch.optim.Optimizer, saved: Tree, names: Mapping[int, str]) -> None:
    layout = optimizer.state_dict()["param_groups"]
    number: dict[Any, Any] = {}
    parameters: dict[Any, nn.Parameter] = {}
    groups = []
    zipped = zip(layout, _group_names(optimizer, names), optimizer.param_groups, saved["groups"], strict=True)
    for group, group_names, live, saved_group in zipped:
        number |= dict(zip(group_names, group["params"], strict=True))
        parameters |= dict(zip(group_names, live["params"], strict=True))
        groups.append({**saved_group, "params": group["params"]})
    saved = {**saved, "state": {n: _in_pieces(fields, parameters.get(n)) for n, fields in saved["state"].items()}}
    state = {number.get(name, name): value for name, value in saved["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name, fields in saved["state"].items():
        if name in parameters:
            # torch casts state to its parameter's dtype; what was kept in higher precision stays so.
            kept = optimizer.state[parameters[name]]
            optimizer.state[parameters[name]] = _uncast(kept, fields)
    for name, value in saved.get("attributes", {}).items():
        setattr(optimizer, name, value)


def _in_pieces(fields: Any, parameter: Any) -> Any:
    """The whole state of a parameter as one has it that is spread over ranks."""
    if parameter is None or not is_spread(parameter) or not isinstance(fields, dict):
        return fields
    return {name: piece_of(value, parameter) for name, value in fields.items()}


def _uncast(loaded: Any, saved: Any) -> Any:
    """What was loaded, with the saved values where loading has changed a tensor's dtype."""
    if isinstance(loaded, torch.Tensor) and isinstance(saved, torch.Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(loaded, dict) and isinstance(saved, dict):
        return type(loaded)((key, _uncast(value, saved.get(key))) for key, value in loaded.items())
    if type(loaded) in (list, tuple) and type(loaded) is type(saved):
        return type(loaded)(_uncast(a, b) for a, b in zip(loaded, saved, strict=True))
    return loaded


def _own_attributes(optimizer: torch.optim.Optimizer) -> Tree:
    """Numbers and tensors that an optimizer of somebody's own counts in itself, which its state_dict lacks."""
    if type(optimizer).__module__.startswith("torch.optim"):
        return {}
    return {
        name: value
        for name, value in vars(optimizer).items()
        if type(value) in (bool, int, float, torch.Tensor) and not name.startswith("_")
    }


def are_names(value: Any) -> bool:
    """Whether this is a list of names."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def has(saved: Any, **kinds: type) -> bool:
    """Whether this is a dict whose entries are of these kinds."""
    return isinstance(saved, dict) and all(isinstance(saved.get(key), kind) for key, kind in kinds.items())
