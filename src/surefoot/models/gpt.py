"""A small GPT: tokens in, the scores of each next token out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .arguments import keeps_arguments


@keeps_arguments
class GPT(nn.Module):
    """A transformer decoder as GPT-2's: `depth` blocks of causal attention with `heads`, a perceptron, and `dropout`.

    Takes int64 (N, T) with T up to `length` and tokens 0 .. `classes` - 1, returns logits (N, `classes`, T) as
    torch's cross entropy takes them: those of position t tell token t + 1. The last layer's weight is the embedding's.
    After Radford, Wu, Child, Luan, Amodei and Sutskever (2019), "Language models are unsupervised multitask learners".

    >>> GPT(classes=50, length=8, width=16, depth=1, heads=2)(torch.zeros(2, 8, dtype=torch.int64)).shape
    torch.Size([2, 50, 8])
    """

    def __init__(
        self,
        classes: int = 256,
        length: int = 64,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.length = length
        self.tokens = nn.Embedding(classes, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith("out.weight"):  # these add up along the depth
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[1] > self.length:
            raise ValueError(f"a window of {tokens.shape[1]} tokens is longer than the model's length of {self.length}")
        positions = self.positions.weight[: tokens.shape[1]]
        x = self.norm(self.blocks(self.dropout(self.tokens(tokens) + positions)))
        return F.linear(x, self.tokens.weight).transpose(1, 2)


class Block(nn.Module):
    """Attention, where `causal` to the tokens before, then a perceptron, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = True):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width)
        self.hidden_out = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, width = x.shape
        qkv = self.attention(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        drop = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal, dropout_p=drop)
        x = x + self.dropout(self.attention_out(mixed.transpose(1, 2).reshape(n, t, width)))
        hidden: torch.Tensor = self.hidden_out(F.gelu(self.hidden(self.norm2(x)), approximate="tanh"))
        x = x + self.dropout(hidden)
        return x
