"""What fit does otherwise in several processes: how batches are divided, and whose run a restart goes on with."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint import read_about
from ..checkpoint.conditions import require_alike
from ..data import Loader
from ..errors import UsageError
from ..micro_batches import sums_alike
from ..text import counted
from ..world import World
from ..wrapping import shared_out

MICRO_BATCHES, RANKS = "world.micro_batches", "world.ranks"


def require_parallel(parallel: str, world: World, model: nn.Module) -> None:
    """Raise UsageError for a kind of parallel training that cannot be, in this world or with this model."""
    if shared_out(model):
        raise UsageError(
            "model: is under FSDP2 already; give it, and its optimizer, as they were before fully_shard, with "
            "parallel: fsdp2, or write the loop yourself"
        )
    if parallel == "none" and world.size > 1:
        raise UsageError(
            f"parallel: none, but this is rank {world.rank} of {world.size}; give ddp, or start one process"
        )


def begin_together(world: World, parallel: str, model: nn.Module, **arguments: Any) -> None:
    """Raise on all ranks where one cannot begin, or where they were given other `arguments` of fit's.

    Only those count that no condition of a run holds; what differed would let ranks wait for one another.
    """
    world.agree(lambda: require_parallel(parallel, world, model))
    given = {f"fit.{name}": _in_words(value) for name, value in arguments.items()}
    world.agree(lambda: require_alike(world.gather(given)))


def _in_words(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _in_words(item) for name, item in value.items()}
    return list(map(_in_words, value)) if isinstance(value, list | tuple) else type(value).__name__


@contextlib.contextmanager
def outputs_only_read(loss: object) -> Iterator[None]:
    """Within it FSDP2 does not warn of outputs that are views, should a loss write to them: torch's losses do not."""
    with warnings.catch_warnings():
        if type(loss).__module__.startswith("torch.nn."):
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        yield


def divide(
    loader: Loader, world: World, asked: int | None, recorded: Mapping[str, Any], *, elsewhere: bool = True
) -> dict[str, Any]:
    """Give `loader` this rank's part of each batch; returns the conditions that this makes of a run.

    `elsewhere` says that the optimizer makes the same updates on any number of ranks.

    A batch is cut into as many micro-batches as are `asked` for; else as the run has `recorded`, so that it goes on
    with another number of ranks; else one for each rank. Raises UsageError where ranks cannot have as many each.
    """
    if asked is not None and asked % world.size:
        raise UsageError(
            f"micro_batches: {counted(world.size, 'rank')} cannot have as many of {asked} each; give a multiple of "
            f"{world.size}"
        )
    before = recorded.get(MICRO_BATCHES)
    parts = asked or (before if type(before) is int and before > 0 and before % world.size == 0 else world.size)
    loader.divide(parts, world.rank, world.size)
    if parts == 1:
        return {}  # whole batches, as in runs of versions that divided none
    return {MICRO_BATCHES: parts, RANKS: "any" if elsewhere and sums_alike(parts, world.size) else world.size}


def job() -> str | None:
    """What all attempts of one torchrun have in common, and no other has; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name is None else f"{name} {socket.gethostname()} {os.getppid()}"


def begun_by_this_job(run_dir: str | Path | None) -> bool:
    """Whether torchrun has restarted what began this run, so that it goes on with it."""
    if run_dir is None or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return False
    return bool((read_about(run_dir) or {}).get("job", "") == job())
