"""The arguments of saving, loading, exporting and importing, checked by name: one table for all these functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..arguments import Arguments
from ..preprocessing import Preprocessing
from ..table_columns import TableColumns
from .info import UNKNOWN, ModelInfo


def checked(arguments: Mapping[str, Any]) -> None:
    """Raise Problems for what cannot be among the arguments of one call, by name (its ``locals()``)."""
    check = Arguments()
    for name, value in arguments.items():
        if name in _CHECKS:
            _CHECKS[name](check, name, value)
    check.done()


def check_model(model: Any, *, none: bool = True, name: bool = False) -> None:
    """Raise Problems unless `model` is a module, or None or the name of one where that is meant."""
    check = Arguments()
    like = "surefoot.models.LeNet5()"
    check.instance("model", model, (nn.Module, str) if name else nn.Module, like, none=none)
    check.done()


def _listed(what: str, text: bool = False) -> Callable[[Arguments, str, Any], None]:
    """Refuses what cannot be iterated over; text too unless `text`."""

    def check_list(check: Arguments, name: str, value: Any) -> None:
        if value is not None and (not hasattr(value, "__iter__") or (not text and isinstance(value, str | bytes))):
            check.refuse(name, f"{value!r} is not {what}")
        elif value is not None and name == "input_shape":
            for size in value:
                check.whole(name, size, low=1)

    return check_list


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


def _instance(kind: type, like: str) -> Callable[[Arguments, str, Any], Any]:
    return lambda check, name, value: check.instance(name, value, kind, like, none=True)


_CHECKS: dict[str, Callable[[Arguments, str, Any], Any]] = {
    **dict.fromkeys(("path", "directory", "to"), Arguments.path),
    **dict.fromkeys(
        ("key", "title", "prefix", "dataset", "recipe_digest"), functools.partial(Arguments.text, none=True)
    ),
    **dict.fromkeys(("metrics", "arguments"), functools.partial(Arguments.mapping, none=True)),
    **dict.fromkeys(("cast", "averaged", "trust_code"), Arguments.flag),
    **dict.fromkeys(("plots", "history"), _listed("a list")),
    "input_shape": _listed("a list of sizes; give that of one sample, e.g. (1, 28, 28)"),
    "classes": _listed("a list of names; give one for each class", text=True),
    "except_": Arguments.texts,
    "info": _instance(ModelInfo, "the .info of an opened model"),
    "preprocessing": _preprocessing,
    "columns": _instance(TableColumns, "splits.train.columns"),
    "batch": _batch,
    "source": _source,
}
