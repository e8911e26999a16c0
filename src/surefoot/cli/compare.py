"""`surefoot compare RUN RUN ...`: what differs between runs, their curves over each other, and which is better."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import UsageError
from ..text import draw, printable, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN ..., --best, --seeds, --html, --json."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories that hold runs")
    parser.add_argument("--best", metavar="METRIC", help="what they are judged by (default: the first run's own)")
    parser.add_argument(
        "--seeds", action="store_true", help="take runs that differ in nothing but the seed as a group, with its spread"
    )
    parser.add_argument("--html", metavar="FILE", help="write one page that needs no network as well")
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")


def run(arguments: argparse.Namespace) -> int:
    """Compare; with --html the page is written before anything is printed."""
    from ..files import write_durably
    from ..runs.comparison import Comparison, runs_named
    from ..runs.comparison_shown import as_page, as_text
    from ..tracking.journal import encode

    passed_over: list[str] = []
    runs = runs_named(arguments.runs, passed_over.append)
    for line in passed_over[:5]:
        say(f"passed over: {printable(line)}", error=True)
    comparison = Comparison(runs, arguments.best)
    if arguments.html is not None:
        try:
            text = as_page(comparison, seeds=arguments.seeds)
            write_durably(Path(arguments.html), text.encode(errors="backslashreplace"))
        except OSError as error:
            raise UsageError(
                f"--html {arguments.html}: cannot be written: {error.strerror}", code="output-file"
            ) from error
    if arguments.json:
        say(json.dumps(json.loads(encode(comparison.to_json(arguments.seeds))), indent=2))
        return 0
    draw(lambda width, unicode, colour: as_text(comparison, width, unicode, colour, seeds=arguments.seeds))
    if arguments.html is not None:
        say(f"written: {arguments.html}")
    return 0
