"""Parameters that join the training at a later epoch: thawed, given to the optimizer, scheduled and warmed."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from ..errors import UsageError


class Unfreezing:
    """Which parameters start to learn at which epoch.

    `plan` holds ``(epoch, pattern)`` pairs; a pattern matches parameter names as in ``fnmatch``. At the begin of
    that epoch (0-based) the matching frozen parameters become a param group of their own with the optimizer's
    default settings. Raises UsageError for a pattern that matches no frozen parameter.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Sequence[tuple[int, str]]):
        self.model = model
        self.optimizer = optimizer
        self.plan = sorted(plan, key=lambda item: item[0])
        self._done = 0
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        for epoch, pattern in self.plan:
            matched = {name for name in frozen if fnmatchcase(name, pattern)}
            if not matched:
                raise UsageError(
                    f"unfreeze: {pattern!r} (epoch {epoch}) matches no frozen parameter; "
                    f"frozen are: {', '.join(sorted(frozen)) or 'none'}"
                )
            frozen -= matched

    def begin(self, epoch: int) -> list[str]:
        """Thaw what is due by the begin of `epoch`, later calls for the same epoch do nothing; returns the names."""
        thawed = []
        while self._done < len(self.plan) and self.plan[self._done][0] <= epoch:
            pattern = self.plan[self._done][1]
            self._done += 1
            group = []
            for name, parameter in self.model.named_parameters():
                if not parameter.requires_grad and fnmatchcase(name, pattern):
                    parameter.requires_grad_(True)
                    group.append((name, parameter))
                    thawed.append(name)
            named = "param_names" in self.optimizer.param_groups[0]
            self.optimizer.add_param_group({"params": group if named else [p for _, p in group]})
        return thawed
