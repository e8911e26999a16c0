"""Live objects to plain state, and back: modules, optimizers by parameter name, anything with a state_dict.

Restoring goes in two passes: `problems` compares everything without changing anything, `set_state` then
writes. Schedulers and the like come before optimizers, because they overwrite `lr`; modules come last, because
they alone cannot refuse any more: no parameter has changed when anything else fails.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..errors import UsageError
from ..sharding import piece_of
from ..wrapping import is_spread, local, submodules, tensors
from . import beside_tensors, optimizer_states
from .optimizer_states import are_names, has

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
                "or a dict",
                code="checkpoint-value",
            )


def get_state(objects: Mapping[str, Any]) -> Tree:
    """State of every object, under its key: {"modules": ..., "optimizers": ..., "objects": ...}; tensors not copied."""
    names = parameter_names(objects)
    tree: Tree = {"modules": {}, "optimizers": {}, "objects": {}}
    for key, value in objects.items():
        if isinstance(value, AveragedModel):
            tree["objects"][key] = _capture_module(value)
        elif isinstance(value, nn.Module):
            tree["modules"][key] = _capture_module(value)
        elif optimizer_states.is_plain(value):
            tree["optimizers"][key] = optimizer_states.capture(value, names)
        else:
            tree["objects"][key] = _state_of(value)
    return tree


def problems(objects: Mapping[str, Any], tree: Tree) -> list[str]:
    """What keeps `tree` from being loaded into `objects`, one message each; changes nothing."""
    texts: list[str] = []
    for section, members in _sections(objects).items():
        saved = tree.get(section)
        if not isinstance(saved, dict):
            return [f"the checkpoint lacks its {section}"]
        for key in members:
            if key not in saved and not getattr(members[key], "can_lack", False):
                texts.append(f"{key}: its state is missing from the checkpoint")
        for key in saved:
            if key not in members:
                texts.append(f"{key}: the checkpoint holds its state, but no such object was given")
    if texts:
        return texts
    names = parameter_names(objects)
    for key, value in objects.items():
        if isinstance(value, nn.Module):
            saved = tree["objects" if isinstance(value, AveragedModel) else "modules"][key]
            texts += [f"{key}: {text}" for text in _module_problems(value, saved)]
        elif optimizer_states.is_plain(value):
            texts += [f"{key}: {text}" for text in optimizer_states.problems(value, tree["optimizers"][key], names)]
        else:
            texts += [f"{key}: {text}" for text in _object_problems(value, tree["objects"].get(key))]
    return texts


def require_fit(objects: Mapping[str, Any], tree: Tree, where: Any) -> None:
    """Raise `UsageError` with all of the `problems`; `where` is the checkpoint's path."""
    if texts := problems(objects, tree):
        listed = "\n".join(f"  {text}" for text in texts[:50])
        raise UsageError(f"{where}: does not fit what was built here:\n{listed}")


def set_state(objects: Mapping[str, Any], tree: Tree) -> None:
    """Load `tree`, which has no `problems`, into the objects.

    Raises `UsageError` when an object's own load_state_dict refuses its state; all are then as they were.
    """
    sections = _sections(objects)
    names = parameter_names(objects)
    changed: list[tuple[Any, Any]] = []
    for section in ("objects", "optimizers"):
        for key, value in sections[section].items():
            if isinstance(value, AveragedModel) or key not in tree[section]:
                continue
            # What a dict holds is put in its place and not changed; a loss with its graph cannot be copied.
            state = _state_of(value)
            changed.append((value, state if isinstance(value, dict) else copy.deepcopy(state)))
            try:
                if section == "optimizers":
                    optimizer_states.restore(value, tree[section][key], names)
                else:
                    _put(value, tree[section][key])
            except Exception as error:  # it may be the user's own, which refuses by whatever it likes
                for other, before in changed:
                    with contextlib.suppress(Exception):  # that one may refuse its own as well
                        _put(other, before)
                if isinstance(error, UsageError):  # of ours, which says it all
                    raise
                why = str(error) or type(error).__name__
                raise UsageError(f"{key}: its load_state_dict refused the checkpoint's state: {why}") from error
    for key, value in objects.items():
        if isinstance(value, nn.Module):
            _restore_module(value, tree["objects" if isinstance(value, AveragedModel) else "modules"][key])


