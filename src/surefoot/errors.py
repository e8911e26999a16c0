"""The errors of Surefoot: every failure that ends with a message instead of a traceback."""

from __future__ import annotations

import signal as _signal
from collections.abc import Sequence


class SurefootError(Exception):
    """A failure with one clear message; `exit_code` is what the command ends with."""

    exit_code = 1
    # Raised by every process of a run alike, so that one of them may tell it for all.
    everybodys = False


class UsageError(SurefootError, ValueError):
    """Bad input: a recipe, an argument, a data set or a file that cannot be used. Exit code 2.

    The message says where, what was found, what was expected and what to do.

    >>> raise UsageError("epochs: 0 is below 1; give at least one epoch")
    Traceback (most recent call last):
    ...
    surefoot.errors.UsageError: epochs: 0 is below 1; give at least one epoch
    """

    exit_code = 2


class Problems(UsageError):
    """Several mistakes at once: `problems`, one a line, in the order given."""

    def __init__(self, problems: Sequence[str]):
        assert problems, "Problems without a problem"
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class RunFailed(SurefootError):
    """A run that started and could not continue (a full disk, a loss that is not finite)."""


class RankFailed(RunFailed):
    """A run of many processes could not continue because of the process `rank`; None where nobody knows which."""

    def __init__(self, rank: int | None, what: str):
        self.rank = rank
        super().__init__(f"rank {rank}: {what}" if rank is not None else f"another rank {what}")


class Stopped(SurefootError):
    """A signal asked the run to stop, and it stopped between two steps. Exit code 128 + `signum`.

    Without a `message` it names the signal.
    """

    def __init__(self, signum: int, message: str = ""):
        self.signal = signum
        self.exit_code = 128 + signum
        super().__init__(message or f"stopped by {_signal.Signals(signum).name}")

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows when its kernel was interrupted: no traceback, since nothing is wrong."""
        return [
            f"{self}",
            "Run the cell again to go on: fit(..., resume=True), or saver.resume() in a loop of your own.",
        ]


def first_line(error: BaseException, *, kind: bool = False) -> str:
    """The first line of an error's text, at most 300 characters of it; its class where it has no text.

    With `kind` the class is named in either case.

    >>> first_line(ValueError("shapes differ\\nat line 3")), first_line(AssertionError())
    ('shapes differ', 'AssertionError')
    >>> first_line(ValueError("bad"), kind=True)
    'ValueError: bad'
    """
    name = type(error).__name__
    lines = str(error).strip().splitlines()
    if not lines:
        return name
    return f"{name}: {lines[0].strip()[:300]}" if kind else lines[0].strip()[:300]
