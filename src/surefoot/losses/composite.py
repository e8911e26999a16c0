"""A weighted sum of losses, itself a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..arguments import as_number
from ..errors import UsageError
from .conventions import PAIR, Convention, convention_of, describe, value_of, weighed


class WeightedSum(nn.Module):
    """``sum(factor_i * loss_i)`` over losses that are computed from the same outputs and targets.

    `parts` is a sequence of ``(factor, loss)``; a loss is a module or a user's own ``loss(outputs, targets)``. Raises
    UsageError for no parts, a factor that is not finite, or parts that need different batches.

    >>> import torch
    >>> both = WeightedSum([(1.0, nn.MSELoss()), (0.5, nn.L1Loss())])
    >>> both(torch.full((2, 2), 2.0), torch.zeros(2, 2))
    tensor(5.)
    """

    convention = PAIR  # how the sum is called: as its parts are

    def __init__(self, parts: Sequence[tuple[float, Any]]):
        super().__init__()
        if not parts:
            raise UsageError("a sum of losses needs at least one loss")
        for part in parts:
            if not isinstance(part, tuple | list) or len(part) != 2 or as_number(part[0]) is None:
                raise UsageError(f"a part of a sum of losses is a pair (factor, loss), not {part!r}")
            factor, loss = part
            if not math.isfinite(factor):
                raise UsageError(f"the factor {factor} of {describe(loss)} is not a finite number")
            if not callable(loss):
                raise UsageError(f"{loss!r} is not a loss; give a module or a function loss(outputs, targets)")
        self.factors = tuple(float(factor) for factor, _ in parts)
        self.parts = tuple(loss for _, loss in parts)
        # Registered as well, so that .to(device), state_dict() and parameters() reach class weights and learned parts.
        self.modules_of_parts = nn.ModuleList(loss for loss in self.parts if isinstance(loss, nn.Module))
        conventions = [convention_of(loss) for loss in self.parts]
        if len({(c.forward, c.batch) for c in conventions}) > 1:
            batches = ", ".join(f"{describe(p)} {c.batch}" for p, c in zip(self.parts, conventions, strict=True))
            raise UsageError(f"losses in a sum must take the same batch; these differ: {batches}")
        first = conventions[0]
        self.convention = Convention(first.name, first.batch, first.forward, lambda loss, o, t: loss(o, t))

    def forward(self, outputs: Any, targets: Any, shares: Sequence[Any] | None = None) -> Tensor:
        """The sum; `shares` (one a part, see `averaging.shares`) makes it this micro-batch's part of a larger batch."""
        values = [value_of(part, outputs, targets) for part in self.parts]
        if shares is not None:
            values = list(map(weighed, values, shares))
        total, *rest = (value * factor for value, factor in zip(values, self.factors, strict=True))
        for value in rest:
            total = total + value
        return total

    def extra_repr(self) -> str:
        return " + ".join(f"{f:g} * {describe(p)}" for f, p in zip(self.factors, self.parts, strict=True))