def _state_of(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value.state_dict()


def _put(value: Any, state: Any) -> None:
    if isinstance(value, dict):
        value.clear()
        value.update(state)
    else:
        value.load_state_dict(state)


def _sections(objects: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {"objects": {}, "modules": {}, "optimizers": {}}
    for key, value in objects.items():
        section = "modules" if isinstance(value, nn.Module) and not isinstance(value, AveragedModel) else "objects"
        sections["optimizers" if optimizer_states.is_plain(value) else section][key] = value
    return sections


def parameter_names(objects: Mapping[str, Any]) -> dict[int, str]:
    """id of a parameter -> its name; where several modules have parameters, the module's key goes before it."""
    modules = {
        key: value for key, value in _sections(objects)["modules"].items() if any(True for _ in value.parameters())
    }
    names: dict[int, str] = {}
    for key, module in modules.items():
        for name, tensor in tensors(module):
            names.setdefault(id(tensor), name if len(modules) == 1 else f"{key}.{name}")
    return names


# ---------------------------------------------------------------------------------------------- modules


def _capture_module(module: nn.Module) -> Tree:
    kept: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in tensors(module):
        if nn.parameter.is_lazy(tensor):
            raise UsageError(
                f"model: {name} has no shape yet; run one batch through the model first: "
                "`with torch.no_grad(): model(inputs)`",
                code="model-lazy",
            )
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            kept[name] = tensor
    return {
        "tensors": kept,
        "tied": tied,
        "frozen": [
            name for name, tensor in kept.items() if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        ],
        "transient": sorted(_transient(module)),
        **beside_tensors.capture(module, kept.values()),
    }


def _transient(module: nn.Module) -> Iterator[str]:
    """Names of the non-persistent buffers that are there: a forward pass may have made them."""
    for prefix, child in submodules(module):
        for name in child._non_persistent_buffers_set:
            if child._buffers.get(name) is not None:
                yield f"{prefix}.{name}" if prefix else name


def _volatile(module: nn.Module) -> set[str]:
    """Names of buffers that may be of another size, or not there yet: caches, and what the first forward pass sets.

    These are the non-persistent ones, the empty and the unset ones, and those of a module that loads them in a way of
    its own (an observer of quantization-aware training).
    """
    names = set()
    for prefix, child in submodules(module):
        own = type(child)._load_from_state_dict is not nn.Module._load_from_state_dict
        own = own and not type(child).__module__.startswith("torch.nn.")
        for name, buffer in child._buffers.items():
            if own or name in child._non_persistent_buffers_set or buffer is None or not buffer.numel():
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _module_problems(module: nn.Module, saved: Any) -> list[str]:
    named = isinstance(saved, dict) and are_names(saved.get("frozen")) and are_names(saved.get("transient", []))
    if not named or not has(saved, tensors=dict, tied=dict, extra=dict):
        return ["its state is not that of a module"]
    here = _capture_module(module)
    volatile = _volatile(module)
    texts = []
    for name, tensor in saved["tensors"].items():
        if not isinstance(tensor, torch.Tensor):
            texts.append(f"{name!r} is not a tensor in the checkpoint")
        elif name in volatile:
            continue
        elif name not in here["tensors"]:
            if not _can_be_made(name, module, saved):
                texts.append(f"{name!r} is in the checkpoint and not in the model")
        elif _described(tensor) != _described(live := here["tensors"][name]):
            texts.append(f"{name!r} is {_described(tensor)} in the checkpoint and {_described(live)} in the model")
    texts += [
        f"{name!r} is in the model and not in the checkpoint"
        for name in here["tensors"]
        if name not in saved["tensors"] and name not in saved["tied"] and name not in volatile
    ]
    if here["tied"] != saved["tied"]:
        texts.append(f"tied names are {saved['tied']} in the checkpoint and {here['tied']} in the model")
    texts += beside_tensors.problems(module, saved)
    if unknown := set(saved["frozen"]) - {name for name, t in tensors(module) if isinstance(t, nn.Parameter)}:
        texts.append(f"frozen parameters unknown here: {sorted(map(str, unknown))}")
    return texts


def _can_be_made(name: str, module: nn.Module, saved: Tree) -> bool:
    """Whether this is a non-persistent buffer that a module here has not made yet, as it does in its first forward."""
    owner, _, leaf = name.rpartition(".")
    if name not in saved.get("transient", []):  # which earlier versions lack
        return False
    child = dict(submodules(module)).get(owner)
    return child is not None and not hasattr(child, leaf)


def _restore_module(module: nn.Module, saved: Tree) -> None:
    live = dict(tensors(module))
    owners = dict(submodules(module))
    frozen = set(saved["frozen"])
    device = next((tensor.device for tensor in live.values()), torch.device("cpu"))
    with torch.no_grad():
        for name, tensor in saved["tensors"].items():
            target = live.get(name)
            if target is not None and is_spread(target):
                local(target).copy_(local(piece_of(tensor, target)))
                continue
            plain = tensor.layout is torch.strided and 0 not in tensor.stride()
            if target is None or target.shape != tensor.shape or target.dtype != tensor.dtype or not plain:
                _set_buffer(owners, name, tensor.to(device if target is None else target.device))
            elif target.stride() == tensor.stride():
                target.copy_(tensor)
            else:  # memory order decides in which order sums are taken, so it is part of the state
                target.data = tensor.to(target.device, copy=True)
    for name, tensor in live.items():
        if isinstance(tensor, nn.Parameter) and name not in saved["tied"]:
            tensor.requires_grad_(name not in frozen)
    beside_tensors.restore(module, saved)


def _set_buffer(owners: Mapping[str, nn.Module], name: str, tensor: torch.Tensor) -> None:
    """Put another tensor in the place of a buffer, or of a parameter's content."""
    owner, _, leaf = name.rpartition(".")
    module = owners[owner]
    if isinstance(parameter := module._parameters.get(leaf), nn.Parameter):
        parameter.data = tensor.clone()
        return
    if leaf not in module._buffers:
        module.register_buffer(leaf, None, persistent=False)
    expanded = tensor.layout is torch.strided and 0 in tensor.stride()
    module._buffers[leaf] = tensor if expanded else tensor.clone()


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
