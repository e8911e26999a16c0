"""A multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .arguments import keeps_arguments


@keeps_arguments
class MLP(nn.Module):
    """Linear layers of `hidden` widths with ReLU and dropout after each, and a last one to `classes`.

    Takes (N, ...) with `in_features` numbers a sample, returns logits (N, `classes`).
    Without a hidden layer it is a linear model.

    >>> MLP(in_features=784, hidden=[32])(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, in_features: int = 784, hidden: Sequence[int] = (256,), classes: int = 10, dropout: float = 0.0):
        super().__init__()
        widths = [in_features, *hidden]
        if min(widths) < 1:
            raise ValueError(f"every layer needs at least one number, in_features and hidden are {widths}")
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x.flatten(1))
        return logits
