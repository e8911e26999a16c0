"""SIGTERM, SIGHUP and SIGINT stop a run at the next step boundary, SIGUSR1 saves and continues."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from .errors import Stopped

_STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal (`name`) that came while no `SignalWatch` was open: whatever was begun is undone on the way out."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.name = signal.Signals(signum).name


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """While open, SIGTERM, SIGHUP and SIGINT raise `Interrupted` in the main thread, instead of ending the process.

    Signals that are ignored (`nohup`) or that somebody else handles stay as they are. Does nothing outside the main
    thread.
    """
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    mine = [s for s in _STOPPING if signal.getsignal(s) in defaults]
    if threading.current_thread() is not threading.main_thread():
        mine = []
    owner, hook = os.getpid(), sys.unraisablehook

    def handle(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            _die(signum)
        raise Interrupted(signum)

    def send_again(signum: int) -> None:
        if signal.getsignal(signum) is handle:
            signal.pthread_kill(threading.main_thread().ident or 0, signum)

    def lost(unraisable: Any) -> None:
        # Python drops what is raised inside a destructor or a callback of the import system: raised again.
        if isinstance(unraisable.exc_value, Interrupted):
            threading.Timer(0.01, send_again, (signal.Signals[unraisable.exc_value.name],)).start()
        else:
            hook(unraisable)

    before = {signum: signal.signal(signum, handle) for signum in mine}
    if mine:
        sys.unraisablehook = lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for signum, handler in before.items():
            if signal.getsignal(signum) is handle:
                signal.signal(signum, handler)


def _die(signum: int) -> None:
    """End as by a signal that nobody handles: what a process forked from ours does."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


class SignalWatch:
    """While open, notes signals instead of dying of them; the loop asks between two steps.

    The first SIGTERM, SIGHUP or SIGINT sets `stop_requested`. The second raises `Stopped` where the program is, with
    `at_once` true; a third ends the process at once. Under torchrun, which repeats SIGTERM to whole groups of
    processes, only a second SIGINT does so. SIGUSR1 sets `save_requested`. Ignored signals (`nohup`) stay ignored.
    The handlers go in only in the main thread (elsewhere Python cannot take signals, and nothing is noted) and what
    was there before comes back on closing. A process forked while the watch is open ends on a signal as usual.

    >>> with SignalWatch() as watch:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     watch.stop_requested == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.stop_requested: int | None = None
        self.save_requested = False
        self.at_once = False
        self._before: dict[int, Any] = {}
        self._owner = os.getpid()

    def open(self) -> SignalWatch:
        """Install the handlers; does nothing when they are in place or outside the main thread."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return self
        self._owner = os.getpid()
        for signum in (*_STOPPING, signal.SIGUSR1):
            # None: a handler that C code installed; Python could not put it back, so it stays.
            if signal.getsignal(signum) not in (None, signal.SIG_IGN):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def close(self) -> None:
        """Put back the handlers that were there before."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                # Only where ours is still in place: a handler installed since then is not ours to remove.
                if signal.getsignal(signum) == self._handle:
                    signal.signal(signum, handler)
            self._before = {}

    def check(self) -> None:
        """Raise `Stopped` when a stop was asked for."""
        if self.stop_requested is not None:
            raise Stopped(self.stop_requested)

    def take_save_request(self) -> bool:
        """Whether SIGUSR1 came since the last call."""
        if not self.save_requested:
            return False
        self.save_requested = False  # one that comes before this line is answered by the same save
        return True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a worker process forked from ours: die as it would have
            _die(signum)
            return
        if signum == signal.SIGUSR1:
            self.save_requested = True
        elif self.stop_requested is not None and signum != signal.SIGINT and "TORCHELASTIC_RUN_ID" in os.environ:
            return
        elif self.at_once:
            os._exit(128 + signum)
        elif self.stop_requested is not None:
            self.at_once = True
            raise Stopped(signum, f"stopped at once by a second {signal.Signals(signum).name}")
        else:
            self.stop_requested = signum

    def __enter__(self) -> SignalWatch:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
