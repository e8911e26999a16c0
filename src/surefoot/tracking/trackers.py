"""MLflow and Weights & Biases, fed from a run's journal by a process of its own: what is there is sent once.

A record that was sent is noted in the run (`trackers/NAME.json`). A resume makes the same records again, and those up
to the last one sent are passed over; what a kill left unnoted is asked of the tracker. A tracker that cannot be reached
is tried again, at the latest by the next sitting or `surefoot track`, and the training never waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Protocol

from .. import files
from ..errors import RunFailed, UsageError, first_line
from ..text import typed
from .journal import end_of_last_line, metrics_of, run_records
from .recording import settings_of
from .report import json_of

FOLDER, JOURNAL = "trackers", "metrics.jsonl"
INSTALL = {
    "mlflow": "pip install 'surefoot[mlflow]' (or: pip install mlflow)",
    "wandb": "pip install 'surefoot[wandb]' (or: pip install wandb)",
}
_BATCH = 500  # records
_LEAVING_S, _PAUSE_S, _MOST_WAITS = 20.0, 5.0, 24
# A record's step, and how many records of that step come before it.
Place = tuple[int, int]
_START: Place = (-1, 0)


class Held(RunFailed):
    """Another process tells the tracker of the same run."""


class Tracker(Protocol):
    """One run in a tracker."""

    def has(self, name: str, step: int) -> bool:
        """Whether it has the point already."""

    def send(self, points: Sequence[tuple[str, float, int, float]]) -> None:
        """Points: name, value, step, seconds since 1970."""

    def end(self, status: str) -> None:
        """The run's status: done, failed, interrupted, running."""


