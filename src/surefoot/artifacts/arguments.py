"""The arguments of saving, loading, exporting and importing, checked by name: one table for all these functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..arguments import Arguments
from ..preprocessing import Preprocessing
from .info import UNKNOWN, ModelInfo


def checked(given: Mapping[str, Any]) -> None:
    """Raise Problems for what cannot be among the arguments of one call, by name (its ``locals()``)."""
    check = Arguments()
    for name, value in given.items():
        if name in _KINDS:
            _KINDS[name](check, name, value)
    check.done()


def check_model(model: Any, *, none: bool = True, name: bool = False) -> None:
    """Raise Problems unless `model` is a module, or None or the name of one where that is meant."""
    check = Arguments()
    like = "surefoot.models.LeNet5()"
    check.instance("model", model, (nn.Module, str) if name else nn.Module, like, none=none)
    check.done()


def _shape(check: Arguments, name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        check.refuse(name, f"{value!r} is not a list of sizes; give that of one sample, e.g. (1, 28, 28)")
        return
    for size in value:
        check.whole(name, size, low=1, none=True)


def _items(check: Arguments, name: str, value: Any) -> None:
    if value is not None and (isinstance(value, str | bytes) or not hasattr(value, "__iter__")):
        check.refuse(name, f"{value!r} is not a list")


def _classes(check: Arguments, name: str, value: Any) -> None:
    if value is not None and not hasattr(value, "__iter__"):
        check.refuse(name, f"{value!r} is not a list of names; give one for each class")


def _source(check: Arguments, name: str, value: Any) -> None:
    if value is not None and not (isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], str)):
        check.refuse(name, f'{value!r} is not a pair; give ("module:Name", its arguments)')


def _batch(check: Arguments, name: str, value: Any) -> None:
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, tuple | list | dict) or not all(isinstance(part, torch.Tensor) for part in parts):
        check.instance(name, value, torch.Tensor, "torch.zeros(2, 1, 28, 28)", none=True)


def _preprocessing(check: Arguments, name: str, value: Any) -> None:
    if value != UNKNOWN:
        check.instance(name, value, Preprocessing, "surefoot.Preprocessing(mean=0.5, std=0.5)", none=True)


def _info(check: Arguments, name: str, value: Any) -> None:
    check.instance(name, value, ModelInfo, "the .info of an opened model", none=True)


_KINDS = {
    "info": _info,
    "path": Arguments.path,
    "directory": Arguments.path,
    "to": Arguments.path,
    "preprocessing": _preprocessing,
    "classes": _classes,
    "input_shape": _shape,
    "batch": _batch,
    "key": lambda check, name, value: check.text(name, value, none=True),
    "title": lambda check, name, value: check.text(name, value, none=True),
    "metrics": lambda check, name, value: check.mapping(name, value, none=True),
    "arguments": lambda check, name, value: check.mapping(name, value, none=True),
    "prefix": lambda check, name, value: check.text(name, value, none=True),
    "except_": lambda check, name, value: check.texts(name, value),
    "cast": Arguments.flag,
    "averaged": Arguments.flag,
    "dataset": lambda check, name, value: check.text(name, value, none=True),
    "trust_code": Arguments.flag,
    "source": _source,
    "plots": _items,
    "history": _items,
}
