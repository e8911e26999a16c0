"""Memory that the processes of one machine share, in which each leaves numbers for all of them to take."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import secrets
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Bytes of a rank's place, fewer for more than four ranks: what is larger goes in pieces, and all of it is 32 MiB at
# most.
_MOST = 1 << 22
# Behind the places: how often each rank has come and asked, the numbers of its last two questions, and what tells this
# memory from any other.
_NUMBERS, _KEY = 16, 16
# Who waits longer than this sleeps; whether the others live is looked at from time to time.
_AWAKE_S, _LOOK_S = 0.002, 0.05


class SharedMemory:
    """Two places for each rank: while what lies in one is still read, the other is written.

    Who comes first waits awake, which a step of some milliseconds is worth: one that sleeps is often woken late. The
    memory has no name in any folder, and is gone with the last process that has it.
    """

    def __init__(self, memory: mmap.mmap, rank: int, ranks: int):
        end = 2 * ranks * _place(ranks)
        self._places = torch.frombuffer(memory, dtype=torch.uint8, count=end).view(2, ranks, -1)
        words = memoryview(memory)[end : _size(ranks) - _KEY].cast("q")
        self._came, self._asked, self._numbers = words[:ranks], words[ranks : 2 * ranks], words[2 * ranks :]
        self._rank, self._ranks = rank, ranks
        self._meetings = self._questions = self._turn = 0

    @classmethod
    def join(cls, rank: int, ranks: int, gather: Callable[[Any], list[Any]]) -> SharedMemory | None:
        """Rank 0's memory, which every other rank opens; None on all where one of them cannot.

        Of Linux on x86, where others see what a process writes in the order in which it was written, and of processes
        that see each other. `gather` is `World.gather`.
        """
        size = _size(ranks)
        key = secrets.token_hex(_KEY // 2)
        file = _made(size, key) if rank == 0 else None
        try:
            process, number, key = gather([os.getpid(), file, key])[0]
            if rank and number is not None:
                file = _opened(process, number, size, key)
            memory = None
            with contextlib.suppress(OSError):
                memory = None if file is None else mmap.mmap(file, size)
            everywhere = all(gather(memory is not None))
            return cls(memory, rank, ranks) if memory is not None and everywhere else None
        finally:
            if file is not None:
                os.close(file)

    def sum(self, tensor: Tensor, watch: Callable[[float], None]) -> Tensor:
        """The sum over ranks as a new tensor, added in pairs of neighbours.

        `watch` is called from time to time with the seconds for which another rank was waited for; it may raise.
        """
        numbers = tensor.detach().reshape(-1)
        total = torch.empty_like(numbers)
        for piece, out in self._pieces(numbers, total):
            places = self._next(piece)
            places[self._rank].copy_(piece)
            self._meet(watch)
            if self._ranks == 2:
                torch.add(*places, out=out)
                continue
            rows = [slice(r * len(out) // self._ranks, (r + 1) * len(out) // self._ranks) for r in range(self._ranks)]
            own = rows[self._rank]
            places[self._rank][own] = add_in_pairs([place[own] for place in places])  # where only this rank reads
            self._meet(watch)
            for part, place in zip(rows, places, strict=True):
                out[part] = place[part]
        return total.view(tensor.shape)

    def sum_of_parts(self, tensor: Tensor, watch: Callable[[float], None]) -> Tensor:
        """This rank's part of the sum of flat tensors with as many numbers for each rank, added as `sum` does."""
        parts = tensor.detach().view(self._ranks, -1)
        total = torch.empty_like(parts[0])
        each = self._places.shape[-1] // tensor.element_size() // self._ranks
        for piece, out in zip(torch.split(parts, each, dim=1), torch.split(total, each), strict=True):
            places = [place.view(piece.shape) for place in self._next(piece)]
            places[self._rank].copy_(piece)
            self._meet(watch)
            out.copy_(add_in_pairs([place[self._rank] for place in places]))
        return total

    def gather_into(self, whole: Tensor, own: Tensor, watch: Callable[[float], None]) -> None:
        """Write the flat tensors of all ranks, in rank order, over one, of which `own` may be a part."""
        each = self._places.shape[-1] // own.element_size()
        for piece, out in zip(
            torch.split(own, each), torch.split(whole.view(self._ranks, -1), each, dim=1), strict=True
        ):
            places = self._next(piece)
            places[self._rank].copy_(piece)
            self._meet(watch)
            for row, place in zip(out, places, strict=True):
                row.copy_(place)

    def take_from_first(self, flat: Tensor, watch: Callable[[float], None]) -> None:
        """Write rank 0's numbers over those of a flat tensor."""
        for piece, out in self._pieces(flat, flat):
            first = self._next(piece)[0]
            if self._rank == 0:
                first.copy_(piece)
            self._meet(watch)
            if self._rank:
                out.copy_(first)

    def ask(self, numbers: Sequence[int], watch: Callable[[float], None]) -> Callable[[], list[int]]:
        """Say numbers that are not negative; what is returned gives the largest of all ranks, and waits for them.

        It is called once, and before the next question.
        """
        self._questions += 1
        # As with the places, two by turns.
        firsts = [(self._questions % 2 * self._ranks + rank) * _NUMBERS for rank in range(self._ranks)]
        for place, number in enumerate(numbers, firsts[self._rank]):
            self._numbers[place] = number
        self._asked[self._rank] = self._questions

        def answer() -> list[int]:
            self._wait(self._asked, self._questions, watch)
            return [max(self._numbers[first + place] for first in firsts) for place in range(len(numbers))]

        return answer

    def leave(self) -> None:
        """Let no other rank wait for this one any more."""
        self._came[self._rank] = self._asked[self._rank] = -1

    def _pieces(self, numbers: Tensor, out: Tensor) -> list[tuple[Tensor, Tensor]]:
        each = self._places.shape[-1] // numbers.element_size()
        return list(zip(torch.split(numbers, each), torch.split(out, each), strict=True))

    def _next(self, like: Tensor) -> list[Tensor]:
        """Where the ranks leave numbers now: whoever comes here has read those of the time before the last."""
        self._turn ^= 1
        return [place.view(like.dtype)[: like.numel()] for place in self._places[self._turn].unbind()]

    def _meet(self, watch: Callable[[float], None]) -> None:
        self._meetings += 1
        self._came[self._rank] = self._meetings
        self._wait(self._came, self._meetings, watch)

    def _wait(self, counts: memoryview[int], times: int, watch: Callable[[float], None]) -> None:
        for rank in range(self._ranks):
            last, waited, looked = time.monotonic(), 0.0, 0.0
            while 0 <= counts[rank] < times:
                now = time.monotonic()
                waited += min(now - last, _LOOK_S)  # a job that was suspended has not waited meanwhile
                last = now
                if waited < _AWAKE_S:
                    os.sched_yield()
                    continue
                time.sleep(min(waited / 8, 0.005))
                if waited - looked > _LOOK_S:
                    looked = waited
                    watch(waited)
        if min(counts) < 0:
            raise RuntimeError("a rank has left")


