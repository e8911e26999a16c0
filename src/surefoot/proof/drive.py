"""Train once without and once with kills at random instants, and compare the results as bytes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..text import counted
from .comparison import compare, first_difference
from .culprits import find_culprits
from .job import RUN, Job


@dataclass(frozen=True)
class Verdict:
    """The result: the number of kills, of items compared, and the first difference between the two runs, or None.

    `steps` are those of the last record or checkpoint at each kill; `culprits` what is behind a difference, in lines.
    `seconds` and `printed` are of the untouched run: how long it took, and what it printed.
    """

    kills: int
    compared: int
    difference: str | None
    steps: tuple[int, ...]
    culprits: tuple[str, ...] = ()
    seconds: float = 0.0
    printed: str = ""

    @property
    def same(self) -> bool:
        """Whether both runs have equal results."""
        return self.difference is None

    def summary(self) -> str:
        """The verdict in a few lines."""
        where = ", ".join(f"{step:,}" for step in self.steps)
        if self.same:
            return (
                f"identical: killed {counted(self.kills, 'time')} (at step {where}) and resumed, the "
                f"run ended as the untouched one, {counted(self.compared, 'item')} compared as bytes"
            )
        if not self.kills:
            first = f"DIFFERENT, and not by any kill: it gives another result each time: {self.difference}"
        else:
            first = f"DIFFERENT after {counted(self.kills, 'kill')} (at step {where}): {self.difference}"
        return "\n".join([first, *(f"  {line}" for line in self.culprits)])


def prove(
    job: Job,
    *,
    kills: int = 5,
    seed: int = 0,
    keep: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Run `job` twice in processes of its own, the second killed `kills` times by SIGKILL, and compare.

    The instants are drawn from `seed`: one in four over the time that the untouched run took to make its run directory,
    the others over the time after, so that they fall into start-up, steps, saves, validation and the writing of the
    model alike. Raises RunFailed where the job does not end well
    even untouched. With `keep` both runs stay there. Where this process ends, by whatever signal, the runs end too.
    Where the results differ, more runs look for the reason.
    """
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise UsageError(f"{keep}: is not empty; name a directory for the two runs that is new or empty")
    with contextlib.ExitStack() as stack:
        home = keep.absolute() if keep is not None else stack.enter_context(_temporary_home())
        untouched, killed = home / "untouched", home / "killed"
        say("running once, untouched")
        took, loading, printed = _timed(job, untouched)
        seconds = took
        job.runs(untouched)  # there is something to compare
        say(f"untouched: {took:.1f} s; now the same, killed {counted(kills, 'time')}")
        instants, steps = random.Random(seed), list[int]()
        while len(steps) < kills:
            began = time.monotonic()
            with job.start(killed) as running:
                by_itself = running.wait(_instant(instants, took, loading))
            if not by_itself:
                steps.append(_last_step(killed))
                say(f"kill {len(steps)} of {kills}: at step {steps[-1]:,}")
                continue
            running.require_success("the resumed run")
            # It reached its end before its instant came: the next life begins from nothing.
            took = min(took, max(time.monotonic() - began, 1.0))
            if difference := _compare(job, untouched, killed)[0]:
                return _different(job, home, steps, difference, say)
            say("it reached its end first; the rest of the kills go to a new run")
            shutil.rmtree(killed)
        job.finish(killed, "the resumed run")
        difference, compared = _compare(job, untouched, killed)
        if difference:
            return _different(job, home, steps, difference, say)
        return Verdict(kills, compared, None, tuple(steps), seconds=seconds, printed=printed)


def _timed(job: Job, home: Path) -> tuple[float, float, str]:
    """Run it untouched: the seconds that it took, those until it had made a run directory, and what it printed."""
    began, loading = time.monotonic(), None
    with job.start(home) as running:
        while not running.wait(0.05):
            if loading is None and any(RUN in files for _, _, files in os.walk(home)):
                loading = time.monotonic() - began
        running.require_success("the run")
    took = time.monotonic() - began
    return took, took if loading is None else loading, running.printed


def _instant(draws: random.Random, took: float, loading: float) -> float:
    return draws.uniform(0.0, loading) if draws.random() < 0.25 else draws.uniform(loading, took)


def _different(job: Job, home: Path, steps: list[int], difference: str, say: Callable[[str], None]) -> Verdict:
    say(f"they differ: {difference}")
    with tempfile.TemporaryDirectory(dir=home) as folder:
        culprits = find_culprits(job, Path(folder), lambda one, other: _compare(job, one, other)[0], say)
    return Verdict(len(steps), 0, difference, tuple(steps), tuple(culprits))


def _compare(job: Job, untouched: Path, killed: Path) -> tuple[str | None, int]:
    """The first difference between all that the two have: their run directories, and the files to compare."""
    runs = [[run.relative_to(home) for run in job.runs(home)] for home in (untouched, killed)]
    if runs[0] != runs[1]:
        return f"untouched has the runs {_names(runs[0])}, killed has {_names(runs[1])}", 0
    compared = 0
    for run in runs[0]:
        difference, items = compare(untouched / run, killed / run, seeded=job.is_recipe)
        compared += items
        if difference:
            return (difference if job.is_recipe else f"{run}: {difference}"), compared
    names = sorted({name for home in (untouched, killed) for name in _matching(job, home)})
    difference, items = first_difference(*(_bytes(home, names) for home in (untouched, killed)))
    return difference, compared + items


def _names(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))


def _matching(job: Job, home: Path) -> list[str]:
    """The files of `home` that are to be compared. Raises UsageError for a pattern that none has."""
    names = []
    for pattern in job.compared:
        matches = [str(path.relative_to(home)) for path in home.glob(pattern) if path.is_file()]
        if not matches:
            raise UsageError(f"--compare {pattern}: the command left no such file where it ran")
        names += matches
    return names


def _bytes(home: Path, names: list[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        yield name, (home / name).read_bytes() if (home / name).is_file() else None


def _last_step(home: Path) -> int:
    """The step of the newest record or checkpoint of any run below `home`; 0 where there is none."""
    from ..tracking import read_records

    steps = [0]
    for folder, names, files in os.walk(home):
        if RUN not in files:
            continue
        if "metrics.jsonl" in files:
            steps += [record["step"] for record in read_records(Path(folder) / "metrics.jsonl")]
        if "checkpoints" in names:
            numbers = [path.name.split("-")[1] for path in (Path(folder) / "checkpoints").glob("step-*")]
            steps += [int(number) for number in numbers if number.isdigit()]
    return max(steps)


_PREFIX = "surefoot-verify-"


@contextlib.contextmanager
def _temporary_home() -> Iterator[Path]:
    """A directory for the two runs, gone afterwards; those that a killed `verify` left behind go as well.

    Each is locked by its owner, so that what nobody holds is known to be left over.
    """
    try:
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError), _locked(left):
                if time.time() - left.stat().st_mtime > 60:  # else its owner may be about to lock it
                    shutil.rmtree(left, ignore_errors=True)
        home = Path(tempfile.mkdtemp(prefix=_PREFIX))
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"no room for the two runs: {reason}; set TMPDIR, or name a directory with --keep") from error
    with _locked(home):
        try:
            yield home
        finally:
            shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a directory of this user's. Raises OSError where it is not, or somebody holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(directory))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
