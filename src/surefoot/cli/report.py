"""`surefoot report RUN`: its report.html written anew; with --serve, live in a browser while it trains."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import SurefootError, UsageError
from ..text import say

PORT = 7070


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, --serve, --port."""
    parser.add_argument("run_dir", metavar="RUN", help="the run directory; it may be in use")
    parser.add_argument("--serve", action="store_true", help="show it on this machine, up to date, until Ctrl-C")
    parser.add_argument(
        "--port", metavar="N", type=int, help=f"with --serve: where (default: {PORT}; 0: any that is free)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page, or serve it."""
    from ..runs.record import open_run
    from ..runs.serving import LiveReport, Server
    from ..tracking import write_report

    path = open_run(arguments.run_dir).path
    if not arguments.serve:
        if arguments.port is not None:
            raise UsageError("--port belongs to --serve")
        say(write_report(path, brief=_brief(path)))
        return 0
    with Server(LiveReport(path, _brief(path)), PORT if arguments.port is None else arguments.port) as server:
        say(f"{path}: live at {server.address} (Ctrl-C ends it)")
        server.serve_forever()
    return 0


def _brief(run_dir: Path) -> str:
    """What of the run's recipe differs from its defaults; "" where there is none that can be read. Imports nothing."""
    from .. import files, recipe

    path = run_dir / "recipe.yaml"
    try:
        text = files.read_bounded(path, recipe.MAX_BYTES).decode("utf-8-sig")
        return recipe.parse_recipe(text, str(path), (), source=str(path)).brief_yaml()
    except (OSError, UnicodeDecodeError, SurefootError):
        return ""
