"""A model's tensors as named data: which are tied, whether they fit another model, and how they are put into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim.swa_utils import AveragedModel

from ..errors import Problems, UsageError
from ..registry import did_you_mean
from ..untouched import is_lazy
from ..wrapping import unwrap

# How many differences of one kind are listed one by one; a file for another model would fill the screen.
SHOWN = 20


@dataclass(frozen=True)
class Weights:
    """Tensors by name; `tied` maps each further name of a tensor to the one under which it is kept."""

    tensors: dict[str, torch.Tensor] = field(repr=False)
    tied: dict[str, str]


def plain(model: nn.Module) -> tuple[nn.Module, bool]:
    """The model without wrappers and torch's `AveragedModel` around it, and whether its weights are an average.

    >>> layer = nn.Linear(2, 2)
    >>> plain(nn.DataParallel(layer)) == (layer, False)
    True
    """
    model, averaged = unwrap(model), False
    while isinstance(model, AveragedModel):
        model, averaged = unwrap(model.module), True
    return model, averaged


def collect(model: nn.Module) -> Weights:
    """The parameters and persistent buffers of `model`, each memory once. Raises `UsageError` for what has none.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> collect(nn.Sequential(layer, layer)).tied
    {'1.weight': '0.weight'}
    """
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    refuse_unsavable(model)
    for name, value in model.state_dict().items():
        memory = _memory(value)
        if memory in names:
            tied[name] = names[memory]
            continue
        if memory is not None:
            names[memory] = name
        tensors[name] = value
    return Weights(tensors, tied)


def refuse_unsavable(model: nn.Module) -> None:
    """Raise Problems for a model whose state_dict holds what no file of ours can."""
    reasons = {name: _unsavable(value) for name, value in model.state_dict().items()}
    if problems := [f"{name}: {reason}" for name, reason in reasons.items() if reason]:
        raise Problems(problems)


def own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model's state_dict, without what `get_extra_state` gives that is none."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def differences(state: Mapping[str, torch.Tensor], model: nn.Module, *, dtypes: bool = True) -> list[str]:
    """Why `state` does not fit `model`, every reason at once; empty when it does.

    Names, shapes and (with `dtypes`) dtypes are compared. A name that the model ties to another one may be
    absent, and so may what modules add by `get_extra_state`; tied names that are both there must agree.
    """
    wanted = own_tensors(model)
    groups = tie_groups(wanted)
    absent = [name for name in wanted if name not in state and not name.endswith("_extra_state")]
    missing = [name for name in absent if not any(twin in state for twin in groups.get(name, ()))]
    unexpected = [name for name in state if name not in wanted]
    lines = _listed(
        [f"missing: {name} {form(wanted[name])}{did_you_mean(name, unexpected)}" for name in missing], "missing"
    )
    lines += _listed(
        [f"unexpected: {name} {form(state[name])}{did_you_mean(name, missing)}" for name in unexpected], "unexpected"
    )
    wrong = []
    for name, value in state.items():
        if name not in wanted:
            continue
        target = wanted[name]
        if tuple(value.shape) != tuple(target.shape):
            wrong.append(f"{name}: its shape is {_shape(value)}, the model's is {_shape(target)}")
        elif dtypes and value.dtype != target.dtype:
            wrong.append(f"{name}: it holds {_dtype(value)}, the model {_dtype(target)}")
    lines += _listed(wrong, "different")
    if not wrong:
        lines += _listed(_disagreeing(state, groups), "disagreeing")
    return lines


def put(state: Mapping[str, torch.Tensor], model: nn.Module, where: str, *, adopt_dtypes: bool = False) -> None:
    """Copy `state` into `model`, or raise `Problems` with every difference and leave the model as it was.

    `where` begins each message. With `adopt_dtypes` the model takes the dtypes of `state` first.
    """
    give_shapes(state, model)
    problems = differences(state, model, dtypes=not adopt_dtypes)
    if problems:
        raise Problems([f"{where}: {line}" for line in problems])
    for module in model.modules():
        for own, buffer in module._buffers.items():
            if buffer is not None and not is_lazy(buffer) and 0 in buffer.stride() and buffer.numel() > 1:
                module._buffers[own] = buffer.contiguous()  # of what was expanded, several elements are one
    before = {name: value.detach().clone() for name, value in own_tensors(model).items()}
    if adopt_dtypes:
        take_dtypes(state, model)
    try:
        model.load_state_dict(completed(state, model))
    except Exception as error:  # a class with loading code of its own may refuse or break halfway
        if adopt_dtypes:
            take_dtypes(before, model)
        with torch.no_grad():
            for name, value in own_tensors(model).items():
                value.copy_(before[name])
        raise UsageError(f"{where}: {type(model).__name__} refused the weights: {error}") from error


def give_shapes(state: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Give each parameter of a lazy module that no batch has gone through yet the shape that it has in `state`."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if is_lazy(tensor) and name in state:
            tensor.materialize(state[name].shape)


def completed(state: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, Any]:
    """An entry for each name of `model`: that of `state`, else that of a name tied to it, else the model's own."""
    own = model.state_dict()
    groups = tie_groups(own_tensors(model))
    found = {name: next((twin for twin in (name, *groups.get(name, ())) if twin in state), None) for name in own}
    return {name: own[name] if twin is None else state[twin] for name, twin in found.items()}


