"""Train once without and once with kills at random instants, and compare the results as bytes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..text import counted
from .comparison import SIDES, Sides, compare, first_difference
from .culprits import find_culprits
from .job import HARMS, LOGS, RUN, Job, Running

# How long the other processes may take to end once one of them was killed.
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Verdict:
    """The result: the number of kills, of items compared, and the first difference between the two runs, or None.

    `steps` are those of the last record or checkpoint at each kill; `culprits` what is behind a difference, in lines.
    `seconds` and `printed` are of the first untouched run: how long it took, and what it printed. `processes` are the
    numbers of processes that were compared.
    """

    kills: int
    compared: int
    difference: str | None
    steps: tuple[int, ...]
    culprits: tuple[str, ...] = ()
    seconds: float = 0.0
    printed: str = ""
    processes: tuple[int, ...] = (1,)

    @property
    def same(self) -> bool:
        """Whether all runs have equal results."""
        return self.difference is None

    def summary(self) -> str:
        """The verdict in a few lines."""
        where = ", ".join(f"{step:,}" for step in self.steps)
        items = f"{counted(self.compared, 'item')} compared as bytes"
        many = self.processes != (1,)
        if self.same and many:
            sizes = ", ".join(map(str, self.processes))
            return (
                f"identical: untouched in {sizes} processes, and killed {counted(self.kills, 'time')} (at step "
                f"{where}) and gone on with in {sizes}, the run ended with the same bits, {items}"
            )
        if self.same:
            return (
                f"identical: killed {counted(self.kills, 'time')} (at step {where}) and resumed, the "
                f"run ended as the untouched one, {items}"
            )
        if not self.kills:
            each_time = "" if many else "it gives another result each time: "
            first = f"DIFFERENT, and not by any kill: {each_time}{self.difference}"
        else:
            first = f"DIFFERENT after {counted(self.kills, 'kill')} (at step {where}): {self.difference}"
        return "\n".join([first, *(f"  {line}" for line in self.culprits)])


def prove(
    job: Job,
    *,
    kills: int = 5,
    seed: int = 0,
    processes: Sequence[int] = (1,),
    keep: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Run `job` untouched in each number of `processes`, and once more killed `kills` times, and compare.

    The killed run goes on in each of these numbers by turns; of several processes one, torchrun itself or all are ended
    by SIGKILL. The instants are drawn from `seed`: one in four over the time that the untouched run took to make its
    run directory, the others over the time after, so that they fall into start-up, steps, saves, validation and the
    writing of the model alike. Raises RunFailed where the job does not end well even untouched. With `keep` all runs
    stay there. Where this process ends, by whatever signal, the runs end too. Where the results differ, more runs look
    for the reason.
    """
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise UsageError(f"{keep}: is not empty; name a directory for the runs that is new or empty")
    with contextlib.ExitStack() as stack:
        home = keep.absolute() if keep is not None else stack.enter_context(_temporary_home())
        stack.callback(shutil.rmtree, home / LOGS, ignore_errors=True)
        proof = _Proof(job, home, tuple(processes), say)
        return proof.untouched() or proof.killed(kills, random.Random(seed))


