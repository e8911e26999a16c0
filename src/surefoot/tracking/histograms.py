"""Histograms of a model's weights and of the gradients of its last update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..wrapping import named_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

BINS = 30  # as many as TensorBoard shows
# torch counts in float32, which ends at so many.
_PIECE = 1 << 24


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of one width from `low` to `high`, and the values' number, sum and sum of squares."""

    low: float
    high: float
    number: int
    total: float
    squares: float
    counts: tuple[float, ...]

    def limits(self) -> list[float]:
        """The upper end of each bin."""
        width = (self.high - self.low) / len(self.counts)
        return [self.low + width * k for k in range(1, len(self.counts))] + [self.high]


def histograms_of(model: nn.Module) -> Mapping[str, Histogram]:
    """By name: ``weights/NAME`` of each parameter, ``gradients/NAME`` of each that has a gradient.

    A gradient is what the optimizer was given: clipped, and summed over the ranks. Values that are not finite are left
    out, and so is a parameter without others. Of a sharded model every rank has to call this.

    >>> from torch import nn
    >>> sorted(histograms_of(nn.Linear(2, 1)))
    ['weights/bias', 'weights/weight']
    """
    found = {}
    for name, parameter in named_parameters(model):
        for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
            histogram = None if tensor is None else _histogram(tensor)
            if histogram is not None:
                found[f"{kind}/{name}"] = histogram
    return found


def _histogram(tensor: Tensor) -> Histogram | None:
    import torch

    if hasattr(tensor, "full_tensor"):  # in shards
        tensor = tensor.full_tensor()
    # On the CPU: there, counting is deterministic.
    values = (tensor.to_dense() if tensor.is_sparse else tensor).detach().cpu()
    values = torch.view_as_real(values) if values.is_complex() else values
    values = values.float().reshape(-1)
    values = values[values.isfinite()]
    if not values.numel():
        return None
    low, high = values.min().item(), values.max().item()
    counts = torch.full((1,), values.numel(), dtype=torch.float64, device="cpu")
    if low != high:
        counts = torch.stack([piece.histc(BINS, low, high).double() for piece in torch.split(values, _PIECE)]).sum(0)
    return Histogram(
        low,
        high,
        values.numel(),
        values.sum(dtype=torch.float64).item(),
        values.double().square().sum().item(),
        tuple(counts.tolist()),
    )
