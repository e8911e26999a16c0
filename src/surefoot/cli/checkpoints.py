"""`surefoot checkpoints RUN`: which are there, which are whole, which would be resumed and why not the others."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..text import figure, printable, say, typed

if TYPE_CHECKING:
    from ..checkpoint import CheckpointStatus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN and --json."""
    parser.add_argument("run_dir", metavar="RUN", help="the run directory; it may be in use")
    parser.add_argument("--json", action="store_true", help="one JSON list for machines")


def run(arguments: argparse.Namespace) -> int:
    """Verify every checkpoint to the last byte. Exit code 1 where there are some and none is whole."""
    from ..checkpoint import RunDirectory, scan

    run_dir = Path(arguments.run_dir)
    if not RunDirectory.holds_run(run_dir):
        raise UsageError(f"{run_dir}: holds no run (run.json is missing)")
    statuses = list(scan(run_dir))
    resumed = next((status for status in reversed(statuses) if status.valid), None)
    if arguments.json:
        names = ("step", "reason", "bytes", "metrics", "created")
        rows = [
            {name: getattr(status, name) for name in names}
            | {"path": str(status.path), "valid": bool(status.valid), "resumed": status is resumed}
            for status in statuses
        ]
        say(json.dumps(rows, indent=2))
    elif not statuses:
        go_on = typed("surefoot", "resume", run_dir)
        say(f"{printable(run_dir)}: no checkpoint yet; `{go_on}` begins at the first step")
    else:
        for status in statuses:
            say(_line(status, status is resumed))
        newest = statuses[-1]
        if resumed is None:
            say("none can be resumed: restore one from a copy, or start a new run")
        elif resumed is not newest:
            say(f"a resume steps over what is damaged and goes on from step {resumed.step}")
    return 1 if statuses and resumed is None else 0


def _line(status: CheckpointStatus, resumed: bool) -> str:
    if not status.valid:
        return f"step {status.step:>9,}  damaged  {printable(status.reason)}"
    numbers = {printable(name): value for name, value in status.metrics.items() if isinstance(value, float)}
    metrics = "  ".join(f"{name} {figure(name, value)}" for name, value in numbers.items())
    line = f"step {status.step:>9,}  whole    {status.bytes / 1e6:8.2f} MB  {printable(status.created)}  {metrics}"
    return line.rstrip() + ("  <- would be resumed" if resumed else "")
