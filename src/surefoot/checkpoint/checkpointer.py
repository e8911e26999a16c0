"""The Checkpointer: five lines in a hand-written loop make it resumable, exactly, from any instant."""

from __future__ import annotations

import atexit
import contextlib
import signal
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import held, rng, safe_tensors
from ..arguments import metric_values, plain
from ..data import Loader
from ..errors import RunFailed, Stopped, SurefootError, UsageError
from ..monitor import AUTO
from ..signals import SignalWatch
from ..text import counted, say
from . import journals, object_states, store
from .arguments import check_arguments
from .conditions import Change, environment, require_same
from .description import comparable, describe, initial_options, use_changed
from .finite import require_finite
from .policy import Every, Keep, check_when_busy
from .run import RunDirectory, unusable
from .snapshot import Snapshots, decode
from .store import CheckpointStatus
from .user_code import code_of
from .writer import Writer

# Lines of a journal that run.json names.
MOST_DAMAGED = 50


@dataclass(frozen=True)
class Restored:
    """What a resume found: the place, what was stepped over, and which changed conditions were allowed."""

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
      warmups, loaders, GradScalers), plain dicts. The random number generators are always kept, those in modules too.
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
        **objects: Any,
    ):
        if not objects:
            raise UsageError("Checkpointer: nothing to save; give model=, optimizer= and what else the run has")
        check_arguments(run, background, signals, conditions, allow, journal, say, objects)
        self._every = Every.parse(every) if every is not None else None
        check_when_busy(when_busy)
        self._when_busy = when_busy
        self.skipped = 0
        self._keep = Keep(keep_last, keep_best, mode)
        object_states.check_objects(objects)
        self._objects = held.with_generators(objects)
        self._journal = journal
        self._allow = tuple(allow)
        self._background = background
        self._say = say or _to_stderr
        self.steps = 0
        self.epochs = 0
        self._initial_options = initial_options(self._objects)
        self._snapshots = Snapshots(self._objects)
        self._snapshots.check()  # what cannot be saved is refused now, not at the first checkpoint
        self.conditions = plain({**self._own_conditions(conditions or {}), **(conditions or {})})
        self._owns_run = not isinstance(run, RunDirectory)
        self.run = run if isinstance(run, RunDirectory) else self._take(Path(run))
        try:
            self._writer = Writer(
                self.run,
                self._keep,
                conditions=self.conditions,
                background=background,
                before_manifest=journal.sync if journal is not None else lambda: None,
                say=self._say,
            )
        except OSError as error:
            if self._owns_run:
                self.run.close()
            raise unusable(self.run.checkpoints, error) from error
        self._best: Any = None
        self._begun = False
        self._closed = False
        self._last_save = time.monotonic()
        self._saved_at: tuple[int, int] | None = None
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
        if not self._writer.known:
            self._start_fresh()
            if self._journal is not None:
                self._journal.truncate(0)  # records of a run killed before its first checkpoint
            return None
        content, status, tree, skipped = self._newest()
        saved = content.manifest["conditions"]
        if prepare is None:  # what cannot be loaded at all is refused before what may be allowed
            object_states.require_fit(self._objects, tree, status.path)
        then, now = comparable(saved, self.conditions, self._objects)
        changes = require_same(then, now, self._allow)
        if prepare is not None:
            prepare(tree["objects"], changes)
            object_states.require_fit(self._objects, tree, status.path)
        self._try_random_state(status.path, tree["rng"])
        damaged = journals.go_back(self._journal, tree, self._say)
        object_states.set_state(self._objects, tree)
        use_changed(self._objects, self._initial_options, saved, self.conditions)
        rng.set_state(tree["rng"])
        self.steps, self.epochs = tree["step"], tree["epoch"]
        self._saved_at = (self.steps, self.epochs)
        metrics = [known.metrics for known in self._writer.standing()]
        if (best := self._keep.best_of(metrics)) is not None and self._keep.best is not None:
            self._best = metrics[best][self._keep.best]
        self._begin(content.manifest, changes, damaged)
        self._writer.set_aside(self.steps)
        return Restored(self.steps, self.epochs, status.path, status.metrics, tuple(skipped), tuple(changes))

    def begin_at(self, step: int, epoch: int) -> None:
        """Count from here in a run that begins with a state from elsewhere, and save it: before its first step."""
        self.steps, self.epochs = step, epoch
        self.save()

    def step(self) -> None:
        """Count one update; save when due; after SIGTERM or SIGINT save and raise `Stopped`.

        Raises `RunFailed` when the save before this one could not be written.
        """
        # This runs after every update, some of which take 100 microseconds: nearly always it ends within one.
        self.steps = steps = self.steps + 1
        self._advance()
        every, due = self._every, False
        if every is not None and every.unit != "epochs":
            due = every.after_step(steps, time.monotonic() - self._last_save)
        if due or self._watch.noticed:
            self._save_or_stop(due, {})

    def epoch(self, metrics: Mapping[str, float] | None = None) -> None:
        """Count one epoch, after its validation and the schedule's epoch; save when due. Raises as `step`."""
        values = metric_values(metrics or {})
        best = self._keep.best
        if best is not None and best not in values:
            names = ", ".join(sorted(values)) or "none"
            raise UsageError(f"keep_best: {best!r} is not among the epoch's metrics ({names})")
        self.epochs += 1
        self._advance()
        must = False
        due = self._every is not None and self._every.after_epoch(self.epochs, time.monotonic() - self._last_save)
        if best is not None and self._keep.better(values[best], self._best):
            self._best, due, must = values[best], True, True
        self._save_or_stop(due, values, must=must)

    def save(self, metrics: Mapping[str, float] | None = None, *, wait: bool = True) -> None:
        """Save now. With `wait` the checkpoint is on the disk on return. Raises `RunFailed`."""
        self._require_begun()
        self.wait()
        require_finite(self._objects, self.steps, self._writer.known)
        self._last_save = time.monotonic()
        snapshot = self._snapshots.take(
            step=self.steps,
            epoch=self.epochs,
            metrics=plain(metric_values(metrics or {})),
            **journals.place(self._journal),
        )
        self._saved_at = (self.steps, self.epochs)
        self._writer.start(snapshot)
        if wait or not self._background:
            self.wait()

    def finish(self) -> None:
        """Save what is not saved yet and wait for it."""
        if self._begun and self._saved_at != (self.steps, self.epochs):
            self.save()
        self.wait()

    def wait(self) -> None:
        """Wait for the save in flight; raises `RunFailed` if it could not be written."""
        self._writer.wait()

    @property
    def stop_requested(self) -> bool:
        """Whether SIGTERM or SIGINT came; for long work between two steps, which then calls `stop`."""
        return self._watch.stop_requested is not None

    def check_signals(self) -> None:
        """Save after SIGUSR1, save and raise `Stopped` after SIGTERM or SIGINT; else nothing."""
        self._save_or_stop(False, {})

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
            self.wait()
            if self.skipped:
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
        status = (
            "done" if error is None else "interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
        )
        try:
            if error is None:
                self.finish()
            if self._watch.at_once:
                self._writer.abandon()
            if self._owns_run and self._begun:
                self._end(status, error)
        finally:
            if error is None:
                self.close()
            else:
                with contextlib.suppress(SurefootError):  # the first error is the one to raise
                    self.close()

    # ------------------------------------------------------------------------------------------ beginning

    def _take(self, path: Path) -> RunDirectory:
        return RunDirectory.take(path, adopt_journal=self._journal is not None, conditions=self.conditions)

    def _own_conditions(self, given_conditions: Mapping[str, Any]) -> dict[str, Any]:
        conditions = {**environment(), **describe(self._objects), **code_of(self._objects.values())}
        if "data.train" not in given_conditions:
            for key, value in self._objects.items():
                if isinstance(value, Loader):
                    conditions[f"data.{key}"] = value.source.fingerprint()
        return conditions

    def _start_fresh(self) -> None:
        if self.run.about.get("saved"):
            raise UsageError(
                f"{self.run.checkpoints}: this run was saved before, and its checkpoints are gone; restore them "
                "from a copy, or start a new run in another directory"
            )
        if self.run.about.get("id") is None:
            raise UsageError(f"{self.run.path}: run.json is damaged and there is no checkpoint; start a new run")
        self._begin({"run": self.run.id, "conditions": self.conditions}, [])

    def _newest(self) -> tuple[store.Content, CheckpointStatus, dict[str, Any], list[CheckpointStatus]]:
        """The newest valid checkpoint, read and decoded; what was stepped over is reported."""
        skipped: list[CheckpointStatus] = []
        for status in reversed(self._writer.known.copy()):
            try:
                content = store.load(status, self.run.about.get("id"))
                tree = decode(content)
                journals.check(self._journal, status.path, tree)
            except safe_tensors.BadFile as error:
                foreign = isinstance(error, store.Foreign)
                skipped.append(self._writer.judge(status, valid=False, reason=str(error), foreign=foreign))
                self._say(f"{error}; this checkpoint is stepped over")
                continue
            status = self._writer.judge(status, valid=True, metrics=content.manifest["metrics"])
            for older in self._writer.known[: self._writer.known.index(status)]:
                self._glance(older)
            return content, status, tree, skipped
        reasons = "\n".join(f"  {status.reason}" for status in skipped)
        raise UsageError(
            f"{self.run.checkpoints}: none of {counted(len(skipped), 'checkpoint')} is valid, so the run cannot go on:"
            f"\n{reasons}\nRestore one from a copy, or start a new run in another directory"
        )

    def _glance(self, status: CheckpointStatus) -> None:
        """Note the metrics of an older checkpoint, from its manifest; its content is not read."""
        try:
            metrics = store.read_manifest(status, self.run.about.get("id"))["metrics"]
            self._writer.judge(status, metrics=metrics)
        except safe_tensors.BadFile as error:
            foreign = isinstance(error, store.Foreign)
            self._writer.judge(status, valid=False, reason=str(error), foreign=foreign)

    def _try_random_state(self, path: Path, state: Any) -> None:
        before = rng.get_state()
        try:
            rng.set_state(state)
        except (UsageError, LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
            raise UsageError(f"{path}: its random state cannot be used: {error}") from error
        finally:
            rng.set_state(before)

    def _begin(self, manifest: Mapping[str, Any], changes: list[Change], damaged: Collection[str] = ()) -> None:
        about = self.run.about
        lost = about.get("id") is None
        if lost:
            self._say(f"{self.run.path}/run.json was lost or damaged; written again from the checkpoint")
        inexact = [*about.get("inexact", []), *(str(change) for change in changes)]
        fields: dict[str, Any] = {"id": manifest["run"], "status": "running", "conditions": self.conditions}
        if changes:
            self._say("resumed under changed conditions, so no longer exact: " + "; ".join(map(str, changes)))
        if lost or inexact:
            fields["inexact"] = list(dict.fromkeys(inexact))
        if damaged:
            fields["damaged"] = list(dict.fromkeys([*about.get("damaged", []), *damaged]))[:MOST_DAMAGED]
        self._record(**fields)
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
            raise RunFailed(f"{self.run.path}/run.json: cannot be written: {error.strerror or error}") from error

    def _require_begun(self) -> None:
        if self._begun:
            return
        if self._writer.known or self.run.about.get("id") is None:
            raise UsageError(
                f"{self.run.path}: holds checkpoints already; call resume() before the first step, or name "
                "another directory"
            )
        self._start_fresh()

    # ------------------------------------------------------------------------------------------ saving

    def _advance(self) -> None:
        if not self._begun:
            self._require_begun()
        if self._writer.failed:
            self.wait()

    def _skip(self) -> None:
        self.skipped += 1
        if self.skipped == 1:
            self._say(f"the save of step {self.steps} is left out: the one before is still being written")

    def _save_or_stop(self, due: bool, metrics: dict[str, Any], *, must: bool = False) -> None:
        asked = self._watch.take_save_request()
        stopping = self.stop_requested
        if due and not (must or asked or stopping) and self._when_busy == "skip" and self._writer.in_flight:
            self._skip()
        elif due or asked or stopping:
            self.save(metrics, wait=stopping or asked)
        if asked:
            self._say(f"saved at step {self.steps}")
        if stopping:
            self._raise_stopped()

    def _raise_stopped(self) -> None:
        signum = self._watch.stop_requested or signal.SIGTERM
        raise Stopped(
            signum, f"stopped by {signal.Signals(signum).name} after step {self.steps}; saved in {self.run.path}"
        )


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
