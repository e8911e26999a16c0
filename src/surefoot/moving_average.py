"""The moving average of a model's weights, for any model that a batch can be run through."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from . import torch_compat
from .copying import copied
from .errors import UsageError
from .untouched import is_lazy
from .wrapping import local, tensors


class MovingAverage(AveragedModel):
    """`module` follows a model: ``average = decay * average + (1 - decay) * weight`` after each update.

    As torch's AveragedModel with ``get_ema_multi_avg_fn`` and ``use_buffers=True``, and beside it: buffers that are
    no floating point numbers (counters, indices) and numbers of masks that are infinite are copied and not averaged;
    what a forward pass makes or resizes (lazy parameters, buffers) is taken over; and models that hold locks, expanded
    buffers or the weight of the older `weight_norm` can be followed. The first update copies the model.

    Raises UsageError, naming the attribute, for a model that cannot be copied.

    >>> model = nn.Linear(1, 1)
    >>> average = MovingAverage(model, 0.9)
    >>> average.update_parameters(model)
    >>> torch.equal(average.module.weight, model.weight)
    True
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(nn.Identity(), device=torch.device("cpu"), use_buffers=True)
        self.decay = decay
        self.module = _followed(model)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Follow the model by one update."""
        mine, theirs = _tensors(self.module), _tensors(model)
        if _shapes(mine) != _shapes(theirs):
            before = mine
            self.module = _followed(model).train(self.module.training)
            mine = _tensors(self.module)
            for name, average in before.items():
                if name in mine and mine[name].shape == average.shape:
                    mine[name].copy_(average)
        averaged = []
        for name, b in theirs.items():
            a = mine[name]
            # Whole numbers have no mean, and numbers of 8 bits no arithmetic.
            if self.n_averaged and (a.is_floating_point() or a.is_complex()) and a.dtype.itemsize > 1:
                averaged.append((a, b))
            else:
                a.copy_(b)
        # Infinite numbers (a mask's) have no mean either: of two the difference is NaN.
        masks = [(a, b, a.isfinite()) for a, b in averaged if not b.requires_grad]
        if averaged:
            torch_compat.lerp_all([a for a, _ in averaged], [b for _, b in averaged], 1 - self.decay)
        for a, b, finite in masks:
            a.copy_(torch.where(finite, a, b))
        self.n_averaged += 1


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, a tied one once; not what still waits for a first batch."""
    each = {id(tensor): (name, tensor) for name, tensor in tensors(model) if not is_lazy(tensor)}
    return {name: local(tensor) for name, tensor in each.values()}


def _shapes(named: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in named.items()}


def _followed(model: nn.Module) -> nn.Module:
    """A copy of `model` that nothing trains; every buffer has places of its own."""
    try:
        twin = copied(model, model)
    except UsageError as error:
        raise UsageError(f"ema_decay: {error}; or train without ema_decay") from error
    for module in twin.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not is_lazy(buffer) and 0 in buffer.stride() and buffer.numel() > 1:
                module._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)
    return twin
