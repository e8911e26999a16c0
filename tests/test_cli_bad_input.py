"""The command and bad input: mistakes, missing files, a user's own code; each a message and exit code 2."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from command_runs import SMALL, files_in, refused

from surefoot.cli import main


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    """Each test in a directory of its own: the default run directory is relative."""
    monkeypatch.chdir(tmp_path)


RECIPE = """\
epochs: 1
model: LeNet5
data: {name: garments, train_size: 64, val_size: 32, batch_size: 8}
loss: CrossEntropyLoss
optimizer: {name: SGD, lr: 0.1}
"""


BAD_RECIPES = {
    "a typo in a key": ("epochs:", "epoch:", ["recipe.yaml:1:1", "'epoch'", "did you mean 'epochs'?"]),
    "a wrong type": ("epochs: 1", "epochs: many", ["recipe.yaml:1:9", "many"]),
    "an unknown loss": ("CrossEntropyLoss", "CrossEntropy", ["recipe.yaml:4:7", "did you mean 'CrossEntropyLoss'?"]),
    "an argument that the class does not take": ("lr: 0.1", "rate: 0.1", ["recipe.yaml:5", "'rate'"]),
    "a value out of range": ("lr: 0.1", "lr: -0.1", ["recipe.yaml:5:28", "-0.1 is below 0"]),
    "a batch larger than the data": ("batch_size: 8", "batch_size: 65", ["recipe.yaml:3", "65", "64 samples"]),
    "a data set that is not there": ("name: garments", "name: garment", ["did you mean 'garments'?"]),
    "no YAML": ("epochs: 1", "epochs: [1", ["recipe.yaml:"]),
    "a pattern of no parameter": (
        "epochs: 1\n",
        "epochs: 1\nfreeze: [con1.*]\n",
        ["recipe.yaml:2:9: freeze", "'con1.*' matches no parameter"],
    ),
    "a device that is not there": (
        "epochs: 1\n",
        "epochs: 1\ndevice: mps\n",
        ["recipe.yaml:2:9: device: mps is not avail"],
    ),
    "a module that is not there": ("model: LeNet5", "model: {import: 'nowhere:Net'}", ["recipe.yaml:2", "'nowhere'"]),
}


@pytest.mark.parametrize("mistake", BAD_RECIPES)
@pytest.mark.parametrize("verb", ["train", "check"])
def test_a_mistake_in_a_recipe_is_told_with_its_place(capsys, tmp_path, verb, mistake):
    old, new, told = BAD_RECIPES[mistake]
    assert old in RECIPE
    Path("recipe.yaml").write_text(RECIPE.replace(old, new))
    message = refused(capsys, verb, "recipe.yaml")
    assert all(part in message for part in told), message
    assert files_in(tmp_path) == ["recipe.yaml"]


def test_all_mistakes_of_a_recipe_come_at_once(capsys):
    Path("recipe.yaml").write_text(RECIPE.replace("lr: 0.1", "lr: -1, momentun: 0.9").replace("epochs: 1", "epochs: 0"))
    message = refused(capsys, "train", "recipe.yaml")
    assert [part in message for part in ("epochs", "lr", "momentun")] == [True] * 3
    assert message.count("recipe.yaml:") == 3


def test_a_recipe_that_is_not_there(capsys, tmp_path):
    assert "did you mean 'quickstart'?" in refused(capsys, "train", "quickstrat")
    assert "nowhere/recipe.yaml" in refused(capsys, "train", "nowhere/recipe.yaml")
    assert files_in(tmp_path) == []


def test_a_run_directory_that_cannot_be(capsys, tmp_path):
    Path("file").write_text("")
    message = refused(capsys, "train", "quickstart", "--run", "file/run", *SMALL)
    assert "file" in message
    assert files_in(tmp_path) == ["file"]
    # Even root may not write below /proc, which stands for a read-only disk here.
    assert "/proc/surefoot" in refused(capsys, "train", "quickstart", "--run", "/proc/surefoot/run", *SMALL)


def idx(path: Path, array) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), mtime=0))


@pytest.fixture
def fashion_files(tmp_path):
    """The real files' names with other content, as somebody's own data of the same form."""
    import numpy

    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 60), ("t10k", 20)):
        idx(folder / f"{split}-images-idx3-ubyte.gz", numpy.zeros((count, 28, 28), numpy.uint8))
        idx(folder / f"{split}-labels-idx1-ubyte.gz", numpy.zeros(count, numpy.uint8))
    return folder


def test_a_data_file_that_is_missing_without_a_network(capsys, tmp_path):
    Path("empty").mkdir()
    message = refused(capsys, "train", "fashion_mnist", "data.dir=empty", "data.download=false", "--run", "run")
    assert "train-images-idx3-ubyte" in message and "SUREFOOT_DATA" in message
    assert files_in(tmp_path) == ["empty"]


def test_a_data_file_that_is_damaged(capsys, fashion_files, tmp_path):
    path = fashion_files / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-7])
    message = refused(capsys, "train", "fashion_mnist", f"data.dir={fashion_files}", "--run", "run")
    assert "train-images-idx3-ubyte.gz" in message
    assert not Path("run").exists()


OWN_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    def forward(self, x):
        return self.body(x)

def data(samples=64, classes=3):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 4, generator=g)
    y = torch.randint(classes, (samples,), generator=g)
    return (x[8:], y[8:]), (x[:8], y[:8])

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def forward(self, x):
        raise KeyError("a mistake of mine")
"""


