"""What is raised for a loss or gradient that is NaN or infinite, and which parameter is."""

from __future__ import annotations

from torch import nn

from . import torch_compat
from .untouched import is_lazy
from .world import World
from .wrapping import local, named_parameters, shared_out


class NonFinite(ArithmeticError):
    """The loss of a micro-batch, or a gradient, is NaN or infinite; raised before the parameters change.

    `value` is the number met. `micro_batch` counts from 0; None where the gradient of all of them together is meant.
    """

    def __init__(self, what: str, value: float, micro_batch: int | None = None):
        self.value, self.micro_batch = value, micro_batch
        super().__init__(what)

    @classmethod
    def loss(cls, value: float, micro_batch: int = 0) -> NonFinite:
        """The error for a loss."""
        return cls(f"the loss is {value}", value, micro_batch)


def first_not_finite(model: nn.Module, world: World | None = None) -> str | None:
    """The name of a trained parameter that is NaN or infinite, or None; with its `world`, of a model in pieces too."""
    trained = ((name, p) for name, p in named_parameters(model) if p.requires_grad and not is_lazy(p))
    found = next((name for name, p in trained if not torch_compat.all_finite([local(p.detach())])), None)
    everywhere = [found] if world is None or not shared_out(model) else world.gather(found)
    return next((name for name in everywhere if name is not None), None)
