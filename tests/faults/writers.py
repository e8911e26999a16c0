"""Every writer of a run (models, report, run.json, recipe, records, events) and beside it: killed, and told of errors,
before each system call that changes anything."""

from __future__ import annotations

import errno
import fnmatch
import functools
import json
import os
import signal
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from surefoot import cli, files, proof
from surefoot.artifacts import export, save_model, swap
from surefoot.artifacts.info import describe_model
from surefoot.data import download
from surefoot.errors import SurefootError
from surefoot.execution import cache as choices
from surefoot.execution.settings import Execution
from surefoot.models import MLP

from .command import RECIPE, _message, _recipe, surefoot
from .harness import ALL, FAST, Result, Settings, Sitting, add, spread

# What a path below the run must look like to belong to a writer; the first that fits counts.
WRITERS = {
    "model/best": ("model", "model/best*", "model/.best.*"),
    "model": ("model/*", ".model.*"),
    "report.html": ("report.html", ".report.html.*"),
    "validation.json": ("validation.json", ".validation.json.*"),
    "run.json": ("run.json", ".run.json.*"),
    "recipe.yaml": ("recipe.yaml", ".recipe.yaml.*"),
    "records": ("metrics.jsonl",),
    "events": ("tensorboard*",),
}
BY_PATH = ("open", "mkdir", "rename", "unlink", "rmdir", "truncate", "link", "symlink")
BY_DESCRIPTOR = ("write", "pwrite", "fsync", "ftruncate")
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Calls:
    """Counts the system calls on `home` that belong to `writer` ("": all) and acts instead of the `nth`, from 0."""

    def __init__(self, home: Path, writer: str, nth: int | None, act: Callable[[str | None], None]):
        self.home, self.writer, self.nth, self.act = os.path.realpath(home), writer, nth, act
        self.seen: list[str] = []

    def install(self) -> None:
        """Put this process's own system calls under watch."""
        for name in (*BY_PATH, *BY_DESCRIPTOR):
            watched = self._watched(name, getattr(os, name))
            setattr(os, name, watched)
            if hasattr(files.System, name):
                setattr(files.System, name, staticmethod(watched))
        inner = swap._exchange

        def exchange(one: Path, other: Path) -> bool:
            self._count("exchange", os.path.abspath(one))
            return inner(one, other)

        swap._exchange = exchange

    def _watched(self, name: str, inner: Callable) -> Callable:
        @functools.wraps(inner)
        def call(*arguments, **named):
            if name in BY_DESCRIPTOR:
                self._count(name, os.readlink(f"/proc/self/fd/{arguments[0]}"))
            elif name != "open" or (len(arguments) > 1 and arguments[1] & _CHANGES):
                at = named.get("dir_fd")
                within = os.getcwd() if at is None else os.readlink(f"/proc/self/fd/{at}")
                self._count(name, os.path.join(within, os.fspath(arguments[1 if name in ("link", "symlink") else 0])))
            return inner(*arguments, **named)

        return call

    def _count(self, name: str, path: str) -> None:
        path = os.path.normpath(path)
        if path != self.home and not path.startswith(self.home + "/"):
            return
        below = os.path.relpath(path, self.home)
        if self.writer and owner(below) != self.writer:
            return
        self.seen.append(name)
        if len(self.seen) - 1 == self.nth:
            self.act(None if name in BY_DESCRIPTOR else path)


def owner(below: str) -> str:
    """The writer that a path belongs to."""
    return next((name for name, forms in WRITERS.items() if any(fnmatch.fnmatch(below, f) for f in forms)), "")


