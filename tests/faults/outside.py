"""What comes from outside: a run directory from somebody else, links in it, and streams that nobody reads."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from surefoot import build, files, recipe, safe_tensors, training
from surefoot.models import MODELS

from .command import RECIPE, _message, _recipe, reference, surefoot
from .harness import FAST, TESTS, add

PLACES = (
    *("run.json", "LOCK", "metrics.jsonl", "recipe.yaml", "report.html", "validation.json"),
    *("checkpoints", "tensorboard", "model", "model/best"),
)


def _run(folder: Path) -> Path:
    return Path(shutil.copytree(reference()[0], folder / "run"))


def _foreign(place: str, named: bool, *words: str):
    """A recipe that calls os.system lies at `place`: it is named or not looked for, and never imported."""

    def check(folder: Path) -> str:
        run, canary = _run(folder), folder / "canary"
        bare = run / "model/best/deep/bare.safetensors"
        bare.parent.mkdir()
        files.write_new(bare, safe_tensors.chunks(MODELS.build("MLP").state_dict()))
        (run / "recipe.yaml").unlink()
        text = RECIPE.replace("{name: garments, train_size: 64, val_size: 32", '{import: "os:system", command: C')
        assert text != RECIPE
        (run / place / "recipe.yaml").write_text(text.replace("command: C", f"command: 'touch {canary}'"))
        result = surefoot(*(w.format(run=run) for w in words)).result()
        assert not canary.exists(), "the code that the recipe names was run"
        assert "Traceback" not in result.err, result.err
        assert result.code == (0 if words[0] == "export" else 2), result
        if named:
            assert "'os:system'" in result.err and "--trust-code" in result.err, result.err
        else:
            assert "which data?" in result.err, result.err
        return (result.err or result.out).strip().splitlines()[-1][-70:]

    return check


def _link(place: str, make: Callable[[Path, Path], None]):
    """Something in a run leads to a precious place: refused, and nothing is changed there or in the run."""

    def check(folder: Path) -> str:
        run, target = _run(folder), folder / "target"
        if (run / place).is_dir():
            shutil.move(run / place, target)
        else:
            shutil.copy(run / place, target)
            (run / place).unlink()
        make(run / place, target)
        before = _contents(folder)
        told = _message(surefoot("resume", str(run), "epochs=4", "--horizon", "keep").result(), 2, str(run / place))
        assert _contents(folder) == before, "something was changed"
        return told

    return check


def _contents(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _unheard(closed: bool, *words: str):
    """Standard output is closed or full: one line at the end; a training is done all the same."""

    def before() -> None:
        full = os.open("/dev/full" if not closed else os.devnull, os.O_WRONLY if not closed else os.O_RDONLY)
        os.dup2(full, 1)
        sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115

    def check(folder: Path) -> str:
        if words[0] != "train":
            _run(folder)
        named = [word.format(run=folder / "run", recipe=_recipe(folder)) for word in words]
        result = surefoot(*named, before=before).result()
        assert result.code == (0 if words[0] == "train" else 1), result
        assert result.err.count("\n") == 1 and "standard output cannot be written" in result.err, result.err
        assert words[0] != "train" or (folder / "run/model/model.safetensors").exists()
        return result.err.strip()[:70]

    return check


def _early(signum: int, module, name: str):
    """A signal comes before the loop: one line, its exit code, nothing left."""

    def before() -> None:
        inner = getattr(module, name)

        def interrupted(*arguments, **named):
            signal.raise_signal(signum)
            return inner(*arguments, **named)

        setattr(module, name, interrupted)

    def check(folder: Path) -> str:
        result = surefoot("train", _recipe(folder), "--run", str(folder / "run"), before=before).result()
        assert result.code == 128 + signum, result
        assert result.err == f"surefoot: stopped by {signal.Signals(signum).name}\n", result.err
        assert not (folder / "run").exists(), "something is left"
        return result.err.strip()

    return check


def catalogue() -> None:
    """Add the cases of this file."""
    run, bare = "{run}", ("{run}/model/best/deep/bare.safetensors", "--model", "MLP")
    tries = [
        ("", "a run", ("resume", run)),
        ("", "a run", ("eval", run)),
        ("", "a run", ("export", run, "--to", "{run}/m.pt2")),
        ("model", "a model's folder", ("eval", "{run}/model")),
        ("", "the run around a model", ("eval", "{run}/model")),
        ("model/best/deep", "the folder of bare weights", ("eval", *bare)),
        ("model/best", "a folder above bare weights", ("eval", *bare)),
        ("model", "two folders above bare weights", ("eval", *bare)),
        ("", "three folders above bare weights", ("eval", *bare)),
    ]
    for place, title, words in tries:
        named = title in ("a run", "a model's folder")  # a file in what the user named is looked at
        add("foreign recipes", f"{words[0]}, in {title}", _foreign(place, named, *words), TESTS)
    for place in PLACES:
        tier = TESTS if place in ("LOCK", "metrics.jsonl", "tensorboard") else FAST
        add("links", f"{place} is a symbolic link", _link(place, lambda path, to: path.symlink_to(to)), tier)
    for place in ("LOCK", "metrics.jsonl"):
        add("links", f"{place} is a hard link", _link(place, lambda path, to: os.link(to, path)), TESTS)
    for closed, title in ((True, "closed"), (False, "full")):
        add("streams", f"train, {title}", _unheard(closed, "train", "{recipe}", "--run", run), TESTS)
        for words in (("checkpoints", run), ("eval", run), ("list", "losses"), ("schema",)):
            add("streams", f"{words[0]}, {title}", _unheard(closed, *words), TESTS if words[0] == "list" else FAST)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for module, name in ((recipe, "load_recipe"), (build, "build"), (training, "fit")):
            add("signals", f"{signal.Signals(signum).name} in {name}", _early(signum, module, name), FAST)
