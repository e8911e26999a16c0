"""What a user can be told: every failure that ends with a message instead of a traceback."""

from __future__ import annotations

import signal as _signal
from collections.abc import Sequence


class SurefootError(Exception):
    """A failure with one clear message; `exit_code` is what the command ends with."""

    exit_code = 1


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
    """Several mistakes told at once, one a line, in the order given."""

    def __init__(self, problems: Sequence[str]):
        assert problems, "Problems without a problem"
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class RunFailed(SurefootError):
    """A run that began rightly and could not go on (a full disk, a loss that is not finite)."""


class Stopped(SurefootError):
    """A signal asked the run to stop, and it stopped between two steps. Exit code 128 + signal."""

    def __init__(self, signum: int, message: str = ""):
        self.signal = signum
        self.exit_code = 128 + signum
        super().__init__(message or f"stopped by {_signal.Signals(signum).name}")
