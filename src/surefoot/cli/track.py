"""`surefoot track RUN --to mlflow`: tell a tracker what it does not have yet of a run."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import select
from pathlib import Path

from ..errors import RunFailed, first_line
from ..text import counted, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, --to, --follow."""
    parser.add_argument("run_dir", metavar="RUN", help="the run directory; it may be in use")
    parser.add_argument("--to", choices=("mlflow", "wandb"), required=True, help="which tracker")
    parser.add_argument(
        "--follow", action="store_true", help="go on as records come, until standard input ends (what `trackers` does)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Catch up once, or follow."""
    from ..checkpoint.run import refuse_links
    from ..runs.record import open_run
    from ..tracking.trackers import Feed, follow, open_tracker

    run_dir = open_run(arguments.run_dir).path
    refuse_links(run_dir)
    with contextlib.closing(Feed(Path(run_dir), arguments.to, open_tracker(arguments.to))) as feed:
        if arguments.follow:
            follow(feed, functools.partial(say, error=True), _input_ends)
            return 0
        try:
            count = feed.catch_up()
            feed.end()
        except RunFailed:
            raise
        except Exception as error:  # whatever the tracker, its server and the network have to say
            raise RunFailed(
                f"{run_dir}: {arguments.to} did not take the records: {first_line(error, kind=True)}"
            ) from error
    say(f"{run_dir}: {counted(count, 'record')} logged to {arguments.to}")
    return 0


def _input_ends(seconds: float) -> bool:
    """Wait so long; True once the one who holds the other end of standard input has gone."""
    readable, _, _ = select.select([0], [], [], seconds)
    return bool(readable) and not os.read(0, 1000)
