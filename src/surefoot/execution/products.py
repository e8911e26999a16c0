"""Small convolutions written out as matrix products, for a graph that Inductor makes code of.

The libraries' convolutions are made for large work: at batch 4 LeNet-5's take half of a compiled step, and
Inductor can fuse nothing into them. Written out as copies (im2col) and one matrix product each they cost half of
it. For larger batches the copies no longer fit the cache, and the libraries win: which of the two is used is
measured. What comes out is contiguous, as from the library, since the rest of the graph may count on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..untouched import untouched
from .pools import pair

aten = torch.ops.aten

# Copies for products of more bytes than this leave the cache of a core before they are used.
CACHE_BYTES = 1 << 20
LARGEST_WINDOW = 49


def worth_writing_out(model: nn.Module, inputs: Tensor) -> bool:
    """Whether the model has convolutions whose copies for a batch like `inputs` would stay in the cache."""
    sizes: list[int] = []

    def look(module: nn.Conv2d, args: Any, output: Tensor) -> None:
        window = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
        sizes.append(output[:, 0].numel() * window * output.element_size())

    with untouched(model), torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(look)
        model.eval()
        model(inputs)
    return bool(sizes) and max(sizes) <= CACHE_BYTES


def _written(
    x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, transposed: bool, groups: int
) -> bool:
    return (
        x.dim() == 4
        and not transposed
        and groups == 1
        and x.dtype == torch.float32
        and x.is_contiguous()
        and weight.is_contiguous()
        and x.device.type == "cpu"
        and all(d == 1 for d in dilation)
        and weight.shape[2] * weight.shape[3] <= LARGEST_WINDOW
        and weight.shape[2:].numel() > 1
    )


def _columns(x: Tensor, height: int, width: int, stride: Sequence[int]) -> Tensor:
    """Every window as a column: (C * height * width, N * positions)."""
    windows = x.unfold(2, height, stride[0]).unfold(3, width, stride[1])
    n, c, rows, columns = windows.shape[:4]
    return windows.permute(1, 4, 5, 0, 2, 3).reshape(c * height * width, n * rows * columns)


def _padded(x: Tensor, padding: Sequence[int]) -> Tensor:
    rows, columns = pair(padding)
    return F.pad(x, (columns, columns, rows, rows)) if rows or columns else x


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    if not _written(x, weight, stride, padding, dilation, transposed, groups):
        return NotImplemented
    x, stride = _padded(x, padding), pair(stride)
    channels, _, height, width = weight.shape
    rows = (x.shape[2] - height) // stride[0] + 1
    columns = (x.shape[3] - width) // stride[1] + 1
    out = weight.reshape(channels, -1) @ _columns(x, height, width, stride)
    out = out.view(channels, x.shape[0], rows, columns).permute(1, 0, 2, 3)
    return (out if bias is None else out + bias.view(1, -1, 1, 1)).contiguous()


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> Any:
    if not _written(x, weight, stride, padding, dilation, transposed, groups):
        return NotImplemented
    stride = pair(stride)
    if mask[0] and stride != (1, 1):
        return NotImplemented
    channels, _, height, width = weight.shape
    flat = grad.permute(1, 0, 2, 3).reshape(channels, -1)
    to_x = to_weight = to_bias = None
    if mask[0]:
        to_x = _folded((weight.reshape(channels, -1).t() @ flat), x, weight, grad, pair(padding))
    if mask[1]:
        to_weight = (flat @ _columns(_padded(x, padding), height, width, stride).t()).view(weight.shape)
    if mask[2]:
        to_bias = flat.sum(1)
    return to_x, to_weight, to_bias


def _folded(columns: Tensor, x: Tensor, weight: Tensor, grad: Tensor, padding: tuple[int, int]) -> Tensor:
    """Columns added up where their windows lay: along rows first, then along columns, so that few terms meet."""
    _, c, height, width = weight.shape
    n, _, rows, positions = grad.shape
    windows = columns.view(c, height, width, n, rows, positions)
    wide = _sum(F.pad(windows[:, :, j], (j, width - 1 - j)) for j in range(width))
    whole = _sum(F.pad(wide[:, i], (0, 0, i, height - 1 - i)) for i in range(height))
    top, left = padding
    inside = whole[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return inside.permute(1, 0, 2, 3).contiguous()


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


# What to run in the place of each; NotImplemented is for the library.
FORMS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
}
