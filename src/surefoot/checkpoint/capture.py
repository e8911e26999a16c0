"""Live objects to plain state, and back: modules, optimizers by parameter name, anything with a state_dict.

Restoring goes in two passes: `problems` compares everything without changing anything, `restore` then
writes. Schedulers and the like come before optimizers, because they overwrite `lr`; modules come last, because
they alone cannot refuse any more: no parameter has changed when anything else fails.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UsageError

Tree = dict[str, Any]


def check_objects(objects: Mapping[str, Any]) -> None:
    """Raise `UsageError` for an object whose state could not be taken or put back."""
    for key, value in objects.items():
        if isinstance(value, dict):
            continue
        missing = [name for name in ("state_dict", "load_state_dict") if not hasattr(value, name)]
        if missing:
            raise UsageError(
                f"{key}: a {type(value).__name__} has no {' and no '.join(missing)}; give an object that has both, "
                "or a dict"
            )


def unwrap(module: nn.Module) -> nn.Module:
    """The module that the user wrote, without torch.compile's and DistributedDataParallel's wrapping."""
    while True:
        if isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        elif isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def capture(objects: Mapping[str, Any]) -> Tree:
    """State of every object, under its key: {"modules": ..., "optimizers": ..., "objects": ...}; tensors not copied."""
    names = parameter_names(objects)
    tree: Tree = {"modules": {}, "optimizers": {}, "objects": {}}
    for key, value in objects.items():
        if isinstance(value, nn.Module):
            tree["modules"][key] = _capture_module(unwrap(value))
        elif _is_plain_optimizer(value):
            tree["optimizers"][key] = _capture_optimizer(value, names)
        else:
            tree["objects"][key] = _state_of(value)
    return tree


def problems(objects: Mapping[str, Any], tree: Tree) -> list[str]:
    """What keeps `tree` from being loaded into `objects`, one message each; changes nothing."""
    found: list[str] = []
    for section, members in _sections(objects).items():
        saved = tree.get(section)
        if not isinstance(saved, dict):
            return [f"the checkpoint lacks its {section}"]
        for key in members:
            if key not in saved:
                found.append(f"{key}: its state is missing from the checkpoint")
        for key in saved:
            if key not in members:
                found.append(f"{key}: the checkpoint holds its state, but no such object was given")
    if found:
        return found
    names = parameter_names(objects)
    for key, value in objects.items():
        if isinstance(value, nn.Module):
            found += [f"{key}: {text}" for text in _module_problems(unwrap(value), tree["modules"][key])]
        elif _is_plain_optimizer(value):
            found += [f"{key}: {text}" for text in _optimizer_problems(value, tree["optimizers"][key], names)]
        else:
            found += [f"{key}: {text}" for text in _object_problems(value, tree["objects"][key])]
    return found


def restore(objects: Mapping[str, Any], tree: Tree) -> None:
    """Load `tree`, which has no `problems`, into the objects.

    Raises `UsageError` when an object's own load_state_dict refuses its state; all are then as they were.
    """
    sections = _sections(objects)
    names = parameter_names(objects)
    changed: list[tuple[Any, Any]] = []
    for section in ("objects", "optimizers"):
        for key, value in sections[section].items():
            changed.append((value, copy.deepcopy(_state_of(value))))
            try:
                if section == "optimizers":
                    _restore_optimizer(value, tree[section][key], names)
                else:
                    _put(value, tree[section][key])
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
                for other, before in changed:
                    _put(other, before)
                raise UsageError(f"{key}: its load_state_dict refused the checkpoint's state: {error}") from error
    for key, value in sections["modules"].items():
        _restore_module(unwrap(value), tree["modules"][key])


def _state_of(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value.state_dict()


def _put(value: Any, state: Any) -> None:
    if isinstance(value, dict):
        value.clear()
        value.update(state)
    else:
        value.load_state_dict(state)


def _sections(objects: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"objects": {}, "modules": {}, "optimizers": {}}
    for key, value in objects.items():
        section = "modules" if isinstance(value, nn.Module) else "objects"
        found["optimizers" if _is_plain_optimizer(value) else section][key] = value
    return found


def _is_plain_optimizer(value: Any) -> bool:
    # A wrapper around an optimizer that numbers its state its own way is kept by its own state_dict.
    return isinstance(value, torch.optim.Optimizer) and type(value).state_dict is torch.optim.Optimizer.state_dict


def parameter_names(objects: Mapping[str, Any]) -> dict[int, str]:
    """id of a parameter -> its name; with several modules the module's key goes before it."""
    modules = {key: unwrap(value) for key, value in objects.items() if isinstance(value, nn.Module)}
    names: dict[int, str] = {}
    for key, module in modules.items():
        for name, parameter in module.named_parameters():
            names.setdefault(id(parameter), name if len(modules) == 1 else f"{key}.{name}")
    return names


