"""From raw data to what a model takes: the one deterministic mapping that training, evaluation and use share."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import Arguments
from .errors import UsageError
from .registry import Range
from .text import counted

_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Preprocessing:
    """``(raw * scale - mean) / std`` for each channel, in float32.

    `scale` is usually 1/255 (pixels of 0 to 255 become 0 to 1), or None for data that needs no scaling; `mean`
    and `std` hold one number, or one for each channel. The arithmetic is that of torchvision's ToTensor and
    Normalize, bit for bit: a scale of 1/n divides by n.

    Takes (N, C, H, W) or (C, H, W), uint8 or float, and (N, C) or (C,), the rows of a table; any other shape where
    there is one mean and one std. The input is left as it is. Raises UsageError for numbers that cannot be used and
    for another count of channels.

    >>> Preprocessing()(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    tensor([[[[-1.,  1.]]]])
    """

    scale: float | None = 1 / 255
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, int | float) or getattr(value, "shape", None) == () else value
            try:
                numbers = tuple(float(v) for v in value)
                if isinstance(value, str | bytes | Mapping):
                    raise TypeError
            except (TypeError, ValueError):
                raise UsageError(f"preprocessing: {name}: {value!r} is not a number or a list of numbers") from None
            if not numbers or not all(abs(number) <= _LARGEST for number in numbers):
                raise UsageError(f"preprocessing: {name}: {value!r}; give one finite number, or one a channel")
            object.__setattr__(self, name, numbers)
        if min(self.std) < _SMALLEST:
            raise UsageError(f"preprocessing: std: {min(self.std)} is not above 0{' in float32' * (min(self.std) > 0)}")
        if len(self.mean) != len(self.std):
            raise UsageError(
                f"preprocessing: mean has {counted(len(self.mean), 'number')} and std "
                f"{len(self.std)}; give as many of each"
            )
        check = Arguments("preprocessing: ")
        scale = check.number("scale", self.scale, Range(low=0, low_open=True, high=_LARGEST), none=True)
        check.done()
        if scale is not None and scale < _SMALLEST:
            raise UsageError(f"preprocessing: scale: {scale} is not above 0 in float32")
        object.__setattr__(self, "scale", scale)

    def __call__(self, raw: Tensor) -> Tensor:
        """The model's input for `raw`: float32, same shape, on the same device."""
        count = len(self.mean)
        if count > 1 and (not raw.dim() or raw.shape[-3 if raw.dim() > 2 else -1] != count):
            raise UsageError(
                f"preprocessing: mean and std are for {counted(count, 'channel')}, the data has the shape "
                f"{tuple(raw.shape)}; (N, {count}, H, W), or (N, {count}) of a table, was expected"
            )
        return _apply(raw, *_constants(self, raw.device))

    def module(self) -> nn.Module:
        """The same mapping as a module without parameters, to be exported together with a model.

        >>> Preprocessing(scale=None, mean=1, std=2).module()(torch.tensor([3.0]))
        tensor([1.])
        """
        return PreprocessingModule(self)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` takes; floats survive JSON exactly.

        >>> Preprocessing.from_json(Preprocessing().to_json()) == Preprocessing()
        True
        """
        return {"scale": self.scale, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing that `to_json` wrote. Raises UsageError for missing, unknown or unusable fields."""
        names = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            names_there = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise UsageError(f"preprocessing: found {names_there}, expected the fields {sorted(names)}")
        scale = data["scale"]
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
            raise UsageError(f"preprocessing: scale: {scale!r} is not a number or null")
        return cls(scale=scale, mean=data["mean"], std=data["std"])


class PreprocessingModule(nn.Module):
    """A Preprocessing as a module; its constants are buffers, so that it moves and exports with a model."""

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        self.preprocessing = preprocessing
        constants = _constants(preprocessing, torch.device("cpu"))
        for name, constant in zip(_CONSTANTS, constants, strict=True):
            self.register_buffer(name, constant, persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        return _apply(raw, *(getattr(self, name) for name in _CONSTANTS))


_CONSTANTS = ("divisor", "factor", "mean", "std", "gain")


def _apply(
    raw: Tensor,
    divisor: Tensor | None,
    factor: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    gain: Tensor | None,
) -> Tensor:
    x = raw.to(torch.float32)
    if raw.dim() < 3:  # a table's columns lie last, the channels of pictures before height and width
        mean, std, gain = (c if c is None or not c.dim() else c.flatten() for c in (mean, std, gain))
    for operation, constant in (("div", divisor), ("mul", factor), ("sub", mean), ("div", std), ("mul", gain)):
        if constant is not None:
            # The first makes a tensor of its own unless the conversion did; the rest then works in place.
            x = getattr(x, operation if x is raw else f"{operation}_")(constant)
    return x


@functools.lru_cache(maxsize=64)
def _constants(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor | None, ...]:
    """What `_apply` takes, None where it would change nothing.

    Tensors and no Python numbers: CUDA multiplies by the reciprocal of a number, which has other last bits.
    Dividing by a power of two is multiplying by its inverse, exactly and three times faster.
    """

    def tensor(*numbers: float) -> Tensor:
        # One number stays 0-dim, so that it fits data of any shape.
        shape = (len(numbers), 1, 1) if len(numbers) > 1 else ()
        with torch.inference_mode(False):  # they are kept, and may be part of a training later
            return torch.tensor(numbers, dtype=torch.float32, device=device).view(shape)

    scale, mean, std = preprocessing.scale, preprocessing.mean, preprocessing.std
    # Dividing gives torchvision's bits where the scale is 1/n.
    divisor = round(1 / scale) if scale is not None and scale < 1 else None
    if divisor is not None and (1 / divisor != scale or math.frexp(divisor)[0] == 0.5):
        divisor = None
    multiplies = all(math.frexp(s)[0] == 0.5 for s in std)
    changes = set(std) != {1.0}
    return (
        None if divisor is None else tensor(divisor),
        tensor(scale) if scale is not None and scale != 1 and divisor is None else None,
        tensor(*mean) if any(mean) else None,
        tensor(*std) if changes and not multiplies else None,
        tensor(*(1 / s for s in std)) if changes and multiplies else None,
    )
