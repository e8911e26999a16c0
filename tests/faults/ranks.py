"""Many processes under torchrun: killed, stopped, raising, signalled; each run then goes on and has the bits of one."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torchrun

from surefoot.cli import main

from .harness import add


def _goes_on(ranks: int, harm: str, words: str, restarts: int, seconds: float, folder: Path) -> str:
    """Harm is done; all end by themselves in `seconds` and say so, and the run goes on to the bits of one process."""
    recipe = torchrun.prepare(folder)
    run = folder / "run"
    begun = time.monotonic()
    train = ("train", str(recipe), "--dir", str(run), "--timeout", "8")
    code, output = torchrun.finished(
        torchrun.launch(folder, *train, ranks=ranks, restarts=restarts, harm=harm), 60 + seconds
    )
    took = time.monotonic() - begun
    assert (code == 0) == bool(restarts), output
    assert words in output, output
    if not restarts:
        begun_at_all = (run / "run.json").exists()
        assert not begun_at_all or json.loads((run / "run.json").read_text())["status"] != "done"
        code, output = torchrun.finished(torchrun.launch(folder, *train, "--resume", ranks=ranks))
        assert code == 0, output
    _untouched(folder, recipe, ranks)
    assert torchrun.left(run) == torchrun.left(folder / "alone")
    return f"over after {took:.0f} s, starts included; exact"


def _untouched(folder: Path, recipe: Path, ranks: int) -> None:
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["train", str(recipe), "--run", str(folder / "alone"), f"micro_batches={ranks}"]) == 0
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("harmful", None)


def catalogue() -> None:
    """Add the cases of this file."""
    stopped, dead = "surefoot: stopped by SIGTERM after step", "surefoot: rank 1: has ended without a word"
    harms = [
        ("SIGTERM to the agent", "0 7 term_agent", stopped, 0, 10.0),
        ("SIGTERM to one worker", "1 7 term_one", stopped, 0, 10.0),
        ("SIGTERM to all, twice", "1 7 term_all", stopped, 0, 10.0),
        ("SIGTERM before the run has begun", "1 1 term_all", "surefoot: stopped by SIGTERM", 0, 10.0),
        ("SIGTERM in validation", "0 12 term_all", stopped, 0, 10.0),
        ("one worker killed", "1 9 kill", dead, 0, 5.0),
        ("one worker killed, restarted", "1 9 kill", dead, 2, 60.0),
        ("one worker raises", "1 9 raise", "surefoot: rank 1: KeyError: 'a column'", 0, 10.0),
        ("one worker stopped", "1 9 stop", "rank 1: is stopped, and did not answer within 8 s", 0, 45.0),
    ]
    for ranks in (2, 3):
        for title, harm, words, restarts, seconds in harms:
            check: Callable[[Path], str] = functools.partial(_goes_on, ranks, harm, words, restarts, seconds)
            add("torchrun", f"{title}, {ranks} processes", check)
