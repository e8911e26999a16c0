"""What each rank has measured, put together in the order in which one process would have measured it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..world import World

T = TypeVar("T")


def in_order(groups: Sequence[Sequence[int]], entries: Sequence[Sequence[T]]) -> Iterator[list[T]]:
    """The entries of each group: those of rank 0, of rank 1, and so on.

    `groups` says for each rank how many entries of each group are its own, and `entries` are these in order.

    >>> list(in_order([[1, 1], [2, 0]], ["ad", "bc"]))
    [['a', 'b', 'c'], ['d']]
    """
    rest = [iter(own) for own in entries]
    for counts in zip(*groups, strict=True):
        yield [entry for own, count in zip(rest, counts, strict=True) for entry in itertools.islice(own, count)]


def gathered(world: World, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors of every rank, of any number, shape and dtype, in rank order; they are put on the CPU."""
    about = world.gather([(str(t.dtype).removeprefix("torch."), list(t.shape)) for t in tensors])
    sizes = [[math.prod(shape) * getattr(torch, dtype).itemsize for dtype, shape in own] for own in about]
    # Each begins where any dtype may lie.
    padded = [[-(-size // 16) * 16 for size in own] for own in sizes]
    mine = torch.zeros(max(map(sum, padded)), dtype=torch.uint8, device="cpu")
    places = itertools.accumulate(padded[world.rank], initial=0)
    for tensor, place, size in zip(tensors, places, sizes[world.rank], strict=False):
        mine[place : place + size] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    ranks = []
    for data, own, widths, lengths in zip(world.gathered(mine), about, padded, sizes, strict=True):
        starts = itertools.accumulate(widths, initial=0)
        ranks.append(
            [
                data[start : start + length].view(getattr(torch, dtype)).reshape(shape)
                for start, length, (dtype, shape) in zip(starts, lengths, own, strict=False)
            ]
        )
    return ranks