def tie_groups(state: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """For each name that shares its memory, all names of that memory."""
    by_memory: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, value in state.items():
        if (memory := _memory(value)) is not None:
            by_memory[memory].append(name)
    return {name: names for names in by_memory.values() if len(names) > 1 for name in names}


def memory_format(model: nn.Module) -> str:
    """ "channels_last" when every four-dimensional parameter lies so and one says so beyond doubt, else "contiguous".

    A weight with one input channel or a 1x1 kernel lies both ways at once and says nothing.
    """
    says = False
    for parameter in model.parameters():
        if is_lazy(parameter) or parameter.dim() != 4:
            continue
        if not parameter.is_contiguous(memory_format=torch.channels_last):
            return "contiguous"
        says = says or not parameter.is_contiguous()
    return "channels_last" if says else "contiguous"


def _unsavable(value: object) -> str | None:
    if not isinstance(value, torch.Tensor):
        return f"a state_dict entry of type {type(value).__name__} cannot be saved without pickle; make it a tensor"
    if isinstance(value, UninitializedTensorMixin):
        return "not initialised yet; run one batch through the model first"
    if value.layout is not torch.strided or value.is_quantized:
        return f"a tensor of layout {value.layout} cannot be saved; make it dense"
    if value.is_meta:
        return "has no data (device meta); load or initialise the model first"
    return None


def _memory(value: torch.Tensor) -> tuple[Any, ...] | None:
    # An empty tensor has no memory that it could share.
    if isinstance(value, UninitializedTensorMixin) or value.layout is not torch.strided:
        return None
    if value.is_meta or value.numel() == 0:
        return None
    lazy = value.is_conj(), value.is_neg()  # the same memory, read as other numbers
    return value.data_ptr(), value.device, tuple(value.shape), value.stride(), value.dtype, lazy


def _disagreeing(state: Mapping[str, torch.Tensor], groups: Mapping[str, list[str]]) -> list[str]:
    lines = []
    for name, group in groups.items():
        there = [twin for twin in group if twin in state]
        if there and name == there[0]:
            others = [o for o in there[1:] if not same_bytes(state[name], state[o])]
            lines += [f"{other}: the model ties it to {name}, the file gives two different values" for other in others]
    return lines


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one shape and dtype hold the same bits, NaN included."""
    if one is other:
        return True
    flat = [
        t.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)
    ]
    return torch.equal(*flat)


def take_dtypes(state: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Give the parameters and buffers of `model` the dtypes that `state` has under their names."""
    # A parameter object is kept (and so are its ties), only its data changes; buffers are replaced in their module.
    for prefix, module in model.named_modules():
        prefix = prefix + "." if prefix else ""
        for own, parameter in module._parameters.items():
            value = state.get(prefix + own)
            if parameter is not None and value is not None and parameter.dtype != value.dtype:
                parameter.data = parameter.data.to(value.dtype)
        for own, buffer in module._buffers.items():
            value = state.get(prefix + own)
            if buffer is not None and value is not None and buffer.dtype != value.dtype:
                module._buffers[own] = buffer.to(value.dtype)


def buffer_dtypes(model: nn.Module) -> dict[str, str]:
    """The dtype of each buffer of floating point that the state_dict leaves out (``persistent=False``), by name."""
    return {
        f"{prefix}.{own}".lstrip("."): _dtype(buffer)
        for prefix, module in model.named_modules()
        for own in sorted(getattr(module, "_non_persistent_buffers_set", ()))
        if isinstance(buffer := module._buffers.get(own), torch.Tensor) and buffer.is_floating_point()
    }


def take_form(model: nn.Module, dtypes: Mapping[str, str], layout: str) -> None:
    """Give a newly built model what its file says: the `dtypes` of its `buffer_dtypes`, and its `memory_format`."""
    if layout == "channels_last":
        untyped: Any = model  # torch 2.13 does not declare `Module.to(memory_format=...)`, 2.14 does
        untyped.to(memory_format=torch.channels_last)
    built = buffer_dtypes(model)
    for name, dtype in dtypes.items():
        if built.get(name, dtype) != dtype:
            prefix, _, own = name.rpartition(".")
            module = model.get_submodule(prefix)
            module._buffers[own] = module.get_buffer(own).to(getattr(torch, dtype))


def _listed(lines: list[str], kind: str) -> list[str]:
    if len(lines) <= SHOWN:
        return lines
    return [*lines[:SHOWN], f"and {len(lines) - SHOWN} more {kind}"]


def form(value: torch.Tensor) -> str:
    """Dtype and shape, for messages."""
    return f"({_dtype(value)} {_shape(value)})"


def _shape(value: torch.Tensor) -> str:
    return str(list(value.shape))


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
