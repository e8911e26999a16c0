"""Max pools written out as comparisons, for a graph that Inductor makes code of.

torch's kernel for contiguous images goes element by element and branches on each (a third of an eager LeNet-5 step
at batch 512), and Inductor's own is no better. Here nothing branches: a comparison's outcome is a number that is
multiplied with. Positions are numbers within the window (0 the first), not within the image as torch gives them, so a
forward pass and its backward pass are written out together or not at all.

In a finite step the results are torch's to the bit, but for the sign of a zero: the first of equals gets the gradient,
and NaN wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Size = Sequence[int]  # one number for both directions, or two


def written_out(graph: torch.fx.GraphModule, arguments: Sequence[Tensor]) -> torch.fx.GraphModule:
    """`graph` with its pools written out; the rest stays as it is."""
    from torch.fx.experimental.proxy_tensor import make_fx

    if not (forms := written_pools(graph)):
        return graph
    return make_fx(_Writer(graph, forms).run, tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)


class _Writer(torch.fx.Interpreter):
    """Runs a graph with some of its nodes in other forms."""

    def __init__(self, graph: torch.fx.GraphModule, forms: dict[torch.fx.Node, Callable[..., Any]]):
        super().__init__(graph)
        self.forms = forms

    def run_node(self, node: torch.fx.Node) -> Any:
        form = self.forms.get(node)
        if form is None:
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return form(*args, **kwargs)


def written_pools(graph: torch.fx.GraphModule) -> dict[torch.fx.Node, Callable[..., Any]]:
    """Which nodes of `graph` to write out, each with what to run in its place.

    Those are pools of float32 images on the CPU whose windows tile the image, and whose positions nobody else reads.
    """
    replacements: dict[torch.fx.Node, Callable[..., Any]] = {}
    for node in graph.graph.nodes:
        if node.target is not aten.max_pool2d_with_indices.default:
            continue
        if not _tiles(node.args[0].meta["val"], *node.args[1:]):
            continue
        readers = [reader for part in node.users if part.args[1] == 1 for reader in part.users]
        if all(reader.target is aten.max_pool2d_with_indices_backward.default for reader in readers):
            replacements[node] = written_forward
            replacements.update(dict.fromkeys(readers, written_backward))
    return replacements


def _tiles(
    x: Tensor, kernel: Size, stride: Size = (), padding: Size = (0, 0), dilation: Size = (1, 1), ceil_mode: bool = False
) -> bool:
    height, width = _pair(kernel)
    return (
        x.dim() == 4
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.is_contiguous()
        and 1 < height * width <= 9
        and (not stride or _pair(stride) == (height, width))
        and not any(padding)
        and all(d == 1 for d in dilation)
        and x.shape[2] % height == 0
        and x.shape[3] % width == 0
    )


def _pair(value: Sequence[int]) -> tuple[int, int]:
    """An operation's argument for both directions, where one number may stand for two."""
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def written_forward(x: Tensor, kernel: Size, *_: Any) -> tuple[Tensor, Tensor]:
    """`max_pool2d_with_indices`, at every column and not only where a window begins, so that loads fill a vector; then
    every `width`th is kept."""
    height, width = _pair(kernel)
    count, channels, rows, columns = x.shape[0], x.shape[1], x.shape[2] // height, x.shape[3] // width
    every = x.shape[3] - width + 1
    largest = where = None
    for i in range(height):
        for j in range(width):
            value = x[:, :, i::height, j : j + every]
            if largest is None or where is None:
                largest, where = value, torch.zeros_like(value)
                continue
            # `value != value` and not isnan(), which Inductor computes one by one.
            larger = (value > largest) | (value != value)
            where = torch.where(larger, float(i * width + j), where)
            largest = torch.where(larger, value, largest)
    assert largest is not None and where is not None

    def kept(dense: Tensor) -> Tensor:
        # as_strided has Inductor store what it is given; sliced, it would be computed anew with gaps between loads.
        strides = (channels * rows * every, rows * every, every, width)
        few = torch.as_strided(dense.contiguous(), (count, channels, rows, columns), strides)
        return few.clone(memory_format=torch.contiguous_format)

    return kept(largest), kept(where)


def written_backward(grad: Tensor, x: Tensor, kernel: Size, *rest: Any) -> Tensor:
    """`max_pool2d_with_indices_backward`; the last of `rest` are the positions that `written_forward` gave."""
    height, width = _pair(kernel)
    wide, positions = _repeated(grad, width), _repeated(rest[-1], width)
    column = (torch.arange(wide.shape[3], device=x.device) % width).float()
    rows = [wide * (positions == column + i * width) for i in range(height)]
    return torch.stack(rows, 3).reshape(x.shape)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Every element `times` times along the last dimension."""
    return x.unsqueeze(-1).expand(*x.shape, times).reshape(*x.shape[:3], x.shape[3] * times)
