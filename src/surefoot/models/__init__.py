"""The models that Surefoot knows by name: LeNet-5, perceptrons (one for tables), small ResNet, ViT, U-Net and GPT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily
from .registry import MODELS, spec_of

if TYPE_CHECKING:
    from .gpt import GPT
    from .lenet import LeNet5
    from .mlp import MLP
    from .resnet import SmallResNet
    from .tabular import TabularMLP
    from .unet import UNet
    from .vit import ViT

__all__ = ["GPT", "MODELS", "MLP", "LeNet5", "SmallResNet", "TabularMLP", "UNet", "ViT", "spec_of"]

# The classes need torch, the names do not: `surefoot list models` shows them without importing it.
_HOMES = {
    "gpt": "GPT",
    "lenet": "LeNet5",
    "mlp": "MLP",
    "resnet": "SmallResNet",
    "tabular": "TabularMLP",
    "unet": "UNet",
    "vit": "ViT",
}
__getattr__ = lazily(__name__, _HOMES)
