"""Weights from elsewhere put into a model: all names, shapes and dtypes are compared before it is touched."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import rng
from ..errors import Problems, UsageError
from ..fingerprint import Fingerprint
from ..models import MODELS
from ..registry import argument_problems, as_given, did_you_mean, import_object, with_imports
from ..text import counted
from ..untouched import is_lazy
from ..wrapping import unwrap
from . import weights
from .arguments import check_model, checked
from .info import ModelInfo
from .pretrained import folder_spec
from .weight_files import State, read_state, under_prefix

# Prefixes that wrappers leave before every name: DistributedDataParallel, torch.compile, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class Imported:
    """A filled model, its description `info`, how many `tensors` were filled, and what was done to get there.

    `key` is the entry of a checkpoint that the weights were under, `prefix` what was taken off each name, `others`
    what was left aside, `kept` a line for each tensor that the model has of its own, `foreign` the names of objects
    in the file that were not made; `source` is the import path and arguments of a user's own model.
    """

    model: nn.Module = field(repr=False)
    path: Path
    tensors: int
    key: str | None
    prefix: str
    others: tuple[str, ...]
    info: ModelInfo | None
    kept: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    source: tuple[str, Mapping[str, Any]] | None = None


def import_weights(
    path: str | Path,
    model: nn.Module | str | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
    except_: Sequence[str] = (),
    cast: bool = False,
    trust_code: bool = False,
) -> Imported:
    """Fill `model` with the weights of a file from elsewhere; it is left untouched unless everything fits.

    `model` is an instance (filled in place), a registered name or a ``module:Name`` of your own, which are built with
    `arguments`, or None for a file that names its own. `path` is a ``.safetensors``, anything by torch.save (a
    state_dict, bare or in a checkpoint dictionary such as the tutorial's ``{"epoch", "model_state_dict", ...}``, a
    whole model) of any age, or a folder of Hugging Face's, shards included. `key` picks the entry where several
    hold weights (``"model.state_dict"``), `prefix` only the names that begin with it. Prefixes of wrappers
    (``module.``, ``_orig_mod.``) are taken off. Names that match a pattern of `except_` (``"fc.*"``) are not
    taken: the model keeps its own. `cast` accepts other dtypes, but no complex numbers as real
    ones, no fractions as whole ones and none that would become infinite. With `trust_code` the class that the file
    itself names is imported and called.
    The model comes back in eval mode.
    Raises `UsageError` with every difference at once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     torch.save(MODELS.build("LeNet5").state_dict(), Path(d, "model_params.pth"))
    ...     import_weights(Path(d, "model_params.pth"), "LeNet5").tensors
    10
    """
    checked(locals())
    check_model(model, name=True)
    path = Path(path)
    state = read_state(path, key=key)
    if prefix is not None:
        state = under_prefix(state, prefix)
    adopt, source = model is None, None
    described = state.info.model if state.info else folder_spec(path) if path.is_dir() else None
    if model is None:
        if described is None:
            raise UsageError(
                f"{path}: does not name its model; say which one it is for (one of {', '.join(MODELS.names())}, or "
                "module:Name of your own)"
            )
        from .model_dir import build

        if state.info is None and not trust_code:
            kind = described["class"]
            raise UsageError(
                f"{path}: is a model of transformers; name its class: --model {kind} (in Python: {kind!r})"
            )
        model = build(described, path, trust_code=trust_code)
    elif isinstance(model, str):
        model, source = build_named(model, arguments or {}, described)
    elif arguments:
        raise UsageError("arguments: are for a model that is named; the instance has its own", code="argument")
    lines, count, taken = _fill(state, model, except_=except_, cast=cast, adopt=adopt)
    if adopt and state.info is not None:
        weights.take_form(model, state.info.buffer_dtypes, state.info.memory_format)
    return Imported(
        model.eval(),
        path,
        count,
        state.key,
        (prefix or "") + taken,
        state.others,
        state.info,
        lines,
        state.foreign,
        source,
    )


@dataclass(frozen=True)
class Started:
    """What a model began with: `lines` say what was taken and what was not; `fingerprint` is of all that was read."""

    lines: tuple[str, ...]
    fingerprint: str


def start_weights(path: str | Path, model: nn.Module, *, strict: bool = True) -> Started:
    """Fill `model` with weights to begin a training with, from any file, folder or run that `import_weights` reads.

    They are taken in the model's own dtypes. Without `strict` the model keeps its own where the file has none or
    another shape, and each such name is in the lines, as is what the file holds beside. Raises `UsageError`, with every
    difference and the model left as it was, where that is strict or where nothing fits.
    """
    checked({"path": path})
    state = read_state(path)
    lines, count, _ = _fill(state, model, cast=True, strict=strict, starts=True)
    taken = f"{state.path}: {counted(count, 'tensor')}{f' from its entry {state.key!r}' if state.key else ''}"
    return Started((taken, *(f"{state.path}: {line}" for line in lines)), Fingerprint.of(state.tensors))


def _fill(
    state: State, model: nn.Module, *, except_: Sequence[str] = (), cast: bool = False, adopt: bool = False,
    strict: bool = True, starts: bool = False,
) -> tuple[tuple[str, ...], int, str]:  # fmt: skip
    """Put `state` into `model`; returns a line for each that was not taken, how many were, and the prefix taken off.

    A training that `starts` has not the options of an import, which are then not advised.
    Raises `Problems` for all that does not fit, without `strict` only where nothing does.
    """
    target = unwrap(model)
    path = state.path
    tensors, prefix = without_prefix(state.tensors, target)
    weights.give_shapes(tensors, target)
    if shapeless := [name for name, own in target.state_dict().items() if is_lazy(own)]:
        raise UsageError(f"{path}: holds nothing for {shapeless[0]}, which has no shape yet: give it one in the model")
    taken, kept = _except(tensors, target, except_, path)
    count = sum(name not in kept for name in tensors)
    tensors, filled = _counters(taken, target)
    wanted = weights.own_tensors(target)
    loose = [] if strict else weights.differences(tensors, target, dtypes=False)
    if loose:
        fitting = {n: t for n, t in tensors.items() if n in wanted and t.shape == wanted[n].shape}
        count = len(fitting) - len(filled)
        if not count:
            raise Problems([f"{path}: no tensor fits {type(target).__name__}", *(f"{path}: {line}" for line in loose)])
        tensors = {n: t for n, t in weights.completed(fitting, target).items() if n in wanted}
    if cast and not adopt:
        tensors = {n: _cast(t, wanted[n].dtype) if n in wanted else t for n, t in tensors.items()}
    try:
        weights.put(tensors, target, str(path), adopt_dtypes=adopt)
    except Problems as problems:
        hints = _hints(state, tensors, wanted, except_, cast, starts)
        raise Problems(
            [f"{path}: does not fit {type(target).__name__}; the model is as it was", *problems.problems]
            + [f"{path}: {hint}" for hint in hints]
        ) from None
    return (*kept.values(), *filled, *loose), count, prefix


def build_named(
    name: str, arguments: Mapping[str, Any], described: Mapping[str, Any] | None = None
) -> tuple[nn.Module, tuple[str, Mapping[str, Any]] | None]:
    """A registered model or a ``module:Name``, fresh weights drawn from seed 0; and its source if it is not ours.

    A class that takes a `config` (of transformers) has that which is `described` beside the weights, unless given.
    """
    before = rng.get_state()
    try:
        rng.seed_all(0)
        if ":" not in name:
            return MODELS.build(name, arguments), None
        constructor = import_object(name)
        if isinstance(constructor, nn.Module) or not callable(constructor):
            raise UsageError(
                f"{name}: is an object of {type(constructor).__name__}; name the class, or a function that makes one, "
                "or in Python give the object itself",
                code="own-import",
            )
        theirs = (described or {}).get("args") or {}
        takes = name.startswith("transformers:") or "config" in inspect.signature(constructor).parameters
        if "config" in theirs and takes:
            arguments = {"config": theirs["config"], **arguments}
        source = name, dict(arguments)
        arguments = with_imports(arguments)
        problems = argument_problems(name, constructor, arguments)
        if problems:
            raise Problems([p.message for p in problems])
        made = constructor(**as_given(arguments, constructor))
    finally:
        rng.set_state(before)
    if not isinstance(made, nn.Module):
        raise UsageError(f"{name}: made a {type(made).__name__}, not a torch.nn.Module", code="own-import")
    return made, source


def without_prefix(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> tuple[dict[str, torch.Tensor], str]:
    """The same tensors without the wrappers' prefixes that all names share and the model's do not.

    >>> t = torch.zeros(1)
    >>> without_prefix({"module._orig_mod.weight": t, "module._orig_mod.bias": t}, nn.Linear(1, 1))[1]
    'module._orig_mod.'
    """
    wanted = model.state_dict().keys()
    names = {name: name for name in tensors}
    prefix = ""
    # torch.optim.swa_utils.AveragedModel counts beside the model that it wraps.
    averaged = "n_averaged" in names and "n_averaged" not in wanted
    if averaged and all(name.startswith("module.") for name in names if name != "n_averaged"):
        del names["n_averaged"]
    while names:
        shared = [p for p in _PREFIXES if all(name.startswith(p) for name in names.values())]
        if not shared or any(name.startswith(shared[0]) for name in wanted):
            break
        prefix += shared[0]
        names = {old: new.removeprefix(shared[0]) for old, new in names.items()}
    base = getattr(model, "base_model_prefix", "") + "."  # of transformers: a model without its head, and one with it
    ours, theirs = (any(name.startswith(base) for name in either) for either in (wanted, names.values()))
    if ours and not theirs:
        names = {old: base + new if base + new in wanted else new for old, new in names.items()}
    elif theirs and not ours:
        names = {old: new.removeprefix(base) for old, new in names.items()}
    return {new: tensors[old] for old, new in names.items()}, prefix


def _except(
    tensors: dict[str, torch.Tensor], model: nn.Module, patterns: Sequence[str], path: Path
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors with the model's own under each name that a pattern matches, and for each such name a line."""
    own = weights.own_tensors(model)
    kept: dict[str, str] = {}
    for pattern in patterns:
        matched = [name for name in dict.fromkeys([*own, *tensors]) if fnmatchcase(name, pattern)]
        if not matched:
            raise UsageError(f"{path}: except {pattern!r} matches no name{did_you_mean(pattern, [*own, *tensors])}")
        for name in matched:
            both = (("the file has", tensors), ("the model", own))
            sides = [f"{side} {weights.form(found[name])}" for side, found in both if name in found]
            kept[name] = f"{name}: not taken; {', '.join(sides)}"
    taken = {name: t for name, t in tensors.items() if name not in kept}
    return taken | {name: own[name] for name in kept if name in own}, kept


