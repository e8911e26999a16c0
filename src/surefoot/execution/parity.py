"""Whether a way of running gives the loss and every gradient of plain eager execution, up to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..losses import calling

# How far a gradient may be off, as a part of its 2-norm: some thousand roundings of the arithmetic it is made in.
# Summing in another order costs tens; a unit of a ReLU or a pool that lands on its other side costs more.
TOLERANCE = {"float32": 2e-3, "bf16": 0.1, "fp16": 0.05}
# A gradient that is nothing but rounding (a bias before a BatchNorm) is measured against all gradients together.
FLOOR = {"float32": 2e-5, "bf16": 1e-2, "fp16": 5e-3}

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Gradients:
    """The loss of one batch and the gradient of every trainable parameter by name (None where there is none)."""

    loss: Tensor
    grads: Mapping[str, Tensor | None]


def eager_gradients(
    model: nn.Module,
    loss: Callable[..., Tensor],
    batch: Sequence[Any],
    precision: str = "float32",
    forward: Callable[..., Any] | None = None,
) -> Gradients:
    """Plain eager loss and gradients of one batch, under the settings that now hold.

    With `forward` the model is run by it (a compiled form of the same module). The model's `.grad`s stay as they
    were; buffers and random numbers are used up as by any forward pass.
    """
    forward = model if forward is None else forward
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        if precision in AUTOCAST:
            device = next(iter(named.values())).device.type
            with torch.autocast(device, dtype=AUTOCAST[precision]):
                value = calling.apply(loss, forward, batch).loss
        else:
            value = calling.apply(loss, forward, batch).loss
        grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return Gradients(value.detach(), dict(zip(named, grads, strict=True)))


def first_difference(expected: Gradients, found: Gradients, precision: str = "float32") -> str | None:
    """What of `found` is off by more than rounding, in words that name the parameter; None where nothing is.

    >>> a = Gradients(torch.tensor(1.0), {"w": torch.ones(3)})
    >>> first_difference(a, a)
    >>> first_difference(a, Gradients(torch.tensor(1.0), {"w": torch.zeros(3)}))
    'the gradient of w is all zeros where eager has a 2-norm of 1.73'
    """
    tolerance = TOLERANCE[precision]
    ours, theirs = float(expected.loss), float(found.loss)
    if not _close(theirs, ours, tolerance):
        return f"the loss is {theirs:.6g} where eager has {ours:.6g}"
    norms = {n: float(g.double().norm()) for n, g in expected.grads.items() if g is not None}
    whole = math.sqrt(sum(v * v for v in norms.values()))
    for name, grad in expected.grads.items():
        other = found.grads.get(name)
        if grad is None:
            if other is not None and bool(other.any()):
                return f"the gradient of {name} is there where eager has none"
            continue
        if other is None:
            if norms[name] > 0:
                return f"the gradient of {name} is missing where eager has a 2-norm of {norms[name]:.3g}"
            continue
        if other.shape != grad.shape:
            return f"the gradient of {name} has shape {tuple(other.shape)} where eager has {tuple(grad.shape)}"
        off = float((other.double() - grad.double()).norm())
        if not off <= max(tolerance * norms[name], FLOOR[precision] * whole):  # NaN is off, too
            if norms[name] > 0 and not bool(other.any()):
                return f"the gradient of {name} is all zeros where eager has a 2-norm of {norms[name]:.3g}"
            part = off / norms[name] if norms[name] else math.inf
            return f"the gradient of {name} is off by {part:.2%} of its 2-norm"
    return None


def _close(found: float, expected: float, tolerance: float) -> bool:
    if math.isnan(found) or math.isnan(expected):
        return math.isnan(found) and math.isnan(expected)
    return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance * 1e-2)
