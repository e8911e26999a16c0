"""Whose code runs: a run's recipe imports for whoever trained it here, or says --trust-code; links lead nowhere."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from surefoot import files, trust
from surefoot.checkpoint import RunDirectory
from surefoot.cli import main
from surefoot.errors import Problems, UsageError
from surefoot.places import user_directory
from surefoot.tracking import JournalFile, TensorBoard

MINE = """\
import torch

def data():
    x = torch.arange(64.0).reshape(16, 4) / 64
    return (x, torch.arange(16) % 3), (x, torch.arange(16) % 3)

def evil(**arguments):
    open("EXECUTED", "w").close()
    return data()
"""
RECIPE = """\
epochs: 1
model: {name: MLP, in_features: 4, hidden: [], classes: 3}
data: {import: "mine:data", batch_size: 8}
loss: CrossEntropyLoss
optimizer: {name: SGD, lr: 0.1}
execution: {threads: 1, compile: false}
tensorboard: false
"""
HOSTILE = RECIPE.replace("mine:data", "mine:evil")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine", None)


@pytest.fixture
def run() -> Path:
    Path("r.yaml").write_text(RECIPE)
    assert main(["train", "r.yaml", "--run", "run"]) == 0
    return Path("run")


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    told = capsys.readouterr().err
    assert not Path("EXECUTED").exists() and "Traceback" not in told
    return told


# ------------------------------------------------------------------------------------------ the user's own run


def test_a_users_own_run_goes_on_without_a_flag_also_after_it_was_moved_and_changed(run):
    os.rename(run, "moved")
    assert main(["resume", "moved", "epochs=2", "--horizon", "keep"]) == 0
    assert main(["resume", "moved"]) == 0
    assert main(["eval", "moved", "--json"]) == 0
    assert main(["export", "moved", "--to", "m.pth"]) == 0


def test_a_run_without_imports_needs_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert trust.seals(tmp_path, {"id": "a"}, "data: garments") == {}
    assert not (tmp_path / "state").exists()


# ------------------------------------------------------------------------------------------ somebody else's


def hostile_run(run: Path) -> Path:
    (run / "recipe.yaml").write_text(HOSTILE)
    return run


@pytest.mark.parametrize(
    "words",
    [
        ["resume", "run"],
        ["eval", "run"],
        ["export", "run", "--to", "m.pt2"],
        ["verify", "run/recipe.yaml"],
        ["tune", "run/recipe.yaml"],
        ["plan", "run/recipe.yaml"],
        ["check", "run/recipe.yaml"],
        ["lr-find", "run/recipe.yaml"],
        ["train", "run/recipe.yaml", "--run", "new"],
        ["eval", "run", "--data", "run/recipe.yaml"],
    ],
    ids=" ".join,
)
def test_an_edited_recipe_is_named_and_not_imported(run, capsys, words):
    hostile_run(run)
    told = refused(capsys, *words) if words[0] != "export" else None
    if told is None:  # the model itself is whole: it is exported, compared on random samples
        assert main(words) == 0
        told = capsys.readouterr().err
        assert not Path("EXECUTED").exists()
    assert "'mine:evil'" in told and "--trust-code" in told


@pytest.mark.parametrize("place", ["run/model/a", "run/model", "run", "."])
def test_a_recipe_around_a_model_is_not_looked_for(run, capsys, place):
    (run / "recipe.yaml").unlink()
    Path("run/model/a").mkdir()
    Path(place, "recipe.yaml").write_text(HOSTILE)
    shutil.copy(run / "model" / "model.safetensors", run / "model" / "a" / "bare.safetensors")
    for words in (["eval", "run/model/a/bare.safetensors", "--model", "MLP"], ["eval", "run/model"], ["eval", "run"]):
        refused(capsys, *words)
    main(["export", "run/model", "--to", "m.pth"])
    assert not Path("EXECUTED").exists()


def test_a_copied_run_and_a_copied_recipe_are_refused_and_can_be_trusted(run, capsys):
    shutil.copytree(run, "copy")
    assert "'mine:data'" in refused(capsys, "resume", "copy")
    about = json.loads((run / "run.json").read_text())
    other = RunDirectory.create("other", status="interrupted", seals=about["seals"])
    other.close()
    shutil.copy(run / "recipe.yaml", "other/recipe.yaml")
    assert "'mine:data'" in refused(capsys, "resume", "other")
    assert main(["resume", "copy", "--trust-code"]) == 0
    assert main(["resume", "copy"]) == 0  # trained here now


def test_no_key_of_others_counts(run, capsys):
    key = user_directory("state") / "run-key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    assert "'mine:data'" in refused(capsys, "eval", "run")
    key.chmod(0o600)
    assert main(["eval", "run"]) == 0


def test_a_seal_is_over_run_recipe_and_directory(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    about = {"id": "x"}
    about |= trust.seals(tmp_path / "a", about, "import: 1")
    assert trust.holds(tmp_path / "a", about, "import: 1")
    assert not trust.holds(tmp_path / "a", about, "import: 2")
    assert not trust.holds(tmp_path / "a", {**about, "id": "y"}, "import: 1")
    assert not trust.holds(tmp_path / "b", about, "import: 1")
    for seals in (None, 3, [3], ["é"], [[]]):
        assert not trust.holds(tmp_path / "a", {**about, "seals": seals}, "import: 1")
    # A kill between run.json and recipe.yaml of a resume: the old recipe still holds.
    about |= trust.seals(tmp_path / "a", about, "import: 2")
    assert trust.holds(tmp_path / "a", about, "import: 1") and trust.holds(tmp_path / "a", about, "import: 2")


def test_without_a_home_the_key_lies_in_a_directory_of_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME and no passwd entry
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = user_directory("state")
    assert place == tmp_path / f"surefoot-{os.getuid()}" / "state"
    about = {"id": "x"} | trust.seals(tmp_path, {"id": "x"}, "import: 1")
    assert trust.holds(tmp_path, about, "import: 1")
    place.parent.chmod(0o777)
    with pytest.raises(UsageError, match="is not this user's alone; set HOME"):
        user_directory("state")
    assert not trust.holds(tmp_path, about, "import: 1")


def test_the_key_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    done = []
    monkeypatch.setattr(files.system, "fsync", lambda descriptor: done.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(os, "link", lambda *names, link=os.link: done.append("named") or link(*names))
    trust.seals(tmp_path, {"id": "x"}, "import: 1")
    assert done == [32, "named"]


# ------------------------------------------------------------------------------------------ links

PLACE_OF_A_LOG = "trackers/mlflow.log"
PLACES = ("run.json", "LOCK", "checkpoints", "metrics.jsonl", "tensorboard", "model", "model/best", "recipe.yaml")


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
@pytest.mark.parametrize(
    "place",
    [
        *(*PLACES, "report.html", "validation.json", "tensorboard/events.out.tfevents.1.surefoot.000000"),
        *("trackers", "trackers/wandb", PLACE_OF_A_LOG),
    ],
)
def test_a_place_in_a_run_that_leads_elsewhere_is_refused_before_anything_changes(run, capsys, place, kind):
    target, path = Path("target").absolute(), run / place
    if path.is_dir():
        shutil.move(path, target)
    else:
        path.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes() if path.exists() else b"precious\n")
        path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    elif target.is_dir() or (place not in ("LOCK", "metrics.jsonl", PLACE_OF_A_LOG) and "tensorboard/" not in place):
        pytest.skip("a hard link there is replaced, never written to")
    else:
        os.link(target, path)
    before = {p: p.read_bytes() for p in [*target.rglob("*"), *run.rglob("*"), target] if p.is_file()}
    assert f"{path}: " in refused(capsys, "resume", "run", "epochs=2", "--horizon", "keep")
    assert {p: p.read_bytes() for p in before} == before


def test_a_link_in_a_directory_that_is_no_run_yet_is_refused(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "new" / "tensorboard").symlink_to(tmp_path / "precious")
    with pytest.raises(Problems, match="tensorboard: is a symbolic link"):
        RunDirectory.create(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == ["tensorboard"]


def test_the_run_directory_itself_may_be_a_link(run):
    Path("link").symlink_to(run)
    assert main(["resume", "link", "epochs=2", "--horizon", "keep"]) == 0


def test_a_journal_and_events_are_never_opened_through_a_link(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "tensorboard").symlink_to(tmp_path / "folder")
    for name in ("metrics.jsonl", "pipe"):
        with pytest.raises(UsageError, match="cannot be"):
            JournalFile(tmp_path / name)
    with pytest.raises(UsageError, match="is a symbolic link"):
        TensorBoard(tmp_path / "tensorboard")
    assert (tmp_path / "target").read_text() == "precious"


@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_recipe_that_is_a_pipe_or_a_device_is_refused_at_once(capsys, verb):
    os.mkfifo("pipe.yaml")
    assert "is a pipe, not a regular file" in refused(capsys, verb, "pipe.yaml")
    assert "not a regular file" in refused(capsys, verb, "/dev/zero")
    Path("link.yaml").symlink_to("r.yaml")
    Path("r.yaml").write_text(RECIPE)
    assert main(["check", "link.yaml"]) == 0  # a user's own link is followed
