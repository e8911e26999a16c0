"""What modules keep beside parameters and buffers: extra states, what metrics count, what their own state_dict adds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..wrapping import local, submodules, unwrap

PARTS = ("extra", "counts", "own")


def capture(module: nn.Module, tensors: Iterable[torch.Tensor]) -> dict[str, dict[str, Any]]:
    """The PARTS of what `module` keeps beside its `tensors`; "counts" and "own" where there are any.

    "extra" is what `get_extra_state` gives, "counts" what metrics of torchmetrics have added up, which is in no buffer,
    by the names of submodules; "own" are the entries that a module's own `state_dict` adds, which its own
    `load_state_dict` takes.
    """
    counts = {
        name: {"states": {state: getattr(metric, state) for state in metric._defaults}, "updates": metric._update_count}
        for name, metric in _metrics(module)
    }
    parts = {"counts": counts, "own": _own(unwrap(module), tensors)}
    extra = {name: child.get_extra_state() for name, child in _with_extra_state(module)}
    return {"extra": extra, **{name: part for name, part in parts.items() if part}}


def problems(module: nn.Module, saved: Mapping[str, Any]) -> list[str]:
    """What keeps `saved`, of which earlier versions had "extra" alone, from being put back."""
    texts = []
    if {name for name, _ in _with_extra_state(module)} != set(saved["extra"]):
        texts.append("other submodules have an extra state than in the checkpoint")
    counts, own = saved.get("counts", {}), saved.get("own", {})
    if not isinstance(counts, dict) or not isinstance(own, dict) or not all(map(_is_counted, counts.values())):
        return [*texts, "its state is not that of a module"]
    here = {name: set(metric._defaults) for name, metric in _metrics(module)}
    if counts and here != {name: set(counted["states"]) for name, counted in counts.items()}:
        texts.append("its metrics are others than in the checkpoint")
    if own and not _has_own(unwrap(module)):
        texts.append(f"has no load_state_dict of its own, which would take {', '.join(map(repr, own))}")
    return texts


def restore(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Put back what `capture` gave and in which there are no `problems`, once the tensors are there."""
    for name, child in _with_extra_state(module):
        child.set_extra_state(saved["extra"][name])
    for name, metric in _metrics(module) if "counts" in saved else ():
        for state, value in saved["counts"][name]["states"].items():
            setattr(metric, state, _on(metric.device, value))
        metric._update_count, metric._computed = saved["counts"][name]["updates"], None
    if saved.get("own"):
        bare = unwrap(module)
        bare.load_state_dict({**bare.state_dict(), **saved["own"]})


def _with_extra_state(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in submodules(module):
        if type(child).get_extra_state is not nn.Module.get_extra_state:
            yield name, child


def _metrics(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The metrics of torchmetrics, which is not imported for it."""
    for name, child in submodules(module):
        if any(kind.__module__ == "torchmetrics.metric" for kind in type(child).__mro__):
            yield name, child


def _is_counted(counted: Any) -> bool:
    """Whether this is what `capture` gives for one metric."""
    if not isinstance(counted, dict) or type(counted.get("updates")) is not int:
        return False
    states = counted.get("states")
    if not isinstance(states, dict):
        return False
    return all(
        isinstance(i, torch.Tensor) for value in states.values() for i in (value if type(value) is list else [value])
    )


def _on(device: torch.device, value: Any) -> Any:
    return [item.to(device) for item in value] if isinstance(value, list) else value.to(device)


def _has_own(module: nn.Module) -> bool:
    kind = type(module)
    return kind.state_dict is not nn.Module.state_dict and kind.load_state_dict is not nn.Module.load_state_dict


def _own(module: nn.Module, tensors: Iterable[torch.Tensor]) -> dict[str, Any]:
    if not _has_own(module):
        return {}
    known = {local(tensor).data_ptr() for tensor in tensors}
    return {
        name: value
        for name, value in module.state_dict().items()
        if not (isinstance(value, torch.Tensor) and (not value.numel() or local(value).data_ptr() in known))
        and not name.endswith("_extra_state")
    }
