"""Which rows of a batch make which micro-batch, and which micro-batches are which rank's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UsageError
from .text import counted


@dataclass(frozen=True)
class Division:
    """Each batch in `parts` micro-batches, of which each of `size` ranks has as many; `rank` is this one's.

    Micro-batch v of n rows has the rows from ``v * n // parts`` up to ``(v + 1) * n // parts``: none is left out and
    none comes twice, and however many ranks there are, the micro-batches are the same. Raises UsageError for parts that
    ranks cannot have as many of each.

    >>> [Division(4, rank, 2).cut(10) for rank in range(2)]
    [[(slice(0, 2, None), 2), (slice(2, 5, None), 3)], [(slice(5, 7, None), 2), (slice(7, 10, None), 3)]]
    """

    parts: int = 1
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise UsageError(f"data: share: there is no rank {self.rank} of {self.size}; ranks count from 0")
        if self.parts < 1 or self.parts % self.size:
            raise UsageError(
                f"data: {counted(self.size, 'rank')} cannot have as many of {counted(self.parts, 'micro-batch')} each; "
                "give a multiple of the number of ranks"
            )

    @property
    def own(self) -> range:
        """The numbers of this rank's micro-batches."""
        each = self.parts // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def cut(self, n: int) -> list[tuple[slice, int]]:
        """Of each micro-batch of this rank, the rows to read and how many of them count.

        Where a batch has too few rows for all, one that is read stands in and does not count: every rank takes part in
        each backward pass.
        """
        bounds = [(v * n // self.parts, (v + 1) * n // self.parts) for v in self.own]
        return [(slice(a, b) if b > a else slice(min(a, n - 1), min(a, n - 1) + 1), b - a) for a, b in bounds]

    def given(self, batches: Iterable[Any], n: int, *, whole: Any = None) -> MicroBatches:
        """What was read of a batch of `n` rows, as `cut` says."""
        return MicroBatches(batches, [rows for _, rows in self.cut(n)], self.own, n, self.parts, whole)


def sums_alike(parts: int, size: int) -> bool:
    """Whether `size` ranks add the gradients of `parts` micro-batches to the bits of one process.

    >>> [size for size in range(1, 9) if sums_alike(8, size)], [size for size in range(1, 7) if sums_alike(6, size)]
    ([1, 2, 4, 8], [1, 3, 6])
    """
    each, rest = divmod(parts, size)
    return size == 1 or (rest == 0 and each & (each - 1) == 0)


class MicroBatches(list[Any]):
    """This rank's micro-batches of one update, in the order in which their gradients are added.

    `rows` is how many samples of each count (0: it only stands in), `numbers` are their places among the `parts`
    micro-batches of all ranks, and `samples` counts those of all ranks. `whole` is all samples of the
    data as one batch, where they lie in memory and have one shape: what holds for it, ranks know of each other's.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        rows: Sequence[int],
        numbers: Sequence[int],
        samples: int,
        parts: int,
        whole: Any = None,
    ):
        super().__init__(batches)
        self.rows, self.numbers, self.samples, self.parts = list(rows), list(numbers), samples, parts
        self.whole = whole

    @classmethod
    def joined(cls, groups: Sequence[MicroBatches]) -> MicroBatches:
        """Those of several batches that make one update: micro-batch 0 of each batch, then 1 of each, and so on.

        What a rank has is then without a gap, however many ranks there are.
        """
        if len(groups) == 1:
            return groups[0]
        places = [(place, group) for place in range(len(groups[0])) for group in groups]
        numbers = [v * len(groups) + k for v in groups[0].numbers for k in range(len(groups))]
        return cls(
            [group[place] for place, group in places],
            [group.rows[place] for place, group in places],
            numbers,
            sum(group.samples for group in groups),
            sum(group.parts for group in groups),
            groups[0].whole,
        )
