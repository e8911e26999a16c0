"""Hostile checkpoints, with manifests whose every hash holds: refused in bounded memory, before anything changes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pickle
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoint_helpers import Net, data, digest
from test_safe_tensors import HOSTILE as TENSOR_FILES

from surefoot import rng, safe_tensors
from surefoot.checkpoint import Checkpointer
from surefoot.checkpoint.store import MAX_MANIFEST_BYTES, SHARDED_VERSION
from surefoot.data import Loader
from surefoot.errors import SurefootError
from surefoot.schedules import LinearWarmup, Schedule
from surefoot.tracking import JournalFile

from .harness import Settings, Sitting, add, half_run, newest, spread

MAX_GROWTH_KIB = 300 * 1024


def attempt(run: Path, settings: Settings) -> int:
    """Resume in a fresh process: 2 when it is refused and nothing changed, else what went wrong."""
    rng.seed_all(7)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    schedule = Schedule(optimizer, plateau, LinearWarmup(optimizer, warmup_period=5))
    loader = Loader(data(), batch_size=4, seed=5)
    sums = {"loss": 0.0, "count": 0}
    objects = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader, "sums": sums}
    before = digest(objects)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with (
            JournalFile(run / "metrics.jsonl") as journal,
            Checkpointer(run, keep_last=1, journal=journal, **objects) as saver,
        ):
            saver.resume()
    except SurefootError as error:
        print(f"error: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        return 70
    else:
        print("error: it was accepted", file=sys.stderr)
        return 3
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown
    if digest(objects) != before:
        print("error: something changed", file=sys.stderr)
        return 4
    if grown > MAX_GROWTH_KIB:
        print(f"error: took {grown} KiB", file=sys.stderr)
        return 5
    return 2


class Bomb:
    """Unpickling this makes the canary file."""

    def __init__(self, canary: Path):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def refused(forge: Callable[[Path, Path], None], told: str):
    """A run with one checkpoint, forged: `forge` gets the checkpoint's directory and the canary's path."""

    def check(folder: Path) -> str:
        run, canary = folder / "run", folder / "canary"
        half_run(run, keep_last=1)
        forge(newest(run).path, canary)
        files_before = sorted(path.name for path in (run / "checkpoints").iterdir())
        result = Sitting(run, Settings(), main=attempt).result()
        assert result.code == 2, f"exit code {result.code}: {result.err}"
        assert told in result.err, f"{told!r} is not in: {result.err}"
        assert not canary.exists(), "the canary ran"
        assert len(result.err) < 20_000, "a message of a hostile size"
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == files_before
        return "refused: " + result.err.strip().splitlines()[-1][-70:]

    return check


def seal(checkpoint: Path, change: Callable[[dict], None] = lambda manifest: None) -> None:
    """Make the manifest agree with the files again, as whoever forges them would."""
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    for name, told in manifest["files"].items():
        content = (checkpoint / name).read_bytes()
        told |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(manifest)
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest, sort_keys=True) + "\n")


def replaced(part: str, content: Callable[[Path], bytes]):
    def forge(checkpoint: Path, canary: Path) -> None:
        (checkpoint / part).write_bytes(content(canary))
        if part != "MANIFEST.json":
            seal(checkpoint)

    return forge


def manifest_with(change: Callable[[dict], Any]):
    return lambda checkpoint, canary: seal(checkpoint, change)


def state_with(change: Callable[[dict], Any]):
    def forge(checkpoint: Path, canary: Path) -> None:
        state = json.loads((checkpoint / "state.json").read_text())
        change(state)
        (checkpoint / "state.json").write_text(json.dumps(state))
        seal(checkpoint)

    return forge


def tensors_with(part: str, change: Callable[[dict[str, torch.Tensor]], Any]):
    def forge(checkpoint: Path, canary: Path) -> None:
        tensors = safe_tensors.load(checkpoint / part).tensors
        change(tensors)
        (checkpoint / part).write_bytes(safe_tensors.dumps(tensors))
        seal(checkpoint)

    return forge


def _zip_pickle(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": Bomb(canary)}, buffer)
    return buffer.getvalue()


def _legacy_pickle(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": Bomb(canary)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _in_a_header(canary: Path) -> bytes:
    text = json.dumps({"__metadata__": {"surefoot": pickle.dumps(Bomb(canary), 0).decode("latin-1")}}).encode()
    return len(text).to_bytes(8, "little") + text


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "a zip of torch.save": _zip_pickle,
    "a legacy file of torch.save": _legacy_pickle,
    "a bare pickle, protocol 0": lambda canary: pickle.dumps(Bomb(canary), 0),
    "a bare pickle, protocol 5": lambda canary: pickle.dumps(Bomb(canary), 5),
    "a pickle in the metadata": _in_a_header,
}

_T = {"$": "tensor", "at": "nowhere"}
STATES: dict[str, tuple[Callable[[dict], Any], str]] = {
    "a tag that would run code": (lambda s: s["objects"].update(sums={"$": "eval", "v": "1"}), "cannot be read"),
    "a pickle as a tag": (
        lambda s: s["objects"].update(sums={"$": "pickle", "v": base64.b64encode(b"cos\nsystem\n").decode()}),
        "cannot be read",
    ),
    "a tensor that is not there": (lambda s: s["objects"].update(sums=_T), "is missing"),
    "a path as a tensor's name": (
        lambda s: s["objects"].update(sums={"$": "tensor", "at": "../../../etc/passwd"}),
        "is missing",
    ),
    "tensor of another file": (
        lambda s: s["modules"]["model"]["tensors"].update({"head.bias": {"$": "tensor", "at": "rng/torch"}}),
        "is missing",
    ),
    "no random state": (lambda s: s.pop("rng"), "lacks 'rng'"),
    "no random state of torch": (lambda s: s["rng"].pop("torch"), "stepped over"),
    "a random state of numbers": (lambda s: s["rng"].update(numpy=3), "stepped over"),
    "no place in the data": (lambda s: s["objects"].pop("loader"), "loader: its state is missing"),
    "no schedule": (lambda s: s["objects"].pop("schedule"), "schedule: its state is missing"),
    "no optimizer": (lambda s: s["optimizers"].clear(), "stepped over"),
    "no model": (lambda s: s["modules"].clear(), "does not use tensor"),
    "the place in the data is text": (lambda s: s["objects"]["loader"].update(position="x"), "loader"),
    "the place in the data is beyond its end": (lambda s: s["objects"]["loader"].update(position=10**6), "loader"),
    "an empty schedule": (lambda s: s["objects"].update(schedule={}), "schedule"),
    "a schedule that is a list": (lambda s: s["objects"].update(schedule=[1]), "schedule"),
    "a plain object that is a list": (lambda s: s["objects"].update(sums=[1]), "sums"),
    "an unknown object": (lambda s: s["objects"].update(evil={}), "evil: the checkpoint holds"),
    "another optimizer": (lambda s: s["optimizers"]["optimizer"].update({"class": "SGD"}), "is SGD"),
    "a rate that is text": (
        lambda s: s["optimizers"]["optimizer"]["groups"][0].update(lr="0.1; import os"),
        "lr is",
    ),
    "betas of the wrong length": (
        lambda s: s["optimizers"]["optimizer"]["groups"][0].update(betas={"$": "tuple", "v": [0.9]}),
        "betas is",
    ),
    "a group without its rate": (lambda s: s["optimizers"]["optimizer"]["groups"][0].pop("lr"), "lacks lr"),
    "groups beyond number": (
        lambda s: s["optimizers"]["optimizer"]["groups"].extend([{"params": []}] * 1000),
        "1,001 parameter groups",
    ),
    "parameters of another model": (
        lambda s: s["optimizers"]["optimizer"]["groups"][0]["params"].__setitem__(0, "evil.weight"),
        "other parameters",
    ),
    "state that is no table": (
        lambda s: s["optimizers"]["optimizer"]["state"].update({"head.bias": 3}),
        "stepped over",
    ),
    "negative step": (lambda s: s.update(step=-1), "does not agree"),
    "step of another checkpoint": (lambda s: s.update(step=6), "does not agree"),
    "step that is text": (lambda s: s.update(step="7"), "lacks 'step'"),
    "a future format": (lambda s: s.update(format=99), "is not a state"),
    "journal at the end of the world": (lambda s: s.update(journal=10**15), "the journal"),
    "journal at no line's end": (lambda s: s.update(journal=3), "no line ends"),
    "frozen parameters that are none": (lambda s: s["modules"]["model"].update(frozen=["evil"]), "frozen"),
    "tied names that are none": (lambda s: s["modules"]["model"].update(tied={"conv.bias": "head.bias"}), "tied"),
    "a module that is a list": (lambda s: s["modules"].update(model=[]), "is no table"),
    "extra state of nobody": (lambda s: s["modules"]["model"].update(extra={"conv": 1}), "extra state"),
}

_HEAD = "head.weight"
TENSORS: dict[str, tuple[str, Callable[[dict], Any], str]] = {
    "a wrong shape": ("model", lambda t: t.update({_HEAD: torch.zeros(3, 13)}), "(3, 13)"),
    "a transposed shape": ("model", lambda t: t.update({_HEAD: t[_HEAD].t().contiguous()}), "(12, 3)"),
    "a wrong dtype of the same size": ("model", lambda t: t.update({_HEAD: t[_HEAD].view(torch.int32)}), "int32"),
    "a wrong dtype of half the size": ("model", lambda t: t.update({_HEAD: t[_HEAD].half()}), "float16"),
    "a parameter missing": ("model", lambda t: t.pop(_HEAD), "is missing"),
    "a parameter too many": ("model", lambda t: t.update(evil=torch.zeros(2)), "does not use tensor 'evil'"),
    "an optimizer's tensor of a wrong shape": (
        "optimizer",
        lambda t: t.update({k: torch.zeros(7) for k in t if k.endswith("head.weight/exp_avg")}),
        "shape",
    ),
    "a random state that is too short": ("optimizer", lambda t: t.update({"rng/torch": t["rng/torch"][:10]}), "random"),
    "a random state of another dtype": (
        "optimizer",
        lambda t: t.update({"rng/torch": t["rng/torch"].float()}),
        "random",
    ),
    "a random state of Python's that is nonsense": (
        "optimizer",
        lambda t: t.update({"rng/python/state": t["rng/python/state"] * 0 - 1}),
        "random",
    ),
    "numbers of NumPy's that are too few": (
        "optimizer",
        lambda t: t.update({"rng/numpy/keys": t["rng/numpy/keys"][:5]}),
        "random",
    ),
}


def _renamed(new: str) -> Callable[[dict], None]:
    return lambda manifest: manifest["files"].update({new: manifest["files"].pop("state.json")})


MANIFESTS: dict[str, tuple[Callable[[dict], Any], str]] = {
    "a path upwards": (_renamed("../../run.json"), "must list exactly"),
    "an absolute path": (_renamed("/etc/passwd"), "must list exactly"),
    "a path through a part": (_renamed("state.json/../state.json"), "must list exactly"),
    "a name with a null byte": (_renamed("state.json\0"), "must list exactly"),
    "a file more": (lambda m: m["files"].update(evil={"bytes": 1, "sha256": ""}), "must list exactly"),
    "a file less": (lambda m: m["files"].pop("optimizer.safetensors"), "must list exactly"),
    "files that are a list": (lambda m: m.update(files=list(m["files"])), "lacks 'files'"),
    "sizes that are text": (lambda m: m["files"]["state.json"].update(bytes="9"), "lacks size or sha256"),
    "a negative size": (lambda m: m["files"]["state.json"].update(bytes=-1), "its manifest says -1"),
    "a hash that is a number": (lambda m: m["files"]["state.json"].update(sha256=0), "lacks size or sha256"),
    "an empty hash": (lambda m: m["files"]["state.json"].update(sha256=""), "SHA-256"),
    "another format": (lambda m: m.update(format="pickle"), "is not the manifest"),
    "a future version": (lambda m: m.update(version=SHARDED_VERSION + 1), f"format version {SHARDED_VERSION + 1}"),
    "a version that is long": (lambda m: m.update(version="9" * 10_000), "format version"),
    "another run": (lambda m: m.update(run="f" * 16), "belongs to run"),
    "another step": (lambda m: m.update(step=8), "is of step 8"),
    "a step that is true": (lambda m: m.update(step=True), "is of step True"),
    "no conditions": (lambda m: m.pop("conditions"), "lacks 'conditions'"),
    "conditions that differ": (lambda m: m["conditions"].update(threads=64), "threads: was 64"),
    "a metric that is a list": (lambda m: m.update(metrics=[]), "lacks 'metrics'"),
    "more than may be read": (lambda m: m.update(x="y" * MAX_MANIFEST_BYTES), "at most"),
}
STATE_TEXTS: dict[str, tuple[bytes, str]] = {
    "deep JSON": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "five million objects": (b"[" + b"{}," * 5_000_000 + b"{}]", "more than"),
    "a long number": (b'{"format": ' + b"9" * 100_000 + b"}", "not the JSON"),
    "a key twice": (b'{"format": 1, "format": 1}', "twice"),
    "NaN": (b'{"format": NaN}', "not the JSON"),
    "no text": (b"\xff\xfe{", "not UTF-8"),
    "forty megabytes": (b" " * 40_000_000, "at most"),
    "nothing but null": (b"null", "is not a state"),
}


def _instead(part: str, make: Callable[[Path], Any]):
    def forge(checkpoint: Path, canary: Path) -> None:
        path = checkpoint / part
        path.unlink()
        make(path)

    return forge


def _beside(name: str):
    return lambda checkpoint, canary: (checkpoint / name).write_bytes(b"import os")


def catalogue() -> None:
    """Add the cases of this file."""

    def several(group: str, cases: list[tuple[str, Callable, str]], tests: int) -> None:
        for (name, forge, told), tier in zip(cases, spread(len(cases), tests=tests, fast=len(cases)), strict=True):
            add(f"hostile {group}", name, refused(forge, told), tier)

    parts = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")
    several(
        "pickles",
        [(f"{title} as {part}", replaced(part, make), part) for title, make in PICKLES.items() for part in parts],
        tests=6,
    )
    several(
        "tensor files",
        [
            (name, replaced("model.safetensors", lambda _, content=content: content), told)
            for name, (content, told) in TENSOR_FILES.items()
        ],
        tests=4,
    )
    several("states", [(name, state_with(change), told) for name, (change, told) in STATES.items()], tests=8)
    several(
        "state texts",
        [(n, replaced("state.json", lambda _, text=text: text), told) for n, (text, told) in STATE_TEXTS.items()],
        tests=3,
    )
    several(
        "tensors",
        [(n, tensors_with(f"{part}.safetensors", change), told) for n, (part, change, told) in TENSORS.items()],
        tests=4,
    )
    several("manifests", [(name, manifest_with(change), told) for name, (change, told) in MANIFESTS.items()], tests=4)
    odd = [
        ("a pipe in place of state.json", _instead("state.json", os.mkfifo), "not a regular file"),
        ("a pipe in place of the manifest", _instead("MANIFEST.json", os.mkfifo), "not a regular file"),
        ("a directory in place of a part", _instead("model.safetensors", os.mkdir), "not a regular file"),
        ("a device behind a link", _instead("model.safetensors", lambda p: p.symlink_to("/dev/zero")), "regular"),
        ("a program beside the parts", _beside("sitecustomize.py"), "is not listed"),
        ("a pickle beside the parts", _beside("data.pkl"), "is not listed"),
    ]
    several("directories", odd, tests=6)
