"""What a measured choice depends on: the machine, the versions, the model, the batch."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..modes import float32_products
from ..untouched import is_lazy
from ..version import __version__


@functools.cache
def processor() -> str:
    """The processor's name, as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranks_here() -> int:
    """How many processes torchrun has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def free_bytes(device: torch.device) -> int | None:
    """The memory that may still be taken on `device`, in bytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Everything about this machine, and how torch is set, that a timing on `device` depends on."""
    facts: dict[str, Any] = {
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "torch": torch.__version__,
        "surefoot": __version__,
        "python": platform.python_version(),
    }
    facts["deterministic"] = torch.are_deterministic_algorithms_enabled()
    facts["products"] = dict(float32_products())
    if device.type == "cuda":
        facts["cudnn"] = [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic]
        index = torch.cuda.current_device() if device.index is None else device.index
        facts["gpu"] = f"{index}: {torch.cuda.get_device_name(index)}"
    return facts


def describe_work(
    model: nn.Module, loss: Callable[..., Tensor], optimizer: torch.optim.Optimizer, batch: Sequence[Any]
) -> dict[str, Any]:
    """Everything about the step that a timing depends on; no weight's value is part of it."""
    modules = [f"{name}:{_kind(m)}:{m.extra_repr()}:{m.training}" for name, m in model.named_modules()]
    code = {_kind(m): _code(m) for m in model.modules() if not type(m).__module__.startswith("torch.")}
    parameters = [
        f"{n}:{None if is_lazy(p) else tuple(p.shape)}:{p.dtype}:{p.requires_grad}" for n, p in model.named_parameters()
    ]
    groups = [
        {k: v if isinstance(v, bool | int | str | None) else _truth(v) for k, v in g.items() if k != "params"}
        | {"params": len(g["params"])}
        for g in optimizer.param_groups
    ]
    return {
        "modules": modules,
        "code": code,
        "parameters": parameters,
        "loss": f"{_kind(loss)}:{loss!r}" if isinstance(loss, nn.Module) else _kind(loss),
        "optimizer": [_kind(optimizer), groups],
        "batch": [
            f"{tuple(t.shape)}:{t.dtype}:{t.device.type}" if isinstance(t, Tensor) else repr(type(t)) for t in batch
        ],
    }


def digest(*parts: Any) -> str:
    """A name for plain data: 32 hex digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _truth(value: Any) -> bool | str:
    try:
        return bool(value)
    except (ValueError, RuntimeError):  # an array, or a tensor, of several numbers
        return _kind(value)


def _kind(thing: Any) -> str:
    kind = thing if callable(thing) and hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"


def _code(module: nn.Module) -> str:
    """The bytecode of a forward: an edited model is another model."""
    forward = getattr(type(module).forward, "__code__", None)
    if forward is None:
        return ""
    constants = [c for c in forward.co_consts if isinstance(c, int | float | str | bool | None)]
    return hashlib.sha256(forward.co_code + repr((constants, forward.co_names)).encode()).hexdigest()[:16]
