"""The batch for evaluation: as large as stays in the processor's cache, whatever training uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..untouched import untouched

# Bytes that one layer's output may take for the whole batch: about what a last-level cache holds a share of.
CPU_BYTES = 8 << 20
CUDA_BYTES = 256 << 20
SMALLEST, LARGEST = 16, 4096


def evaluation_batch(model: nn.Module, sample: Tensor) -> int:
    """A power of two between 16 and 4096: how many samples to evaluate at once.

    `sample` is one input with its batch dimension, (1, ...). It is run once, without gradients and in evaluation
    mode, to see the largest output of any layer; it leaves no trace.

    >>> evaluation_batch(nn.Linear(10, 10), torch.zeros(1, 10))
    4096
    """
    largest = sample.nbytes

    def look(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal largest
        sizes = [leaf.nbytes for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        largest = max([largest, *sizes])

    with untouched(model), torch.no_grad():
        for module in model.modules():
            module.register_forward_hook(look)
        model.eval()
        model(sample)
    room = CUDA_BYTES if sample.device.type == "cuda" else CPU_BYTES
    per_sample = max(1, largest // max(1, len(sample)))
    size = SMALLEST
    while size < LARGEST and 2 * size * per_sample <= room:
        size *= 2
    return size
