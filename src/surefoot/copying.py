"""Copies of models that `copy.deepcopy` alone refuses: with locks, and with results that they keep."""

from __future__ import annotations

import copy
import threading
from typing import Any, TypeVar

from torch import Tensor, nn

from .errors import UsageError, first_line

_LOCKS = (type(threading.Lock()), type(threading.RLock()))
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
