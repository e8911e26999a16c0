"""What a saved model says about itself: model.json and the same text inside single-file exports."""

from __future__ import annotations

import inspect
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arguments import as_metric
from ..errors import UsageError
from ..models import spec_of
from ..preprocessing import Preprocessing
from ..safe_tensors import BadFile
from ..version import __version__
from .weights import memory_format, plain

FORMAT = "surefoot-model"
FORMAT_VERSION = 1
UNKNOWN = "unknown"
"""In place of a preprocessing: nobody told, so that the weights cannot be used without being told."""
DTYPES = ("uint8", "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "bool")


@dataclass(frozen=True)
class ModelInfo:
    """The description that travels with the weights.

    `model` is ``{"name": ..., "args": {...}}`` for a registered model, ``{"class": "module:Name",
    "args": {...} | None}`` for a user's own. `input_shape` is that of one raw sample, without N; `input_dtype`
    is the raw data's, as torch names it. `dataset` names what it was trained on; `averaged` says that the weights are
    a moving average of the training's (EMA). Fields that nobody told are None; a `preprocessing` of None means that the
    model takes raw data as they are, unless `preprocessing_known` is False (weights from elsewhere).
    """

    model: dict[str, Any]
    input_shape: tuple[int, ...] | None = None
    input_dtype: str | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    loss: Any = None
    metrics: dict[str, Any] = field(default_factory=dict)
    recipe_digest: str | None = None
    title: str | None = None
    dataset: str | None = None
    averaged: bool = False
    memory_format: str = "contiguous"
    versions: dict[str, str] = field(default_factory=dict)
    preprocessing_known: bool = True

    @property
    def model_name(self) -> str:
        """The name to show: the registry's, or the class's own."""
        return self.model.get("name") or self.model["class"].rpartition(":")[2]

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` takes; a number that is not finite becomes null."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "title": self.title,
            "model": _plain(self.model),
            "input": {"shape": _list(self.input_shape), "dtype": self.input_dtype},
            "classes": _list(self.classes),
            "preprocessing": _preparation(self),
            "loss": _plain(self.loss),
            "metrics": _plain(self.metrics),
            "recipe_digest": self.recipe_digest,
            "dataset": self.dataset,
            "averaged": self.averaged,
            "memory_format": self.memory_format,
            "versions": self.versions,
        }

    @classmethod
    def from_json(cls, data: Any, where: str | Path) -> ModelInfo:
        """The info that `to_json` wrote; `where` begins each message. Raises `BadFile` for anything else.

        Fields that this version does not know are left aside, so that a later one may add some.
        """

        def bad(what: str) -> BadFile:
            return BadFile(where, what)

        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise bad(f'is not the description of a Surefoot model ("format": "{FORMAT}" was expected)')
        version = data.get("format_version")
        if type(version) is not int or version < 1:
            raise bad(f"format_version: {str(version)[:40]!r} is not a whole number from 1 on")
        if version > FORMAT_VERSION:
            raise bad(f"was written in format {version}; this Surefoot reads up to {FORMAT_VERSION}: update it")
        sample = data.get("input") or {}
        if not isinstance(sample, Mapping):
            raise bad("input: not an object")
        return cls(
            model=_model(data.get("model"), bad),
            input_shape=_shape(sample.get("shape"), bad),
            input_dtype=_choice(sample.get("dtype"), DTYPES, "input.dtype", bad),
            classes=_names(data.get("classes"), bad),
            preprocessing=_preprocessing(data.get("preprocessing"), bad),
            preprocessing_known=data.get("preprocessing") != UNKNOWN,
            loss=data.get("loss"),
            metrics=_object(data.get("metrics"), "metrics", bad),
            recipe_digest=_text(data.get("recipe_digest"), "recipe_digest", bad),
            title=_text(data.get("title"), "title", bad),
            dataset=_text(data.get("dataset"), "dataset", bad),
            averaged=_choice(data.get("averaged", False), (False, True), "averaged", bad),
            memory_format=_choice(
                data.get("memory_format", "contiguous"),
                ("contiguous", "channels_last"),
                "memory_format",
                bad,
            ),
            versions={k: str(v) for k, v in _object(data.get("versions"), "versions", bad).items()},
        )


def describe_model(
    model: nn.Module,
    *,
    preprocessing: Preprocessing | str | None = None,
    classes: Sequence[str] | None = None,
    input_shape: Sequence[int] | None = None,
    input_dtype: str | torch.dtype | None = None,
    loss: Any = None,
    metrics: Mapping[str, Any] | None = None,
    recipe_digest: str | None = None,
    title: str | None = None,
    dataset: str | None = None,
    averaged: bool = False,
    source: tuple[str, Mapping[str, Any]] | None = None,
) -> ModelInfo:
    """The `ModelInfo` of a live model. `source` is the import path and arguments that made a user's own model;
    `preprocessing` may be "unknown".

    Raises `UsageError` for a description that does not fit the model or cannot be written as JSON.
    """
    model, average = plain(model)
    spec = spec_of(model)
    if spec is None:
        path, args = source or (f"{type(model).__module__}:{type(model).__qualname__}", _own_arguments(model))
        spec = {"class": path, "args": None if args is None else dict(args)}
        if not _is_plain(spec["args"], finite=True):
            # Arguments that JSON cannot hold (a module, a function, infinity) are not written: the caller passes
            # the instance when the model is loaded.
            spec["args"] = None
    dtype = str(input_dtype).removeprefix("torch.") if input_dtype is not None else None
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"input_dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    if classes is not None:
        classes = tuple(str(name) for name in classes)
        if len(set(classes)) != len(classes):
            raise UsageError("classes: a name stands twice")
    metrics = metrics and {k: v if as_metric(v) is None else as_metric(v) for k, v in metrics.items()}
    for name, value in (("loss", loss), ("metrics", metrics)):
        if not _is_plain(value):
            raise UsageError(f"{name}: {value!r} is not made of numbers, text, lists and mappings")
    return ModelInfo(
        model=spec,
        input_shape=tuple(int(n) for n in input_shape) if input_shape is not None else None,
        input_dtype=dtype,
        classes=classes,
        preprocessing=preprocessing if isinstance(preprocessing, Preprocessing) else None,
        preprocessing_known=preprocessing != UNKNOWN,
        loss=loss,
        metrics=dict(metrics or {}),
        recipe_digest=recipe_digest,
        title=title,
        dataset=dataset,
        averaged=averaged or average,
        memory_format=memory_format(model),
        versions={"surefoot": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )


def _own_arguments(model: nn.Module) -> Mapping[str, Any] | None:
    arguments = getattr(model, "arguments", None)
    if isinstance(arguments, Mapping):
        return arguments
    # A constructor that takes nothing can have been called in one way only.
    return None if inspect.signature(type(model)).parameters else {}


def _is_plain(value: Any, finite: bool = False) -> bool:
    if isinstance(value, float):
        return not finite or math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(_is_plain(v, finite) for v in value)
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v, finite) for k, v in value.items())
    return value is None or isinstance(value, bool | int | str)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _list(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _model(found: Any, bad: Any) -> dict[str, Any]:
    if isinstance(found, Mapping) and set(found) == {"name", "args"}:
        name, args = found["name"], found["args"]
        if isinstance(name, str) and len(name) <= 200 and isinstance(args, Mapping):
            return {"name": name, "args": dict(args)}
    if isinstance(found, Mapping) and set(found) == {"class", "args"}:
        path, args = found["class"], found["args"]
        module, _, attribute = path.partition(":") if isinstance(path, str) else ("", "", "")
        if module and attribute and (args is None or isinstance(args, Mapping)):
            return {"class": path, "args": None if args is None else dict(args)}
    raise bad('model: neither {"name", "args"} nor {"class": "module:Name", "args"}')


def _shape(found: Any, bad: Any) -> tuple[int, ...] | None:
    if found is None:
        return None
    if not isinstance(found, list) or len(found) > 8 or not all(type(n) is int and n > 0 for n in found):
        raise bad("input.shape: not a list of up to 8 whole numbers above 0")
    if math.prod(found) > 2**31:
        raise bad(f"input.shape: {found} is more than 2**31 numbers a sample")
    return tuple(found)


def _names(found: Any, bad: Any) -> tuple[str, ...] | None:
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(n, str) for n in found):
        raise bad("classes: not a list of names")
    return tuple(found)


def _preparation(info: ModelInfo) -> Any:
    if not info.preprocessing_known:
        return UNKNOWN
    return info.preprocessing.to_json() if info.preprocessing else None


def _preprocessing(found: Any, bad: Any) -> Preprocessing | None:
    if found is None or found == UNKNOWN:
        return None
    try:
        return Preprocessing.from_json(found)
    except UsageError as error:
        raise bad(str(error)) from error


def _object(found: Any, name: str, bad: Any) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise bad(f"{name}: not an object")
    return dict(found)


def _text(found: Any, name: str, bad: Any) -> str | None:
    if found is not None and not isinstance(found, str):
        raise bad(f"{name}: not text")
    return found


def _choice(found: Any, options: Sequence[str], name: str, bad: Any) -> Any:
    if found is not None and found not in options:
        raise bad(f"{name}: {str(found)[:40]!r} is not one of {', '.join(options)}")
    return found
