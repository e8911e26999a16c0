"""Names to model classes, and from a live model back to the name and arguments that rebuild it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from ..registry import Entry, Range, Registry
from ..wrapping import class_path

if TYPE_CHECKING:
    from torch import nn

_CLASSES = Range(low=1)
_CHANNELS = Range(low=1)
_IMAGES = {"classes": _CLASSES, "channels": _CHANNELS}
_DROPOUT = Range(low=0, high=1, high_open=True)

MODELS = Registry(
    "model",
    "models",
    [
        Entry(
            "LeNet5",
            "surefoot.models.lenet:LeNet5",
            "two 5x5 convolutions and three linear layers, the tutorial's GarmentClassifier",
            limits=_IMAGES,
            facts={"input": "(N, channels, 28, 28)", "parameters": "44,426"},
        ),
        Entry(
            "MLP",
            "surefoot.models.mlp:MLP",
            "linear layers with ReLU between them",
            limits={"in_features": Range(low=1), "classes": _CLASSES, "dropout": _DROPOUT},
            facts={"input": "(N, ...) of in_features numbers", "parameters": "203,530"},
        ),
        Entry(
            "SmallResNet",
            "surefoot.models.resnet:SmallResNet",
            "a small residual network with batch norm, for 28x28 or 32x32 images",
            limits={**_IMAGES, "width": Range(low=1), "blocks": Range(low=1, high=64)},
            facts={"input": "(N, channels, H, W)", "parameters": "73,082"},
        ),
        Entry(
            "ViT",
            "surefoot.models.vit:ViT",
            "a small vision transformer: patches as tokens",
            limits={
                **dict.fromkeys(("classes", "channels", "size", "patch", "width", "depth", "heads"), Range(low=1)),
                "dropout": _DROPOUT,
            },
            facts={"input": "(N, channels, H, W) of one size", "parameters": "204,938"},
        ),
        Entry(
            "UNet",
            "surefoot.models.unet:UNet",
            "a class for each pixel, by convolutions at several sizes",
            limits={**_IMAGES, "width": Range(low=1), "depth": Range(low=1, high=8)},
            facts={"input": "(N, channels, H, W), a class for each pixel", "parameters": "488,018"},
        ),
        Entry(
            "GPT",
            "surefoot.models.gpt:GPT",
            "a small transformer that predicts the next token, as GPT-2 is made",
            limits={
                **dict.fromkeys(("classes", "length", "width", "depth", "heads"), Range(low=1)),
                "dropout": _DROPOUT,
            },
            facts={"input": "(N, T) tokens", "parameters": "834,304"},
        ),
        Entry(
            "TabularMLP",
            "surefoot.models.tabular:TabularMLP",
            "linear layers over a table's numbers and an embedding of each of its categories",
            limits={
                "numbers": Range(low=0),
                "outputs": Range(low=1),
                "embedding": Range(low=1),
                "dropout": _DROPOUT,
            },
            facts={"input": "(N, numbers + categories), filled in from csv and parquet", "parameters": "8,577"},
        ),
    ],
)


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
