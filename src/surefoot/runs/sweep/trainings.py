"""The trainings of a sweep: a process each, followed by its journal; whatever kills this one, the next goes on."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ...checkpoint.run import JOURNAL, RunDirectory, holder
from ...errors import RunFailed, UsageError
from ...recipe import load_recipe
from ...text import counted, figure
from ...tracking.journal import metrics_of, run_records
from ..record import open_run, recipe_settings, settings_of_text
from .settings import as_override, known
from .study import PRIVATE, Claimed, Study

_MOST_LAUNCHES = 3
_MOST_FAILURES = 3
_POLL_S = 0.25
_STOPPED = (128 + signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM)
_LEAVING_S = 60.0


class Process(Protocol):
    """What is asked of a training's process, as `subprocess.Popen` has it."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def terminate(self) -> None:
        """Ask it to save and stop."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""


Launch = Callable[[Sequence[str], Path, Path], Process]


def launch(arguments: Sequence[str], log: Path, directory: Path, *, threads: int) -> Process:
    """Begin or go on with a training in `directory`, its output in `log`, with `threads` of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    command = [
        sys.executable,
        "-m",
        "surefoot",
        "train",
        *arguments,
        "on_end=null",
        "--run",
        str(directory),
        "--resume",
    ]
    with log.open("ab") as output:
        # Of a session of its own: Ctrl-C reaches this process, which asks each training once.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )


