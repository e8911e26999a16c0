"""`surefoot sweep SWEEP.yaml`: search over settings of a recipe; begun again, it goes on where it was."""

from __future__ import annotations

import argparse
import functools
import json
import os
from pathlib import Path

from ..errors import RunFailed, UsageError
from ..text import say, typed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SWEEP.yaml, --dir, --jobs, --take-over, --json."""
    parser.add_argument("sweep", metavar="SWEEP.yaml", help="what is varied, over which recipe (docs/runs.md)")
    parser.add_argument("--dir", metavar="DIR", help="where the trials are kept (default: runs/NAME of the file)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many trials train at a time here")
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="begin trials anew that another machine left, one that will not come back",
    )
    parser.add_argument("--json", action="store_true", help="the result as one JSON object for machines")


def run(arguments: argparse.Namespace) -> int:
    """Train the trials that are left, then tell what was found."""
    from ..runs.sweep.result import Result
    from ..runs.sweep.settings import load_plan
    from ..runs.sweep.study import Study, storage_errors
    from ..runs.sweep.trainings import launch, run_trials
    from ..runs.table import width_of_terminal
    from ..tracking.journal import encode

    if arguments.jobs < 1:
        raise UsageError(f"--jobs {arguments.jobs}: give 1 or more")
    plan = load_plan(arguments.sweep)
    directory = Path(arguments.dir) if arguments.dir else Path("runs") / Path(arguments.sweep).stem
    try:
        study = Study(plan, directory)
    except OSError as error:
        raise UsageError(f"{directory}: cannot be used for a sweep: {error.strerror}") from error
    threads = max(1, len(os.sched_getaffinity(0)) // arguments.jobs if hasattr(os, "sched_getaffinity") else 1)
    tell = functools.partial(say, error=arguments.json)
    try:
        with storage_errors(directory):
            if arguments.take_over:
                study.take_over()
            run_trials(study, arguments.jobs, functools.partial(launch, threads=threads), tell)
            result = Result(study)
    except KeyboardInterrupt:
        where = ["--dir", directory] if arguments.dir else []
        again = typed("surefoot", "sweep", Path(arguments.sweep), *where)
        say(f"{directory}: the trials that ran have been saved; go on with `{again}`", error=True)
        raise
    if result.best is None:
        raise RunFailed(
            f"{directory}: no trial was completed; what each said is in {directory}/.sweep/logs", code="sweep-failed"
        )
    paths = result.write()
    if arguments.json:
        say(json.dumps(json.loads(encode(result.to_json())), indent=2))
        return 0
    say()
    for line in result.as_text(width_of_terminal()):
        say(line)
    say(f"written: {', '.join(map(str, paths))}")
    return 0
