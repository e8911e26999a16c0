"""A small residual network for small images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .arguments import keeps_arguments


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut; `stride` 2 halves height and width.

    The basic block of He, Zhang, Ren and Sun (2015), "Deep residual learning for image recognition". A
    shortcut that halves the size averages pixels before its 1x1 convolution, so that none is skipped
    (ResNet-D, He et al. 2018, "Bag of tricks for image classification").
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        shortcut: list[nn.Module] = []
        if stride != 1:
            shortcut.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        if stride != 1 or inputs != outputs:
            shortcut += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


@keeps_arguments
class SmallResNet(nn.Module):
    """A convolution to `width` channels, then two stages of `blocks` residual blocks, each half the size and
    twice the channels, an average over the image and one linear layer.

    Takes (N, `channels`, H, W), meant for 28x28 and 32x32; returns logits (N, `classes`).

    >>> SmallResNet(width=8)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int = 10, channels: int = 1, width: int = 16, blocks: int = 1):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        stages: list[nn.Module] = []
        inputs = width
        for outputs in (2 * width, 4 * width):
            for index in range(blocks):
                stages.append(ResidualBlock(inputs, outputs, stride=2 if index == 0 else 1))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages(self.stem(x))
        logits: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return logits