# ---------------------------------------------------------------------------------------------- modules


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer by name, a tied one under each of its names, the non-persistent ones too."""
    # One walk for both: this is what training waits for at every save.
    for prefix, child in module.named_modules(remove_duplicate=False):
        lead = f"{prefix}." if prefix else ""
        for table in (child._parameters, child._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield lead + name, tensor


def _extra_states(module: nn.Module) -> dict[str, nn.Module]:
    return {
        name: child
        for name, child in module.named_modules()
        if type(child).get_extra_state is not nn.Module.get_extra_state
    }


def _capture_module(module: nn.Module) -> Tree:
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in _tensors(module):
        if nn.parameter.is_lazy(tensor):
            raise UsageError(f"model: {name} has no shape yet; run one batch through the model before it is saved")
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor
    return {
        "tensors": tensors,
        "tied": tied,
        "frozen": [
            name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        ],
        "extra": {name: child.get_extra_state() for name, child in _extra_states(module).items()},
    }


def _volatile(module: nn.Module) -> set[str]:
    """Names of non-persistent buffers: caches that may grow, shrink or not be there yet."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, child in module.named_modules()
        for name in child._non_persistent_buffers_set
    }


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _module_problems(module: nn.Module, saved: Any) -> list[str]:
    if not _has(saved, tensors=dict, tied=dict, frozen=list, extra=dict):
        return ["its state is not that of a module"]
    here = _capture_module(module)
    volatile = _volatile(module)
    found = []
    for name, tensor in saved["tensors"].items():
        if not isinstance(tensor, torch.Tensor):
            found.append(f"{name!r} is not a tensor in the checkpoint")
        elif name in volatile:
            continue
        elif name not in here["tensors"]:
            found.append(f"{name!r} is in the checkpoint and not in the model")
        elif _described(tensor) != _described(live := here["tensors"][name]):
            found.append(f"{name!r} is {_described(tensor)} in the checkpoint and {_described(live)} in the model")
    found += [
        f"{name!r} is in the model and not in the checkpoint"
        for name in here["tensors"]
        if name not in saved["tensors"] and name not in volatile
    ]
    if here["tied"] != saved["tied"]:
        found.append(f"tied names are {saved['tied']} in the checkpoint and {here['tied']} in the model")
    if set(here["extra"]) != set(saved["extra"]):
        found.append("other submodules have an extra state than in the checkpoint")
    if unknown := set(saved["frozen"]) - {name for name, _ in module.named_parameters()}:
        found.append(f"frozen parameters unknown here: {sorted(map(str, unknown))}")
    return found


def _restore_module(module: nn.Module, saved: Tree) -> None:
    live = dict(_tensors(module))
    frozen = set(saved["frozen"])
    with torch.no_grad():
        for name, tensor in saved["tensors"].items():
            target = live.get(name)
            if target is None or target.shape != tensor.shape or target.dtype != tensor.dtype:
                owner, _, leaf = name.rpartition(".")  # a non-persistent buffer of another size
                device = target.device if target is not None else _device(module)
                setattr(module.get_submodule(owner), leaf, tensor.to(device, copy=True))
            elif target.stride() == tensor.stride():
                target.copy_(tensor)
            else:  # memory order decides in which order sums are taken, so it is part of the state
                target.data = tensor.to(target.device, copy=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, child in _extra_states(module).items():
        child.set_extra_state(saved["extra"][name])


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for _, tensor in _tensors(module)), torch.device("cpu"))


# ---------------------------------------------------------------------------------------------- optimizers


def _group_names(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> list[list[str]]:
    return [
        [names.get(id(parameter), f"#{g}.{i}") for i, parameter in enumerate(group["params"])]
        for g, group in enumerate(optimizer.param_groups)
    ]


def _capture_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Tree:
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
            {**group, "params": group_names}
            for group, group_names in zip(state["param_groups"], groups, strict=True)
        ],
    }


