"""The moving average of a model's weights, for any model that a batch can be run through."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from . import torch_compat
from .copying import copied
from .errors import UsageError
from .untouched import is_lazy
from .wrapping import local


class MovingAverage(AveragedModel):
    """`module` follows a model: ``average = decay * average + (1 - decay) * weight`` after each update.

    As torch's AveragedModel with ``get_ema_multi_avg_fn`` and ``use_buffers=True``, and beside it: buffers that are
    no floating point numbers (counters, indices) are copied and not averaged; what the first forward pass makes (lazy
    and resized parameters and buffers) is taken over; and models that hold locks, expanded buffers or the weight of
    the older `weight_norm` can be followed. The first update copies the model.

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
        if any(map(is_lazy, theirs)):
            return  # nothing was trained yet
        if any(is_lazy(a) or a.shape != b.shape for a, b in zip(mine, theirs, strict=True)):
            training = self.module.training
            self.module = _followed(model).train(training)
        elif not self.n_averaged:
            for a, b in zip(mine, theirs, strict=True):
                a.copy_(b)
        else:
            averaged = []
            for pair in zip(mine, theirs, strict=True):
                # Whole numbers have no mean, and numbers of 8 bits no arithmetic.
                floats = pair[0].is_floating_point() or pair[0].is_complex()
                if floats and pair[0].dtype.itemsize > 1:
                    averaged.append(pair)
                else:
                    pair[0].copy_(pair[1])
            if averaged:
                torch_compat.lerp_all([a for a, _ in averaged], [b for _, b in averaged], 1 - self.decay)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [local(tensor) for tensor in (*model.parameters(), *model.buffers())]


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
