"""torch's process group, as torchrun's environment says, and bytes that go over one."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from .errors import RankFailed, UsageError, first_line


def make_process_group(wait: timedelta, prefix: str) -> None:
    """torch's process group, under a prefix of torchrun's store: after a restart that still holds old addresses."""
    environment = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    if missing := [name for name, value in environment.items() if not value]:
        raise UsageError(
            f"{', '.join(missing)}: not in the environment; start with `torchrun --nproc-per-node N`, or unset RANK"
        )
    rank, size, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        tcp = dist.TCPStore(  # type: ignore[attr-defined]
            environment["MASTER_ADDR"], port, size, is_master=rank == 0 and not agents, timeout=wait, multi_tenant=True
        )
        gpus = torch.cuda.is_available()
        if gpus and (local := int(os.environ.get("LOCAL_RANK", rank))) < torch.cuda.device_count():
            torch.cuda.set_device(local)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=c10d.PrefixStore(prefix, tcp),
            rank=rank,
            world_size=size,
            timeout=wait,
        )
    except RuntimeError as error:
        raise RankFailed(None, f"did not come to {environment['MASTER_ADDR']}:{port}: {first_line(error)}") from error


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor: bytes are what every backend can send, whatever the dtype."""
    return tensor.detach().view(-1).view(torch.uint8)


def gather_bytes(data: bytes, group: dist.ProcessGroup) -> list[bytes]:
    """What each rank of a gloo group gave, in rank order."""
    sizes = [torch.zeros(1, dtype=torch.int64, device="cpu") for _ in range(group.size())]
    dist.all_gather(sizes, torch.tensor([len(data)], device="cpu"), group=group)
    longest = max(int(size) for size in sizes)
    mine = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
    parts = [torch.empty_like(mine) for _ in sizes]
    dist.all_gather(parts, mine, group=group)
    return [part.numpy().tobytes()[: int(size)] for part, size in zip(parts, sizes, strict=True)]
