"""The same faults met by `surefoot train` and `surefoot resume`, with the recipe, records, TensorBoard and models."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy

from surefoot import cli, files, proof
from surefoot.checkpoint import Checkpointer
from surefoot.proof import comparison

from .disks import _nobody, _small_disk
from .harness import FAST, TESTS, Result, Settings, Sitting, add, dice, newest, spread, valid_steps

RECIPE = """
model: {name: MLP, hidden: [16]}
data: {name: garments, train_size: 64, val_size: 32, batch_size: 8, augment: [{name: RandomCrop, padding: 2}]}
loss: CrossEntropyLoss
optimizer: {name: AdamW, lr: 0.01}
scheduler: {name: StepLR, step_size: 1}
warmup: {name: LinearWarmup, warmup_period: 5}
ema: {decay: 0.9}
grad_accum_steps: 2
epochs: 3
log_every: 1
execution: {threads: 1, onednn: true}
checkpoint: {every: "1 step", keep_last: 2, keep_best: val/loss}
"""


def surefoot(*arguments: str, before: Callable[[], None] | None = None, hold: bool = False) -> Sitting:
    """The command in a process of its own."""
    return Sitting(Path(), Settings(), before, hold=hold, main=lambda *_: cli.main(list(arguments)))


def _recipe(folder: Path, text: str = RECIPE) -> str:
    path = folder / "job.yaml"
    path.write_text(text)
    return str(path)


def _train(folder: Path, before: Callable[[], None] | None = None, *more: str) -> Result:
    return surefoot("train", _recipe(folder), "--run", str(folder / "run"), *more, before=before).result()


def _resume(folder: Path, *more: str) -> Result:
    return surefoot("train", _recipe(folder), "--run", str(folder / "run"), "--resume", *more).result()


def warm_up() -> None:
    """Train and resume once in this process, so that forks find everything imported."""
    nowhere = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        for more in ((), ("--resume",)):
            code = cli.main(["train", _recipe(Path(folder)), "--run", f"{folder}/run", "epochs=1", *more])
            assert code == 0, nowhere.getvalue()


@cache
def reference() -> tuple[Path, float]:
    """The run that was never touched, and how many seconds it took."""
    folder = Path(tempfile.mkdtemp(prefix="surefoot-reference-"))
    start = time.monotonic()
    result = _train(folder)
    assert result.code == 0, result.err
    return folder / "run", time.monotonic() - start


def _ends_exactly(folder: Path) -> str:
    result = _resume(folder)
    assert result.code == 0, f"exit code {result.code}: {result.err}"
    difference, compared = proof.compare(reference()[0], folder / "run")
    assert difference is None, difference
    assert json.loads((folder / "run/run.json").read_text())["status"] == "done"
    return f"{compared} items equal"


def _message(result: Result, code: int, *words: str) -> str:
    assert "Traceback" not in result.err, result.err
    assert result.code == code, f"exit code {result.code} instead of {code}: {result.err}"
    assert "surefoot: " in result.err or "error: " in result.err, result.err
    for word in words:
        assert word in result.err, f"{word!r} is not in: {result.err}"
    return result.err.strip().splitlines()[-1][-70:]


def _killed(name: str, kills: int, signum: int):
    def check(folder: Path) -> str:
        roll = dice(name)
        run, seconds = str(folder / "run"), reference()[1]
        codes = []
        for _ in range(kills):
            sitting = surefoot("train", _recipe(folder), "--run", run, "--resume")
            if not sitting.ended_within(roll.uniform(0, seconds)):
                sitting.kill(signum)
            result = sitting.result()
            codes.append(result.code)
            if signum != signal.SIGKILL:
                # Before the loop runs, a signal ends the command the ordinary way.
                assert result.code in (0, 128 + signum, -signum), result
                assert "Traceback" not in result.err, result.err
        return f"exit {', '.join(map(str, codes))}; {_ends_exactly(folder)}"

    return check


def _stop_at(step: int):
    """For use in a child: SIGTERM as that step ends."""
    inner = Checkpointer.step

    def stepped(self: Checkpointer) -> None:
        if self.steps + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        inner(self)

    def install() -> None:
        Checkpointer.step = stepped  # type: ignore[method-assign]

    return install


def _stopped(folder: Path, at: int = 6) -> None:
    result = _train(folder, _stop_at(at))
    assert result.code == 128 + signal.SIGTERM, result.err


def _damaged(folder: Path) -> str:
    _stopped(folder)
    path = newest(folder / "run").path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    shown = surefoot("checkpoints", str(folder / "run")).result()
    assert shown.code == 0 and "damaged" in shown.out and "would be resumed" in shown.out, shown
    result = _resume(folder, "epochs=3")
    assert result.code == 0 and "stepped over" in result.out + result.err, result
    return _ends_exactly(folder)


def _all_damaged(folder: Path) -> str:
    _stopped(folder)
    for path in (folder / "run/checkpoints").glob("*/state.json"):
        path.write_text("{}")
    shown = surefoot("checkpoints", str(folder / "run")).result()
    assert shown.code == 1, shown
    return _message(_resume(folder), 2, "none of", "is valid")


def _there_already(folder: Path) -> str:
    _stopped(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    told = _message(_train(folder), 2, "already holds a run", "resume")
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}, "something was touched"
    return told


def _other_recipe(change: str, name: str):
    def check(folder: Path) -> str:
        _stopped(folder)
        run = str(folder / "run")
        refused = surefoot("resume", run, change).result()
        told = _message(refused, 2, name)
        found = re.findall(r"--allow \S+", refused.err)
        assert found and all(option.endswith(name) for option in found), refused.err
        result = surefoot("resume", run, change, *" ".join(found).split()).result()
        assert result.code == 0, result.err
        if name == "optimizer.lr":
            # 0.01 before: the schedule goes on from the new base.
            mine, theirs = (comparison.records(place)[-1]["lr"][0] for place in (folder / "run", reference()[0]))
            assert abs(mine / theirs - 50) < 0.01, (mine, theirs)
        assert json.loads((folder / "run/run.json").read_text())["inexact"], "not marked inexact"
        return told

    return check


def _extended(folder: Path) -> str:
    """epochs=N under a scheduler without a horizon is no change of conditions: it ends as the longer run does."""
    short = surefoot("train", _recipe(folder), "--run", str(folder / "run"), "epochs=2").result()
    assert short.code == 0, short.err
    result = surefoot("resume", str(folder / "run"), "epochs=3").result()
    assert result.code == 0, result.err
    whole = reference()[0]
    assert comparison.records(folder / "run") == comparison.records(whole)
    for part in ("model.safetensors", "optimizer.safetensors"):
        assert (newest(folder / "run").path / part).read_bytes() == (newest(whole).path / part).read_bytes(), part
    return "records and last checkpoint equal the longer run's"


def _full(operation: str, code: int):
    def check(folder: Path) -> str:
        inner_step, inner = Checkpointer.step, getattr(files.System, operation)

        def install() -> None:
            def stepped(self: Checkpointer) -> None:
                if self.steps == 5:
                    setattr(files.System, operation, fail)
                inner_step(self)

            def fail(*arguments: object):
                raise OSError(code, os.strerror(code))

            Checkpointer.step = stepped  # type: ignore[method-assign]

        told = _message(_train(folder, install), 1, os.strerror(code))
        assert getattr(files.System, operation) is inner  # only the child was touched
        assert max(valid_steps(folder / "run")) >= 4
        return f"{told}; {_ends_exactly(folder)}"

    return check


def _real_full_disk(folder: Path) -> str:
    with _small_disk(folder, "700k") as disk:
        result = surefoot("train", _recipe(folder), "--run", str(disk / "run"), "model.hidden=[120]").result()
        return _message(result, result.code if result.code in (1, 2) else 1, "No space left on device")


def _no_permission(folder: Path) -> str:
    folder.chmod(0o755)
    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    recipe = _recipe(folder)
    result = surefoot("train", recipe, "--run", str(closed / "run"), before=_nobody).result()
    assert list(closed.iterdir()) == []
    return _message(result, 2, "Permission denied")


OWN_DATA = """
import numpy, torch