def points_of(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The points of a record, by the names that TensorBoard has: ``loss/val``, ``loss/train_step``, ``lr/0``."""
    suffix = f"{record['split']}_step" if record["kind"] == "step" else record["split"]
    for name, value in metrics_of(record).items():
        yield f"{name}/{suffix}", float(value)
    if record["kind"] == "step":
        for index, rate in enumerate(record.get("lr", [])[:100]):
            yield f"lr/{index}", float(rate)


class Feed:
    """The records of a run, sent to one tracker as they come: `opened` reaches it, again after each failure."""

    def __init__(self, run: Path, name: str, opened: Callable[[Mapping[str, Any], Path], Tracker]):
        self._run, self._opened = run, opened
        self._note = run / FOLDER / f"{name}.json"
        self._tracker: Tracker | None = None
        self._sent = _START
        self._offset = 0  # of the journal's bytes, how many hold nothing that is not sent
        self._last = _START  # the place of the last record in these
        self._lock: IO[bytes] | None = None

    def catch_up(self) -> int:
        """Send what the tracker does not have yet; returns how many records. Raises what the tracker raises."""
        self._hold()
        about = _about(self._run)
        # Of the first batch a kill may have left points that were sent and not noted.
        unsure = self._tracker is None
        if self._tracker is None:
            self._tracker = self._opened(about, self._run)
        count, end = 0, _whole_bytes(self._run / JOURNAL)
        try:
            if end < self._offset:
                self._offset, self._last = 0, _START
            for batch, place in self._batches(end):
                self._send(batch, place, _seconds(about.get("created")), unsure)
                unsure, count = False, count + len(batch)
        except BaseException:
            self._tracker = None
            raise
        self._offset = end
        return count

    def _hold(self) -> None:
        """Let no other process tell the tracker of this run: what both sent would be there twice."""
        if self._lock is not None:
            return
        self._note.parent.mkdir(exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        file = os.fdopen(os.open(self._note.with_suffix(".lock"), flags, 0o666), "rb", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Held(
                f"{self._run}: another process tells {self._note.stem} of this run; wait until it has ended"
            ) from None
        except OSError:  # a file system without such locks
            pass
        self._lock, self._sent = file, _noted(self._note)

    def close(self) -> None:
        """Let another process tell the tracker."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _send(self, batch: Sequence[Mapping[str, Any]], place: Place, started: float, unsure: bool) -> None:
        assert self._tracker is not None
        points = []
        for record in batch:
            at = started + float(record.get("wall_s", 0.0))
            for name, value in points_of(record):
                if not (unsure and self._tracker.has(name, record["step"])):
                    points.append((name, value, record["step"], at))
        self._tracker.send(points)
        self._sent = place
        self._note.parent.mkdir(exist_ok=True)
        files.write_atomically(self._note, json.dumps({"sent": self._sent}).encode())

    def _batches(self, end: int) -> Iterator[tuple[list[Mapping[str, Any]], Place]]:
        """The records up to the byte `end` that are not sent yet, each time with the place of the last."""
        batch: list[Mapping[str, Any]] = []
        place = self._last
        for record in run_records(self._run / JOURNAL, lambda message: None, start=self._offset, end=end):
            place = (record["step"], place[1] + 1 if record["step"] == place[0] else 0)
            if place > self._sent:
                batch.append(record)
            if len(batch) == _BATCH:
                yield batch, place
                batch = []
        if batch:
            yield batch, place
        self._last = place

    def end(self) -> None:
        """Send what is left, and tell how the run has ended."""
        self.catch_up()
        assert self._tracker is not None
        self._tracker.end(str(_about(self._run).get("status")))


def _whole_bytes(path: Path) -> int:
    """The bytes of a journal up to its last whole line."""
    with os.fdopen(files.open_regular(path), "rb") as file:
        return end_of_last_line(file.fileno())


def _noted(note: Path) -> Place:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        step, order = json.loads(files.read_bounded(note, 10_000))["sent"]
        return int(step), int(order)
    return _START


def _about(run: Path) -> dict[str, Any]:
    about = json_of(run / "run.json")
    if not isinstance(about.get("id"), str):
        raise UsageError(f"{run / 'run.json'}: is not the description of a run")
    return about


def _seconds(created: Any) -> float:
    try:
        return datetime.fromisoformat(created).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def require_tracker(name: str) -> None:
    """Raise UsageError where the package of a tracker is missing."""
    if importlib.util.find_spec(name) is None:
        raise UsageError(f"trackers: {name} is not installed: {INSTALL[name]}", code="package-missing")


def open_tracker(name: str) -> Callable[[Mapping[str, Any], Path], Tracker]:
    """What reaches the tracker `name`."""
    require_tracker(name)
    return _Mlflow if name == "mlflow" else _Wandb


def mlflow_name(name: str) -> str:
    """A metric's or setting's name as MLflow takes it: one batch with another name, and it refuses all of the batch.

    >>> mlflow_name("hit@10/val")
    'hit_10/val'
    """
    return re.sub(r"[^\w./ -]", "_", name)[:250]


class _Mlflow:
    """A run in MLflow, found again by the run's id; where, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say."""

    _ENDS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

    def __init__(self, about: Mapping[str, Any], run: Path):
        # Tried again here, with what is new by then; by itself it would go on for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or str(about.get("name") or "surefoot")
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        found = self._client.search_runs([number], f"tags.`surefoot.id` = '{_word(about['id'])}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
        else:
            tags = {"surefoot.id": _word(about["id"])}
            self._id = self._client.create_run(number, tags=tags, run_name=run.resolve().name).info.run_id
            self._tell_settings(about)
        self._steps: dict[str, set[int]] = {}

    def _tell_settings(self, about: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        conditions = about.get("conditions")
        settings = settings_of(conditions if isinstance(conditions, dict) else {})
        parameters = [Param(mlflow_name(key), str(value)[:500]) for key, value in settings.items()]
        for begin in range(0, len(parameters), 100):
            self._client.log_batch(self._id, params=parameters[begin : begin + 100])

    def has(self, name: str, step: int) -> bool:
        """Whether it has the point already; a metric's history is asked for once."""
        if name not in self._steps:
            self._steps[name] = {point.step for point in self._client.get_metric_history(self._id, mlflow_name(name))}
        return step in self._steps[name]

    def send(self, points: Sequence[tuple[str, float, int, float]]) -> None:
        """Points, at most 1,000 a request."""
        from mlflow.entities import Metric

        metrics = [Metric(mlflow_name(name), value, int(1000 * at), step) for name, value, step, at in points]
        for begin in range(0, len(metrics), 1000):
            self._client.log_batch(self._id, metrics=metrics[begin : begin + 1000])

    def end(self, status: str) -> None:
        """A run that goes on is set to running again."""
        if status in self._ENDS:
            self._client.set_terminated(self._id, self._ENDS[status])
        else:
            self._client.update_run(self._id, "RUNNING")


class _Wandb:
    """A run in Weights & Biases under the run's id; WANDB_MODE=offline keeps it in the run's own directory."""

    def __init__(self, about: Mapping[str, Any], run: Path):
        import wandb

        conditions = about.get("conditions")
        (run / FOLDER).mkdir(exist_ok=True)
        self._run: Any = wandb.init(
            id=_word(about["id"]),
            name=run.resolve().name,
            project=os.environ.get("WANDB_PROJECT") or str(about.get("name") or "surefoot"),
            dir=str(run / FOLDER),
            resume="allow",
            config=settings_of(conditions if isinstance(conditions, dict) else {}),
        )
        self._last = int(self._run.step) - 1 if self._run.resumed else -1

    def has(self, name: str, step: int) -> bool:
        """Steps only rise there: what is not above the last one is there."""
        return step <= self._last

    def send(self, points: Sequence[tuple[str, float, int, float]]) -> None:
        """Points of one step are one row."""
        rows: dict[int, dict[str, float]] = {}
        for name, value, step, _ in points:
            rows.setdefault(step, {})[name] = value
        for step, row in rows.items():
            self._run.log(row, step=step)

    def end(self, status: str) -> None:
        """Finish the run; a failed one with exit code 1."""
        self._run.finish(exit_code=1 if status == "failed" else 0)


def _word(text: str) -> str:
    return "".join(c for c in str(text) if c.isalnum())[:64]


class Feeds:
    """The processes that feed the trackers `names` from a run, from `start` until the block ends.

    At the end, however it comes, they are given 20 seconds to send what is left; what remains is told. Raises
    UsageError where a tracker's package is missing.
    """

    def __init__(self, run: Path | None, names: Sequence[str], say: Callable[[str], None]):
        self._run, self._names, self._say = run, names, say
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        for name in names:
            require_tracker(name)

    def start(self) -> None:
        """Begin: the run's directory is there."""
        for name in self._names if self._run is not None else ():
            assert self._run is not None
            command = [sys.executable, "-m", "surefoot", "track", str(self._run), "--to", name, "--follow"]
            (self._run / FOLDER).mkdir(exist_ok=True)
            with (self._run / FOLDER / f"{name}.log").open("ab") as log:
                self._children[name] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
                )

    def __enter__(self) -> Feeds:
        return self

    def __exit__(self, *exception: object) -> None:
        until = time.monotonic() + _LEAVING_S
        for child in self._children.values():
            assert child.stdin is not None
            child.stdin.close()
        for name, child in self._children.items():
            try:
                code: int | None = child.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = None  # it goes on by itself
            if code != 0:
                again = typed("surefoot", "track", self._run, "--to", name)
                self._say(
                    f"{name} does not have everything yet ({FOLDER}/{name}.log says why); complete it with `{again}`"
                )


def follow(
    feed: Feed, say: Callable[[str], None], ended: Callable[[float], bool], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Catch up again and again until ``ended(seconds)``, which waits that long, is true; then once more.

    A tracker that fails is tried again, at most each minute. Raises RunFailed where the last time fails; the process of
    a training that was killed may take until then to end, and is waited for.
    """
    pause, over, waits = _PAUSE_S, False, _MOST_WAITS
    while True:
        try:
            if over:
                feed.end()
            else:
                feed.catch_up()
            pause = _PAUSE_S
        except Exception as error:  # whatever the tracker, its server and the network have to say
            reason = first_line(error, kind=True)
            if over and waits and isinstance(error, Held):
                waits -= 1
                sleep(_PAUSE_S)
                continue
            if over:
                raise RunFailed(f"the tracker did not take everything: {reason}") from error
            say(f"{reason}; tried again in {pause:.0f} s")
            pause = min(2 * pause, 60.0)
        if over:
            return
        over = ended(pause)
