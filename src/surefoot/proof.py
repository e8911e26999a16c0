"""The proof behind `surefoot verify`: train once without and once with kills, and compare the results as bytes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RunFailed, UsageError
from .text import counted

# The one field of a record, and of the state, that may differ between two equal runs.
TIME = "wall_s"


@dataclass(frozen=True)
class Verdict:
    """The result: the number of kills, of items compared, and the first difference between the two runs, or None."""

    kills: int
    compared: int
    difference: str | None
    steps: tuple[int, ...]

    @property
    def same(self) -> bool:
        """Whether both runs have equal results."""
        return self.difference is None

    def summary(self) -> str:
        """The verdict in a line or two."""
        where = ", ".join(f"{step:,}" for step in self.steps)
        if self.same:
            return (
                f"identical: killed {counted(self.kills, 'time')} (last record then: step {where}) and resumed, the "
                f"run ended as the untouched one, {counted(self.compared, 'item')} compared as bytes"
            )
        if not self.kills:
            return f"DIFFERENT, and not by any kill: the recipe gives another result each time: {self.difference}"
        return f"DIFFERENT after {self.kills} kills (last record then: step {where}): {self.difference}"


def prove(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    kills: int = 5,
    seed: int = 0,
    keep: Path | None = None,
    trust_code: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Train `recipe` twice in processes of their own, the second killed `kills` times by SIGKILL, and compare.

    The instants are drawn from `seed` over the time that the untouched run took, so that they fall into start-up,
    steps, saves, validation and the writing of the model alike. Raises RunFailed where the recipe does not train
    even untouched. With `keep` both runs stay there. Where this process ends, by whatever signal, the runs end too.
    """
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise UsageError(f"{keep}: is not empty; name a directory for the two runs that is new or empty")
    with contextlib.ExitStack() as stack:
        home = keep if keep is not None else stack.enter_context(_temporary_home())
        # The children hold the reading end, and end when the last writing end is closed: with this process.
        lifeline, held = os.pipe()
        stack.callback(os.close, held)
        stack.callback(os.close, lifeline)
        start = functools.partial(_start, recipe, overrides, lifeline, ["--trust-code"] if trust_code else [])
        untouched, killed = home / "untouched", home / "killed"
        say("training once, untouched")
        began = time.monotonic()
        _finish(start, untouched)
        took = time.monotonic() - began
        say(f"untouched: {took:.1f} s; now the same, killed {counted(kills, 'time')}")
        instants, steps, done = random.Random(seed), [], 0
        while done < kills:
            began = time.monotonic()
            with start(killed) as process:
                try:
                    _, errors = process.communicate(timeout=instants.uniform(0.0, took))
                except subprocess.TimeoutExpired:
                    errors = None
                finally:
                    process.kill()  # does nothing to one that has ended
                    process.wait()  # what it wrote is looked at below, and must not move any more
            if errors is None:
                done += 1
                steps.append(_last_step(killed))
                say(f"kill {done} of {kills}: after step {steps[-1]:,}")
                continue
            if process.returncode != 0:
                raise RunFailed(f"the resumed run failed (exit code {process.returncode}):\n{errors}")
            if not (killed / "run.json").exists():
                raise RunFailed("the run ended well and left no run directory")
            # It reached its end before its instant came: the next life begins from nothing.
            took = min(took, max(time.monotonic() - began, 1.0))
            say("it reached its end first; the rest of the kills go to a new run")
            difference, compared = compare(untouched, killed)
            if difference:
                return Verdict(done, compared, difference, tuple(steps))
            shutil.rmtree(killed)
        _finish(start, killed)
        difference, compared = compare(untouched, killed)
        return Verdict(done, compared, difference, tuple(steps))


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


def end_with(lifeline: int) -> None:
    """End this process, as by SIGKILL, once nobody holds the other end of the pipe `lifeline` any more."""

    def wait() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="surefoot-lifeline", daemon=True).start()


def compare(one: Path, other: Path) -> tuple[str | None, int]:
    """The first difference between two finished runs, or None; and how many items were compared.

    Records but for `wall_s`; the newest checkpoint's tensors and state; the saved models; every point in TensorBoard.
    """
    compared = 0
    for (name, mine), (_, theirs) in zip(_items(one), _items(other), strict=True):
        if mine != theirs:
            return _difference(name, mine, theirs), compared
        compared += 1
    return None, compared


