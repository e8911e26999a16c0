"""Which progress suits where a run is watched: a notebook, a terminal, a file."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from .notebook import NotebookProgress, in_notebook
from .progress import LiveProgress, PlainProgress, Progress, QuietProgress


def make_progress(stream: TextIO | None = None, *, quiet: bool = False) -> Progress:
    """A live bar if `stream` (default: standard output) is a terminal that can draw one, plain lines if not.

    Without a `stream`, in a notebook: one output there, with the curves of the losses. `NO_COLOR` takes the colours
    away, `TERM=dumb` the bar too. With `quiet` there are only messages, on standard error.
    """
    if quiet:
        return QuietProgress()
    if stream is None and in_notebook():
        return NotebookProgress()
    stream = sys.stdout if stream is None else stream
    try:
        terminal = stream.isatty()
    except ValueError:  # closed
        terminal = False
    if terminal and os.environ.get("TERM", "") not in ("", "dumb"):
        return LiveProgress(stream)
    return PlainProgress(stream)
