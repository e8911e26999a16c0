"""The gradients of one update: looked at, then clipped in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from . import torch_compat
from .errors import UsageError
from .nonfinite import NonFinite
from .world import World
from .wrapping import is_spread, local, named_parameters


def limit_gradients(
    model: nn.Module, parameters: Sequence[Tensor], max_grad_norm: float | None, clip_value: float | None, looks: bool
) -> Tensor | None:
    """Limit the 2-norm over all gradients, then each element. Returns the norm before, where `max_grad_norm` is set.

    Where it `looks`, NonFinite is raised for gradients that are NaN or infinite, while they are as they were.
    """
    grads = [grad for p in parameters if (grad := p.grad) is not None]
    norm, finite = None, True
    if (max_grad_norm, clip_value) != (None, None) and any([grad.layout is not torch.strided for grad in grads]):
        name = "clip_value" if max_grad_norm is None else "max_grad_norm"
        raise UsageError(f"{name}: torch cannot clip sparse gradients; leave it out, or give sparse=False")
    if max_grad_norm is not None:
        norm = nn.utils.get_total_norm(grads)
        finite = not looks or math.isfinite(norm)
    elif looks:
        finite = torch_compat.all_finite(grads, scratch=True)
    if not finite:
        refuse_gradients(model, parameters)
    clip(parameters, norm, max_grad_norm, clip_value)
    return norm


def clip(
    parameters: Sequence[Tensor], norm: Tensor | None, max_grad_norm: float | None, clip_value: float | None
) -> None:
    """Limit the gradients, whose 2-norm is `norm`; of those in pieces, this rank's piece."""
    holders: Any = parameters
    if any(map(is_spread, parameters)):  # torch's functions look at nothing but `grad`
        holders = [SimpleNamespace(grad=local(p.grad)) for p in parameters if p.grad is not None]
    if max_grad_norm is not None and norm is not None:
        nn.utils.clip_grads_with_norm_(holders, max_grad_norm, norm)
    if clip_value is not None:
        nn.utils.clip_grad_value_(holders, clip_value)


def refuse_gradients(model: nn.Module, parameters: Sequence[Tensor], world: World | None = None) -> None:
    """Raise NonFinite for the first gradient that is not finite on any rank; a norm may overflow though none is."""
    names = {id(p): name for name, p in named_parameters(model)}
    bad = (
        place
        for place, p in enumerate(parameters)
        if p.grad is not None and not torch_compat.all_finite([local(p.grad)])
    )
    found = next(bad, None)
    places = [place for place in ([found] if world is None else world.gather(found)) if place is not None]
    if places:
        name = names.get(id(parameters[min(places)]), "a parameter outside the model")
        raise NonFinite(f"the gradient of {name} is not finite", math.nan)
