"""Copies of models that `copy.deepcopy` alone refuses, and of objects that hold much data."""

from __future__ import annotations

import copy
import threading
from typing import Any, TypeVar

from torch import Tensor, nn

from .errors import UsageError, first_line

_LOCKS = (type(threading.Lock()), type(threading.RLock()))
# Lists and dicts of more are taken for data.
_MOST_COPIED = 64
T = TypeVar("T")


def copied(value: T, model: nn.Module) -> T:
    """A deep copy of `value`, which is or holds `model`. Locks are shared; results that a module keeps (as the older
    `weight_norm` does) are copied without their graph.

    Raises UsageError, naming the attribute, where there is no copy.
    """
    try:
        return copy.deepcopy(value, _memo(model))
    except Exception as error:  # a user's own `__deepcopy__` may raise anything
        raise UsageError(
            f"the model cannot be copied: {_culprit(model)}{first_line(error, kind=True)}; give the class of what "
            "cannot be copied a `__deepcopy__`"
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


def _memo(model: nn.Module) -> dict[int, Any]:
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, _LOCKS):
                memo[id(value)] = value
            elif isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return memo


def _culprit(model: nn.Module) -> str:
    """``model.part.attribute: `` for the attribute that cannot be copied, or nothing where none is alone to blame."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules") or isinstance(value, nn.Module):
                continue
            try:
                copy.deepcopy(value, _memo(model))
            except Exception:
                return f"{'.'.join(filter(None, ('model', name, attribute)))}: "
    return ""