def data(file):
    images = torch.from_numpy(numpy.load(file))
    targets = torch.arange(len(images)) % 3
    return (images[8:], targets[8:]), (images[:8], targets[:8])
"""


def _pictures(folder: Path, count: int = 72, seed: int = 0) -> None:
    numpy.save(folder / "pictures.npy", numpy.random.default_rng(seed).random((count, 28, 28), numpy.float32))


def _data_file(damage: Callable[[Path], object], code: int, words: tuple[str, ...]):
    """The file of a run's data is not what it was when the run is resumed."""

    def check(folder: Path) -> str:
        (folder / "fault_data.py").write_text(OWN_DATA)
        _pictures(folder)
        section = 'data: {import: "fault_data:data", file: pictures.npy, batch_size: 8}'
        lines = [section if line.startswith("data:") else line for line in RECIPE.splitlines()]
        recipe = _recipe(folder, "\n".join(lines))
        run = str(folder / "run")

        def here() -> None:
            os.chdir(folder)

        def stopping() -> None:
            here()
            _stop_at(6)()

        first = surefoot("train", recipe, "--run", run, before=stopping).result()
        assert first.code == 143, first.err
        journal = (folder / "run/metrics.jsonl").read_bytes()
        damage(folder)
        result = surefoot("resume", run, before=here).result()
        assert result.code == code, result
        for word in words:
            assert word in result.err, f"{word!r} is not in: {result.err}"
        assert (folder / "run/metrics.jsonl").read_bytes() == journal, "records were touched"
        return result.err.strip().splitlines()[-1][-70:]

    return check


