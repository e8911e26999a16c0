"""A model card: its code runs as printed for every kind of model, and it says only what is true of it."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
import yaml
from torch import nn

from surefoot.artifacts import read_info, save_model
from surefoot.models import MLP, LeNet5
from surefoot.preprocessing import Preprocessing

CLASSES = [f"class {i}" for i in range(10)]
ABOUT = {
    "preprocessing": Preprocessing(),
    "classes": CLASSES,
    "input_shape": (1, 28, 28),
    "input_dtype": "uint8",
    "loss": {"name": "CrossEntropyLoss"},
    "metrics": {"val/accuracy": 0.9512345678901234, "val/loss": 0.31},
}
OWN = """
from torch import nn
class Net(nn.Module):
    def __init__(self, width, names=()):
        super().__init__()
        self.layer = nn.Linear(3, width)
        self.arguments = {"width": width, "names": list(names)}
    def forward(self, x):
        return self.layer(x)
"""


def code_in(directory) -> str:
    (code,) = re.findall("```python\n(.*?)```", (directory / "README.md").read_text(), re.S)
    return code


def executed(directory, monkeypatch, **names) -> dict:
    """The names that the card's code leaves, run in the model's directory."""
    monkeypatch.chdir(directory)
    exec(code_in(directory), names)
    return names


def test_the_code_of_a_registered_model_runs_and_gives_probabilities(tmp_path, monkeypatch):
    save_model(LeNet5(), tmp_path / "m", **ABOUT)
    names = executed(tmp_path / "m", monkeypatch)
    assert names["images"].dtype == torch.uint8
    assert names["probabilities"].sum(1) == pytest.approx(1) and names["probabilities"].shape == (1, 10)


@pytest.mark.parametrize(
    ("loss", "classes", "outputs"),
    [("BCEWithLogitsLoss", ["a", "b"], "probabilities"), ("MSELoss", None, "outputs"), (None, ["a", "b"], "scores")],
)
def test_only_probabilities_are_called_so_and_only_pictures_images(loss, classes, outputs, tmp_path, monkeypatch):
    model = MLP(in_features=3, hidden=[], classes=2)
    save_model(model, tmp_path / "m", loss=loss, classes=classes, input_shape=(3,), metrics={"val/loss": 0.5})
    names = executed(tmp_path / "m", monkeypatch)
    assert names[outputs].shape == (1, 2) and "samples" in names
    card = (tmp_path / "m/README.md").read_text()
    assert "image" not in card and ("probabilities" in card) == (outputs == "probabilities")


def test_a_model_of_unknown_input_or_preprocessing_says_what_to_give(tmp_path, monkeypatch):
    save_model(LeNet5(), tmp_path / "m", preprocessing="unknown", classes=CLASSES)
    samples = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    assert executed(tmp_path / "m", monkeypatch, samples=samples)["outputs"].shape == (2, 10)
    assert "`samples` is what its forward() takes" in (tmp_path / "m/README.md").read_text()


def test_a_class_of_ones_own_is_imported_with_its_arguments(tmp_path, monkeypatch):
    (tmp_path / "card_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "card_net", __import__("card_net"))
    model = sys.modules["card_net"].Net(4, ["a", 'b"'])
    save_model(model, tmp_path / "m", input_shape=(3,))
    assert executed(tmp_path / "m", monkeypatch)["outputs"].shape == (1, 4)
    assert "from card_net import Net" in code_in(tmp_path / "m")


def test_a_class_that_code_cannot_make_is_taken_as_an_instance(tmp_path, monkeypatch):
    class Local(nn.Linear):
        pass

    class Endless(nn.Linear):
        arguments = {"slope": float("inf")}

    for kind in (Local, Endless):
        save_model(kind(3, 2), tmp_path / "m", input_shape=(3,))
        assert executed(tmp_path / "m", monkeypatch, net=kind(3, 2))["outputs"].shape == (1, 2)
        assert f"{kind.__name__}, made as it was for training" in (tmp_path / "m/README.md").read_text()


def test_the_hubs_conventions(tmp_path):
    history = [
        {"kind": "epoch", "split": split, "epoch": epoch, "loss": 1 / (epoch + 1)}
        for epoch in range(3)
        for split in ("train", "val")
    ]
    plot = tmp_path / "confusion.png"
    plot.write_bytes(b"\x89PNG")
    save_model(LeNet5(), tmp_path / "model", history=history, plots=[plot], **ABOUT)
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["architectures"] == ["LeNet5"] and config["id2label"]["3"] == "class 3"
    assert LeNet5(**{k: config[k] for k in ("classes", "channels")})
    card = (tmp_path / "model/README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n")
    parsed = yaml.safe_load(front)
    assert parsed["library_name"] == "surefoot"
    assert parsed["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.9512345678901234
    assert "| val/accuracy | 0.951235 |" in body and "44,426 parameters" in body
    for name in ("loss.svg", "confusion.png"):
        assert f"plots/{name}" in body and (tmp_path / "model/plots" / name).is_file()
    assert (tmp_path / "model/plots/loss.svg").read_text().count("<polyline") == 2


def test_the_card_names_the_data_and_says_that_weights_are_an_average(tmp_path):
    about = {"classes": ["a", "b"], "metrics": {"val/accuracy": 0.5}, "title": "my recipe"}
    save_model(MLP(in_features=2, hidden=[], classes=2), tmp_path / "m", dataset="garments", averaged=True, **about)
    card = (tmp_path / "m/README.md").read_text()
    assert "It was trained on garments." in card and "exponential moving average" in card
    assert read_info(tmp_path / "m").averaged and read_info(tmp_path / "m").dataset == "garments"
    save_model(MLP(in_features=2, hidden=[], classes=2), tmp_path / "n", **about)
    card = (tmp_path / "n/README.md").read_text()
    assert "garments" not in card and "average" not in card
