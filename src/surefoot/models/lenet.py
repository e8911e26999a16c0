"""LeNet-5 in the form of the PyTorch tutorial "Training with PyTorch" (its GarmentClassifier)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .arguments import keeps_arguments


@keeps_arguments
class LeNet5(nn.Module):
    """Convolutions 1-6-16 of 5x5 without padding, each pooled, then linear layers 120-84-`classes`.

    Takes (N, `channels`, 28, 28), returns logits (N, `classes`). Layers are named and made in the tutorial's
    order (conv1, pool, conv2, fc1, fc2, fc3), so its `model_params.pth` loads and an equal seed gives equal
    weights. After LeCun, Bottou, Bengio and Haffner (1998), "Gradient-based learning applied to document
    recognition".

    >>> LeNet5()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int = 10, channels: int = 1):
        super().__init__()
        self.sample_shape = (channels, 28, 28)
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.flatten(1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        logits: torch.Tensor = self.fc3(x)
        return logits
