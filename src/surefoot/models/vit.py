"""A small vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .arguments import keeps_arguments
from .gpt import Block


@keeps_arguments
class ViT(nn.Module):
    """Patches of `patch` x `patch` pixels as tokens, `depth` blocks of attention with `heads`, the tokens' mean.

    Takes (N, `channels`, *`size`), returns logits (N, `classes`). Each place has a position embedding that is learned;
    each block has `dropout`. After Dosovitskiy et al. (2020), "An image is worth 16x16 words"; the mean in place of a
    class token as in Beyer, Zhai and Kolesnikov (2022), "Better plain ViT baselines for ImageNet-1k".

    >>> ViT(size=28, patch=7, width=16, depth=1, heads=2)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 1,
        size: int | Sequence[int] = 28,
        patch: int = 4,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        sizes = tuple(size) if isinstance(size, Sequence) else (size, size)
        if len(sizes) != 2 or min(sizes) < 1:
            raise ValueError(f"size {size} is neither one number nor a height and a width of 1 or more")
        height, length = sizes
        if height % patch or length % patch:
            raise ValueError(f"size {height} x {length} is not a multiple of patch {patch}; give another patch")
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.sample_shape = (channels, height, length)
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(1, height // patch * (length // patch), width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.blocks(self.dropout(tokens + self.positions))
        logits: torch.Tensor = self.head(self.norm(tokens).mean(1))
        return logits
