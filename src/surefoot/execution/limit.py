"""A bound on how long something may take."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType


class TookTooLong(Exception):
    """What ran did not end in the time that it was given."""


class Clock:
    """Whether the time is up, and whether what was timed has ended."""

    up = ended = False


@contextlib.contextmanager
def limited(seconds: float | None, what: str) -> Iterator[Clock]:
    """Raise TookTooLong in the middle of what is inside, once it has run for `seconds` (None: as long as it likes).

    The clock that it yields says whether it did, for callers of what catches everything.

    Only where the system has timers that interrupt, and in the main thread; elsewhere there is no bound. A handler that
    was set before is set again afterwards, and a timer with what is left of its time.
    """
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield Clock()
        return
    clock = Clock()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if clock.ended:
            return
        clock.up = True
        raise TookTooLong(f"{what} took more than {seconds:.0f} s")

    began, (left, interval) = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            # Again every second, should the first be caught by somebody who catches everything.
            signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
            yield clock
        finally:  # an interrupt in the instant before this line leaves by the outer one
            clock.ended = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # None: a handler that was not set from Python, which Python cannot set again.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-6), interval)
