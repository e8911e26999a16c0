"""`surefoot runs`: the runs below a directory, sorted and searched; labelled, removed, pruned."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..text import counted, duration, figure, printable, say

if TYPE_CHECKING:
    from ..runs.record import Run

# Of each action, the options that it takes.
ACTIONS = {"tag": {"remove"}, "note": set[str](), "rm": {"yes"}, "prune": {"best", "where", "keep_best", "yes"}}
_LISTING = {"best", "where", "sort", "reverse", "json"}
_OPTIONS = {*_LISTING, *(option for options in ACTIONS.values() for option in options)}
_MOST_NAMED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[DIR], or tag, note, rm, prune with what they take."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[DIR]",
        help="where to look (default: runs); or `tag RUN TAG ...`, `note RUN TEXT`, `rm RUN ...`, `prune [DIR]` "
        "(a directory of such a name: ./tag)",
    )
    parser.add_argument("--best", metavar="METRIC", help="show and sort by the best value of it, e.g. val/accuracy")
    parser.add_argument(
        "--where",
        metavar="CONDITION",
        action="append",
        default=[],
        help="only runs of which it holds, e.g. 'optimizer.lr>0.01', status=done, tags=paper, 'val/loss<0.3'",
    )
    parser.add_argument("--sort", metavar="KEY", help="by a column, a metric or a recipe's key (default: newest first)")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--json", action="store_true", help="one JSON list for machines")
    parser.add_argument("--remove", action="store_true", help="tag: take the tags away")
    parser.add_argument("--keep-best", metavar="N", type=int, help="prune: how many of the best stay")
    parser.add_argument("--yes", action="store_true", help="rm, prune: do not ask")


def run(arguments: argparse.Namespace) -> int:
    """List, or do what the first word says."""
    words: list[str] = arguments.words
    action = words[0] if words and words[0] in ACTIONS else ""
    _refuse_others(arguments, action)
    if action:
        actions = {"tag": _tag, "note": _note, "rm": _rm, "prune": _prune}
        return actions[action](arguments, words[1:])
    return _list(arguments, words)


def _refuse_others(arguments: argparse.Namespace, action: str) -> None:
    """Raise UsageError for an option that the action would pass over: `rm --where` would remove what it leaves out."""
    for option in sorted(_OPTIONS - ACTIONS.get(action, _LISTING)):
        if getattr(arguments, option) not in (None, False, []):
            takers = [f"runs {name}" for name, options in ACTIONS.items() if option in options]
            takers = ["runs [DIR]", *takers] if option in _LISTING else takers
            raise UsageError(
                f"--{option.replace('_', '-')} belongs to {' and '.join(f'`surefoot {taker}`' for taker in takers)}"
            )


def _list(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    runs = _chosen(arguments, words)
    if arguments.json:
        say(json.dumps([run.to_json(arguments.best) for run in runs], indent=2))
    elif not runs:
        say(f"no run {'fits' if arguments.where else 'is there yet'}; `surefoot train` begins one")
    else:
        for line in _table(runs, arguments.best):
            say(line)
    return 0


def _chosen(arguments: argparse.Namespace, words: Sequence[str]) -> list[Run]:
    """The runs that the directory and the conditions name, in order; what was passed over is printed."""
    from ..runs.listing import list_runs
    from ..runs.record import no_direction
    from ..runs.search import Condition, in_order, select

    if len(words) > 1:
        raise UsageError(f"runs: one directory is listed at a time, not {len(words)}; give one that holds them all")
    conditions = [Condition.parse(text) for text in arguments.where]
    if not words and not Path("runs").is_dir():
        raise UsageError("runs: no such directory here; give the one that holds your runs: surefoot runs DIR")
    listing = list_runs(words[0] if words else "runs")
    if listing.passed_over:
        names = listing.passed_over[:_MOST_NAMED]
        more = len(listing.passed_over) - len(names)
        say(f"passed over: {'; '.join(map(printable, names))}{f'; and {more} more' if more else ''}", error=True)
    if arguments.best and arguments.sort:
        raise UsageError("--best sorts by itself; leave --sort out")
    runs = in_order(select(listing.runs, conditions), best=arguments.best, key=arguments.sort)
    if arguments.best and runs and (reason := no_direction(runs, arguments.best)):
        say(f"{reason}; the lower are taken for it", error=True)
    return runs[::-1] if arguments.reverse else runs


def _table(runs: Sequence[Run], metric: str | None) -> list[str]:
    from ..runs.record import shown_time
    from ..runs.table import Column, rendered, width_of_terminal

    columns = [
        Column("run"),
        Column("begun", rank=3),
        Column("status"),
        Column("epochs", right=True, rank=1),
        Column(f"best {metric}" if metric else "best"),
        Column("step", right=True, rank=4),
        Column("tags", rank=2),
        Column("", rank=5),
    ]
    rows = []
    for run in runs:
        content, best = run.content, run.best(metric)
        status = f"{run.status}: {run.held_by.partition(' since ')[0]}" if run.held_by else run.status
        reached = ""
        if best is not None:
            reached = f"{figure(best[0], best[1])} in epoch {best[2] + 1}"
            reached = reached if metric else f"{best[0]} {reached}"
        epochs = f"{content.epochs}/{content.planned}" if content.planned else str(content.epochs)
        step = "" if content.step_s is None else duration(content.step_s)
        remarks = [*(["inexact"] if content.inexact else []), *content.problems, content.note.partition("\n")[0]]
        rows.append(
            [
                str(run.path),
                shown_time(content.created),
                status,
                epochs,
                reached,
                step,
                " ".join(content.tags),
                "; ".join(remark[:80] for remark in remarks if remark),
            ]
        )
    return rendered(columns, rows, width_of_terminal())


def _tag(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    from ..runs.labels import tagged
    from ..runs.record import open_run

    if len(words) < 2:
        raise UsageError("runs tag: give a run and its tags: surefoot runs tag RUN TAG ...")
    labels = tagged(open_run(words[0]).path, words[1:], remove=arguments.remove)
    say(f"{words[0]}: {' '.join(labels.tags) or 'no tags'}")
    return 0


def _note(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    from ..runs.labels import noted, read_labels
    from ..runs.record import open_run

    if not 1 <= len(words) <= 2:
        raise UsageError('runs note: give a run and one text in quotes: surefoot runs note RUN "TEXT" ("" removes it)')
    path = open_run(words[0]).path
    labels = noted(path, words[1]) if len(words) == 2 else read_labels(path)
    say(f"{words[0]}: {labels.note or 'no note'}")
    return 0


def _rm(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    from ..runs.removing import remove, require_removable

    if not words:
        raise UsageError("runs rm: name the runs to remove: surefoot runs rm RUN ...")
    paths = list({os.path.abspath(word): Path(word) for word in words}.values())
    for path in paths:  # all of them are looked at before one is touched
        require_removable(path)
    if not _agreed(f"remove {counted(len(paths), 'run')} with all checkpoints and models?", paths, arguments.yes):
        return 1
    for path in paths:
        remove(path)
    say(f"removed {counted(len(paths), 'run')}")
    return 0


def _prune(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    from ..runs.removing import remove, require_removable, surplus

    keep = arguments.keep_best
    if keep is None or keep < 1:
        raise UsageError("runs prune: give --keep-best N with how many of the best stay, 1 or more")
    chosen = _chosen(arguments, words)
    rest, unjudged = surplus(chosen, keep, arguments.best)
    if unjudged:
        say(f"left as they are, in use or without a value to judge: {len(unjudged)}", error=True)
    for run in rest:
        require_removable(run.path)
    if not rest:
        say(f"nothing to remove: {counted(len(chosen) - len(unjudged), 'run')} to judge, and {keep} stay")
        return 0
    for line in _table(rest, arguments.best):
        say(line)
    question = f"remove these {counted(len(rest), 'run')} and keep the best {keep}?"
    if not _agreed(question, [], arguments.yes):
        return 1
    for run in rest:
        remove(run.path)
    say(f"removed {counted(len(rest), 'run')}")
    return 0


def _agreed(question: str, paths: Sequence[Path], yes: bool) -> bool:
    """Whether the user says yes to the question, on a terminal."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask on; give --yes, and nothing was removed")
    for path in paths:
        say(f"  {path}")
    say(f"{question} [y/N]")
    agreed = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not agreed:
        say("nothing was removed")
    return agreed