class _Proof:
    """The runs of one job, in a directory of their own."""

    def __init__(self, job: Job, home: Path, processes: tuple[int, ...], say: Callable[[str], None]):
        self.job, self.home, self.processes, self.say = job.on(processes[0]), home, processes, say
        # Of a whole run, and until it had made a run directory; less where a resumed run needed less to its end.
        self.times: dict[int, tuple[float, float]] = {}
        self.seconds, self.printed, self.compared = 0.0, "", 0

    def untouched(self) -> Verdict | None:
        """Once in each number of processes; the verdict where they end otherwise than in the first."""
        first = self.home / "untouched"
        for size in self.processes:
            here = first if size == self.processes[0] else self.home / f"untouched-{size}"
            where = "" if self.processes == (1,) else f", in {counted(size, 'process')}"
            self.say(f"running once, untouched{where}")
            *times, printed = _timed(self.job.on(size), here)
            self.times[size] = (times[0], times[1])
            self.say(f"untouched{where}: {times[0]:.1f} s")
            if here == first:
                self.seconds, self.printed = times[0], printed
                self.job.runs(here)  # there is something to compare
                _matching(self.job, here)
            else:
                sides = (_has(self.processes[0]), _has(size))
                difference, self.compared = _compare(self.job, first, here, sides)
                if difference:
                    return self._different(
                        [], f"{counted(size, 'process')} against {self.processes[0]}: {difference}", resized=True
                    )
        return None

    def killed(self, kills: int, draws: random.Random) -> Verdict:
        """Killed again and again, and gone on with."""
        untouched, killed = self.home / "untouched", self.home / "killed"
        self.say(f"now the same, killed {counted(kills, 'time')}")
        sizes, harms, steps = itertools.cycle(self.processes), itertools.cycle(HARMS), list[int]()
        while len(steps) < kills:
            size, began = next(sizes), time.monotonic()
            took, loading = self.times[size]
            with self.job.on(size).start(killed) as running:
                by_itself = running.wait(_instant(draws, took, loading))
                what = "" if by_itself or size == 1 else f"{self._harm(running, next(harms), draws)}, "
            if not by_itself:
                steps.append(_last_step(killed))
                self.say(f"kill {len(steps)} of {kills}: {what}at step {steps[-1]:,}")
                continue
            running.require_success("the resumed run")
            # It reached its end before its instant came: the next life begins from nothing.
            self.times[size] = (min(took, max(time.monotonic() - began, 1.0)), loading)
            if difference := _compare(self.job, untouched, killed)[0]:
                return self._different(steps, difference)
            self.say("it reached its end first; the rest of the kills go to a new run")
            shutil.rmtree(killed)
        self.job.on(next(sizes)).finish(killed, "the resumed run")
        difference, compared = _compare(self.job, untouched, killed)
        if difference:
            return self._different(steps, difference)
        return Verdict(
            kills,
            self.compared + compared,
            None,
            tuple(steps),
            seconds=self.seconds,
            printed=self.printed,
            processes=self.processes,
        )

    def _harm(self, running: Running, harm: str, draws: random.Random) -> str:
        """What was killed, in words; the whole job has ended then."""
        what = running.harm(harm, draws)
        if not running.wait(_PATIENCE_S):
            self.say(
                f"{what} was killed, and the others were still there {_PATIENCE_S:.0f} s later: they are killed too"
            )
        return what

    def _different(self, steps: list[int], difference: str, *, resized: bool = False) -> Verdict:
        self.say(f"they differ: {difference}")
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            culprits = find_culprits(
                self.job, Path(folder), lambda one, other: _compare(self.job, one, other)[0], self.say, resized=resized
            )
        return Verdict(len(steps), 0, difference, tuple(steps), tuple(culprits), processes=self.processes)


def _has(size: int) -> str:
    return f"{counted(size, 'process')} {'has' if size == 1 else 'have'}"


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


def _compare(job: Job, one: Path, other: Path, sides: Sides = SIDES) -> tuple[str | None, int]:
    """The first difference between all that the two have: their run directories, and the files to compare."""
    runs = [[run.relative_to(home) for run in job.runs(home)] for home in (one, other)]
    if runs[0] != runs[1]:
        return f"{sides[0]} the runs {_names(runs[0])}, {sides[1]} {_names(runs[1])}", 0
    compared = 0
    for run in runs[0]:
        difference, items = compare(one / run, other / run, seeded=job.is_recipe, sides=sides)
        compared += items
        if difference:
            return (difference if job.is_recipe else f"{run}: {difference}"), compared
    names = sorted({name for home in (one, other) for name in _matching(job, home)})
    difference, items = first_difference(_bytes(one, names), _bytes(other, names), sides)
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
