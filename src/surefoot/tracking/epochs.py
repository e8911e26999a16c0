"""The records of many epochs in little memory: an even selection of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Epochs:
    """The records of at most about `most` epochs, evenly spread, and of the last: a function of the records alone."""

    def __init__(self, most: int = 500):
        self._most = most
        self.stride = 1
        self._kept: dict[int, list[Mapping[str, Any]]] = {}
        self._last: tuple[int, list[Mapping[str, Any]]] | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record; those of steps are ignored."""
        if record["kind"] != "epoch":
            return
        epoch = record["epoch"]
        if self._last is None or epoch != self._last[0]:
            self._last = (epoch, self._kept.get(epoch, []))
            if epoch % self.stride == 0:
                self._kept[epoch] = self._last[1]
        self._last[1].append(record)
        while len(self._kept) > self._most:
            self.stride *= 2
            self._kept = {kept: records for kept, records in self._kept.items() if kept % self.stride == 0}

    def kept(self) -> list[tuple[int, list[Mapping[str, Any]]]]:
        """Epochs and their records, in order."""
        last = {} if self._last is None else dict([self._last])
        return sorted({**self._kept, **last}.items())
