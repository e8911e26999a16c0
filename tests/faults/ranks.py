"""Many processes under torchrun: killed, stopped, raising, signalled; each run then goes on and has the bits of one."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torchrun
from ranks import run_ranks
from test_checkpoint_ranks import _train, records
from test_checkpoint_shards import in_pieces

from surefoot import files
from surefoot.checkpoint import Checkpointer, scan
from surefoot.cli import main
from surefoot.errors import RankFailed
from surefoot.proof import compare
from surefoot.proof.job import _ranks_of

from .harness import add, dice
from .kills import KillBefore

RESTARTS = 20
# Folders that go at the end.
_kept: list[tempfile.TemporaryDirectory] = []


def _goes_on(ranks: int, harm: str, words: str, ends_well: bool, seconds: float, folder: Path) -> str:
    """Harm is done; all end by themselves in `seconds` and say so, and the run goes on to the bits of one process."""
    recipe = torchrun.prepare(folder)
    run = folder / "run"
    train = ("train", str(recipe), "--dir", str(run), "--timeout", "8", f"micro_batches={ranks}")
    code, output = torchrun.finished(
        torchrun.launch(folder, *train, ranks=ranks, restarts=2 * ends_well, harm=harm), 90 + seconds
    )
    took = torchrun.since(folder, "harmed", time.time())
    assert took is not None
    took = -took
    assert took < seconds, f"all were over {took:.1f} s after the harm: {output}"
    assert (code == 0) == ends_well and words in output, output
    assert output.count(words) == 1 or not words.startswith("surefoot: stopped"), output
    if not ends_well:
        begun_at_all = (run / "run.json").exists()
        assert not begun_at_all or json.loads((run / "run.json").read_text())["status"] != "done"
        code, output = torchrun.finished(torchrun.launch(folder, *train, "--resume", ranks=ranks))
        assert code == 0, output
    return f"over after {took:.1f} s; {_exact(run, ranks, 3)}"


def _exact(run: Path, ranks: int, epochs: int) -> str:
    difference, _ = compare(_alone(ranks, epochs), run)
    assert difference is None, difference
    assert not json.loads((run / "run.json").read_text())["inexact"]
    return "exact"


@cache
def _alone(ranks: int, epochs: int) -> Path:
    """The untouched run in one process of what `ranks` train."""
    _kept.append(tempfile.TemporaryDirectory())
    folder = Path(_kept[-1].name)
    recipe = torchrun.prepare(folder, epochs)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["train", str(recipe), "--run", str(folder / "alone"), f"micro_batches={ranks}"]) == 0
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("harmful", None)
    return folder / "alone"


def _restarted(ranks: int, number: int, folder: Path) -> str:
    """One process is killed at a random instant, three of four while it trains; torchrun starts all again."""
    epochs, roll = 40, dice(f"restarted {ranks} {number}")
    recipe, run = torchrun.prepare(folder, epochs), folder / "run"
    train = ("train", str(recipe), "--dir", str(run), f"micro_batches={ranks}")
    job = torchrun.launch(folder, *train, ranks=ranks, restarts=2)
    at = 0 if number % 4 == 0 else roll.randrange(1, 10 * epochs)
    while len(workers := dict(_ranks_of(job.pid))) < ranks or _records(run) < at:
        assert job.poll() is None
        time.sleep(0.001)
    time.sleep(0.0 if at else roll.uniform(0.0, 2.0))  # it starts
    rank = roll.choice(sorted(workers))
    os.kill(workers[rank], signal.SIGKILL)
    killed = time.time()
    code, output = torchrun.finished(job, 240)
    assert code == 0, output
    again = torchrun.since(folder, "attempt-1", killed)
    when = "after the last step" if again is None else f"training again after {again:.1f} s"
    return f"rank {rank} killed {f'at step {at}' if at else 'as it starts'}; {when}; {_exact(run, ranks, epochs)}"


def _records(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


# ------------------------------------------------------------------------------------------ saves


def saving(world, run: str, which: int, nth: int | None, pieces: bool = False):  # type: ignore[no-untyped-def]
    """A run of which rank `which` dies before the `nth` operation of the save at step 6 (None: none does).

    What this rank did in that save, and what it ended with.
    """
    system = files.system = KillBefore(nth)
    save = Checkpointer.save

    def noted(self: Checkpointer, *arguments: object, **named: object) -> None:
        system.armed = self.steps == 6 and (nth is None or world.rank == which)
        save(self, *arguments, **named)  # type: ignore[arg-type]
        system.armed = False

    Checkpointer.save = noted  # type: ignore[method-assign, assignment]
    warnings.simplefilter("ignore")  # of a scheduler that is resumed at the end of an epoch
    try:
        wrap = in_pieces if pieces else None
        digest = _train(world, run, every="2 steps", keep_last=2, background=False, wrap=wrap)
    except (RankFailed, RuntimeError) as error:
        if not isinstance(error, RankFailed) and "gloo" not in str(error):
            raise
        return None
    return system.seen, digest


@cache
def saved(size: int, pieces: bool) -> tuple[tuple[list[str], ...], tuple[str, ...], list[dict]]:
    """Of an untouched run: what each rank does in a save, what each ends with, and the records."""
    with tempfile.TemporaryDirectory() as folder:
        did, digests = zip(*run_ranks(size, saving, f"{folder}/run", 0, None, pieces), strict=True)
        return did, digests, records(f"{folder}/run")


def killed_in_a_save(size: int, which: int, nth: int, folder: Path, pieces: bool = False) -> None:
    """No checkpoint is visible that is not whole, and the run goes on to the same bits."""
    run = str(folder / f"run-{nth}")
    run_ranks(size, saving, run, which, nth, pieces, die={which})
    visible = list(scan(Path(run)))
    assert visible and all(status.valid for status in visible), visible
    ends = run_ranks(size, saving, run, which, None, pieces)
    _, digests, lines = saved(size, pieces)
    assert tuple(digest for _, digest in ends) == digests and records(run) == lines, f"operation {nth}"


def _each_operation(size: int, which: int, pieces: bool, folder: Path) -> str:
    operations = saved(size, pieces)[0][which]
    if not operations:
        assert which > 0 and not pieces
        return "makes no system call in a save: of copies of one model rank 0 writes"
    for nth in range(len(operations)):
        killed_in_a_save(size, which, nth, folder, pieces)
    return f"{len(operations)} kills: 0 checkpoints visible that are not whole; each exact"


def catalogue() -> None:
    """Add the cases of this file."""
    stopped, dead = "surefoot: stopped by SIGTERM after step", "surefoot: rank 1: has ended without a word"
    harms = [
        ("SIGTERM to the agent", "0 7 term_agent", stopped, False, 20.0),
        ("SIGTERM to the agent, twice", "0 7 term_agent_twice", stopped, False, 20.0),
        ("SIGTERM to one worker", "1 7 term_one", stopped, False, 20.0),
        ("SIGTERM to all, twice", "1 7 term_all", stopped, False, 20.0),
        ("SIGTERM before the run has begun", "1 1 term_all", "surefoot: stopped by SIGTERM", False, 20.0),
        ("SIGTERM in the first step", "1 1 term_all step", stopped, False, 20.0),
        ("SIGTERM in validation", "0 12 term_all", stopped, False, 20.0),
        ("SIGTERM in a save", "0 2 term_all save", stopped, False, 20.0),
        ("one worker killed", "1 9 kill", dead, False, 5.0),
        ("one worker killed, restarted", "1 9 kill", dead, True, 60.0),
        ("one worker raises", "1 9 raise", "surefoot: rank 1: KeyError: 'a column'", False, 10.0),
        ("one worker stopped", "1 9 stop", "rank 1: is stopped, and did not answer within 8 s", False, 45.0),
        ("one worker late at a save", "1 9 late", "r: done", True, 60.0),
    ]
    for ranks in (2, 3):
        for title, harm, words, ends_well, seconds in harms:
            check: Callable[[Path], str] = functools.partial(_goes_on, ranks, harm, words, ends_well, seconds)
            add("torchrun", f"{title}, {ranks} processes", check)
    for number in range(RESTARTS):
        ranks = 2 + number % 2
        title = f"one of {ranks} killed at a random instant and restarted, {number}"
        add("torchrun", title, functools.partial(_restarted, ranks, number))
    for size in (2, 3):
        for which in range(size):
            for pieces in (False, True):
                what = "a save in shards" if pieces else "a save"
                title = f"rank {which} of {size} killed before each operation of {what} with retention"
                add("torchrun", title, functools.partial(_each_operation, size, which, pieces))
