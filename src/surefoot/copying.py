"""Copies of models that `copy.deepcopy` alone refuses, and of objects that hold much data."""

from __future__ import annotations

import copy
import itertools
import threading
from typing import Any, TypeVar

from torch import Tensor, nn

from . import torch_compat
from .errors import UsageError, first_line

_LOCKS = (type(threading.Lock()), type(threading.RLock()))
# Lists and dicts of more are taken for data.
_MOST_COPIED = 64
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def copied(value: T, model: nn.Module) -> T:
    """A deep copy of `value`, which is or holds `model`. Locks are shared; results that a module keeps (as the older
    `weight_norm` does) are copied without their graph.

    Raises UsageError, naming the attribute, where there is no copy.
    """
    return _copied(value, {"model": model}, _memo(model))


def twins(model: M, loss: Any, optimizer: Any) -> tuple[M, Any, Any]:
    """Copies, as `copied` makes them, of a model, its loss and its optimizer, which hold each other's parts.

    What torch leaves out of an optimizer's copy is copied too: the attributes that a class has beside its state.
    """
    torch_compat.give_hooks(optimizer)
    parts = {name: part for name, part in (("model", model), ("loss", loss)) if isinstance(part, nn.Module)}
    memo = _memo(*parts.values())
    made = _copied((model, loss, optimizer), parts, memo)
    for name, value in vars(optimizer).items():
        # A scheduler's wrapper around `step`, and what a schedule has put there, are of the original.
        if name in vars(made[2]) or name == "step" or name.startswith("_surefoot"):
            continue
        try:
            setattr(made[2], name, copy.deepcopy(value, memo))
        except Exception as error:
            raise UsageError(f"the optimizer cannot be copied: its {name}: {first_line(error, kind=True)}") from error
    return made


def _copied(value: T, parts: dict[str, nn.Module], memo: dict[int, Any]) -> T:
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:  # a user's own `__deepcopy__` may raise anything
        culprit = next(filter(None, itertools.starmap(_culprit, parts.items())), "")
        raise UsageError(
            f"the {culprit.partition('.')[0] or ' or its '.join(parts)} cannot be copied: {culprit}"
            f"{first_line(error, kind=True)}; give the class of what cannot be copied a `__deepcopy__`"
        ) from error


def with_data_shared(value: T) -> T:
    """A copy of `value` with a memory of its own: large attributes (data) are shared, and all where no copy can be."""
    attributes = (getattr(value, "__dict__", None) or {}).values()
    shared = {id(item): item for item in attributes if _is_data(item)}
    try:
        return copy.deepcopy(value, shared)
    except Exception:  # an open file, a connection
        return copy.copy(value)


def _is_data(value: Any) -> bool:
    large = isinstance(value, list | tuple | dict | set) and len(value) > _MOST_COPIED
    indexed = hasattr(value, "__getitem__") and hasattr(value, "__len__") and hasattr(value, "__dict__")
    return large or indexed or isinstance(value, Tensor) or type(value).__module__ == "numpy"


def _memo(*parts: nn.Module) -> dict[int, Any]:
    memo: dict[int, Any] = {}
    for module in (module for part in parts for module in part.modules()):
        for value in vars(module).values():
            if isinstance(value, _LOCKS):
                memo[id(value)] = value
            elif isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return memo


def _culprit(part: str, whole: nn.Module) -> str:
    """``model.part.attribute: `` for the attribute that cannot be copied, or nothing where none is alone to blame."""
    for name, module in whole.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules") or isinstance(value, nn.Module):
                continue
            try:
                copy.deepcopy(value, _memo(whole))
            except Exception:
                return f"{'.'.join(filter(None, (part, name, attribute)))}: "
    return ""
