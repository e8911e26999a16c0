"""Parameters that join the training at a later epoch: thawed, given to the optimizer, scheduled and warmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ..arguments import Arguments
from ..errors import UsageError
from ..optimizers import missing_groups, param_groups
from ..wrapping import named_parameters


class Unfreezing:
    """Which parameters of `model` start to learn at which epoch.

    `plan` holds ``(epoch, pattern)`` pairs; a pattern matches parameter names as in ``fnmatch``. At the start of
    that epoch (0-based) the matching frozen parameters join the optimizer, in groups as `how` makes them (``lr``,
    ``groups``, ``no_decay``, ``layer_decay`` of `optimizers.param_groups`). Raises UsageError for a pattern that
    matches no frozen parameter.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Sequence[tuple[int, str]], **how: Any):
        self.model = model
        self.optimizer = optimizer
        self.plan = sorted(_pairs(plan), key=lambda item: item[0])
        self.how = how
        self._done = 0
        frozen = {name for name, p in named_parameters(model) if not p.requires_grad}
        for epoch, pattern in self.plan:
            matched = {name for name in frozen if fnmatchcase(name, pattern)}
            if not matched:
                raise UsageError(
                    f"unfreeze: {pattern!r} (epoch {epoch}) matches no frozen parameter; "
                    f"frozen are: {', '.join(sorted(frozen)) or 'none'}"
                )
            frozen -= matched

    def joining(self) -> list[tuple[int, dict[str, Any]]]:
        """The groups that the whole plan will add, each with its epoch; nothing is thawed."""
        groups, thawed = [], set()
        parameters = dict(named_parameters(self.model))
        try:
            for epoch, pattern in self.plan:
                names = self._thaw_names(pattern)
                thawed |= names
                for group in param_groups(self.model, only=names, **self.how):
                    group["params"] = [parameter for _, parameter in group["params"]]
                    group["name"] += f", {pattern}"
                    groups.append((epoch, {**self.optimizer.defaults, **group}))
        finally:
            for name in thawed:
                parameters[name].requires_grad_(False)
        return groups

    def never(self, epochs: int) -> list[str]:
        """What to tell of the entries whose epoch a run of so many `epochs` does not have."""
        return [
            f"unfreeze: epoch {epoch} of {pattern!r} never comes: epochs are counted from 0 and the run has {epochs}"
            for epoch, pattern in self.plan
            if epoch >= epochs
        ]

    def begin(self, epoch: int) -> None:
        """Thaw what is due by the start of `epoch`; later calls for the same epoch do nothing."""
        self._thaw(sum(1 for due, _ in self.plan if due <= epoch))

    def catch_up(self, saved: Mapping[str, Any]) -> None:
        """Give the optimizer the groups that a saved run had, before their state is loaded."""
        self._thaw(saved.get("unfreezing", {}).get("done", 0))

    def _thaw(self, count: int) -> None:
        """Let the first `count` entries of the plan take effect."""
        while self._done < min(count, len(self.plan)):
            pattern = self.plan[self._done][1]
            self._done += 1
            self._thaw_names(pattern)
            named = "name" in self.optimizer.param_groups[0]
            for group in missing_groups(self.optimizer, self.model, suffix=f", {pattern}", **self.how):
                if not named:
                    del group["name"]
                self.optimizer.add_param_group(group)

    def _thaw_names(self, pattern: str) -> set[str]:
        names = set()
        for name, parameter in named_parameters(self.model):
            if not parameter.requires_grad and fnmatchcase(name, pattern):
                parameter.requires_grad_(True)
                names.add(name)
        return names

    def state_dict(self) -> dict[str, Any]:
        """How much of the plan has taken effect."""
        return {"done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises UsageError unless `catch_up` was called for this state."""
        if state["done"] != self._done:
            raise UsageError(
                f"unfreeze: {state['done']} entries had taken effect in the saved run, here {self._done}",
                code="resume-state",
            )


def _pairs(plan: Any) -> list[tuple[int, str]]:
    """The ``(epoch, pattern)`` pairs; raises Problems for anything else."""
    check = Arguments("unfreeze: ")
    pairs = []
    for item in plan if isinstance(plan, list | tuple) else [plan]:
        if isinstance(item, list | tuple) and len(item) == 2:
            pairs.append((check.whole("epoch", item[0], low=0), check.text("pattern", item[1])))
        else:
            check.refuse("pairs", f'{item!r} is no pair of an epoch and a pattern; give e.g. [(2, "layer1.*")]')
    check.done()
    return pairs
