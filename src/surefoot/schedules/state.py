"""A scheduler's state as plain JSON-able data and back: no pickle, no NaN or infinity, nothing lost."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from ..errors import UsageError

# Marks what JSON has no word for; a scheduler's own keys do not begin like this.
KEY = "__surefoot__"


def encode(value: Any, where: str = "state") -> Any:
    """`value` with tuples, counters, infinities and integer keys told apart from what JSON makes of them.

    >>> encode({"best": math.inf, "milestones": Counter([2, 2])})
    {'best': {'__surefoot__': 'float', 'value': 'inf'}, 'milestones': {'__surefoot__': 'counter', 'value': [[2, 2]]}}

    Raises UsageError for a value that is no plain data.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {KEY: "float", "value": repr(value)}
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Counter):
        return {KEY: "counter", "value": [[encode(k, where), n] for k, n in value.items()]}
    if isinstance(value, tuple):
        return {KEY: "tuple", "value": [encode(item, where) for item in value]}
    if isinstance(value, list):
        return [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: encode(item, f"{where}.{key}") for key, item in value.items()}
        return {KEY: "dict", "value": [[encode(k, where), encode(v, where)] for k, v in value.items()]}
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of NumPy's
        return encode(value.item(), where)
    raise UsageError(
        f"{where}: a {type(value).__name__} cannot be saved as plain data; "
        "keep numbers, strings, lists and tensors in what a scheduler remembers"
    )


def decode(value: Any) -> Any:
    """What `encode` was given.

    >>> decode(encode({"betas": (0.9, math.inf)}))
    {'betas': (0.9, inf)}
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.clone()
    if not isinstance(value, dict):
        return value
    kind = value.get(KEY)
    if kind is None:
        return {key: decode(item) for key, item in value.items()}
    inside = value["value"]
    if kind == "float":
        return float(inside)
    if kind == "tuple":
        return tuple(decode(item) for item in inside)
    pairs = {decode(key): decode(item) for key, item in inside}
    return Counter(pairs) if kind == "counter" else pairs
