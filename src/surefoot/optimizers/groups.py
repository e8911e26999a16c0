"""Parameter groups: which parameter gets which hyperparameters, each in exactly one group."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..arguments import Arguments, as_number
from ..errors import Problems, UsageError
from ..limits import LAYER_DECAY
from ..registry import describe, did_you_mean
from ..wrapping import named_parameters, submodules, unwrap

NORM_AND_BIAS = "norm_and_bias"


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `model` that can learn, by name; a tied one once, under its first name.

    >>> list(trainable(nn.Linear(2, 1)))
    ['weight', 'bias']
    """
    return {name: p for name, p in named_parameters(model) if p.requires_grad}


def param_groups(
    model: nn.Module,
    lr: float | None = None,
    groups: Sequence[Mapping[str, Any]] | None = None,
    no_decay: str | Sequence[str] | None = None,
    layer_decay: float | None = None,
    *,
    only: set[str] | None = None,
) -> list[dict[str, Any]]:
    """The model's trainable parameters, sorted into groups for an optimizer.

    `groups` is a list of ``{"match": pattern or patterns, **hyperparameters}``; patterns are those of the shell
    (``"features.*"``, ``"*.bias"``) over the parameters' names (without those of wrappers), and the first match counts.
    `no_decay` is ``"norm_and_bias"`` or a list of patterns: these get ``weight_decay=0`` unless their entry in
    `groups` sets a weight decay itself. `layer_decay` multiplies the rate by ``layer_decay ** (layers after
    this one)`` (Howard & Ruder 2018, arxiv.org/abs/1801.06146), unless the entry sets ``lr`` itself; it needs `lr`.
    Frozen parameters are left out; `only` restricts to these names (see `missing_groups`).

    Each group holds ``name``, ``params`` as (name, parameter) pairs, from which torch fills ``param_names``, and
    its hyperparameters. Raises UsageError for a pattern without a parameter of its own and for bad values.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    >>> for group in param_groups(model, no_decay="norm_and_bias"):
    ...     print(group["name"], [name for name, _ in group["params"]], group.get("weight_decay"))
    default ['0.weight', '2.weight'] None
    no_decay ['0.bias', '1.weight', '1.bias', '2.bias'] 0.0
    """
    entries = [_entry(index, given) for index, given in enumerate(groups or ())]
    if layer_decay is not None:
        _check_layer_decay(layer_decay, lr)
    # Every name of every parameter, with its first name: a tied parameter may be matched by any of its names.
    first: dict[int, str] = {}
    aliases = {name: first.setdefault(id(p), name) for name, p in named_parameters(model, every=True)}
    owners = _owners(entries, aliases)
    exempt = _exempt(no_decay, model, aliases)
    layers, layer_count = _layers(model) if layer_decay is not None else ({}, 1)

    sorted_groups: dict[tuple[int, int, bool], dict[str, Any]] = {}
    for name, parameter in named_parameters(model):
        if not parameter.requires_grad or (only is not None and name not in only):
            continue
        owner = owners.get(name, len(entries))
        given = entries[owner][1] if owner < len(entries) else {}
        spared = name in exempt and "weight_decay" not in given
        layer = layers[name] if layer_decay is not None and "lr" not in given else -1
        group = sorted_groups.get((owner, layer, spared))
        if group is None:
            pattern = entries[owner][0][0] if owner < len(entries) else ""
            title = filter(None, (pattern, f"layer{layer}" if layer >= 0 else "", "no_decay" if spared else ""))
            group = {"name": "/".join(title) or "default", "params": [], **given}
            if lr is not None:
                group.setdefault("lr", lr)
            if layer >= 0 and lr is not None and layer_decay is not None:
                group["lr"] = lr * layer_decay ** (layer_count - 1 - layer)
            if spared:
                group["weight_decay"] = 0.0
            sorted_groups[owner, layer, spared] = group
        group["params"].append((name, parameter))
    # The unmatched rest comes first, so that group 0 is what most people mean by "the learning rate".
    order = sorted(sorted_groups, key=lambda key: (key[0] != len(entries), key))
    return [sorted_groups[key] for key in order]


def missing_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, suffix: str = "", **how: Any
) -> list[dict[str, Any]]:
    """Groups for the trainable parameters of `model` that `optimizer` does not hold: what unfreezing has added.

    `how` is as for `param_groups`; `suffix` is appended to each group's name. Give each to
    ``optimizer.add_param_group`` and call ``schedule.adopt_groups()``.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    only = {name for name, p in trainable(model).items() if id(p) not in held}
    added = param_groups(model, only=only, **how) if only else []
    named = any("param_names" in group for group in optimizer.param_groups)
    for group in added:
        group["name"] += suffix
        if not named:  # torch takes names for all groups or for none
            group["params"] = [parameter for _, parameter in group["params"]]
    return added


def named_groups(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> list[tuple[str, list[str]]]:
    """(group name, parameter names) of each group of `optimizer`; parameters that `model` does not know are ``"?"``.

    >>> model = nn.Linear(2, 1)
    >>> named_groups(torch.optim.SGD(model.parameters(), lr=0.1), model)
    [('0', ['weight', 'bias'])]
    """
    names = {} if model is None else {id(p): name for name, p in named_parameters(model)}
    named = []
    for index, group in enumerate(optimizer.param_groups):
        known = group.get("param_names") or ["?"] * len(group["params"])
        members = [names.get(id(p), k) for p, k in zip(group["params"], known, strict=True)]
        named.append((str(group.get("name", index)), members))
    return named


def _entry(index: int, given: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The patterns and the hyperparameters of one item of `groups`."""
    where = f"groups[{index}]"
    if not isinstance(given, Mapping):
        raise UsageError(f"{where}: {describe(given)} is not a mapping with 'match'")
    rest = dict(given)
    match = rest.pop("match", None)
    patterns = [match] if isinstance(match, str) else match
    if not patterns or not isinstance(patterns, list | tuple) or not all(isinstance(p, str) for p in patterns):
        raise UsageError(
            f"{where}: 'match' must be a name pattern or a list of them, e.g. '*.bias'; found {describe(match)}"
        )
    rest.pop("params", None)
    return list(patterns), {"name": rest.pop("name"), **rest} if "name" in rest else rest


