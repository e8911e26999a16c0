"""The Checkpointer: five lines in a hand-written loop make it resumable, exactly, from any instant."""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import signal
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import rng
from ..arguments import metric_values, plain
from ..errors import RunFailed, Stopped, SurefootError, UsageError
from ..monitor import AUTO
from ..signals import SignalWatch
from ..text import say
from ..variables import with_hidden
from ..world import World
from . import journals, object_states
from .arguments import check_arguments
from .conditions import Change, require_same
from .description import comparable, initial_options, run_conditions, use_changed
from .finite import require_finite
from .newest import Newest, newest, random_state, require_new, resumed, try_random_state
from .policy import Every, Keep, check_when_busy
from .run import RunDirectory, unusable
from .snapshot import Snapshots, reshard
from .store import CheckpointStatus
from .writer import Writer


@dataclass(frozen=True)
class Restored:
    """What a resume found: the `step` and `epoch`, the checkpoint's `path` and `metrics`, damaged ones that were
    `skipped`, and the `changes` of conditions that were allowed."""

    step: int
    epoch: int
    path: Path
    metrics: dict[str, Any]
    skipped: tuple[CheckpointStatus, ...] = ()
    changes: tuple[Change, ...] = ()


class Checkpointer:
    """Saves a run while it trains and puts it back after any end, bit for bit.

        with Checkpointer("runs/mine", model=model, optimizer=optimizer, schedule=schedule, loader=loader) as saver:
            saver.resume()
            while loader.epoch < epochs:
                for inputs, targets in loader:
                    ...                                  # the step, as it was
                    saver.step()
                saver.epoch({"val/loss": validate()})

    - `run`: the run's directory, made when it is not there; or a `RunDirectory`, which then stays the caller's.
    - `objects` by keyword: modules, optimizers, anything with state_dict and load_state_dict (schedulers,
      warmups, loaders, GradScalers), plain dicts. Kept too are random number generators, also in modules, and what
      modules count in attributes and closures. One with `before_save()` has it called before each save, on every rank.
    - `every`: "1 epoch", "500 steps", "10 min", or None to save only when asked, on a signal and at the end.
    - `keep_last` newest checkpoints stay (None: all), and the best by the metric `keep_best`. `mode` is "min", "max",
      or "auto": higher is better for an accuracy, lower for a loss; another name needs a mode.
    - `background`: write in a thread, over a copy; training waits for the copy only, and a save that failed is
      raised by the next call. Without it each save is on the disk, or raised, before the call returns.
    - `when_busy`: a save that is due while the one before is still being written is awaited ("wait"), or left out
      ("skip"), reported, and counted in run.json as `saves_skipped`; the best, a signal's and the last never are.
    - `conditions`: what else the run depends on, as plain values; compared on resume with the environment and
      the code of the modules. `allow` names those that may differ; the run is then marked inexact.
    - `journal`: a `surefoot.Journal`, or an object with `offset`, `sync()` and `truncate(offset)`: cut back to the
      checkpoint on resume.
    - `say`: called with a line for the user; by default it goes to standard error.
    - `signals`: note SIGTERM, SIGINT and SIGUSR1 (main thread only).
    - `world`: the processes of the run (`surefoot.World.join()` under torchrun). Each makes a Checkpointer and calls
      the same of it; rank 0 alone touches the directory, and all save, stop and fail together.

    Raises `UsageError` for what cannot be saved, before anything is written.
    """

    def __init__(
        self,
        run: str | Path | RunDirectory,
        *,
        every: str | None = "1 epoch",
        keep_last: int | None = 3,
        keep_best: str | None = None,
        mode: str = AUTO,
        background: bool = True,
        when_busy: str = "wait",
        conditions: Mapping[str, Any] | None = None,
        allow: Collection[str] = (),
        journal: Any = None,
        say: Callable[[str], None] | None = None,
        signals: bool = True,
        world: World | None = None,
        **objects: Any,
    ):
        if not objects:
            raise UsageError("Checkpointer: nothing to save; give model=, optimizer= and what else the run has")
        self._world = World.only(world)
        self._journal = journal = journal if self._world.rank == 0 else None
        check_arguments(run, background, signals, conditions, allow, journal, say, objects)
        self._every = Every.parse(every) if every is not None else None
        check_when_busy(when_busy)
        self._when_busy = when_busy
        self.skipped = 0
        self._keep = Keep(keep_last, keep_best, mode)
        object_states.check_objects(objects)
        self._objects = with_hidden(objects)
        self._allow = tuple(allow)
        self._background = background
        self._say = (say or _to_stderr) if self._world.rank == 0 else _to_nobody
        self.steps = 0
        self.epochs = 0
        self._initial_options = initial_options(self._objects)
        self._snapshots = Snapshots(self._objects, self._world)
        self._snapshots.check()  # what cannot be saved is refused now, not at the first checkpoint
        self.conditions = run_conditions(self._objects, self._world, conditions or {})
        self._owns_run = not isinstance(run, RunDirectory)
        self.run = run if isinstance(run, RunDirectory) else self._take(Path(run))
        self._writer = self._world.agree(lambda: self._make_writer(journal))
        self._best: Any = None
        self._begun = self._closed = False
        # Rank 0's clock is the one that counts: on the others no time passes.
        self._last_save = time.monotonic() if self._world.rank == 0 else math.inf
        self._saved_at: tuple[int, int] | None = None
        self._stop_signal = 0
        self._watch = SignalWatch()
        if signals:
            self._watch.open()
        # Without close() the last save would end with the interpreter.
        self._at_exit = _await_at_exit(self)

    # ------------------------------------------------------------------------------------------ the loop's calls

    def resume(self, prepare: Callable[[dict[str, Any], list[Change]], None] | None = None) -> Restored | None:
        """Go on from the newest valid checkpoint; None when the run has none yet and starts fresh.

        `prepare` is called with the saved states of the plain objects, by key, and the changes that were allowed,
        before anything is loaded: for a run that changes its make-up on the way (parameters that join the optimizer
        at a later epoch). It may raise to refuse.

        Damaged checkpoints are named and stepped over. Everything is compared before anything is loaded:
        raises `UsageError` when none is valid, when the objects do not fit (all differences at once), or
        when conditions changed (`ConditionsChanged`); the objects are then as they were.
        """
        if self._begun:
            raise UsageError(f"{self.run.path}: resume() comes before the first step")
        if self._world.agree(lambda: not self._writer.known, on=0):
            self._start_fresh()
            if self._journal is not None:
                self._journal.truncate(0)  # records of a run killed before its first checkpoint
            return None
        reshard(self._objects)
        found = newest(self._world, self._writer, self.run, self._journal, self._say)
        tree, saved, own_rng = found.tree, found.content.manifest["conditions"], random_state(found.tree, self._world)
        changes = self._world.agree(lambda: self._acceptable(found, saved, prepare, own_rng))
        damaged = self._world.agree(lambda: journals.go_back(self._journal, tree, self._say), on=0)
        object_states.set_state(self._objects, tree)
        use_changed(self._objects, self._initial_options, saved, self.conditions)
        rng.set_state(own_rng)
        self.steps, self.epochs = tree["step"], tree["epoch"]
        self._saved_at = (self.steps, self.epochs)
        self._best = self._world.agree(self._writer.best, on=0)
        self._begin(found.content.manifest, changes, damaged)
        self._world.first(lambda: self._writer.set_aside(self.steps))
        return Restored(self.steps, self.epochs, found.status.path, found.status.metrics, found.skipped, tuple(changes))

    def begin_at(self, step: int, epoch: int) -> None:
        """Count from here and save: before the first step of a state from elsewhere, or where `step` did not count."""
        self.steps, self.epochs = step, epoch
        self.save()

    def step(self) -> None:
        """Count one update; save when due; after SIGTERM or SIGINT save and raise `Stopped`.

        Raises `RunFailed` when the save before this one could not be written.
        """
        # This runs after every update, some of which take 100 microseconds: nearly always it ends within two.
        self.steps = steps = self.steps + 1
        if not self._begun:
            self._require_begun()
        every, due, late = self._every, False, False
        if every is not None and every.unit == "steps":
            due = steps % every.amount == 0
        elif every is not None:
            late = every.after_step(steps, time.monotonic() - self._last_save)
        answer = self._world.ask(self._word(late))
        if due or any(answer):
            self._save_or_stop(due, {}, answer)

    def epoch(self, metrics: Mapping[str, float] | None = None) -> None:
        """Count one epoch, after its validation and the schedule's epoch; save when due. Raises as `step`."""
        values = self._world.agree(lambda: metric_values(metrics or {}), on=0)
        best = self._keep.best
        if best is not None and best not in values:
            names = ", ".join(sorted(values)) or "none"
            raise UsageError(f"keep_best: {best!r} is not among the epoch's metrics ({names})", code="monitor")
        self.epochs += 1
        if not self._begun:
            self._require_begun()
        must, late, due = False, False, False
        if self._every is not None:
            due = self._every.after_epoch(self.epochs, 0)
            late = not due and self._every.after_epoch(self.epochs, time.monotonic() - self._last_save)
        if best is not None and self._keep.better(values[best], self._best):
            self._best, due, must = values[best], True, True
        self._save_or_stop(due, values, self._words(late), must=must)

    def save(self, metrics: Mapping[str, float] | None = None, *, wait: bool = True) -> None:
        """Save now. With `wait` the checkpoint is on the disk on return. Raises `RunFailed`."""
        self._require_begun()
        self.wait()
        for value in self._objects.values():
            if callable(meet := getattr(value, "before_save", None)):
                meet()
        moment = {
            "step": self.steps,
            "epoch": self.epochs,
            "metrics": plain(metric_values(metrics or {})),
            "rngs": self._snapshots.random_states(self._world),
        }

        def write(place: Any = None) -> None:
            require_finite(self._objects, self.steps, self._writer.known)
            if self._world.rank == 0:
                self._last_save = time.monotonic()
            self._writer.start(self._snapshots.take(**moment, **journals.place(self._journal)), place)

        if self._snapshots.spread:
            place = self._world.agree(lambda: self._writer.begin(self.steps), on=0)
            try:
                self._world.agree(lambda: write(place))
            except SurefootError:
                self._writer.stop_waiting()
                raise
        else:
            self._world.first(write)
        self._saved_at = (self.steps, self.epochs)
        if wait or not self._background:
            self.wait()

    def finish(self) -> None:
        """Save what is not saved yet and wait for it."""
        if self._begun and self._saved_at != (self.steps, self.epochs):
            self.save()
        self.wait()

    def wait(self) -> None:
        """Wait for the save in flight; raises `RunFailed` if it could not be written."""
        if self._snapshots.spread:
            self._world.agree(self._writer.wait)
        else:
            self._world.first(self._writer.wait)

    @property
    def stop_requested(self) -> bool:
        """Whether SIGTERM or SIGINT came, to any rank; for long work between two steps, which then calls `stop`."""
        self._stop_signal = self._world.ask(self._word())[0]
        return bool(self._stop_signal)

    def check_signals(self) -> None:
        """Save after SIGUSR1, save and raise `Stopped` after SIGTERM or SIGINT; else nothing."""
        self._save_or_stop(False, {}, self._words())

    def stop(self) -> None:
        """Save and raise `Stopped`, as after a signal."""
        self.save()
        self._raise_stopped()

    def close(self) -> None:
        """Await the last save, put the signal handlers back, leave the run; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.wait()
            if self.skipped and self._world.rank == 0:
                self._say(f"{self.skipped} saves were left out because the disk was busy")
                self._record(saves_skipped=self.run.about.get("saves_skipped", 0) + self.skipped)
        finally:
            self._writer.close()
            self._watch.close()
            atexit.unregister(self._at_exit)
            if self._owns_run:
                self.run.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        status = "done" if error is None else "interrupted" if stopped else "failed"
        try:
            if error is None:
                self.finish()
            else:
                self._writer.stop_waiting()
            if self._watch.at_once:
                self._writer.abandon()
            if self._owns_run and self._begun:
                self._end(status, error)
        except SurefootError as failure:  # the last save
            error = failure
            if self._owns_run:
                self._end("failed", failure)
            raise
        finally:
            if error is None:
                self.close()
            else:
                with contextlib.suppress(SurefootError):  # the first error is the one to raise
                    self.close()

    # ------------------------------------------------------------------------------------------ beginning

    def _take(self, path: Path) -> RunDirectory:
        about: dict[str, Any] = {"adopt_journal": self._journal is not None, "conditions": self.conditions}
        return RunDirectory.of_first(self._world, path, functools.partial(RunDirectory.take, path, **about))

    def _make_writer(self, journal: Any) -> Writer:
        try:
            return Writer(
                self.run,
                self._keep,
                conditions=self.conditions,
                background=self._background,
                before_manifest=journal.sync if journal is not None else lambda: None,
                say=self._say,
                world=self._world,
            )
        except OSError as error:
            if self._owns_run:
                self.run.close()
            raise unusable(self.run.checkpoints, error) from error

    def _start_fresh(self) -> None:
        require_new(self.run)
        self._begin({"run": self.run.id, "conditions": self.conditions}, [])

    def _acceptable(self, found: Newest, saved: Mapping[str, Any], prepare: Any, own_rng: Any) -> list[Change]:
        """The allowed changes. Raises UsageError where `found` cannot be loaded, or not as exactly as was asked for."""
        tree, path = found.tree, found.status.path
        if prepare is None:  # what cannot be loaded at all is refused before what may be allowed
            object_states.require_fit(self._objects, tree, path)
        then, now = comparable(saved, self.conditions, self._objects)
        changes = require_same(then, now, self._allow)
        if prepare is not None:
            prepare(tree["objects"], changes)
            object_states.require_fit(self._objects, tree, path)
        try_random_state(path, own_rng)
        return changes

    def _begin(self, manifest: Mapping[str, Any], changes: list[Change], damaged: Collection[str] = ()) -> None:
        fields = resumed(self.run, manifest["run"], changes, damaged, self._say)
        self._world.first(lambda: self._record(status="running", conditions=self.conditions, **fields))
        self._begun = True

    def _end(self, status: str, error: BaseException | None) -> None:
        if error is None:
            self._record(status=status)
        else:
            with contextlib.suppress(SurefootError):  # the first error is the one to raise
                self._record(status=status)

    def _record(self, **fields: Any) -> None:
        try:
            self.run.record(**fields)
        except OSError as error:
            raise RunFailed(
                f"{self.run.path}/run.json: cannot be written: {error.strerror or error}", code="cannot-write"
            ) from error

    def _require_begun(self) -> None:
        if self._begun:
            return
        if self._world.agree(lambda: bool(self._writer.known), on=0) or self.run.about.get("id") is None:
            raise UsageError(
                f"{self.run.path}: holds checkpoints already; call resume() before the first step, or name "
                "another directory",
                code="run-directory",
            )
        self._start_fresh()

    # ------------------------------------------------------------------------------------------ saving

    def _word(self, late: bool = False) -> tuple[int, int, int, int]:
        """What this rank has to say: the signal that asks to stop, whether to save, for the time, and a save failed."""
        watch = self._watch
        return watch.stop_requested or 0, watch.save_requested, late, self._writer.failed

    def _words(self, late: bool = False) -> list[int]:
        """What all ranks have to say at this moment."""
        return [max(said) for said in zip(*self._world.gather(self._word(late)), strict=True)]

    def _skip(self) -> None:
        self.skipped += 1
        if self.skipped == 1:
            self._say(f"the save of step {self.steps} is left out: the one before is still being written")

    def _save_or_stop(self, due: bool, metrics: dict[str, Any], words: Sequence[int], *, must: bool = False) -> None:
        self._stop_signal, asked, late, failed = words
        if failed:
            self.wait()
        if asked:
            self._watch.take_save_request()
        urgent, due = bool(asked or self._stop_signal), bool(due or late)
        busy = due and not (must or urgent) and self._when_busy == "skip"
        if busy and self._world.agree(lambda: self._writer.in_flight, on=0):
            self._skip()
        elif due or urgent:
            self.save(metrics, wait=urgent)
        if asked:
            self._say(f"saved at step {self.steps}")
        if self._stop_signal:
            self._raise_stopped()

    def _raise_stopped(self) -> None:
        signum = self._stop_signal or self._watch.stop_requested or signal.SIGTERM
        what = f"stopped by {signal.Signals(signum).name} after step {self.steps}; saved in {self.run.path}"

        def stop() -> None:
            raise Stopped(signum, what)

        self._world.agree(stop)  # none leaves before all are here: torchrun ends the others of one that has


def _to_nobody(line: str) -> None:
    """What rank 0 says is said once."""


def _to_stderr(line: str) -> None:
    say(f"surefoot: {line}", error=True)


def _await_at_exit(saver: Checkpointer) -> Callable[[], None]:
    reference = weakref.ref(saver)

    def await_last_save() -> None:
        checkpointer = reference()
        if checkpointer is not None and not checkpointer._watch.at_once:
            checkpointer.wait()

    atexit.register(await_last_save)
    return await_last_save
