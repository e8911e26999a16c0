"""A small U-Net: a class for each pixel."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .arguments import keeps_arguments


@keeps_arguments
class UNet(nn.Module):
    """Two convolutions at each of `depth` + 1 sizes, each half of the one before; then up again, joined size by size.

    Takes (N, `channels`, H, W) of any H and W from 2 ** `depth` on, returns logits (N, `classes`, H, W) for targets
    (N, H, W). `width` channels at the whole size, twice as many at each next one. After Ronneberger, Fischer and Brox
    (2015), "U-Net: convolutional networks for biomedical image segmentation", with batch norm, and padding so that
    no pixel is lost.

    >>> UNet(width=4, depth=2)(torch.zeros(2, 3, 20, 30)).shape
    torch.Size([2, 2, 20, 30])
    """

    def __init__(self, classes: int = 2, channels: int = 3, width: int = 16, depth: int = 3):
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(map(convolutions, [channels, *widths], widths))
        up = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(convolutions(below + same, same) for below, same in up)
        self.head = nn.Conv2d(width, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        least = 2 ** len(self.up)
        if min(x.shape[-2:]) < least:
            raise ValueError(f"pictures of {x.shape[-2]} x {x.shape[-1]} are smaller than the {least} of this depth")
        x = self.down[0](x)
        sizes = []
        for convolve in self.down[1:]:
            sizes.append(x)
            x = convolve(F.max_pool2d(x, 2))
        for convolve, same in zip(self.up, reversed(sizes), strict=True):
            x = convolve(torch.cat([F.interpolate(x, size=same.shape[-2:]), same], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits


def convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch norm and ReLU."""
    return nn.Sequential(
        *(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
        *(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
    )