def _die(path: str | None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse(code: int) -> Callable[[str | None], None]:
    def refuse(path: str | None) -> None:
        raise OSError(code, os.strerror(code), path)

    return refuse


SHORT = RECIPE.replace("epochs: 3", "epochs: 2").replace('every: "1 step"', 'every: "1 epoch"')


def _train(folder: Path, before: Callable[[], None] | None = None, *more: str) -> Result:
    recipe = _recipe(folder, SHORT)
    return surefoot("train", recipe, "--run", str(folder / "run"), *more, before=before).result()


@cache
def reference() -> tuple[Path, dict[str, list[str]]]:
    """The run that was never touched, and the calls of each of its writers."""
    folder = Path(tempfile.mkdtemp(prefix="surefoot-reference-"))
    seen = {}
    for writer in WRITERS:
        calls = Calls(folder / writer.replace("/", "-") / "run", writer, None, _die)
        Path(calls.home).parent.mkdir(parents=True)
        note = Path(calls.home).parent / "calls"

        def main(calls: Calls = calls, note: Path = note, *_: object) -> int:
            calls.install()
            code = cli.main(["train", _recipe(note.parent, SHORT), "--run", calls.home])
            note.write_text(json.dumps(calls.seen))
            return code

        result = Sitting(Path(), Settings(), main=lambda *_, main=main: main()).result()
        assert result.code == 0, result.err
        seen[writer] = json.loads(note.read_text())
    return folder / "report.html" / "run", seen


def commands(folder: Path) -> Result:
    """What a user does with a run: list its checkpoints, evaluate it, export it."""
    run, to = str(folder / "run"), str(folder / "out.safetensors")

    def main(*_: object) -> int:
        return cli.main(["checkpoints", run]) or cli.main(["eval", run]) or cli.main(["export", run, "--to", to])

    return Sitting(Path(), Settings(), main=main).result()


def ends_exactly(folder: Path) -> str:
    """A resume works and ends as the untouched run, leaves nothing behind, and every later command works."""
    result = _train(folder, None, "--resume")
    assert result.code == 0, f"exit code {result.code}: {result.err}"
    difference, compared = proof.compare(reference()[0], folder / "run")
    assert difference is None, difference
    assert json.loads((folder / "run/run.json").read_text())["status"] == "done"
    left = [str(path) for path in (folder / "run").rglob(".*")]
    assert not left, f"left behind: {left}"
    used = commands(folder)
    assert used.code == 0, used.err
    return f"{compared} items equal"


def _killed(writer: str, nth: int, *, exchange: bool = True):
    def check(folder: Path) -> str:
        def before() -> None:
            if not exchange:
                swap._exchange = lambda one, other: False
            Calls(folder / "run", writer, nth, _die).install()

        result = _train(folder, before)
        assert result.code == -signal.SIGKILL, f"was not killed ({result.code}): {result.err}"
        for verb in ("checkpoints", "eval"):
            used = surefoot(verb, str(folder / "run")).result()
            assert used.code in (0, 1, 2) and "Traceback" not in used.err, used.err
        return f"killed; {ends_exactly(folder)}"

    return check


def _refused(writer: str, nth: int, code: int):
    """The disk refuses: one message that names the reason, or nothing lost; and a resume ends exactly."""

    def check(folder: Path) -> str:
        result = _train(folder, Calls(folder / "run", writer, nth, _refuse(code)).install)
        told = "not needed: went on"
        if result.code:
            told = _message(result, result.code if result.code in (1, 2) else 1, os.strerror(code))
        assert "bug in surefoot" not in result.err and "your own code" not in result.err, result.err
        return f"{told}; {ends_exactly(folder)}"

    return check


# ------------------------------------------------------------------------------------ beside a run


def _download(folder: Path) -> None:
    download._read = lambda *_: b"data"  # type: ignore[assignment]
    download.download(["http://here/file"], folder / "deep" / "file", size=4, md5="")
    assert (folder / "deep" / "file").read_bytes() == b"data"


def _choice(folder: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(folder)
    told: list[str] = []
    choices.save("key", Execution(), {}, told.append)
    if told:
        raise SurefootError(told[0])
    (kept,) = folder.rglob("key.json")
    assert Execution.from_json(json.loads(kept.read_text())["execution"]) == Execution()


def _export(suffix: str):
    def write(folder: Path) -> None:
        torch.manual_seed(0)
        model = MLP(in_features=4, hidden=[3], classes=2)
        to = folder / f"model{suffix}"
        before = to.read_bytes() if to.exists() else None
        export(model, to, info=describe_model(model, input_shape=(4,), input_dtype="float32"))
        assert before in (None, to.read_bytes()), "what stood there was not whole"

    return write


def _saved(folder: Path) -> None:
    for _ in range(2):  # the second replaces the first
        save_model(MLP(in_features=4, hidden=[3], classes=2), folder / "model")


BESIDE: dict[str, Callable[[Path], None]] = {
    "a download": _download,
    "a kept choice": _choice,
    "an export to .safetensors": _export(".safetensors"),
    "an export to .pth": _export(".pth"),
    "a saved model": _saved,
}


@cache
def calls_beside(name: str) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as place:
        home, note = Path(place, "home"), Path(place, "calls")
        home.mkdir()

        def main(*_: object) -> int:
            calls = Calls(home, "", None, _die)
            calls.install()
            BESIDE[name](home)
            note.write_text(json.dumps(calls.seen))
            return 0

        result = Sitting(Path(), Settings(), main=main).result()
        assert result.code == 0, result.err
        return tuple(json.loads(note.read_text()))


def _killed_beside(name: str, nth: int):
    def check(folder: Path) -> str:
        def write(before: Callable[[], None]) -> Result:
            def main(*_: object) -> int:
                before()
                BESIDE[name](folder)
                return 0

            return Sitting(Path(), Settings(), main=main).result()

        result = write(Calls(folder, "", nth, _die).install)
        assert result.code == -signal.SIGKILL, f"was not killed ({result.code}): {result.err}"
        again = write(lambda: None)
        assert again.code == 0, again.err
        left = [str(path) for path in folder.rglob(".*")]
        assert not left, f"left behind: {left}"
        return "killed; written again, nothing left behind"

    return check


def _refused_beside(name: str, nth: int, code: int):
    """The disk refuses: an error that names the reason, and afterwards it is written and nothing is left behind."""

    def check(folder: Path) -> str:
        def main(*_: object) -> int:
            Calls(folder, "", nth, _refuse(code)).install()
            try:
                BESIDE[name](folder)
            except (SurefootError, OSError) as error:
                assert os.strerror(code) in str(error), error
                return 3
            return 0

        result = Sitting(Path(), Settings(), main=main).result()
        assert result.code in (0, 3), result.err

        def again(*_: object) -> int:
            BESIDE[name](folder)
            return 0

        result = Sitting(Path(), Settings(), main=again).result()
        assert result.code == 0, result.err
        left = [str(path) for path in folder.rglob(".*")]
        assert not left, f"left behind: {left}"
        return "told; written again, nothing left behind"

    return check


def catalogue() -> None:
    """Add the cases of this file."""
    codes = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
    for writer, seen in reference()[1].items():
        assert seen, f"{writer} made no call"
        for i, tier in enumerate(spread(len(seen), tests=1, fast=6)):
            name = f"SIGKILL before {seen[i]}, call {i + 1} of {len(seen)} for {writer}"
            add("writers", name, _killed(writer, i), tier)
        for i, tier in enumerate(spread(len(seen), tests=0, fast=4)):
            for code in codes if tier != ALL else codes[i % 4 : i % 4 + 1]:
                name = f"{errno.errorcode[code]} from {seen[i]}, call {i + 1} of {len(seen)} for {writer}"
                add("writers", name, _refused(writer, i, code), tier)
    for writer in ("model", "model/best"):
        # Without renameat2 a replacement is two renames: the calls are the same but for one more.
        seen = reference()[1][writer]
        places = [i for i, call in enumerate(seen) if call in ("exchange", "rename")]
        for i in sorted({place + more for place in places for more in (0, 1)} & set(range(len(seen)))):
            name = f"SIGKILL at call {i + 1} for {writer}, names cannot be exchanged"
            add("writers", name, _killed(writer, i, exchange=False), FAST)
    for name in BESIDE:
        seen = calls_beside(name)
        for i, tier in enumerate(spread(len(seen), tests=1, fast=4)):
            where = f"{seen[i]}, call {i + 1} of {len(seen)} for {name}"
            add("writers", f"SIGKILL before {where}", _killed_beside(name, i), tier)
            code = codes[i % len(codes)]
            add("writers", f"{errno.errorcode[code]} from {where}", _refused_beside(name, i, code), max(tier, FAST))
