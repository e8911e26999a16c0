"""Power cuts: the states that a disk may be in afterwards, made from a real save, and disks that lie."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from surefoot import files

from .harness import (
    FAST,
    TESTS,
    add,
    expect_exact,
    expect_message,
    half_run,
    newest,
    sit,
    spread,
    valid_steps,
)

AT = 6  # the save after this update is the one that the power cut meets


@dataclass
class State:
    """The checkpoints directory at one instant, and what of it the disk has not promised yet."""

    title: str
    tree: Path
    unsynced_files: set[str] = field(default_factory=set)
    unsynced_names: list[tuple[str, str, str]] = field(default_factory=list)  # operation, name, former name


class Recorder(files.System):
    """Copies the checkpoints directory before each operation of one save, and keeps account of every fsync."""

    def __init__(self, root: Path, states: Path):
        self.root, self.states_at = root, states
        self.armed = False
        self.states: list[State] = []
        self.dirty: set[str] = set()
        self.names: list[tuple[str, str, str]] = []
        self.open_files: dict[int, Path] = {}

    def _inside(self, path: object) -> str | None:
        path = Path(str(path))
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) and path != self.root else None

    def _snap(self, title: str) -> None:
        if self.armed:
            tree = self.states_at / f"{len(self.states):03d}"
            shutil.copytree(self.root, tree)
            self.states.append(State(title, tree, set(self.dirty), list(self.names)))

    def open(self, path, flags, mode=0o666):
        self._snap(f"open {Path(path).name}")
        descriptor = super().open(path, flags, mode)
        self.open_files[descriptor] = Path(path)
        if flags & os.O_CREAT and (name := self._inside(path)):
            self.dirty.add(name)
            self.names.append(("made", name, ""))
        return descriptor

    def fsync(self, descriptor):
        path = self.open_files.get(descriptor)
        self._snap(f"fsync {path.name if path else ''}")
        super().fsync(descriptor)
        if path is None:
            return
        if path.is_dir():
            inside = self._inside(path)
            self.names = [entry for entry in self.names if str(Path(entry[1]).parent) != (inside or ".")]
        elif name := self._inside(path):
            self.dirty.discard(name)

    def mkdir(self, path):
        self._snap("mkdir")
        super().mkdir(path)
        if name := self._inside(path):
            self.names.append(("made", name, ""))

    def rename(self, source, target):
        self._snap(f"rename to {Path(target).name}")
        super().rename(source, target)
        old, new = self._inside(source), self._inside(target)
        if old and new:
            self.dirty = {new + name[len(old) :] if name.startswith(old + "/") else name for name in self.dirty}
            self.names = [
                (what, new + name[len(old) :] if name.startswith(old + "/") else name, before)
                for what, name, before in self.names
                if name != old
            ]
            self.names.append(("renamed", new, old))

    def unlink(self, path):
        self._snap(f"unlink {Path(path).name}")
        super().unlink(path)

    def rmdir(self, path):
        self._snap("rmdir")
        super().rmdir(path)


@cache
def recorded() -> tuple[Path, tuple[State, ...]]:
    """A run killed in the middle of a save, and the states of its checkpoints directory before each operation."""
    import pickle
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="surefoot-power-"))
    run = folder / "run"
    recorder = Recorder(run / "checkpoints", folder)

    def install() -> None:
        files.system = recorder

    def arm(step: int) -> None:
        recorder.armed = step == AT
        if step == AT + 1:
            (folder / "states").write_bytes(pickle.dumps(recorder.states))
            os._exit(0)

    result = sit(run, install, on_step=arm, background=False)
    assert result.code == 0, result.err
    return run, tuple(pickle.loads((folder / "states").read_bytes()))


def _lose_names(state: State, tree: Path) -> None:
    """Undo what no directory fsync has made durable: names that were made vanish, renames have not happened."""
    for what, name, before in reversed(state.unsynced_names):
        path = tree / name
        if not path.exists():
            continue
        if what == "renamed":
            os.rename(path, tree / before)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _lose_data(state: State, tree: Path, how: str) -> None:
    """Files whose data was never awaited are empty, half there, or zeros of the full length."""
    for name in state.unsynced_files:
        path = tree / name
        if path.is_file():
            data = path.read_bytes()
            kept = {"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}[how]
            path.write_bytes(kept)


VARIANTS = {
    "everything not awaited is lost": lambda state, tree: (_lose_data(state, tree, "empty"), _lose_names(state, tree)),
    "names are there, data is not": lambda state, tree: _lose_data(state, tree, "empty"),
    "names are there, data is zeros": lambda state, tree: _lose_data(state, tree, "zeros"),
    "names are there, half the data is": lambda state, tree: _lose_data(state, tree, "half"),
}


def _cut(index: int, variant: str):
    def check(folder: Path) -> str:
        source, states = recorded()
        run = folder / "run"
        shutil.copytree(source, run, ignore=shutil.ignore_patterns("checkpoints"))
        shutil.copytree(states[index].tree, run / "checkpoints")
        VARIANTS[variant](states[index], run / "checkpoints")
        assert max(valid_steps(run)) >= AT, "the checkpoint before this save is gone"
        result = expect_exact(run)
        return f"resumed at {result.resumed_at}, exact"

    return check


def _lying_disk(name: str, damage):
    """The newest checkpoint has its name and not its data, though every fsync said it had."""

    def check(folder: Path) -> str:
        run = folder / "run"
        half_run(run)
        damage(newest(run).path)
        result = expect_exact(run)
        assert result.resumed_at == 6 and "stepped over" in result.err, result
        return "named, stepped over, exact"

    return check


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


LIES = {
    "rename without data: every file empty": lambda path: [file.write_bytes(b"") for file in path.iterdir()],
    "rename without data: every file zeros": lambda path: [_zeros(file) for file in path.iterdir()],
    "rename without data: an empty directory": lambda path: [file.unlink() for file in path.iterdir()],
    "lost write: model.safetensors is zeros": lambda path: _zeros(path / "model.safetensors"),
    "lost write: optimizer.safetensors is empty": lambda path: (path / "optimizer.safetensors").write_bytes(b""),
    "lost write: state.json is missing": lambda path: (path / "state.json").unlink(),
    "lost write: the manifest is missing": lambda path: (path / "MANIFEST.json").unlink(),
    "lost write: the manifest is zeros": lambda path: _zeros(path / "MANIFEST.json"),
    "an old file under a new name": lambda path: shutil.copy(
        path.with_name("step-000000006") / "model.safetensors", path / "model.safetensors"
    ),
    "a whole old checkpoint under the new name": lambda path: (
        shutil.rmtree(path),
        shutil.copytree(path.with_name("step-000000006"), path),
    ),
}


def _lost(what: str, damage):
    """Something beside the checkpoints is lost."""

    def check(folder: Path) -> str:
        run = folder / "run"
        half_run(run)
        damage(run)
        result = expect_exact(run)
        return f"resumed at {result.resumed_at}, exact; told: {(result.err or 'nothing').strip().splitlines()[0]}"

    return check


LOSSES = {
    "run.json is empty": lambda run: (run / "run.json").write_bytes(b""),
    "run.json is zeros": lambda run: _zeros(run / "run.json"),
    "run.json is missing": lambda run: (run / "run.json").unlink(),
    "run.json is half there": lambda run: os.truncate(run / "run.json", 100),
    "LOCK is missing": lambda run: (run / "LOCK").unlink(),
    "the last record is half there": lambda run: os.truncate(
        run / "metrics.jsonl", (run / "metrics.jsonl").stat().st_size - 5
    ),
    "records after the checkpoint": lambda run: (run / "metrics.jsonl").open("a").write('{"kind": "step"}\n{"ki'),
}


def _half_the_records(folder: Path) -> str:
    """No checkpoint that is left agrees with such a journal: going on would leave a hole in it."""
    run = folder / "run"
    half_run(run)
    size = (run / "metrics.jsonl").stat().st_size
    os.truncate(run / "metrics.jsonl", size // 2)
    return expect_message(sit(run), 2, "none of 2 checkpoints is valid", "the journal", "it was cut")[:60]


def catalogue() -> None:
    """Add the cases of this file."""
    _, states = recorded()
    indices = [i for i, state in enumerate(states) if not state.title.startswith("open")]
    for variant in VARIANTS:
        tiers = spread(len(indices), tests=3, fast=10)
        for i, tier in zip(indices, tiers, strict=True):
            add("power cut", f"before {states[i].title} ({i}): {variant}", _cut(i, variant), tier)
    for name, damage in LIES.items():
        add("power cut, lying disk", name, _lying_disk(name, damage), TESTS)
    for what, damage in LOSSES.items():
        add("power cut", what, _lost(what, damage), FAST if "LOCK" in what else TESTS)
    add("power cut", "half the records", _half_the_records, TESTS)
