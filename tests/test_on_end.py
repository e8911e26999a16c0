"""`on_end`: run once a training has ended, told how; never somebody else's, and never in the training's way."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest

from surefoot.cli import main
from surefoot.cli.ending import then
from surefoot.cli.recipes import recipe_of_run
from surefoot.errors import RunFailed, Stopped, UsageError

SMALL = ["data.train_size=64", "data.val_size=32", "data.batch_size=32", "epochs=1", "warmup.warmup_period=1"]
TELL = 'echo "$SUREFOOT_STATUS $SUREFOOT_RUN" >> told.txt'


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "done"),
        (RunFailed("x"), "failed"),
        (ZeroDivisionError("of the user's own code"), "failed"),
        (MemoryError(), "failed"),
        (Stopped(15, "x"), "interrupted"),
        (UsageError("x"), None),
    ],
)
def test_the_command_is_told_how_the_training_ended(error, status):
    try:
        with then(TELL, Path("run"), print):
            if error is not None:
                raise error
    except Exception as raised:
        assert raised is error
    told = Path("told.txt")
    assert (told.read_text().strip() if told.exists() else None) == (f"{status} {Path.cwd()}/run" if status else None)


@pytest.mark.parametrize(("command", "told"), [("exit 3", "ended with 3"), ("\0", "embedded null byte")])
def test_a_command_that_fails_is_said_and_changes_nothing(command, told):
    messages: list[str] = []
    with then(command, Path("run"), messages.append):
        pass
    assert len(messages) == 1 and told in messages[0]


def test_an_input_that_is_refused_within_a_training_has_failed_it(monkeypatch):
    """A file that cannot be read, found in its second epoch say; refused before the first step, nothing has ended."""

    def refuse(*_):
        raise UsageError("no such picture")

    argv = ["train", "quickstart", "--run", "run", *SMALL, "execution=plain", "--quiet", f"on_end={json.dumps(TELL)}"]
    with monkeypatch.context() as before:
        before.setattr(importlib.import_module("surefoot.training.fit"), "look_over_first_batch", refuse)
        assert main(argv) == 2
    assert not Path("told.txt").exists()
    monkeypatch.setattr("surefoot.training.loop.Loop.validate", refuse)
    assert main(argv) == 2
    assert Path("told.txt").read_text() == f"failed {Path.cwd()}/run\n"


def test_of_a_training_and_of_its_resume_and_quiet_but_for_findings(capsys):
    argv = ["train", "quickstart", "--run", "run", *SMALL, "execution=plain", "--quiet", f"on_end={json.dumps(TELL)}"]
    assert main(argv) == 0
    assert capsys.readouterr().out == ""
    assert main(["resume", "run", "--quiet"]) == 0
    assert Path("told.txt").read_text().splitlines() == [f"done {Path.cwd()}/run"] * 2
    shutil.copytree("run", "theirs")  # from here on it is a copy, as from somebody else
    assert recipe_of_run(Path("theirs")).on_end is None
    assert "not run; --trust-code runs it" in capsys.readouterr().err
    assert recipe_of_run(Path("theirs"), trust_code=True).on_end == TELL
    assert recipe_of_run(Path("theirs"), ["on_end=mine"]).on_end == "mine"
    assert recipe_of_run(Path("run")).on_end == TELL and capsys.readouterr().err == ""