def _size(ranks: int) -> int:
    return 2 * ranks * _place(ranks) + 2 * ranks * (1 + _NUMBERS) * 8 + _KEY


def _place(ranks: int) -> int:
    return _MOST >> max(0, (ranks - 1).bit_length() - 2)


def add_in_pairs(parts: list[Tensor]) -> Tensor:
    """Neighbours are added, then neighbours of the sums: tensors of one shape, of which none is changed."""
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = [*pairs, *parts[2 * len(pairs) :]]
    return parts[0]


def _made(size: int, key: str) -> int | None:
    """A file in memory alone, all of it there: to write to what is not could end a process."""
    make = getattr(os, "memfd_create", None)
    if make is None or platform.machine() not in ("x86_64", "AMD64"):
        return None
    file: int | None = None
    try:
        file = make("surefoot")
        os.posix_fallocate(file, 0, size)
        os.pwrite(file, key.encode(), size - _KEY)
        return file
    except OSError:
        if file is not None:
            os.close(file)
        return None


def _opened(process: int, number: int, size: int, key: str) -> int | None:
    """The memory of another process, unless it is another file: a process's number is another in a container."""
    path = f"/proc/{process}/fd/{number}"
    with contextlib.suppress(OSError):
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode) and found.st_size == size:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            if os.pread(file, _KEY, size - _KEY) == key.encode():
                return file
            os.close(file)
    return None