def _nonfinite(mode: str):
    """A learning rate at which the loss leaves the numbers: told with samples, and the last finite state is kept."""

    def check(folder: Path) -> str:
        recipe = _recipe(folder, RECIPE.replace("lr: 0.01", "lr: 1.0e+30").replace("{name: AdamW", "{name: SGD"))
        run = folder / "run"
        result = surefoot("train", recipe, "--run", str(run), f"on_nonfinite={mode}").result()
        assert "Traceback" not in result.err, result.err
        if mode == "stop":
            assert result.code == 1 and "samples [" in result.err, result
        else:
            assert "skipped" in result.out + result.err, result
        for status in valid_steps(run):
            assert status >= 0
        return (result.err or result.out).strip().splitlines()[-1][-70:]

    return check


def catalogue() -> None:
    """Add the cases of this file."""
    for i, tier in enumerate(spread(40, tests=2, fast=12)):
        name = f"SIGKILL at a random instant, {i}"
        add("surefoot train", name, _killed(name, 1, signal.SIGKILL), tier)
    for i, tier in enumerate(spread(5, tests=1, fast=2)):
        name = f"SIGKILL four times in a row, {i}"
        add("surefoot train", name, _killed(name, 4, signal.SIGKILL), tier)
    for i, tier in enumerate(spread(10, tests=1, fast=4)):
        signum = (signal.SIGTERM, signal.SIGINT)[i % 2]
        name = f"{signal.Signals(signum).name} at a random instant, {i}"
        add("surefoot train", name, _killed(name, 1, signum), tier)
    add("surefoot train", "the newest checkpoint is damaged", _damaged, TESTS)
    add("surefoot train", "every checkpoint is damaged", _all_damaged, TESTS)
    add("surefoot train", "a run is there already", _there_already, TESTS)
    add("surefoot train", "more epochs on resume", _extended, FAST)
    for change, name in (("optimizer.lr=0.5", "optimizer.lr"), ("max_grad_norm=1.5", "max_grad_norm")):
        add("surefoot resume", f"with {change}", _other_recipe(change, name), TESTS if "lr" in change else FAST)
    for operation, code in (("write", errno.ENOSPC), ("fsync", errno.EIO), ("rename", errno.EIO)):
        name = f"{errno.errorcode[code]} from {operation}"
        add("surefoot train", name, _full(operation, code), TESTS if operation == "write" else FAST)
    add("surefoot train", "a disk that is too small", _real_full_disk, FAST)
    add("surefoot train", "no permission", _no_permission, TESTS)
    own, diff = "your own code raised an error", ("data.train: was ", "--allow data.train")
    for title, damage, code, words in (
        ("is gone", lambda place: (place / "pictures.npy").unlink(), 1, (own, "No such file")),
        ("is cut", lambda place: os.truncate(place / "pictures.npy", 5000), 1, (own, "fault_data.py:5")),
        ("holds other pictures", lambda place: _pictures(place, seed=1), 2, diff),
        ("holds fewer pictures", lambda place: _pictures(place, count=64), 2, diff),
    ):
        add("surefoot resume", f"the data file {title}", _data_file(damage, code, words), FAST)
    for mode in ("stop", "skip"):
        add("surefoot train", f"a loss that is not finite, on_nonfinite {mode}", _nonfinite(mode), FAST)