def _counters(tensors: dict[str, torch.Tensor], model: nn.Module) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The counters of batch normalisation, which files of torch before 0.4.1 lack: the model's own, as torch does."""
    own = model.state_dict()
    lacking = [n for n in own if n.endswith("num_batches_tracked") and n not in tensors]
    if any(n.endswith("num_batches_tracked") for n in tensors):
        lacking = []
    return tensors | {n: own[n] for n in lacking}, [f"{n}: not in the file; {own[n].item()}" for n in lacking]


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in `dtype`; as it is where it is complex and that is not, and where values would be other ones."""
    if tensor.is_complex() and not dtype.is_complex:
        return tensor
    converted = tensor.to(dtype)
    if not dtype.is_floating_point and not dtype.is_complex:
        same = torch.equal(converted.to(tensor.dtype), tensor)
    else:  # beyond the largest number of a narrower dtype all is infinite
        same = _largest(dtype) >= _largest(tensor.dtype) or torch.equal(_finite(converted), _finite(tensor))
    return converted if same else tensor


def _largest(dtype: torch.dtype) -> float:
    floats = dtype.is_floating_point or dtype.is_complex
    return torch.finfo(dtype).max if floats else math.inf if dtype is not torch.bool else 1.0


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.float() if tensor.dtype.itemsize == 1 else tensor).isfinite()  # torch has none of float8


def _hints(
    state: State, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor],
    except_: Sequence[str], cast: bool, starts: bool,
) -> list[str]:  # fmt: skip
    """What to say so that a file fits that does not."""
    hints = []
    both = [n for n in tensors if n in wanted]
    others = [n for n in both if tensors[n].dtype != wanted[n].dtype]
    if not cast and any(_cast(tensors[n], wanted[n].dtype) is not tensors[n] for n in others):
        hints.append("--cast (cast=True) takes its values in the model's dtype")
    elif others:
        hints.append(
            "complex numbers are not taken as real ones, nor fractions as whole ones, nor numbers that the model's "
            "dtype is too narrow for: convert the file's"
        )
    if any(".lora_A." in name or ".base_layer." in name for name in state.tensors):
        hints.append("these names are of a model wrapped by PEFT: save model.merge_and_unload().state_dict() instead")
    if starts:
        if any(tensors[n].shape == wanted[n].shape for n in both):
            hints.append("strict: false in the model's section takes what fits; of the rest the model keeps its own")
        return hints
    ends = {name for name in state.tensors if name not in wanted}
    first = next(iter(wanted), "")
    for name in sorted(ends):
        head = name.removesuffix(first) if name.endswith("." + first) else ""
        if head and all(head + n in state.tensors for n in wanted):
            hints.append(f"all names of the model are there behind {head!r}: --prefix {head} (prefix={head!r})")
            break
    wrong = sorted({n.rpartition(".")[0] for n in both if tensors[n].shape != wanted[n].shape})
    if wrong and len(wrong) <= 3 and len(both) > len(wrong) * 2:
        patterns = " ".join(f'--except "{n}.*"' for n in wrong)
        hints.append(f"to take all but what has another shape: {patterns}")
    return hints
