"""A bound on how long something may take."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class TookTooLong(Exception):
    """What ran did not end in the time that it was given."""


class Clock:
    """Whether the time is up."""

    up = False


@contextlib.contextmanager
def limited(seconds: float | None, what: str) -> Iterator[Clock]:
    """Raise TookTooLong in the middle of what is inside, once it has run for `seconds` (None: as long as it likes).

    The clock that it gives tells whether it did, for callers of what catches everything.

    Only where the system has timers that interrupt, and in the main thread; elsewhere there is no bound. A handler
    and a timer that were set before are set again afterwards.
    """
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield Clock()
        return
    clock = Clock()

    def interrupt(number: int, frame: FrameType | None) -> None:
        clock.up = True
        raise TookTooLong(f"{what} took more than {seconds:.0f} s")

    others = signal.getitimer(signal.ITIMER_REAL)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        # Again every second, should the first be caught by somebody who catches everything.
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        yield clock
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if others[0]:
            signal.setitimer(signal.ITIMER_REAL, *others)
