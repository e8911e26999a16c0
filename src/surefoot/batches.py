"""Batches and outputs of any form: walked, made of samples, counted, moved, given to a model, joined."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from .errors import UsageError
from .wrapping import unwrap

# Under these names a sample that is a dictionary holds its target, where a loss asks for outputs and targets.
TARGET_NAMES = ("labels", "label", "targets", "target", "y")


def size(batch: Any) -> int:
    """The number of samples of a batch: its `num_graphs`, or the length of its first part.

    Looked into are tuples, lists, mappings and dataclasses. Raises UsageError where nothing has a length.

    >>> size((torch.zeros(4, 3), torch.zeros(4))), size(({"x": torch.zeros(5, 2)},))
    (4, 5)
    """
    first = batch
    while not isinstance(first, Tensor):
        if (graphs := getattr(first, "num_graphs", None)) is not None:
            return int(graphs)
        part = next(iter(inside(first) or ()), None)
        if part is not None and not isinstance(part[1], str):
            first = part[1]
        elif hasattr(first, "__len__"):
            return len(first)
        else:
            raise UsageError(
                f"data: the samples of a batch cannot be counted: its first part is {type(first).__name__}; "
                "let a tensor of (N, ...) come first"
            )
    return len(first) if first.dim() else 1


def stacked(samples: Sequence[Any]) -> Any:
    """A batch of `samples`, all of one form: torch's default_collate, and for dataclasses the same field by field.

    Graphs of PyTorch Geometric become one, its own Batch. Raises what default_collate raises for samples that differ.
    """
    first = samples[0]
    if _is_dataclass(first):
        parts = {name: stacked([getattr(sample, name) for sample in samples]) for name, _ in inside(first) or ()}
        return dataclasses.replace(first, **parts)
    if hasattr(first, "__cat_dim__"):
        return importlib.import_module("torch_geometric.data").Batch.from_data_list(list(samples))
    if type(first) in (tuple, list) and any(map(_is_dataclass, first)):
        return tuple(stacked(parts) for parts in zip(*samples, strict=True))
    if type(first) is dict and any(map(_is_dataclass, first.values())):
        return {key: stacked([sample[key] for sample in samples]) for key in first}
    return default_collate(list(samples))


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a nest of mappings, dataclasses, tuples and lists with its place: keys, fields and positions.

    >>> [name for name, _ in leaves({"logits": 1, "boxes": (2, 3)})]
    ['logits', 'boxes.0', 'boxes.1']
    """
    items = inside(value)
    if items is None:
        yield place, value
        return
    for key, item in items:
        yield from leaves(item, f"{place}.{key}" if place else str(key))


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nest."""
    return (leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor))


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`value`, of the same form, with `function` applied to what is in it; what has a `to` of its own stays whole."""
    return (
        function(value) if isinstance(value, Tensor) else pytree.tree_map(functools.partial(_mapped, function), value)
    )


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    # Dictionaries, tuples, lists and outputs of transformers are pytree's; these are not.
    if _is_dataclass(value):
        return dataclasses.replace(value, **{name: mapped(function, item) for name, item in inside(value) or ()})
    if isinstance(value, list | tuple):
        return type(value)([mapped(function, item) for item in value])
    if isinstance(value, Mapping) and not hasattr(type(value), "to"):
        return type(value)({key: mapped(function, item) for key, item in value.items()})  # type: ignore[call-arg]
    return function(value)


def joined(outputs: Sequence[Any]) -> Any:
    """The outputs of several batches as those of one: every tensor (N, ...) concatenated. None where they do not fit.

    >>> joined([{"logits": torch.zeros(2, 3)}, {"logits": torch.zeros(1, 3)}])["logits"].shape
    torch.Size([3, 3])
    """
    flat = [list(leaves(output)) for output in outputs]
    if any([name for name, _ in one] != [name for name, _ in flat[0]] for one in flat):
        return None
    columns = [[leaf for _, leaf in column] for column in zip(*flat, strict=True)]
    for parts in columns:
        fits = all(isinstance(part, Tensor) and part.dim() and part.shape[1:] == parts[0].shape[1:] for part in parts)
        if not fits and any(part is not None for part in parts):
            return None
    whole = iter([None if parts[0] is None else torch.cat(parts) for parts in columns])
    return mapped(lambda _: next(whole), outputs[0]) if next(tensors(outputs[0]), None) is not None else None


def unopaque(output: Any) -> Any:
    """A mapping of outputs without the entries that hold anything but tensors, as the cache of a causal model.

    >>> list(unopaque({"logits": torch.zeros(2), "cache": object()}))
    ['logits']
    """
    if not isinstance(output, Mapping):
        return output
    opaque = [k for k, v in output.items() if any(not isinstance(leaf, Tensor | None) for _, leaf in leaves(v))]
    if not opaque:
        return output
    if _is_dataclass(output):  # as transformers' are, whose entries cannot be deleted
        return dataclasses.replace(output, **dict.fromkeys(opaque))  # type: ignore[type-var]
    return type(output)({key: value for key, value in output.items() if key not in opaque})  # type: ignore[call-arg]


def detached(value: Any) -> Any:
    """`value` with every tensor without its graph."""
    return mapped(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, value)