def _optimizer_problems(optimizer: torch.optim.Optimizer, saved: Any, names: Mapping[int, str]) -> list[str]:
    if not _has(saved, state=dict, groups=list) or "class" not in saved:
        return ["its state is not that of an optimizer"]
    if saved["class"] != type(optimizer).__name__:
        return [f"is {saved['class']} in the checkpoint and {type(optimizer).__name__} here"]
    here = _group_names(optimizer, names)
    if len(here) != len(saved["groups"]):
        return [f"has {len(saved['groups'])} parameter groups in the checkpoint and {len(here)} here"]
    found = []
    shapes: dict[str, torch.Size] = {}
    for g, (group, live) in enumerate(zip(saved["groups"], optimizer.param_groups, strict=True)):
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            return [f"group {g} is not a parameter group"]
        if set(group["params"]) != set(here[g]) or len(group["params"]) != len(here[g]):
            other = sorted(map(str, set(group["params"]) ^ set(here[g])))
            found.append(f"group {g} holds other parameters than in the checkpoint: {', '.join(other[:5])}")
        if lacking := set(live) - set(group):
            found.append(f"group {g} lacks {', '.join(sorted(lacking))} in the checkpoint")
        for field in set(live) & set(group) - {"params"}:
            if not _alike(live[field], group[field]):
                saved_value = str(group[field])[:40]
                found.append(f"group {g}: {field} is {saved_value!r} in the checkpoint, {live[field]!r} here")
        shapes |= {name: parameter.shape for name, parameter in zip(here[g], live["params"], strict=True)}
    for name, state in saved["state"].items():
        if name not in shapes and not found:
            found.append(f"holds state for {name!r}, which is no parameter of it")
        if not isinstance(state, dict):
            found.append(f"the state of {name!r} is no table")
            continue
        for field, value in state.items():
            if isinstance(value, torch.Tensor) and field in _LIKE_PARAMETER and value.shape != shapes.get(name):
                found.append(f"state {field!r} of {name!r} has shape {tuple(value.shape)} in the checkpoint")
    return found


def _alike(live: Any, saved: Any) -> bool:
    """Whether a saved setting could be this one with another value: numbers stand for numbers, and so on."""
    if live is None or saved is None or type(live) is type(saved):
        return not isinstance(live, tuple) or saved is None or len(live) == len(saved)
    numbers = (int, float, torch.Tensor)
    return isinstance(live, numbers) and isinstance(saved, numbers) and bool not in (type(live), type(saved))


# Fields that torch's own optimizers keep in the parameter's shape.
_LIKE_PARAMETER = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "acc_delta"}


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: Tree, names: Mapping[int, str]) -> None:
    layout = optimizer.state_dict()["param_groups"]
    number: dict[Any, Any] = {}
    parameters: dict[Any, nn.Parameter] = {}
    groups = []
    zipped = zip(layout, _group_names(optimizer, names), optimizer.param_groups, saved["groups"], strict=True)
    for group, group_names, live, saved_group in zipped:
        number |= dict(zip(group_names, group["params"], strict=True))
        parameters |= dict(zip(group_names, live["params"], strict=True))
        groups.append({**saved_group, "params": group["params"]})
    state = {number.get(name, name): value for name, value in saved["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name, fields in saved["state"].items():
        if name not in parameters or not isinstance(fields, dict):
            continue
        parameter = parameters[name]
        for field, value in fields.items():
            # torch casts state to its parameter's dtype; what was kept in higher precision stays so.
            if isinstance(value, torch.Tensor) and optimizer.state[parameter][field].dtype != value.dtype:
                optimizer.state[parameter][field] = value.to(optimizer.state[parameter][field].device)


# ---------------------------------------------------------------------------------------------- the rest


def _object_problems(value: Any, saved: Any) -> list[str]:
    if isinstance(value, dict):
        return [] if isinstance(saved, dict) else ["is a dict here and something else in the checkpoint"]
    if not isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        return []
    # A scheduler's load_state_dict takes whatever it is given; a field that lacks would go unnoticed.
    here = value.state_dict()
    if not isinstance(saved, dict) or set(here) != set(saved):
        other = sorted(map(str, set(here) ^ set(saved))) if isinstance(saved, dict) else ["everything"]
        return [f"scheduler state differs from {type(value).__name__}'s in: {', '.join(other)}"]
    return []


def _has(saved: Any, **kinds: type) -> bool:
    return isinstance(saved, dict) and all(isinstance(saved.get(key), kind) for key, kind in kinds.items())