def _owners(entries: list[tuple[list[str], dict[str, Any]]], aliases: Mapping[str, str]) -> dict[str, int]:
    """Which entry takes each parameter: the first that matches. A pattern left with nothing is an error."""
    owners: dict[str, int] = {}
    problems = []
    for index, (patterns, _) in enumerate(entries):
        for pattern in patterns:
            hits = _hits(pattern, aliases)
            free = [name for name in hits if owners.get(name, index) == index]
            owners.update(dict.fromkeys(free, index))
            if not hits:
                problems.append(f"groups[{index}].match: {_unmatched(pattern, aliases)}")
            elif not free:
                taken = ", ".join(f"groups[{number}]" for number in sorted({owners[name] for name in hits}))
                problems.append(
                    f"groups[{index}].match: all that {pattern!r} matches is already in {taken}; "
                    "put the more special pattern first"
                )
    if problems:
        raise Problems(problems)
    return owners


def _hits(pattern: str, aliases: Mapping[str, str]) -> list[str]:
    """The first names of the parameters that `pattern` matches, in the model's order."""
    return list(dict.fromkeys(first for name, first in aliases.items() if fnmatch.fnmatchcase(name, pattern)))


def _unmatched(pattern: str, aliases: Mapping[str, str]) -> str:
    parts = [name.split(".") for name in aliases]
    prefixes = {".".join(names[:depth]) + ".*" for names in parts for depth in range(1, len(names))}
    meant = did_you_mean(pattern, [*aliases, *sorted(prefixes)])
    shown = ", ".join(list(aliases)[:4]) + (", ..." if len(aliases) > 4 else "")
    return f"{pattern!r} matches no parameter{meant or '; the names are: ' + shown}"


def _exempt(no_decay: str | Sequence[str] | None, model: nn.Module, aliases: Mapping[str, str]) -> set[str]:
    """The first names of the parameters that weight decay spares."""
    if no_decay is None:
        return set()
    if no_decay == NORM_AND_BIAS:
        return _norm_and_bias(model, aliases)
    problems, found = [], set()
    check = Arguments()
    patterns = check.texts("no_decay", no_decay)
    check.done()
    for pattern in patterns:
        hits = _hits(pattern, aliases)
        if not hits:
            meant = did_you_mean(pattern, [NORM_AND_BIAS])
            problems.append(
                f"no_decay: {repr(pattern) + ' is unknown' + meant if meant else _unmatched(pattern, aliases)}"
            )
        found.update(hits)
    if problems:
        raise Problems(problems)
    return found


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _norm_and_bias(model: nn.Module, aliases: Mapping[str, str]) -> set[str]:
    found = set()
    for prefix, module in submodules(model):
        # A norm of one's own making is known by its class's name, as everybody names them so.
        norm = isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()
        for leaf, parameter in module.named_parameters(recurse=False):
            # RNNs say bias_ih_l0, attention says in_proj_bias.
            bias = leaf.startswith("bias") or leaf.endswith("bias")
            if bias or (norm and parameter.ndim <= 1):
                found.add(aliases[f"{prefix}.{leaf}" if prefix else leaf])
    return found


def _layers(model: nn.Module) -> tuple[dict[str, int], int]:
    """The layer of each parameter, counted from the input, and how many layers there are.

    A layer is a child of the model; a Sequential or ModuleList stands for its items. Parameters that the model
    holds itself (a class token, position embeddings) count to the first layer.
    """
    layers: dict[str, int] = {}
    count = 0

    def walk(module: nn.Module, prefix: str) -> None:
        nonlocal count
        for name, child in module.named_children():
            path, child = f"{prefix}{name}", unwrap(child)
            if isinstance(child, nn.Sequential | nn.ModuleList):
                walk(child, path + ".")
                continue
            inside = [f"{path}.{leaf}" for leaf, _ in named_parameters(child)]
            layers.update({leaf: count for leaf in inside if leaf not in layers})
            count += bool(inside)

    walk(unwrap(model), "")
    every = {name: layers.get(name, 0) for name, _ in named_parameters(model)}
    return every, max(count, 1)


def _check_layer_decay(layer_decay: float, lr: float | None) -> None:
    if isinstance(layer_decay, bool) or not isinstance(layer_decay, int | float):
        raise UsageError(f"layer_decay: {describe(layer_decay)} is not a number; give a factor such as 0.9")
    wrong = LAYER_DECAY.violation(layer_decay)
    if wrong:
        raise UsageError(f"layer_decay: {wrong}; give a factor above 0 and at most 1, e.g. 0.9")
    if as_number(lr) is None:
        given = "" if lr is None else f", and {describe(lr)} is no number"
        raise UsageError(f"layer_decay needs the optimizer's lr, which it scales{given}; give lr")
