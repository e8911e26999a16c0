"""What the Hugging Face hub's tools look for beside the weights: config.json and a model card."""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ..charts.svg import Line, line_chart, picture
from ..registry import imports_in
from ..text import counted, printable
from .answers import kind_of
from .images import takes_pictures
from .info import ModelInfo
from .pretrained import config_of


def config_json(info: ModelInfo) -> dict[str, Any]:
    """config.json: that of transformers for its models; else the class, its arguments at the top level
    (`PyTorchModelHubMixin` takes them) and the names of the classes."""
    if theirs := config_of(info.model):
        return theirs
    config: dict[str, Any] = {"model_type": "surefoot", "architectures": [info.model_name]}
    if info.classes:
        config["id2label"] = {str(i): name for i, name in enumerate(info.classes)}
        config["label2id"] = {name: i for i, name in enumerate(info.classes)}
    return {**(info.model["args"] or {}), **config}


def model_card(
    info: ModelInfo, stored: Mapping[str, Any], history: Sequence[Mapping[str, Any]], pictures: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """README.md with front matter, results, use and plots; and the plots drawn here, SVG text by file name.

    `stored` is the "weights" of model.json, `pictures` the names of image files under plots/.
    """
    title = _line(info.title or info.model_name)
    chart = _loss_chart(history)
    drawn = {"loss.svg": chart} if chart and "loss.svg" not in pictures else {}
    front = [
        "---",
        "library_name: surefoot",
        *(["pipeline_tag: image-classification"] if _classifies_pictures(info) else []),
        "tags:",
        "- pytorch",
        "- surefoot",
        f"- {json.dumps(info.model_name)}",
        *_model_index(title, info),
        "---",
    ]
    body = [f"# {_shown(title)}", "", _summary(info, stored), "", *_results(info), *_use(info)]
    if drawn or pictures:
        body += [
            "## Plots",
            "",
            *(f"![{_shown(name)}](plots/{quote(name, errors='surrogateescape')})\n" for name in [*drawn, *pictures]),
        ]
    body += ["## Made with", "", *(f"- {name} {version}" for name, version in info.versions.items())]
    if info.recipe_digest:
        body.append(f"- recipe {info.recipe_digest}")
    return "\n".join([*front, "", *body, ""]), drawn


def _summary(info: ModelInfo, stored: Mapping[str, Any]) -> str:
    lines = [f"{_shown(info.model_name)}, {counted(stored['parameters'], 'parameter')}, {stored['bytes']:,} bytes."]
    if info.input_shape:
        shape = ", ".join(map(str, info.input_shape))
        lines.append(f"It takes raw batches (N, {shape}) of {info.input_dtype or 'float32'}.")
    if info.dataset:
        lines.append(f"It was trained on {_shown(info.dataset)}.")
    if info.averaged:
        lines.append("The weights are an exponential moving average (EMA) of those that were trained.")
    if info.preprocessing:
        p = info.preprocessing
        scale = "" if p.scale is None else f" * {p.scale:.6g}"
        lines.append(
            f"Raw values are mapped to (raw{scale} - mean) / std with mean {list(p.mean)} and std {list(p.std)}."
        )
    if info.columns:
        names = [_shown(name) for name in info.columns.names[:50]]
        indices = ", the categories last, as indices" if info.columns.categories else ""
        lines.append(f"The columns of its rows are {', '.join(names)}{indices} (model.json says which).")
    if info.classes:
        names = [_shown(name) for name in info.classes[:50]]
        more = f" and {len(info.classes) - 50} more" if len(info.classes) > 50 else ""
        lines.append(f"It distinguishes {len(info.classes)} classes: {', '.join(names)}{more}.")
    return " ".join(lines)


def _use(info: ModelInfo) -> list[str]:
    """Code that runs as it stands, in this directory, for the kind of model that this is."""
    imports, opening, before = ["import surefoot"], ['"."'], []
    if "class" in info.model:
        made = _construction(info.model["class"], info.model["args"])
        if made:
            imports.append(made[0])
        else:
            before.append(f"`net` is an instance of {_shown(info.model_name)}, made as it was for training.")
        opening.append(made[1] if made else "net")
    if not info.preprocessing_known:
        before.append("How raw data are prepared is not known: replace `preprocessing` by that of the training.")
        opening.append("preprocessing=surefoot.Preprocessing(mean=0.5, std=0.5)")
    kind = kind_of(info)
    outputs = {"scores": "scores", "numbers": "outputs"}.get(kind, "probabilities")
    batch = "images" if takes_pictures(info) else "samples"
    lines = [f"model = surefoot.open_model({', '.join(opening)})"]
    if info.input_shape is None:
        before.append(f"`{batch}` is what its forward() takes, as a batch of raw data.")
        lines.append(f"outputs = model({batch})")
    else:
        imports.insert(0, "import torch")
        shape = ", ".join(map(str, (1, *info.input_shape)))
        lines.append(f"{batch} = torch.zeros({shape}, dtype=torch.{info.input_dtype or 'float32'})  # yours instead")
        lines.append(f"{outputs} = model.predict({batch})")
    lead = ["Run this in the directory of this file.", *before]
    return ["## Use", "", " ".join(lead), "", "```python", *imports, "", *lines, "```", ""]


def _construction(path: str, args: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """The import of a user's own class and a call that makes it; None where they cannot be written as code."""
    module, _, name = path.partition(":")
    if config_of({"args": args}):
        return f"from {module} import {name}", f'{name}.from_pretrained(".")'
    if any(imports_in(args)):
        return None
    words = [*module.split("."), name, *(args or {})]
    code = f"{name}({', '.join(f'{key}={value!r}' for key, value in (args or {}).items())})"
    if args is None or module == "__main__" or not all(w.isidentifier() and not keyword.iskeyword(w) for w in words):
        return None
    return None if "```" in code else (f"from {module} import {name}", code)


def _results(info: ModelInfo) -> list[str]:
    metrics = {k: v for k, v in info.metrics.items() if isinstance(v, int | float | str)}
    rows = [
        f"| {_shown(k)} | {v:.6g} |" if isinstance(v, float) else f"| {_shown(k)} | {_shown(v)} |"
        for k, v in metrics.items()
    ]
    return ["## Results", "", "| metric | value |", "|---|---|", *rows, ""] if rows else []


def _model_index(title: str, info: ModelInfo) -> list[str]:
    """The hub's results table wants a task, and a type and a finite value for each metric."""
    finite = {k: v for k, v in info.metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
    if not finite or not _classifies_pictures(info):
        return []
    lines = ["model-index:", f"- name: {json.dumps(title)}", "  results:", "  - task:"]
    lines += ["      type: image-classification", "    dataset:"]
    dataset = _line(info.dataset or "unknown")
    lines += [f"      type: {json.dumps(dataset)}", f"      name: {json.dumps(dataset)}", "    metrics:"]
    for name, value in finite.items():
        kind = name.rpartition("/")[2]
        lines += [f"    - type: {json.dumps(kind)}", f"      name: {json.dumps(name)}", f"      value: {value!r}"]
    return lines


def _classifies_pictures(info: ModelInfo) -> bool:
    return bool(info.classes) and takes_pictures(info)


def _line(text: object) -> str:
    return printable(" ".join(str(text).split())[:200])


def _shown(text: object) -> str:
    """A name on one line in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*\[\]<>|#&~])", r"\\\1", _line(text))


def _loss_chart(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Training and validation loss by epoch, as SVG text; None where there are no two points to join."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in history:
        epoch, loss, split = record.get("epoch"), record.get("loss"), record.get("split")
        if record.get("kind", "epoch") != "epoch" or split not in ("train", "val"):
            continue
        if isinstance(epoch, int) and isinstance(loss, int | float) and math.isfinite(loss):
            lines.setdefault(split, []).append((epoch, loss))
    if len({x for points in lines.values() for x, _ in points}) < 2:
        return None
    drawn = [Line(split, points, split == "val") for split, points in sorted(lines.items())]
    return picture(line_chart(drawn, x_label="epoch", y_label="loss", title="Training vs. validation loss"))