@dataclass
class Work:
    """One claimed trial: its trainings one after the other, each in a run directory."""

    study: Study
    claimed: Claimed
    launch: Launch
    directories: list[Path] = field(init=False)
    values: list[float] = field(default_factory=list)
    process: Process | None = None
    launches: int = 0
    pruned: bool = False
    reason: str = ""
    _size: int = -1
    _ours: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.directories = self.study.run_directories(self.claimed.number)

    def poll(self) -> str | None:
        """Look after the trial; "complete", "pruned" or "failed" once it is over and told."""
        directory = self.directories[len(self.values)]
        if directory not in self._ours:
            self._require_settings(directory)
            self._ours.add(directory)
        self._follow(directory)
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return None
            self.process = None
            if code > 0 and code not in _STOPPED:
                return self._failed(self._last_words(directory))
        if _is_done(directory):
            return self._training_done(directory)
        if holder(directory) is not None:  # a training that outlived the sweep that began it
            return None
        if self.pruned:
            self.claimed.tell(None, "pruned")
            return "pruned"
        if self.launches == _MOST_LAUNCHES:
            return self._failed(f"was killed {counted(self.launches, 'time')}; {self._last_words(directory)}")
        self.launches += 1
        directory.parent.mkdir(parents=True, exist_ok=True)
        arguments = self.study.plan.arguments(self.claimed.values, len(self.values))
        self.process = self.launch([self.study.plan.recipe, *arguments], self._log(directory), directory)
        return None

    def _require_settings(self, directory: Path) -> None:
        """Raise UsageError where a run that is there already was trained with other values than the trial's."""
        kept, plan = recipe_settings(directory), self.study.plan
        if not kept:
            return
        recipe = load_recipe(plan.recipe, plan.arguments(self.claimed.values, len(self.values)))
        tried = settings_of_text(recipe.to_yaml())
        for key in (*self.claimed.values, "seed"):
            # All that stands at the key: a scheduler that is null has none of the keys that another one has.
            theirs, ours = (
                {name: value for name, value in settings.items() if name == key or name.startswith(f"{key}.")}
                for settings in (kept, tried)
            )
            if theirs and known(theirs) != known(ours):
                differing = (n for n in {**theirs, **ours} if known({n: theirs.get(n)}) != known({n: ours.get(n)}))
                name = next(differing, key)
                raise UsageError(
                    f"{directory}: was trained with {name} {as_override(theirs.get(name))}, and this trial has "
                    f"{as_override(ours.get(name))}: the run is of another sweep; move it elsewhere, or begin a new "
                    "sweep with --dir"
                )

    def _follow(self, directory: Path) -> None:
        """Tell the epochs that the journal has by now; ask a training that is behind the others to stop."""
        path, plan = directory / JOURNAL, self.study.plan
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            if size == self._size:
                return
            self._size = size
        split, _, name = plan.metric.partition("/")
        with contextlib.suppress(UsageError):  # not there yet
            for record in run_records(path, lambda message: None, only=b'"kind": "epoch"'):
                value = metrics_of(record).get(name)
                if record["split"] == split and value is not None and math.isfinite(value):
                    step = len(self.values) * plan.epochs + record["epoch"]
                    if self.claimed.report(step, float(value)) and not self.pruned:
                        self.pruned = True
                        if self.process is not None:
                            self.process.terminate()

    def _training_done(self, directory: Path) -> str | None:
        self._follow(directory)  # what it wrote between the last look and its end: others are pruned by it
        plan, content = self.study.plan, open_run(directory).content
        reached = content.metrics.get(plan.metric)
        value = math.nan if reached is None else reached.best(plan.mode)[0]
        if not math.isfinite(value):
            there = ", ".join(content.metrics) or "nothing"
            return self._failed(f"has no value of {plan.metric}; it measured {there}")
        self.values.append(value)
        self.launches, self._size = 0, -1
        if len(self.values) < len(self.directories):
            return None
        self.claimed.tell(sum(self.values) / len(self.values), "complete")
        return "complete"

    def _failed(self, reason: str) -> str:
        self.reason = reason
        self.claimed.tell(None, "failed")
        return "failed"

    def _log(self, directory: Path) -> Path:
        name = "-".join(directory.relative_to(self.study.directory).parts)
        return self.study.directory / PRIVATE / "logs" / f"{name}.txt"

    def _last_words(self, directory: Path) -> str:
        with contextlib.suppress(OSError):
            lines = self._log(directory).read_text(errors="replace")[-4000:].strip().splitlines()
            return " / ".join(lines[-3:]) or "it said nothing"
        return "it said nothing"

    def ask_to_stop(self) -> None:
        """Ask the training to save and stop."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stop(self) -> None:
        """Wait for the training that was asked to stop; the trial stays as it is for the next time."""
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_LEAVING_S)
        self.claimed.release()


def _is_done(directory: Path) -> bool:
    return RunDirectory.holds_run(directory) and open_run(directory).status == "done"


def run_trials(
    study: Study,
    jobs: int,
    launch: Launch,
    say: Callable[[str], None],
    wait: Callable[[], None] = lambda: time.sleep(_POLL_S),
) -> None:
    """Work on the trials, `jobs` at a time, until every one is told, by this process or others.

    Raises RunFailed where the first trials all fail. However it is left, the trainings are asked to save first.
    """
    works: list[Work] = []
    failures, succeeded, told_of_others = 0, False, False
    try:
        while True:
            while len(works) < jobs and (claimed := study.claim()) is not None:
                works.append(Work(study, claimed, launch))
            if not works and study.finished():
                return
            if not works and not told_of_others:
                say(f"the trials that are left are being trained by others; waiting for them{_where(study)}")
                told_of_others = True
            for work in list(works):
                if (state := work.poll()) is not None:
                    works.remove(work)
                    say(_line(study, work, state))
                    succeeded = succeeded or state != "failed"
                    failures += state == "failed"
                    if failures >= _MOST_FAILURES and not succeeded:
                        raise RunFailed(
                            f"{study.directory}: the first {failures} trials all failed: {work.reason}",
                            code="sweep-failed",
                        )
            wait()
    finally:
        for work in works:  # all of them before one is waited for: a second Ctrl-C ends the waiting
            work.ask_to_stop()
        for work in works:
            work.stop()


def _where(study: Study) -> str:
    """Where other machines train; what to do about one that will not come back."""
    lines = [f"\n  trial {number} in {place}" for number, place in study.elsewhere()]
    return "".join(
        [*lines[:20], "\n  (one of these will not come back? stop this and give --take-over)" if lines else ""]
    )


def _line(study: Study, work: Work, state: str) -> str:
    values = " ".join(f"{name}={value}" for name, value in work.claimed.values.items())
    done = sum(trial.state.is_finished() for trial in study.trials())
    head = f"trial {work.claimed.number} ({done}/{study.plan.trials})  {values}"
    if state == "complete":
        mean = sum(work.values) / len(work.values)
        return f"{head}  {study.plan.metric} {figure(study.plan.metric, mean)}"
    return f"{head}  {state}{f': {work.reason}' if work.reason else ''}"
