"""Names to model classes, and from a live model back to the name and arguments that rebuild it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..registry import Entry, Range, Registry
from ..wrapping import class_path

if TYPE_CHECKING:
    from torch import nn

_SOME = Range(low=1)
_IMAGES = {"classes": _SOME, "channels": _SOME}
_DROPOUT = {"dropout": Range(low=0, high=1, high_open=True)}


def _model(name: str, module: str, summary: str, inputs: str, parameters: str, limits: Mapping[str, Range]) -> Entry:
    facts = {"input": inputs, "parameters": parameters}
    return Entry(name, f"surefoot.models.{module}:{name}", summary, limits=limits, facts=facts)


# fmt: off
MODELS = Registry(
    "model",
    "models",
    [
        _model(
            "LeNet5", "lenet", "two 5x5 convolutions and three linear layers, the tutorial's GarmentClassifier",
            "(N, channels, 28, 28)", "44,426", _IMAGES,
        ),
        _model(
            "MLP", "mlp", "linear layers with ReLU between them", "(N, ...) of in_features numbers", "203,530",
            {"in_features": _SOME, "classes": _SOME, **_DROPOUT},
        ),
        _model(
            "SmallResNet", "resnet", "a small residual network with batch norm, for 28x28 or 32x32 images",
            "(N, channels, H, W)", "73,082", {**_IMAGES, "width": _SOME, "blocks": Range(low=1, high=64)},
        ),
        _model(
            "ViT", "vit", "a small vision transformer: patches as tokens", "(N, channels, H, W) of one size", "204,938",
            {**_IMAGES, **dict.fromkeys(("size", "patch", "width", "depth", "heads"), _SOME), **_DROPOUT},
        ),
        _model(
            "UNet", "unet", "a class for each pixel, by convolutions at several sizes",
            "(N, channels, H, W), a class for each pixel", "488,018",
            {**_IMAGES, "width": _SOME, "depth": Range(low=1, high=8)},
        ),
        _model(
            "GPT", "gpt", "a small transformer that predicts the next token, as GPT-2 is made", "(N, T) tokens",
            "834,304", {**dict.fromkeys(("classes", "length", "width", "depth", "heads"), _SOME), **_DROPOUT},
        ),
        _model(
            "TabularMLP", "tabular", "linear layers over a table's numbers and an embedding of each of its categories",
            "(N, numbers + categories), filled in from csv and parquet", "8,577",
            {"numbers": Range(low=0), "outputs": _SOME, "embedding": _SOME, **_DROPOUT},
        ),
    ],
)
# fmt: on


def spec_of(model: nn.Module) -> dict[str, Any] | None:
    """The registered name and arguments that rebuild `model`; None for a class that is not in the registry.

    >>> from surefoot.models import MLP
    >>> spec_of(MLP(in_features=4, hidden=[8], classes=3))
    {'name': 'MLP', 'args': {'in_features': 4, 'hidden': [8], 'classes': 3, 'dropout': 0.0}}
    """
    # The exact class only: a subclass may have changed anything and cannot be rebuilt from this name.
    entry = next((entry for entry in MODELS if entry.target == class_path(model)), None)
    arguments = getattr(model, "arguments", None)  # a scripted model may have lost it
    return None if entry is None or arguments is None else {"name": entry.name, "args": copy.deepcopy(arguments)}
