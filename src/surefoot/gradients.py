"""The gradients of one update: looked at, then clipped in place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import torch_compat
from .errors import UsageError
from .nonfinite import NonFinite
from .wrapping import named_parameters


def limit_gradients(
    model: nn.Module,
    parameters: Sequence[Tensor],
    max_grad_norm: float | None,
    clip_value: float | None,
    looks: bool,
) -> Tensor | None:
    """Limit the 2-norm over all gradients, then each element. Returns the norm before, where `max_grad_norm` is set.

    Where it `looks`, NonFinite is raised for gradients that are NaN or infinite, while they are as they were.
    """
    grads = [grad for p in parameters if (grad := p.grad) is not None]
    norm, finite = None, True
    if max_grad_norm is not None:
        if any([grad.layout is not torch.strided for grad in grads]):
            raise UsageError("max_grad_norm: torch cannot clip sparse gradients; leave it out, or give sparse=False")
        norm = nn.utils.get_total_norm(grads)
        finite = not looks or math.isfinite(norm)
    elif looks:
        finite = torch_compat.all_finite(grads, scratch=True)
    if not finite:
        refuse_gradients(model, parameters)
    if max_grad_norm is not None and norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    if clip_value is not None:
        nn.utils.clip_grad_value_(parameters, clip_value)
    return norm


def refuse_gradients(model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Raise NonFinite for the first gradient that is not finite; a norm may overflow though none is."""
    names = {id(p): name for name, p in named_parameters(model)}
    for parameter in parameters:
        if parameter.grad is not None and not torch_compat.all_finite([parameter.grad]):
            name = names.get(id(parameter), "a parameter outside the model")
            raise NonFinite(f"the gradient of {name} is not finite", math.nan)
