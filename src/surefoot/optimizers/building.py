"""An optimizer by name over a model's parameters, with every group's hyperparameters checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import Problems, UsageError
from ..registry import argument_problems, as_given
from .groups import param_groups
from .registry import OPTIMIZERS


def build_optimizer(
    name: str | Callable[..., torch.optim.Optimizer],
    args: Mapping[str, Any] | None,
    model: nn.Module,
    groups: Sequence[Mapping[str, Any]] | None = None,
    no_decay: str | Sequence[str] | None = None,
    layer_decay: float | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `name` (of `OPTIMIZERS`, or a class of one's own) with `args`, over what can be trained of `model`.

    `groups`, `no_decay` and `layer_decay` are those of `param_groups`. Raises UsageError for anything that does
    not fit: arguments, patterns, a model that has nothing to train, an optimizer that takes one group only.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> optimizer = build_optimizer("SGD", {"lr": 0.1}, model, groups=[{"match": "1.*", "lr": 0.5}])
    >>> [(g["name"], g["lr"]) for g in optimizer.param_groups]
    [('default', 0.1), ('1.*', 0.5)]
    """
    target = OPTIMIZERS[name].load() if isinstance(name, str) else name
    title = name if isinstance(name, str) else getattr(name, "__name__", str(name))
    arguments = {key: _tuple_as(target, key, value) for key, value in (args or {}).items()}
    lr = arguments.get("lr", _default(target, "lr"))
    if layer_decay is not None and lr is None:
        raise UsageError(f"layer_decay: {title} has no lr that it could scale")
    if no_decay is not None and _default(target, "weight_decay") is None and "weight_decay" not in arguments:
        raise UsageError(f"no_decay: {title} has no weight_decay; leave no_decay out")
    made = param_groups(model, lr, groups, no_decay, layer_decay)
    if not made:
        raise UsageError(f"{title}: the model has no trainable parameter; unfreeze some or check requires_grad")
    check_groups(target, title, groups or ())
    if target is torch.optim.LBFGS and len(made) > 1:
        raise UsageError("LBFGS takes one parameter group; leave groups, no_decay and layer_decay out")
    made = [{key: _tuple_as(target, key, value) for key, value in group.items()} for group in made]
    if isinstance(name, str):
        registered: torch.optim.Optimizer = OPTIMIZERS.build(name, arguments, params=made)
        return registered
    problems = [p for p in argument_problems(title, target, {"params": made, **arguments}) if p.argument != "params"]
    if problems:
        raise Problems([p.message for p in problems])
    return target(made, **as_given(arguments, target))


def check_groups(target: Callable[..., Any], title: str, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise UsageError for hyperparameters of `groups` that the optimizer does not take."""
    problems = []
    signature = inspect.signature(target).parameters.items()
    required = [n for n, p in signature if p.default is inspect.Parameter.empty and n not in ("params", "self")]
    for index, group in enumerate(groups):
        given = {k: v for k, v in group.items() if k not in ("match", "name", "params")}
        if title in OPTIMIZERS and OPTIMIZERS[title].load() is target:
            found = OPTIMIZERS[title].problems(given)
        else:
            found = argument_problems(title, target, {"params": [], **given})
        for problem in found:
            if problem.argument is None and any(f"{n!r}" in problem.message for n in required):
                continue  # a group may leave out what the optimizer itself is given
            where = f"groups[{index}]" + (f".{problem.argument}" if problem.argument else "")
            problems.append(f"{where}: {problem.message}")
    if problems:
        raise Problems(problems)


def _tuple_as(target: Callable[..., Any], name: str, value: Any) -> Any:
    """YAML's list as a tuple where the class has a tuple (betas, etas, eps)."""
    return tuple(value) if isinstance(value, list) and isinstance(_default(target, name), tuple) else value


def _default(target: Callable[..., Any], name: str) -> Any:
    parameter = inspect.signature(target).parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
