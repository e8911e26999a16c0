"""What a run was, against what it is now: every condition that changes bits, compared field by field.

Conditions are a flat table of names and plain values ("versions.torch": "2.13.0"). They are recorded in
run.json and in every manifest; a resume under others is refused unless each change is allowed by name.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from ..errors import UsageError
from ..fingerprint import Fingerprint
from ..modes import float32_products
from ..version import __version__

Conditions = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One condition that differs: its name, what was recorded and what is found now (None: absent)."""

    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: was {_shown(self.was)}, is {_shown(self.now)}"


class ConditionsChanged(UsageError):
    """A run that would go on under other conditions; `changes` lists those that were not allowed."""

    def __init__(self, changes: list[Change]):
        self.changes = tuple(changes)
        lines = "\n".join(f"  {change}" for change in changes)
        names = " ".join(f"--allow {shlex.quote(change.name)}" for change in changes[:3])
        more = " ..." if len(changes) > 3 else ""
        super().__init__(
            f"this run was made under other conditions, so it would not go on exactly:\n{lines}\n"
            f"Bring them back, or go on inexactly with {names}{more} (in Python: run=RunOptions(allow=[...]))"
        )


def environment() -> Conditions:
    """What of this process and machine changes the bits of a result.

    >>> environment()["versions.surefoot"] == __version__
    True
    """
    conditions: Conditions = {
        "versions.python": platform.python_version(),
        "versions.torch": str(torch.__version__),
        "versions.numpy": numpy.__version__,
        "versions.surefoot": __version__,
        "device.cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "device.accelerator": _accelerator(),
        "threads": torch.get_num_threads(),
        "flags.deterministic": torch.are_deterministic_algorithms_enabled(),
        "flags.mkldnn": bool(torch.backends.mkldnn.enabled),
        "flags.default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }
    conditions |= {f"flags.fp32_precision.{name}": value for name, value in float32_products()}
    conditions |= {f"parallel.{name}": value for name, value in _parallel()}
    conditions |= {f"variables.{name}": os.environ[name] for name in VARIABLES if name in os.environ}
    if torch.cuda.is_available():
        conditions["versions.cuda"] = str(torch.version.cuda)
        conditions["versions.cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        conditions["flags.cudnn_benchmark"] = torch.backends.cudnn.benchmark
        conditions["flags.cudnn_deterministic"] = torch.backends.cudnn.deterministic
    return conditions


# Variables that change in which order sums are taken, or with which instructions, under equal versions and threads.
VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "KMP_DETERMINISTIC_REDUCTION",
    "KMP_DYNAMIC_MODE",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "OMP_MAX_ACTIVE_LEVELS",
    "OMP_NESTED",
    "OMP_SCHEDULE",
    "OMP_THREAD_LIMIT",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)


def _parallel() -> Iterator[tuple[str, str]]:
    """The libraries of `torch.__config__.parallel_info()`; how many threads they use is compared as `threads`."""
    for line in torch.__config__.parallel_info().splitlines():
        if match := re.match(
            r"(OpenMP|Intel\(R\) oneAPI Math Kernel Library|Intel\(R\) MKL-DNN|ATen parallel backend)", line
        ):
            yield (
                {"Intel(R) MKL-DNN": "onednn", "OpenMP": "openmp", "ATen parallel backend": "backend"}.get(
                    match[1], "mkl"
                ),
                line[match.end() :].strip(" :"),
            )


def _accelerator() -> str:
    if not torch.cuda.is_available():
        return "none"
    # Each kind once: how many of them a machine has changes no bit.
    return ", ".join(dict.fromkeys(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))


def flatten(prefix: str, values: Mapping[str, Any]) -> Conditions:
    """Nested `values` as dotted names below `prefix`; lists and scalars stay whole.

    >>> flatten("recipe", {"optimizer": {"lr": 0.1}, "epochs": 3})
    {'recipe.optimizer.lr': 0.1, 'recipe.epochs': 3}
    """
    flat: Conditions = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(name, value)
        else:
            flat[name] = value
    return flat


def compare(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every difference of the conditions `saved` and `now`, by name.

    >>> [str(change) for change in compare({"threads": 2, "seed": 0}, {"threads": 1, "seed": 0})]
    ['threads: was 2, is 1']
    """
    names = sorted(set(saved) | set(now))
    return [
        Change(name, saved.get(name), now.get(name))
        for name in names
        if name not in saved or name not in now or not _same(saved[name], now[name])
    ]


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any], allow: Iterable[str] = ()) -> list[Change]:
    """The allowed differences of the conditions `saved` and `now`. Raises `ConditionsChanged` when there are others.

    A name in `allow` stands for itself, for everything below it ("versions" for "versions.torch") and for what it
    is the end of ("seed" for "recipe.seed"); "all" allows everything.
    """
    allowed = tuple(allow)
    changes = compare(saved, now)
    refused = [change for change in changes if not any(_covers(name, change.name) for name in allowed)]
    if refused:
        raise ConditionsChanged(refused)
    return changes


def require_alike(ranks: Sequence[Conditions], own: int = 0) -> Conditions:
    """The conditions of the rank `own`, given those of all. Raises UsageError where they would not train the same.

    Their machines and the variables of their processes may differ, and so may a name of the script that only says
    which rank this is: it is then what it is on rank 0, wherever the run goes on.
    """
    for rank, conditions in enumerate(ranks[1:], 1):
        changes = [c for c in compare(ranks[0], conditions) if not c.name.startswith(("device.", "variables."))]
        changes = [c for c in changes if not (_says_which(c.was, 0) and _says_which(c.now, rank))]
        if changes:
            lines = "\n".join(f"  {c.name}: {_shown(c.was)} on rank 0, {_shown(c.now)} on rank {rank}" for c in changes)
            raise UsageError(
                f"rank {rank} would train something else than rank 0:\n{lines}\nGive all ranks the same",
                code="ranks-differ",
            )
    which = {
        name for name, value in ranks[own].items() if _says_which(value, own) and _says_which(ranks[0].get(name), 0)
    }
    return {**ranks[own], **{name: ranks[0][name] for name in which}}


@functools.cache
def _words_for(rank: int) -> frozenset[str]:
    """Digests of what scripts write for a rank: its number, that on its machine, whether it is the first, its GPU."""
    words: list[Any] = [rank == 0, rank != 0]
    for number in range(rank + 1):  # on its machine it may have any number up to its own
        words += [number, str(number), f"cuda:{number}", number == 0, number != 0]
    return frozenset(map(Fingerprint.of, words))


def _says_which(digest: Any, rank: int) -> bool:
    return isinstance(digest, str) and digest in _words_for(rank)


def _covers(allowed: str, name: str) -> bool:
    return allowed in ("all", name) or name.startswith((f"{allowed}.", f"{allowed}:")) or name.endswith(f".{allowed}")


def _same(one: Any, other: Any) -> bool:
    # 1 and 1.0 and True are equal to Python and not the same condition; tuples come back from JSON as lists.
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    text = value if isinstance(value, str) else repr(value)
    words = " " in text  # a description, not a digest
    return text if len(text) <= (300 if words else 60) else text[:12] + "..." + text[-6:]
