"""Going on from a checkpoint of somebody's own loop: what it holds is loaded, what it lacks is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..artifacts.importing import without_prefix
from ..artifacts.optimizer_state import OptimizerState
from ..artifacts.weight_files import read_state
from ..artifacts.weights import put
from ..data import Loader
from ..errors import UsageError
from ..schedules import Schedule
from ..text import counted
from ..wrapping import unwrap


def start_from(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    loader: Loader,
    *,
    steps_per_epoch: int,
    done: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Put the weights and the optimizer's state of `path` in place and move schedule and loader to its epoch.

    Returns how many epochs were done: `done`, else the file's ``epoch`` + 1 (counted from 0 and saved after it, as
    in the tutorial's loop), else 0. The settings (lr, momentum, ...) stay those of `optimizer`; state goes from
    positions to parameters by name. `say` receives what was loaded and what such a file cannot restore.
    Raises `UsageError` for a file that does not fit; nothing is changed then.
    """
    elsewhere = read_state(path, training=True)
    bare = unwrap(model)
    tensors, _ = without_prefix(elsewhere.tensors, bare)
    state = None if elsewhere.optimizer is None else _positioned(elsewhere.optimizer, bare, optimizer, str(path))
    put(tensors, bare, str(path))
    say(f"{path}: {counted(len(tensors), 'tensor')}{f' from its entry {elsewhere.key!r}' if elsewhere.key else ''}")
    lacking = []
    if state is not None and elsewhere.optimizer is not None:
        say(f"{path}: the optimizer's state of {counted(len(state['state']), 'parameter')}, by position")
        for line in _settings(elsewhere.optimizer, optimizer, schedule):
            say(f"{path}: {line}")
        optimizer.load_state_dict(state)
    else:
        lacking.append("the optimizer's state (it begins anew)")
    if done is None:
        done = 0 if elsewhere.epoch is None else elsewhere.epoch + 1
        if elsewhere.epoch is not None:
            say(f"{path}: its epoch {elsewhere.epoch} is taken as {done} done (another count: --epochs-done N)")
    loader.seek(done)
    if done and schedule.needs_metric:
        lacking.append("the scheduler's state (a plateau counts anew)")
    elif done:
        for _ in range(done):
            for _ in range(steps_per_epoch):
                schedule.step()
            schedule.epoch()
        lacking.append(f"the scheduler's and the warmup's state (moved to epoch {done} as this recipe has them)")
    lacking += ["random numbers (from this run's seed)", "the best value so far", "a place within an epoch"]
    say(f"{path}: cannot give back {', '.join(lacking)}")
    if elsewhere.others:
        say(f"{path}: left aside: {', '.join(map(repr, elsewhere.others))}")
    return done


def _positioned(
    saved: OptimizerState, model: nn.Module, optimizer: torch.optim.Optimizer, where: str
) -> dict[str, Any]:
    """The saved state under this optimizer's positions. Raises `UsageError` where they cannot be matched."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    sizes = tuple(len(group["params"]) for group in optimizer.param_groups)
    flat = [position for group in saved.positions for position in group]
    names = {id(p): name for name, p in model.named_parameters()}
    if saved.names is not None:
        named = dict(model.named_parameters())
        order = [named[name] for name in saved.names if name in named]
    elif tuple(map(len, saved.positions)) == sizes:
        order = own
    else:  # one group there, several here: the loop's optimizer took model.parameters() in order
        order = [p for p in model.parameters() if p.requires_grad or len(flat) != len(own)]
    if len(order) != len(flat) or len(flat) != len(own) or {id(p) for p in order} != {id(p) for p in own}:
        raise UsageError(
            f"{where}: its optimizer has {counted(len(flat), 'parameter')} in "
            f"{counted(len(saved.positions), 'group')}, this recipe's {len(own)} in {len(sizes)}; "
            "they cannot be matched"
        )
    wrong = []
    index = {id(p): i for i, p in enumerate(own)}
    state = {}
    for position, parameter in zip(flat, order, strict=True):
        entries = saved.state.get(position)
        if entries is None:
            continue
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                shapes = f"{list(value.shape)}, the parameter's is {list(parameter.shape)}"
                wrong.append(f"{names.get(id(parameter), position)}: the shape of {name} is {shapes}")
        state[index[id(parameter)]] = entries
    if wrong:
        raise UsageError(f"{where}: its optimizer's state does not fit: {'; '.join(wrong[:5])}")
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def _same_form(setting: Any) -> Any:
    return tuple(setting) if isinstance(setting, list) else setting


def _settings(saved: OptimizerState, optimizer: torch.optim.Optimizer, schedule: Schedule) -> list[str]:
    """A line where the file's settings are not the recipe's, which are used."""
    lines = []
    for number, (theirs, mine) in enumerate(zip(saved.groups, optimizer.param_groups, strict=False)):
        mine = {**mine, "lr": schedule.undampened_lrs[number]}
        differing = [
            f"{name} {mine[name]} (the file has {value})"
            for name, value in theirs.items()
            if name in mine and name != "initial_lr" and _same_form(mine[name]) != _same_form(value)
        ]
        if differing:
            lines.append(f"group {number}: this recipe's settings are used: {', '.join(differing)}")
    return lines
