"""What a rank knows of the others beside torch's collectives: whether they live, what they posted, their last words."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from time import sleep
from typing import Any

from .errors import RankFailed, first_line
from .rank_errors import end_stopped, process_state

_ENDED = ("Z", "X")


class OtherRanks:
    """The ranks but `rank`, by torch's store (None: there is none); `pids` has the processes of this machine."""

    def __init__(self, rank: int, ranks: int, pids: dict[int, int], store: Any, timeout: float):
        self._rank, self._others = rank, [other for other in range(ranks) if other != rank]
        self._pids = {other: pid for other, pid in pids.items() if other != rank}
        self._store, self._timeout = store, timeout
        self.on_one_machine = len(pids) == ranks

    def post(self, key: str, plain: Any) -> None:
        """See `World.post`."""
        assert self._store is not None, "torch has no store under its process group"
        self._store.set(f"{key}-{self._rank}", json.dumps(plain))

    def posted(self, key: str, rank: int, given_up: Callable[[], bool]) -> Any:
        """See `World.posted`."""
        assert self._store is not None, "torch has no store under its process group"
        name, waits = f"{key}-{rank}", 0
        while not self._store.check([name]):
            if (self._has_ended(rank) or given_up()) and not self._store.check([name]):
                raise RankFailed(rank, "has ended before its part of a checkpoint was written")
            sleep(min(0.001 * 1.3**waits, 0.05))
            waits += 1
        plain = json.loads(self._store.get(name))
        self._store.delete_key(name)
        return plain

    def watch(self, waited: float) -> None:
        """For who has waited so many seconds: RuntimeError, as torch has, where the others do not come any more."""
        if waited > self._timeout:
            raise RuntimeError(f"timed out after {waited:.0f} s")
        if any(map(self._has_ended, self._others)):
            raise RuntimeError("a rank has ended")

    def lost(self, error: BaseException) -> RankFailed:
        """Which rank is gone, by what torch raised, and its last words where it left some."""
        with contextlib.suppress(RuntimeError):  # the store may be gone as well
            for rank in self._others:
                if self._store is not None and self._store.check([f"failed-{rank}"]):
                    return RankFailed(rank, self._store.get(f"failed-{rank}").decode())
        late = "imed out" in str(error)
        for _ in range(1 if late else 50):  # a process that is ending closes its connections first
            for rank, pid in self._pids.items():
                if (state := process_state(pid)) in _ENDED:
                    return RankFailed(rank, "has ended without a word (killed, or out of memory?)")
                if state == "T" and late:
                    end_stopped(pid)  # torchrun would wait for it for half a minute
                    return RankFailed(rank, f"is stopped, and did not answer within {self._timeout:g} s")
            if late:
                return RankFailed(None, f"did not answer within {self._timeout:g} s")
            sleep(0.01)
        return RankFailed(None, f"cannot be reached any more: {first_line(error)}")

    def last_words(self, rank: int, words: str) -> None:
        """Leave, for who loses `rank` next, why it is gone."""
        with contextlib.suppress(RuntimeError):
            if self._store is not None:
                self._store.set(f"failed-{rank}", words)

    def _has_ended(self, rank: int) -> bool:
        return rank in self._pids and process_state(self._pids[rank]) in _ENDED
