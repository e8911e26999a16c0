"""A model that raised an error on the first batch: which layer, what it was given, what it takes."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...batches import form, signature, whole
from ...errors import UsageError, first_line
from .evidence import Layer

_PACKAGE = Path(__file__).parents[2]
_TORCH = Path(torch.__file__).parent


def refused_by_model(error: Exception, stack: list[Layer], model: nn.Module, batch: Any) -> UsageError:
    """The error to raise from the one that the model raised; `stack` holds the modules that ran, outermost first."""
    text = first_line(error)
    inner = stack[-1] if stack else None
    message = "the model cannot run on the first batch"
    if inner is not None and inner.input is not None:
        message += f": {_where(inner)} was given {form(inner.input)}"
    message += f": {text}"
    line = _users_line(error)
    if line:
        message += f" (at {line})"
    advice = _of_lists(batch, text) or _advice(inner, text)
    advice = advice or f"the batch is {form(whole(batch))} and the model takes {signature(model)}: make them fit"
    return UsageError(f"{message}; {advice}")


def _of_lists(batch: Any, text: str) -> str:
    """What to do about a part of the batch that torch's default collate left, or made, a list."""
    for part in batch:
        if isinstance(part, list | tuple) and part and isinstance(part[0], str):
            return "the inputs are texts: encode them as numbers first"
        if isinstance(part, list) and "not list" in text and all(isinstance(column, Tensor) for column in part):
            return "samples hold lists of numbers, of which a batch has a list of columns: give torch.tensor(values)"
    return ""


def _where(layer: Layer) -> str:
    name = type(layer.module).__name__
    if len(list(layer.module.children())) == 0 and layer.module.extra_repr():
        name = f"{name}({layer.module.extra_repr()})"
    return f"layer {layer.name!r}, {name}," if layer.name else f"the model, {name},"


def _users_line(error: Exception) -> str:
    """The last line of code in the traceback that is neither torch's nor Surefoot's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if _TORCH not in path.parents and _PACKAGE not in path.parents and frame.line:
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return ""


def _advice(layer: Layer | None, text: str) -> str:
    module = layer.module if layer else None
    value = layer.input if layer else None
    weight = getattr(module, "weight", None)
    if value is not None and isinstance(weight, Tensor) and not isinstance(module, nn.Embedding):
        if value.device != weight.device:
            return f"the layer is on {weight.device} and its input on {value.device}: move both to one device"
        if value.dtype != weight.dtype:
            wanted = str(weight.dtype).removeprefix("torch.")
            if value.dtype == torch.uint8:
                return f"normalise the pixels (in a recipe data.normalize), or give `inputs.to(torch.{wanted}) / 255`"
            return f"the layer computes in {wanted}: give `inputs.to(torch.{wanted})`"
    if isinstance(module, nn.Linear) and value is not None and value.shape[-1:] != (module.in_features,):
        flat = value.shape[1:].numel()
        if value.dim() > 2 and flat == module.in_features:
            return "flatten its input first (nn.Flatten)"
        return (
            f"its last dimension must be {module.in_features}: set in_features={value.shape[-1]}, "
            "or change what comes before"
        )
    channels = getattr(module, "in_channels", None)
    if channels is not None and value is not None and value.dim() > 1 and value.shape[1] != channels:
        return (
            f"it takes {channels} channels, (N, {channels}, ...): change in_channels, "
            "or the order of the input's dimensions"
        )
    features = getattr(module, "num_features", None)
    if features is not None and value is not None:
        if "more than 1 value per channel" in text:
            return "batch norm needs more than one sample in training: raise batch_size, or drop_last: true"
        if value.dim() > 1 and value.shape[1] != features:
            return f"set num_features={value.shape[1]}, or change what comes before"
    if isinstance(module, nn.Embedding) and value is not None:
        if value.is_floating_point():
            return "an embedding takes whole numbers: give int64 indices"
        return (
            f"its indices go from 0 to {module.num_embeddings - 1}; "
            f"this batch has {int(value.min())} to {int(value.max())}"
        )
    return ""
