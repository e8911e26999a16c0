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

_SMALL = 1 << 16


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
        if [a.shape for a in mine] != [b.shape for b in theirs]:
            self._make_again(model)
            mine = _tensors(self.module)
        averaged = []
        for a, b in zip(mine, theirs, strict=True):
            # Whole numbers have no mean, and numbers of 8 bits no arithmetic.
            if self.n_averaged and (a.is_floating_point() or a.is_complex()) and a.dtype.itemsize > 1:
                averaged.append((a, b))
            else:
                a.copy_(b)
        if averaged:
            torch_compat.lerp_all([a for a, _ in averaged], [b for _, b in averaged], 1 - self.decay)
        _put_infinite([(a, b) for a, b in averaged if not b.requires_grad])
        self.n_averaged += 1

    def _make_again(self, model: nn.Module) -> None:
        """Take over what a forward pass has made, or given another shape; what was averaged stays."""
        before = dict(tensors(self.module))
        self.module = _followed(model).train(self.module.training)
        for name, tensor in tensors(self.module):
            old = before.get(name)
            if old is not None and not is_lazy(tensor) and not is_lazy(old) and old.shape == tensor.shape:
                local(tensor).copy_(local(old))


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, not what still waits for a first batch."""
    return [local(tensor) for tensor in (*model.parameters(), *model.buffers()) if not is_lazy(tensor)]


def _put_infinite(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Infinite numbers (a mask's) have no mean: of two the difference is NaN, and the number itself is taken."""
    if all(a.device.type == "cpu" for a, _ in pairs):  # elsewhere looking would wait for the device
        small = [a.reshape(-1) for a, _ in pairs if a.numel() <= _SMALL]
        whole = not small or not torch.cat(small).isnan().any()
        pairs = [(a, b) for a, b in pairs if (a.numel() > _SMALL or not whole) and a.isnan().any()]
    for a, b in pairs:
        a.copy_(torch.where(a.isnan(), b, a))


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