# A step's checkpoint, and how many of the same step came before it.
_SAVED = re.compile(r"step-(\d+)(?:-(\d+))?").fullmatch


def _items(run: Path) -> Iterator[tuple[str, Any]]:
    yield "run.json, conditions", json.loads((run / "run.json").read_text("utf-8"))["conditions"]
    yield "metrics.jsonl", _records(run)
    saved = [(int(m[1]), int(m[2] or 0), m[0]) for path in (run / "checkpoints").iterdir() if (m := _SAVED(path.name))]
    step, _, name = max(saved)
    # Not how often that step was saved: a stop after the last update saves it once more.
    yield "newest checkpoint, step", step
    newest = run / "checkpoints" / name
    for file in ("model.safetensors", "optimizer.safetensors"):
        yield f"checkpoints/{newest.name}/{file}", (newest / file).read_bytes()
    state = json.loads((newest / "state.json").read_text("utf-8"))
    state["objects"].get("progress", {}).pop(TIME, None)
    state.pop("marks")  # checksums of the same
    state.pop("journal")  # an offset in bytes, which hangs on how many digits the times have
    yield f"checkpoints/{newest.name}/state.json", state
    for folder in ("model", "model/best"):
        weights, described = run / folder / "model.safetensors", run / folder / "model.json"
        yield f"{folder}/model.safetensors", weights.read_bytes() if weights.exists() else None
        about = json.loads(described.read_text("utf-8")) if described.exists() else {}
        about.pop("seal", None)  # of this very directory
        yield f"{folder}/model.json", about
    yield "tensorboard", _points(run)


def _records(run: Path) -> list[dict[str, Any]]:
    from .tracking import read_records

    return [{k: _exact(v) for k, v in r.items() if k != TIME} for r in read_records(run / "metrics.jsonl")]


def _exact(value: Any) -> Any:
    # NaN is not equal to itself; its text is.
    return repr(value) if isinstance(value, float) else value


def _points(run: Path) -> list[tuple[str, int, float]]:
    """Every scalar point in the order written: a point that appears twice is a difference."""
    folder = run / "tensorboard"
    if not folder.exists():
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    points = [(tag, e.step, _exact(e.value)) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
    return points + [
        (tag, e.step, _exact(float(e.tensor_proto.float_val[0]) if e.tensor_proto.float_val else 0.0))
        for tag in events.Tags()["tensors"]
        for e in events.Tensors(tag)
    ]


def _difference(name: str, mine: Any, theirs: Any) -> str:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        key = next(key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key))
        return f"{name}: {key}: untouched has {str(mine.get(key))[:200]}, killed has {str(theirs.get(key))[:200]}"
    if isinstance(mine, list) and isinstance(theirs, list):
        for number, (a, b) in enumerate(zip(mine, theirs, strict=False), 1):
            if a != b:
                return f"{name}, entry {number}: untouched has {a}, killed has {b}"
        return f"{name}: untouched has {counted(len(mine), 'entry')}, killed has {len(theirs)}"
    if isinstance(mine, bytes) and isinstance(theirs, bytes):
        pairs = enumerate(zip(mine, theirs, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(theirs)))
        return f"{name}: first different byte is {at} of {len(mine)}"
    return f"{name}: untouched has {str(mine)[:200]}, killed has {str(theirs)[:200]}"


_CHILD = (
    "import sys; from surefoot.proof import end_with; end_with(int(sys.argv.pop(1))); "
    "from surefoot.cli import main; sys.exit(main())"
)


def _start(
    recipe: str, overrides: Sequence[str], lifeline: int, options: list[str], run: Path
) -> subprocess.Popen[str]:
    arguments = ["train", recipe, "--run", str(run), "--resume", *options, *overrides]
    command = [sys.executable, "-c", _CHILD, str(lifeline), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=[lifeline]
    )


def _finish(start: Callable[[Path], subprocess.Popen[str]], run: Path) -> None:
    with start(run) as process:
        try:
            _, errors = process.communicate()
        finally:
            process.kill()
    if process.returncode != 0:
        raise RunFailed(f"the run failed (exit code {process.returncode}):\n{errors}")


def _last_step(run: Path) -> int:
    from .tracking import read_records

    path = run / "metrics.jsonl"
    if not path.exists():
        return 0
    return max((record["step"] for record in read_records(path)), default=0)
