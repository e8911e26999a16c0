"""Models of transformers: class and configuration as plain JSON, and the folders of `save_pretrained`.

Nothing here imports transformers: a live model has imported it, and a folder is read as data.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .. import safe_tensors
from ..registry import imports_in
from ..safe_tensors import BadFile

CONFIG = "config.json"
_MAX_BYTES = 4 * 1024 * 1024
# What would make transformers fetch or import code of others; a folder cannot ask for it.
_CODE = ("auto_map", "custom_pipelines", "attn_implementation", "_attn_implementation", "experts_implementation")


def pretrained_spec(model: nn.Module, classes: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Class and configuration of a live model of transformers, as model.json has them; None for any other model.

    Where there are as many `classes` as the model has labels, they become its labels.
    """
    library = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return None
    config: dict[str, Any] = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    if classes and len(classes) == getattr(model.config, "num_labels", 0):
        config["id2label"] = {str(index): name for index, name in enumerate(classes)}
        config["label2id"] = {name: index for index, name in enumerate(classes)}
    return {"class": _path(type(model)), "args": {"config": {"import": _path(type(model.config)), **config}}}


def _path(kind: type) -> str:
    """The shortest path that imports a class."""
    short = getattr(sys.modules["transformers"], kind.__name__, None) is kind
    return f"{'transformers' if short else kind.__module__}:{kind.__qualname__}"


def labels(model: nn.Module) -> tuple[str, ...] | None:
    """The names of the classes that a model of transformers has, unless they are its LABEL_0 and so on."""
    spec = pretrained_spec(model)
    named = spec and spec["args"]["config"].get("id2label")
    names = tuple(str(name) for name in named.values()) if isinstance(named, Mapping) else ()
    usual = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return None if usual or len(set(names)) < len(names) else names


def takes_tokens(model: nn.Module) -> bool:
    """Whether this is a model of transformers for tokens, which are taken as they are."""
    return pretrained_spec(model) is not None and getattr(model, "main_input_name", None) == "input_ids"


def config_of(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration in what `pretrained_spec` gave, as config.json has it; None for any other model's."""
    config = (spec["args"] or {}).get("config")
    if not isinstance(config, Mapping) or not {"import", "model_type", "architectures"} <= set(config):
        return None
    return {name: value for name, value in config.items() if name != "import"}


def _without_code(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_code(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_code(item) for name, item in value.items() if name not in _CODE}
    return value


def folder_spec(folder: Path) -> dict[str, Any] | None:
    """What the config.json of a `save_pretrained` folder says, as `pretrained_spec`; None where there is none.

    It is the class of transformers that it names and nothing else: what a folder says of code of its own is left out.
    Raises `BadFile` for a config.json that names something to import, or is no JSON.
    """
    path = folder / CONFIG
    if not os.path.lexists(path):
        return None
    config = safe_tensors.read_json(path, max_bytes=_MAX_BYTES)
    kinds = config.get("architectures") if isinstance(config, Mapping) else None
    if not isinstance(kinds, list) or len(kinds) != 1 or not isinstance(config.get("model_type"), str):
        return None
    if not isinstance(kinds[0], str) or not kinds[0].isidentifier():
        return None
    if named := next(imports_in(config), None):
        raise BadFile(path, f"names {named[:100]!r} to be imported, which no config.json of transformers does")
    config = _without_code(config)
    return {
        "class": f"transformers:{kinds[0]}",
        "args": {"config": {"import": "transformers:AutoConfig.for_model", **config}},
    }
