"""`surefoot push`: the hub's layout as a folder that opens again; an upload is one commit or one line of what failed.

Against huggingface_hub itself: `python3 dev.py libraries push`.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from command_runs import files_in, refused

from surefoot.artifacts import export, load_model, save_model
from surefoot.cli import main
from surefoot.models import LeNet5
from surefoot.preprocessing import Preprocessing

ABOUT = {
    "classes": [str(digit) for digit in range(10)],
    "preprocessing": Preprocessing(),
    "input_shape": (1, 28, 28),
    "input_dtype": "uint8",
    "metrics": {"val/accuracy": 0.9},
    "history": [{"split": "val", "epoch": epoch, "loss": 1 / (epoch + 1)} for epoch in range(3)],
}


class Answered(Exception):
    """As huggingface_hub's errors are: with the answer that the hub gave."""

    def __init__(self, status: int):
        super().__init__(f"{status} of the hub\nand more of it")
        self.response = types.SimpleNamespace(status_code=status)


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch) -> LeNet5:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    torch.manual_seed(0)
    model = LeNet5()
    save_model(model, "m", **ABOUT)
    return model


@pytest.fixture
def hub(monkeypatch) -> types.SimpleNamespace:
    """A stand-in for huggingface_hub that keeps what it is given, and fails where `error` says so."""
    kept = types.SimpleNamespace(made=[], commits=[], error=None)

    class HfApi:
        endpoint = "https://hub.example"

        def __init__(self, **about):
            assert about["library_name"] == "surefoot"

        def create_repo(self, name, *, private, exist_ok):
            assert exist_ok
            kept.made.append((name, private))

        def create_commit(self, name, operations, *, commit_message):
            if kept.error is not None:
                raise kept.error
            kept.commits.append((name, commit_message, {at: path.read_bytes() for at, path in operations}))

    module = types.ModuleType("huggingface_hub")
    module.HfApi, module.CommitOperationAdd = HfApi, lambda name, path: (name, path)
    utils = types.ModuleType("huggingface_hub.utils")
    utils.disable_progress_bars = lambda: None
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    return kept


def test_a_folder_holds_what_others_read_and_opens_again(model, capsys):
    assert main(["push", "m", "--to", "out"]) == 0
    assert "push out USER/NAME" in capsys.readouterr().out
    names = {"model.safetensors", "model.json", "config.json", "README.md", "plots/loss.svg"}
    assert {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()} == names
    for name in names - {"model.json"}:
        assert Path("out", name).read_bytes() == Path("m", name).read_bytes()
    assert "seal" not in json.loads(Path("out/model.json").read_text()), "whose it is concerns this machine only"
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(load_model("out")(x), model.eval()(x))
    front = yaml.safe_load(Path("out/README.md").read_text().split("---")[1])
    assert front["library_name"] == "surefoot" and front["pipeline_tag"] == "image-classification"


def test_of_a_run_the_last_model_or_the_best(model):
    save_model(model, "run/model", **ABOUT)
    torch.nn.init.zeros_(model.get_parameter(next(name for name, _ in model.named_parameters())))
    save_model(model, "run/model/best", **ABOUT)
    for words, source in ((["--to", "last"], "run/model"), (["--to", "best", "--best"], "run/model/best")):
        assert main(["push", "run", *words]) == 0
        assert Path(words[1], "model.safetensors").read_bytes() == Path(source, "model.safetensors").read_bytes()
    assert not Path("last/best").exists()


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_weights_from_a_file(model, ending):
    export("m", f"weights{ending}")
    words = ["--model", "LeNet5", "--data", "garments"] if ending == ".pth" else []
    assert main(["push", f"weights{ending}", "--to", "out", *words]) == 0
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(load_model("out")(x), model.eval()(x))
    assert len(json.loads(Path("out/config.json").read_text())["id2label"]) == 10


def test_a_folder_is_replaced_as_a_whole_and_foreign_files_stay(capsys):
    assert main(["push", "m", "--to", "out"]) == 0
    save_model(LeNet5(), "other")
    assert main(["push", "other", "--to", "out"]) == 0
    assert Path("out/model.safetensors").read_bytes() == Path("other/model.safetensors").read_bytes()
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("x")
    before = files_in(Path("."))
    assert "holds files and no model" in refused(capsys, "push", "m", "--to", "mine")
    assert "is the model itself" in refused(capsys, "push", "m", "--to", "m")
    assert files_in(Path(".")) == before


def test_damaged_weights_are_never_handed_on(capsys, hub):
    data = bytearray(Path("m/model.safetensors").read_bytes())
    data[-1] ^= 1
    Path("m/model.safetensors").write_bytes(data)
    assert "its SHA-256 is not the one in model.json" in refused(capsys, "push", "m", "ada/lenet", "--to", "out")
    assert not Path("out").exists() and not hub.made


def test_published_is_one_commit_of_the_same_files(hub, capsys):
    assert main(["push", "m", "ada/lenet", "--private", "--message", "the first"]) == 0
    ((name, message, files),) = hub.commits
    assert (name, message) == ("ada/lenet", "the first") and hub.made == [("ada/lenet", True)]
    assert set(files) == {"model.safetensors", "model.json", "config.json", "README.md", "plots/loss.svg"}
    out = capsys.readouterr().out
    assert (
        "https://hub.example/ada/lenet: 5 files published" in out and "hf download ada/lenet --local-dir lenet" in out
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Answered(401), "hf auth login"),
        (Answered(403), "your token may not write there"),
        (Answered(404), "no such user or organisation"),
        (Answered(500), "the same command tries again (Answered: 500 of the hub)"),
        (ConnectionError("cut"), "the same command tries again (ConnectionError: cut)"),
    ],
)
def test_what_the_hub_answers_is_one_line(error, told, hub, capsys):
    hub.error = error
    assert main(["push", "m", "ada/lenet"]) == 1
    err = capsys.readouterr().err
    assert told in err and "ada/lenet: was not published" in err and len(err.strip().splitlines()) == 1


def test_bad_input(capsys, monkeypatch):
    assert "give where to" in refused(capsys, "push", "m")
    for name in ("lenet", "a/b/c", "ada/", "https://huggingface.co/ada/lenet", "ada/le net"):
        assert "is not the name of a model on the hub" in refused(capsys, "push", "m", name)
    assert "none" in refused(capsys, "push", "none", "--to", "out")
    Path("file.txt").write_text("x")
    refused(capsys, "push", "file.txt", "--to", "out")
    refused(capsys, "push", "m", "--best", "--to", "out")
    assert "is a file" in refused(capsys, "push", "m", "--to", "file.txt") or not Path("out").exists()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'surefoot[hub]'" in refused(capsys, "push", "m", "ada/lenet")


def test_a_program_is_refused(capsys, monkeypatch):
    export("m", "m.pt2")
    assert "is a program; push takes weights" in refused(capsys, "push", "m.pt2", "--to", "out", "--trust-code")