OWN_RECIPE = """\
epochs: 2
model: {import: "mine:Net", width: 16}
data: {import: "mine:data", batch_size: 8}
loss: {import: "mine:loss"}
optimizer: {name: SGD, lr: 0.1}
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    Path("mine.py").write_text(OWN_CODE)
    Path("recipe.yaml").write_text(OWN_RECIPE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine", None)


def test_a_users_own_model_data_and_loss(own_code, capsys):
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    conditions = json.loads(Path("run/run.json").read_text())["conditions"]
    assert {"code.mine.py", "data.train", "data.val"} <= set(conditions)
    assert main(["eval", "run", "--json"]) == 0
    assert main(["export", "run", "--to", "m.onnx"]) == 0
    # The code that somebody else's names is not run on loading it.
    shutil.copytree("run", "copy")
    assert "trust_code" in refused(capsys, "eval", "copy")
    assert main(["eval", "copy", "--trust-code", "--json"]) == 0


def test_code_that_changed_is_told_on_resume(own_code, capsys):
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    Path("mine.py").write_text(OWN_CODE.replace("nn.ReLU()", "nn.Tanh()"))
    sys.modules.pop("mine")
    message = refused(capsys, "resume", "run", "epochs=3")
    assert "code.mine.py" in message and "--allow code.mine.py" in message
    assert main(["resume", "run", "epochs=3", "--allow", "code.mine.py"]) == 0
    assert json.loads(Path("run/run.json").read_text())["inexact"]


def test_an_argument_that_a_users_class_does_not_take(own_code, capsys):
    Path("recipe.yaml").write_text(OWN_RECIPE.replace("width: 16", "widht: 16"))
    assert "did you mean 'width'?" in refused(capsys, "train", "recipe.yaml")


def test_a_users_own_error_points_at_their_line(own_code, capsys):
    Path("recipe.yaml").write_text(OWN_RECIPE.replace('"mine:Net", width: 16', '"mine:Broken"'))
    code = main(["train", "recipe.yaml", "--run", "run"])
    told = capsys.readouterr().err
    assert code in (1, 2)
    line = 1 + OWN_CODE.splitlines().index('        raise KeyError("a mistake of mine")')
    assert f"mine.py:{line}" in told or f'mine.py", line {line}' in told, told
    assert not Path("run").exists()


def test_a_loss_that_learns_is_trained_and_saved(own_code):
    Path("mine.py").write_text(
        OWN_CODE + "\nclass Warm(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.temperature = nn.Parameter(torch.ones(()))\n"
        "    def forward(self, outputs, targets):\n"
        "        return nn.functional.cross_entropy(outputs * self.temperature, targets)\n"
    )
    Path("recipe.yaml").write_text(OWN_RECIPE.replace("mine:loss", "mine:Warm"))
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    from surefoot import safe_tensors

    newest = sorted(Path("run/checkpoints").iterdir())[-1]
    saved = safe_tensors.load(newest / "model.safetensors").tensors
    (name,) = [name for name in saved if name.endswith("temperature")]
    assert saved[name].item() != 1.0


def test_deterministic_mode_is_on_for_the_run_and_a_condition_of_it(own_code, monkeypatch):
    import torch

    Path("mine.py").write_text(
        OWN_CODE + "\nseen = []\nclass Looks(Net):\n    def forward(self, x):\n"
        "        seen.append(torch.are_deterministic_algorithms_enabled())\n        return self.body(x)\n"
    )
    Path("recipe.yaml").write_text(OWN_RECIPE.replace("mine:Net", "mine:Looks"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back as it was
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        assert main(["train", "recipe.yaml", "--run", "run", "deterministic=true"]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(sys.modules["mine"].seen)
    assert json.loads(Path("run/run.json").read_text())["conditions"]["flags.deterministic"] is True
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_directory_to_import_to_that_is_taken_or_has_no_parent(capsys):
    import torch

    torch.save({}, "weights.pth")
    os.mkdir("weights")
    assert "weights: is there already; name another directory with --to" in refused(
        capsys, "import", "weights.pth", "--model", "LeNet5"
    )
    assert "the directory nowhere does not exist" in refused(
        capsys, "import", "weights.pth", "--model", "LeNet5", "--to", "nowhere/m"
    )
