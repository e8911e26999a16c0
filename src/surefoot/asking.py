"""Asking: what the ranks of a run say to one another between two steps, so seldom that it costs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

# Questions are put so far apart, in seconds, that they cost nothing; longer steps ask, and wait, at each.
_APART_S = 0.2
_MOST_STEPS_APART = 1000


class Asking:
    """Questions of one rank: `World.ask`, over what puts a question to all ranks.

    `begin` sends this rank's numbers, at the same step of every rank; what it returns waits for the largest of all.
    """

    def __init__(self, begin: Callable[[list[int]], Callable[[], list[int]]], is_first: bool):
        self._begin, self._is_first = begin, is_first
        self._question: Callable[[], list[int]] | None = None
        self._apart = self._calls = 0
        self._asked_at = time.monotonic()

    def ask(self, word: Sequence[int]) -> Sequence[int]:
        """The largest that any rank has lately said, number by number; zeros while there is no answer yet."""
        self._calls += 1
        none = [0] * len(word)
        if self._calls < self._apart:
            return none
        answer = self._answer() or none
        if any(answer):
            return answer
        now = time.monotonic()
        each, self._asked_at = (now - self._asked_at) / self._calls, now
        self._calls = 0
        # How far apart the next questions are is rank 0's to say: the answer holds it last.
        wish = min(int(_APART_S / each) if each > 0 else _MOST_STEPS_APART, _MOST_STEPS_APART) if self._is_first else 0
        self._question = self._begin([*word, wish])
        return none if self._apart else self._answer() or none

    def anew(self) -> None:
        """Forget a question that is not answered yet, once it is: it was another run's in these processes."""
        self._answer()
        self._calls = self._apart = 0

    def _answer(self) -> list[int] | None:
        if self._question is None:
            return None
        question, self._question = self._question, None
        *answer, self._apart = question()
        return answer