def moved(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor on `device`; what has a `to` of its own (BatchEncoding, a graph) is moved by it."""
    return batch if device.type == "cpu" else mapped(functools.partial(_put, device=device), batch)


def whole(batch: tuple[Any, ...]) -> Any:
    """What the data set's collate function gave: the only part of a batch that has one, else the tuple."""
    return batch[0] if type(batch) is tuple and len(batch) == 1 else batch


class Rest(dict[str, Any]):
    """The inputs of a sample that is one mapping: what is beside its target."""


def pair(batch: Any) -> tuple[Any, Any] | None:
    """``(inputs, targets)`` of a batch, or None where it is no such pair.

    Of a mapping the targets are what has one of `TARGET_NAMES`, and the inputs what is left: a `Rest`, whose only entry
    is given to the model as it is where its name is no argument of forward (see `call`). Of a graph they are its `y`.

    >>> pair(({"x": 1, "label": 2},))
    ({'x': 1}, 2)
    """
    if len(batch) == 2 and not isinstance(batch, Mapping):
        return batch[0], batch[1]
    given = whole(batch)
    if _is_graph(given) and isinstance(getattr(given, "y", None), Tensor):
        return given, given.y
    if not isinstance(given, Mapping):
        return None
    name = next((name for name in TARGET_NAMES if name in given), None)
    if name is None:
        return None
    return Rest((key, value) for key, value in given.items() if key != name), given[name]


def takes(model: Any, name: str) -> bool:
    """Whether forward has an argument of that name."""
    return name in _arguments(model)[0]


def call(model: Callable[..., Any], inputs: Any, **more: Any) -> Any:
    """``model(inputs, **more)``; keywords from a mapping, several arguments from a tuple, where forward takes them so.

    A mapping is spread where every key is an argument of forward; a `Rest` with a single entry gives that as the only
    argument. A tuple or list is spread where forward needs more than one argument. A graph is spread where it has all
    that forward needs by name: ``forward(x, edge_index, batch)``.
    """
    if isinstance(inputs, Tensor):
        return model(inputs, **more)
    if isinstance(inputs, Mapping):
        names, _, anything = _arguments(model)
        if all(isinstance(key, str) and (key in names or anything) for key in inputs):
            return model(**inputs, **more)
        single = isinstance(inputs, Rest) and len(inputs) == 1
        return model(next(iter(inputs.values())) if single else inputs, **more)
    if isinstance(inputs, tuple | list) and len(inputs) > 1 and len(_arguments(model)[1]) > 1:
        return model(*inputs, **more)
    if _is_graph(inputs):
        names, needed, _ = _arguments(model)
        parts = {name: getattr(inputs, name, None) for name in names}
        if needed and all(parts[name] is not None for name in needed):
            return model(**{name: part for name, part in parts.items() if part is not None}, **more)
    return model(inputs, **more)


def member(outputs: Any, *names: str) -> Tensor | None:
    """The first tensor of these names in a mapping or an object of outputs."""
    for name in names:
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    return None


def scores(outputs: Any) -> Any:
    """What an object of outputs says of each sample: its `logits` (transformers) or `out` (torchvision); else itself.

    >>> scores({"logits": torch.zeros(2, 3), "hidden": None}).shape
    torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor) or (found := member(outputs, "logits", "out")) is None:
        return outputs
    return found


def form(value: Any) -> str:
    """A batch, a sample, or a part of one, as a message shows it.

    >>> form((torch.zeros(3), {"label": 1}))
    '[(3,) float32, {label: int}]'
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    parts = [] if (items := inside(value)) is None else list(items)
    more = ", ..." if len(parts) > 4 else ""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return f"[{', '.join(form(item) for _, item in parts[:4])}{more}]"
    named = ", ".join(f"{key}: {form(item)}" for key, item in parts[:4]) + more
    name = "" if type(value) is dict else type(value).__name__
    return name if items is None else f"{name}{{{named}}}"


def signature(model: Any) -> str:
    """What forward takes, by name, as a message shows it: ``forward(left, right, scale=...)``."""
    try:
        parameters = inspect.signature(_forward(model)).parameters.values()
    except (TypeError, ValueError):  # of compiled code
        return "forward(...)"
    names = [
        f"{'*' * (p.kind is p.VAR_POSITIONAL) + '**' * (p.kind is p.VAR_KEYWORD)}{p.name}"
        + ("" if p.default is p.empty else "=...")
        for p in parameters
    ]
    return f"forward({', '.join(names)})"


def _put(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        if device.type == "cuda" and value.device.type == "cpu":
            # Pinned memory lets the copy go on while the device still works on the batch before.
            value = value.pin_memory()
        return value.to(device, non_blocking=True)
    return value.to(device) if callable(getattr(value, "to", None)) else value


def inside(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """The parts of a nest by key, field or position; None for what is none."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if isinstance(value, list | tuple):
        return enumerate(value)
    if _is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]
    return None


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _forward(model: Any) -> Any:
    module = unwrap(model) if isinstance(model, torch.nn.Module) else model
    return getattr(module, "forward", module)


def _is_graph(value: Any) -> bool:
    return getattr(value, "num_graphs", None) is not None


def _arguments(model: Any) -> tuple[frozenset[str], tuple[str, ...], bool]:
    """The names that forward takes by keyword, those that it needs by position, whether it takes any name."""
    forward = _forward(model)
    return _of_function(getattr(forward, "__func__", forward), hasattr(forward, "__func__"))


@functools.lru_cache(maxsize=64)
def _of_function(function: Any, bound: bool) -> tuple[frozenset[str], tuple[str, ...], bool]:
    try:
        parameters = list(inspect.signature(function).parameters.values())[1 if bound else 0 :]
    except (TypeError, ValueError):
        return frozenset(), (), False
    names = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = tuple(p.name for p in positional if p.default is p.empty)
    return names, needed, any(p.kind is p.VAR_KEYWORD for p in parameters)
