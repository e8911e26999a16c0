"""Writes snapshots, in a thread of its own where wanted, and lets the surplus go once the new one is safe."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import RunFailed, SurefootError
from ..world import World
from . import store
from .policy import Keep
from .run import RunDirectory
from .snapshot import Snapshot
from .store import CheckpointStatus

# Where a checkpoint in shards is written, and the newest that there is.
Place = dict[str, Any]

_PATIENCE_S = 60.0
_LEAVING_S = 5.0


class Writer:
    """One save in flight at most; `known` are the run's checkpoints, oldest first, as far as they were judged."""

    def __init__(
        self,
        run: RunDirectory,
        keep: Keep,
        *,
        conditions: Mapping[str, Any],
        background: bool,
        before_manifest: Callable[[], None],
        say: Callable[[str], None],
        world: World,
    ):
        self.known: list[CheckpointStatus] = []
        if not run.elsewhere:
            store.sweep(run.checkpoints)
            self.known = store.listed(run.checkpoints)
        self._run = run
        self._keep = keep
        self._conditions = conditions
        self._background = background
        self._before_manifest = before_manifest
        self._say = say
        self._world = world
        self._jobs: queue.SimpleQueue[tuple[Snapshot, Place] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._idle = threading.Event()
        self._abandoned = self._alone = False
        self._idle.set()
        self._failure: Exception | None = None

    def judge(self, status: CheckpointStatus, **verdict: Any) -> CheckpointStatus:
        """Note what a look at a checkpoint has shown."""
        judged = replace(status, **verdict)
        self.known[self.known.index(status)] = judged
        return judged

    def standing(self) -> list[CheckpointStatus]:
        """The checkpoints that are not known to be damaged."""
        return [status for status in self.known if status.valid is not False]

    def best(self) -> Any:
        """The best value so far of the metric by which the best is kept; None without one."""
        metrics = [known.metrics for known in self.standing()]
        best = self._keep.best_of(metrics)
        return None if best is None else metrics[best][self._keep.best or ""]

    def set_aside(self, step: int) -> None:
        """Rename damaged checkpoints beyond `step`, where the run now goes its way again; they are kept to look at."""
        for status in self.known:
            if status.valid is False and not status.foreign and status.step >= step:
                try:
                    kept = store.set_aside(status.path)
                except OSError as error:
                    self._say(f"{status.path}: cannot be renamed: {error.strerror or error}")
                    continue
                self.known = [known for known in self.known if known is not status]
                self._say(f"{status.path.name}: kept to look at as {kept.name}")

    def begin(self, step: int) -> Place:
        """Make the place where all ranks write a checkpoint in shards, on rank 0, which sends it to the others."""
        try:
            directory = str(store.begin(*self._target(step)))
        except OSError as error:
            raise self._save_failed(step, error, self._newest()) from error
        return {"directory": directory, "newest": self._newest()}

    def start(self, snapshot: Snapshot, place: Place | None = None) -> None:
        """Begin to write; the snapshot before must have been awaited. Of one in shards `place` is what `begin` gave."""
        assert not self.in_flight, "two saves in flight"
        self._idle.clear()
        if not self._background:
            self._write_safely(snapshot, place)
            return
        if self._thread is None:
            # A daemon, so that a program that is asked to end at once can; close() and exit await it otherwise.
            # One thread for all saves: starting one would wait until it runs, and lose the interpreter to it.
            self._thread = threading.Thread(target=self._work, name="surefoot-save", daemon=True)
            try:
                self._thread.start()
            except (RuntimeError, MemoryError) as error:  # no process or no memory is left for it
                self._thread, self._background = None, False
                self._say(f"checkpoints are written while the training waits: {error}")
                self._write_safely(snapshot, place)
                return
        self._jobs.put((snapshot, place or {}))

    @property
    def in_flight(self) -> bool:
        """Whether a save is being written."""
        return not self._idle.is_set()

    @property
    def failed(self) -> bool:
        """Whether a save could not be written and the error was not raised yet; `wait` raises it."""
        return self._failure is not None

    def wait(self) -> None:
        """Wait for the save in flight; raises what kept it from being written. Says so where it takes minutes."""
        while not self._idle.wait(_PATIENCE_S):
            if self._thread is None or not self._thread.is_alive():
                self._idle.set()
                raise RunFailed(f"{self._run.checkpoints}: the thread that saves has ended; resume the run")
            self._say(f"{self._run.checkpoints}: still waiting for the disk to take a checkpoint")
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def abandon(self) -> None:
        """Do not wait for the save in flight: it ends at its next piece, whole or not at all.

        At exit its thread is given seconds to end: see `close`.
        """
        self._abandoned = True
        if self._thread is not None:
            atexit.register(self._thread.join, _LEAVING_S)
        self._thread = None
        self._idle.set()

    def stop_waiting(self) -> None:
        """Expect nothing more of other ranks: the shards that they have not written by now are not coming."""
        self._alone = True

    def _unless_abandoned(self, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        for piece in pieces:
            if self._abandoned:
                raise RunFailed("the save was abandoned")
            yield piece

    def close(self) -> None:
        """End the thread once it has written what it was given, and wait for its end, unless it was abandoned.

        A thread that frees tensors while the interpreter shuts down aborts the process (SIGABRT).
        """
        self._jobs.put(None)
        if self._thread is not None and not self.in_flight:
            self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._write_safely(*job)

    def _write_safely(self, snapshot: Snapshot, place: Place | None) -> None:
        """Write in any thread; what goes wrong is kept for the loop to raise."""
        try:
            self._write(snapshot, place or {})
        except SurefootError as error:
            self._failure = error
        except OSError as error:
            newest = place["newest"] if place else self._newest()
            self._failure = self._save_failed(snapshot.step, error, newest)
            self._failure.__cause__ = error
        except Exception as error:  # a mistake of ours: raised by `wait`, not lost with this thread
            self._failure = error
        finally:
            self._idle.set()

    def _write(self, snapshot: Snapshot, place: Place) -> None:
        files = {name: self._unless_abandoned(chunks) for name, chunks in snapshot.files().items()}
        if snapshot.number:
            written: store.Written = {}
            try:
                written = store.write(Path(place["directory"]), files)
            finally:
                self._world.post(place["directory"], written)
            return
        begun = str(place["directory"] if place else store.begin(*self._target(snapshot.step)))
        temporary = Path(begun)
        try:
            try:
                written = store.write(temporary, files)
            finally:  # they write there as well: nothing is removed before they are done
                theirs = [self._posted(begun, rank) for rank in range(1, snapshot.shards)]
            if not all(theirs):  # who has failed says it itself, to all
                store.discard(temporary)
                return
            for files_of_rank in theirs:
                written |= files_of_rank
            self._before_manifest()
        except BaseException:
            store.discard(temporary)
            raise
        manifest = {
            "run": self._run.id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "metrics": snapshot.metrics,
            "conditions": self._conditions,
            **({"shards": snapshot.shards, "pieces": snapshot.pieces} if snapshot.shards > 1 else {}),
        }
        status = store.commit(temporary, snapshot.step, written, manifest)
        self.known = sorted([*self.known, status], key=lambda known: (known.step, known.revision))
        if not self._run.about.get("saved"):
            self._run.record(saved=True)
        self._retain()

    def _retain(self) -> None:
        """Remove what may go. A checkpoint that cannot be removed is reported; the run goes on."""
        good = self.standing()
        places = self._keep.surplus([s.step for s in good], [s.metrics for s in good])
        surplus = [good[i] for i in places]
        if surplus:  # what is damaged goes with the whole ones of its age
            surplus += [s for s in self.known if s.valid is False and not s.foreign and s.step <= surplus[-1].step]
        for status in surplus:
            try:
                store.remove(status.path)
            except FileNotFoundError:
                pass  # someone else took it away
            except OSError as error:
                self._say(f"{status.path}: cannot be removed: {error.strerror or error}")
                continue
            self.known = [known for known in self.known if known is not status]

    def _posted(self, begun: str, rank: int) -> store.Written:
        """What another rank has written of the checkpoint; nothing where it could not."""
        found: store.Written = self._world.posted(begun, rank, lambda: self._abandoned or self._alone)
        return found

    def _target(self, step: int) -> tuple[Path, int, int]:
        same_step = [known.revision for known in self.known if known.step == step]
        return self._run.checkpoints, step, max(same_step) + 1 if same_step else 0

    def _newest(self) -> int | None:
        return max((status.step for status in self.standing() if status.path.exists()), default=None)

    def _save_failed(self, step: int, error: OSError, newest: int | None) -> RunFailed:
        kept = "no checkpoint of this run exists" if newest is None else f"the run is kept up to step {newest}"
        where = error.filename or self._run.checkpoints
        return RunFailed(
            f"{where}: the checkpoint of step {step} could not be written: {error.strerror or error}; "
            f"{kept}; free or repair the disk, then resume"
        )
