"""What a saved model says about itself: model.json and the same text inside single-file exports."""

from __future__ import annotations

import inspect
import math
import platform
from collections import Counter
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
from ..table_columns import TableColumns
from ..version import __version__
from ..wrapping import class_path
from . import pretrained
from .weights import buffer_dtypes, memory_format, plain

FORMAT = "surefoot-model"
FORMAT_VERSION = 1
UNKNOWN = "unknown"
"""In place of a preprocessing that is not known: the model is not used before one is given."""
DTYPES = ("uint8", "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "bool")
FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ModelInfo:
    """The description that travels with the weights.

    `model` is ``{"name": ..., "args": {...}}`` for a registered model, ``{"class": "module:Name", "args": {...} |
    None}`` for a user's own. `input_shape` is that of one raw sample, without N; `input_dtype` is the raw data's, as
    torch names it. `dataset` names what it was trained on; `averaged` says that the weights are a moving average of the
    training's (EMA); `columns` are those of the table whose rows it takes. `classes` are their names, `loss` and
    `metrics` what it was trained by and reached, `recipe_digest` and `versions` from what and by what, `title` what it
    is called, `memory_format` how it lies in memory, `buffer_dtypes` of what dtypes the buffers are that no file has.
    Fields that are not known are None; a `preprocessing` of None means that the model takes raw data as they are,
    unless `preprocessing_known` is False (weights from elsewhere).
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
    columns: TableColumns | None = None
    buffer_dtypes: dict[str, str] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The name to show: the registry's, or the class's own."""
        return str(self.model.get("name") or self.model["class"].rpartition(":")[2])

    @property
    def reads_text(self) -> bool:
        """Whether a sample is a window of a text, whose tokens are the classes."""
        window = self.input_dtype == "int64" and self.input_shape is not None and len(self.input_shape) == 1
        return self.dataset == "text" and window and self.classes is not None

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` takes; a number that is not finite becomes null."""
        prepared = self.preprocessing.to_json() if self.preprocessing else None
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "title": self.title,
            "model": _plain(self.model),
            "input": {"shape": None if self.input_shape is None else [*self.input_shape], "dtype": self.input_dtype},
            "classes": None if self.classes is None else [*self.classes],
            "preprocessing": prepared if self.preprocessing_known else UNKNOWN,
            "columns": self.columns and self.columns.to_json(),
            "loss": _plain(self.loss),
            "metrics": _plain(self.metrics),
            "recipe_digest": self.recipe_digest,
            "dataset": self.dataset,
            "averaged": self.averaged,
            "memory_format": self.memory_format,
            "versions": self.versions,
            **({"buffer_dtypes": self.buffer_dtypes} if self.buffer_dtypes else {}),
        }

    @classmethod
    def from_json(cls, data: Any, where: str | Path) -> ModelInfo:
        """The info that `to_json` wrote; `where` begins each message. Raises `BadFile` for anything else.

        Fields that this version does not know are left aside, so that a later one may add some.
        """

        def bad(what: str) -> BadFile:
            return BadFile(where, what)

        def entry(name: str, kind: type, expected: str, default: Any = None) -> Any:
            value = data.get(name)
            if value is not None and not isinstance(value, kind):
                raise bad(f"{name}: not {expected}")
            return default if value is None else value

        def choice(name: str, value: Any, options: Sequence[Any]) -> Any:
            if value is not None and value not in options:
                raise bad(f"{name}: {str(value)[:40]!r} is not one of {', '.join(map(str, options))}")
            return value

        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise bad(f'is not the description of a Surefoot model ("format": "{FORMAT}" was expected)')
        version = data.get("format_version")
        if type(version) is not int or version < 1:
            raise bad(f"format_version: {str(version)[:40]!r} is not a whole number from 1 on")
        if version > FORMAT_VERSION:
            raise bad(f"was written in format {version}; this Surefoot reads up to {FORMAT_VERSION}: update it")
        sample = entry("input", Mapping, "an object", {})
        classes = entry("classes", list, "a list of names")
        if not all(isinstance(name, str) for name in classes or ()):
            raise bad("classes: not a list of names")
        preprocessing, columns = data.get("preprocessing"), data.get("columns")
        try:
            prepared = None if preprocessing in (None, UNKNOWN) else Preprocessing.from_json(preprocessing or {})
            columns = None if columns is None else TableColumns.from_json(columns)
        except UsageError as error:
            raise bad(str(error)) from error
        dtypes = dict(entry("buffer_dtypes", Mapping, "an object", {}))
        for name, dtype in dtypes.items():
            choice(f"buffer_dtypes.{name[:80]}", dtype or "null", FLOATS)
        layout = choice("memory_format", data.get("memory_format", "contiguous"), ("contiguous", "channels_last"))
        return cls(
            model=_model(data.get("model"), where),
            input_shape=_shape(sample.get("shape"), where),
            input_dtype=choice("input.dtype", sample.get("dtype"), DTYPES),
            classes=None if classes is None else tuple(classes),
            preprocessing=prepared,
            preprocessing_known=preprocessing != UNKNOWN,
            columns=columns,
            loss=data.get("loss"),
            metrics=dict(entry("metrics", Mapping, "an object", {})),
            recipe_digest=entry("recipe_digest", str, "text"),
            title=entry("title", str, "text"),
            dataset=entry("dataset", str, "text"),
            averaged=choice("averaged", data.get("averaged", False), (False, True)),
            memory_format=layout,
            buffer_dtypes=dtypes,
            versions={k: str(v) for k, v in entry("versions", Mapping, "an object", {}).items()},
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
    columns: TableColumns | None = None,
    source: tuple[str, Mapping[str, Any]] | None = None,
) -> ModelInfo:
    """The `ModelInfo` of a live model: what is saved with its weights. What is not known is left out.

    `preprocessing` is "unknown" where it is not known how raw data are prepared: the model is then not used before one
    is given. `input_shape` is that of one raw sample, without N, `input_dtype` the raw data's; `classes` are the
    names of the outputs; `metrics` are the results to show, e.g. ``{"val/accuracy": 0.95}``; `dataset` names what the
    model was trained on, `averaged` says that the weights are a moving average; `columns` are those of the table whose
    rows it takes; `source` is the import path and arguments of a user's own class.

    Raises `UsageError` for a description that does not fit the model or cannot be written as JSON.
    """
    model, average = plain(model)
    classes = pretrained.labels(model) if classes is None else classes
    spec = spec_of(model)
    if spec is None and not (source and pretrained.config_of({"args": source[1]})):
        spec = pretrained.pretrained_spec(model, classes)
    if spec is None:
        path, args = source or (class_path(model), _own_arguments(model))
        spec = {"class": path, "args": _with_plain_numbers(args)}
        if not _is_plain(spec["args"], finite=True):
            # Arguments that JSON cannot hold (a module, a function, infinity) are not written: the caller passes
            # the instance when the model is loaded.
            spec["args"] = None
    dtype = str(input_dtype).removeprefix("torch.") if input_dtype is not None else None
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"input_dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    if classes is not None:
        classes = tuple(str(name) for name in classes)
        if twice := [name for name, count in Counter(classes).items() if count > 1]:
            raise UsageError(f"classes: {twice[0]!r} stands twice; give each class a name of its own")
    metrics = metrics and {k: v if as_metric(v) is None else as_metric(v) for k, v in metrics.items()}
    for name, value in (("loss", loss), ("metrics", metrics)):
        if not _is_plain(value):
            raise UsageError(f"{name}: {value!r} is not made of numbers, text, lists and mappings")
    return ModelInfo(
        model=spec,
        input_shape=None if input_shape is None else _shape([int(n) for n in input_shape], "the model's description"),
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
        columns=columns,
        memory_format=memory_format(model),
        buffer_dtypes={name: dtype for name, dtype in buffer_dtypes(model).items() if dtype in FLOATS},
        versions={"surefoot": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )


def _own_arguments(model: nn.Module) -> Mapping[str, Any] | None:
    arguments = getattr(model, "arguments", None)
    if isinstance(arguments, Mapping):
        return arguments
    # A constructor that takes nothing can have been called in one way only.
    return None if inspect.signature(type(model)).parameters else {}


def _with_plain_numbers(value: Any) -> Any:
    """NumPy's numbers as Python's, wherever they stand; all else as it is."""
    if isinstance(value, Mapping):
        return {key: _with_plain_numbers(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_with_plain_numbers, value))
    number = as_metric(value) if type(value).__module__ == "numpy" else None
    return value if number is None else number


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


def _model(value: Any, where: str | Path) -> dict[str, Any]:
    keys = set(value) if isinstance(value, Mapping) else set()
    if keys == {"name", "args"}:
        name, args = value["name"], value["args"]
        if isinstance(name, str) and len(name) <= 200 and isinstance(args, Mapping):
            return {"name": name, "args": dict(args)}
    if keys == {"class", "args"}:
        path, args = value["class"], value["args"]
        module, _, attribute = path.partition(":") if isinstance(path, str) else ("", "", "")
        if module and attribute and (args is None or isinstance(args, Mapping)):
            return {"class": path, "args": None if args is None else dict(args)}
    raise BadFile(where, 'model: neither {"name", "args"} nor {"class": "module:Name", "args"}')


def is_shape(sizes: Sequence[Any]) -> bool:
    """Whether a description can hold `sizes` as the shape of a sample."""
    return len(sizes) <= 8 and all(type(n) is int and n > 0 for n in sizes) and math.prod(sizes) <= 2**31


def _shape(value: Any, where: str | Path) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not is_shape(value):
        raise BadFile(
            where,
            f"input.shape: {str(value)[:80]} is not a list of up to 8 whole numbers above 0, at most 2**31 numbers "
            "a sample",
        )
    return tuple(value)
