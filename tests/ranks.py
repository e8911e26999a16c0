"""run_ranks: a function in several processes that torch's gloo connects, with a deadline and nothing left over."""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import multiprocessing
import os
import platform
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

# One for all tests: it has imported torch, so that a process costs milliseconds.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch._dynamo", "surefoot.training.fit", "surefoot.checkpoint", "surefoot.world"])

linux_on_x86 = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="ranks share memory on Linux on x86"
)


class RanksFailed(AssertionError):
    """What went wrong in which process; `errors` holds their exceptions' texts by rank."""

    def __init__(self, errors: dict[int, str]):
        self.errors = errors
        super().__init__("\n".join(f"--- rank {rank}\n{text}" for rank, text in errors.items()))


# Ranks may take so long to meet, on a busy machine, whatever the timeout that is tried.
MEET_S = 30.0


def run_ranks(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    deadline: float = 240,
    timeout: float = 30,
    die: Collection[int] = (),
) -> list[Any]:
    """``function(world, *arguments)`` in `size` processes; what each returned, in rank order.

    `function` stands at the top of its file. Raises RanksFailed with the tracebacks of those that raised, ended, or
    were still at it after `deadline` seconds. Of ranks that are meant to `die`, or to stay stopped, the exit code is
    returned, -9 if killed. `timeout` is the world's.
    """
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(size):
            mine, theirs = _context.Pipe(duplex=False)
            place = (rank, size, Path(folder), timeout, deadline, dict(os.environ))
            process = _context.Process(target=_work, args=(theirs, place, function, arguments), daemon=True)
            process.start()
            theirs.close()
            ends.append(mine)
            processes.append(process)
        try:
            return _collect(ends, processes, Path(folder), time.monotonic() + deadline + 5, die)
        finally:
            for process in processes:
                process.kill()
                process.join()
                process.close()


def _collect(ends: list[Connection], processes: list[Any], folder: Path, end: float, die: Collection[int]) -> list[Any]:
    results: dict[int, Any] = {}
    errors: dict[int, str] = {}
    while waiting := [e for rank, e in enumerate(ends) if rank not in {*results, *errors, *die}]:
        ready = wait(waiting, max(end - time.monotonic(), 0))
        for connection in ready or waiting:
            rank = ends.index(connection)
            try:
                good, value = connection.recv() if ready else (False, "no answer before the deadline")
            except EOFError:
                processes[rank].join()
                code = processes[rank].exitcode
                stacks = (folder / f"stacks-{rank}").read_text() if code == 1 else ""
                good, value = False, f"ended with {code}\n{stacks}"
            (results if good else errors)[rank] = value
    for rank in die:
        if ends[rank].poll():
            with contextlib.suppress(EOFError):
                errors[rank] = f"did not die: {ends[rank].recv()[1]}"
        processes[rank].kill()  # one that was stopped
        processes[rank].join()
        results[rank] = processes[rank].exitcode
    if errors:
        raise RanksFailed(dict(sorted(errors.items())))
    return [results[rank] for rank in range(len(ends))]


def _work(end: Connection, place: Any, function: Callable[..., Any], arguments: Any) -> None:
    import torch.distributed as dist

    from surefoot.world import World

    rank, size, folder, timeout, deadline, environment = place
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with (folder / f"stacks-{rank}").open("w") as stacks:
        faulthandler.dump_traceback_later(deadline, exit=True, file=stacks)
        os.environ.clear()
        os.environ.update(environment | {"LOCAL_RANK": str(rank)})
        try:
            dist.init_process_group(
                "gloo",
                store=dist.FileStore(str(folder / "store"), size),
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(seconds=max(timeout, MEET_S)),
            )
            with World.join(max(timeout, MEET_S)) as world:
                if timeout < MEET_S:
                    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=timeout), world._side)
                    world._others._timeout = timeout
                answer = (True, function(world, *arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        end.send(answer)
        end.close()
        faulthandler.cancel_dump_traceback_later()


def by_sockets(world: Any) -> Any:
    """This world, before its first sum, as if its ranks were on several machines: nothing is added in shared memory."""
    world._memory = None
    return world
