"""What a prediction says: percentages only for probabilities, numbers for numbers, one message where it cannot."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fit_arguments import fit_arguments
from PIL import Image
from torch import nn

from surefoot import Preprocessing, UsageError, fit, open_model, save_model
from surefoot.artifacts import describe_outputs, read_info, shown
from surefoot.artifacts.answers import kind_of
from surefoot.artifacts.info import describe_model
from surefoot.cli import main
from surefoot.cli.evaluation_text import matrix_lines
from surefoot.losses import WeightedSum
from surefoot.models import MODELS


def mlp(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build("MLP", {"in_features": 4, "hidden": [8], "classes": outputs})


def saved(where, outputs: int, **about):
    return save_model(mlp(outputs), where / "model", input_shape=(4,), input_dtype="float32", **about)


def predicted(where, capsys, *more: str) -> str:
    np.save(where / "x.npy", np.random.default_rng(0).normal(size=(2, 4)).astype("float32"))
    assert main(["predict", str(where / "model"), str(where / "x.npy"), *more]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("loss", ["MSELoss", "L1Loss", "PoissonNLLLoss", None])
def test_a_regression_gives_its_numbers(tmp_path, capsys, loss):
    saved(tmp_path, 2, loss=loss)
    out = predicted(tmp_path, capsys)
    assert "%" not in out
    rows = json.loads(predicted(tmp_path, capsys, "--json"))
    x = torch.from_numpy(np.load(tmp_path / "x.npy"))
    expected = mlp(2).eval()(x)
    assert torch.allclose(torch.tensor([row["values"] for row in rows]), expected)


@pytest.mark.parametrize("loss", [None, "MultiMarginLoss"])
def test_scores_are_no_probabilities(tmp_path, capsys, loss):
    saved(tmp_path, 3, loss=loss, classes=["a", "b", "c"])
    assert "%" not in predicted(tmp_path, capsys)
    row = json.loads(predicted(tmp_path, capsys, "--json"))[0]
    assert {"class", "index", "score"} == set(row["predictions"][0])


def test_classes_have_probabilities_that_sum_to_one(tmp_path, capsys):
    saved(tmp_path, 3, loss="CrossEntropyLoss", classes=["a", "b", "c"])
    assert "%" in predicted(tmp_path, capsys)
    row = json.loads(predicted(tmp_path, capsys, "--json"))[0]
    assert sum(p["probability"] for p in row["predictions"]) == pytest.approx(1)


def test_labels_are_those_above_a_half_with_their_own_probabilities(tmp_path, capsys):
    saved(tmp_path, 3, loss={"name": "BCEWithLogitsLoss"}, classes=["a", "b", "c"])
    rows = json.loads(predicted(tmp_path, capsys, "--json"))
    every = json.loads(predicted(tmp_path, capsys, "--json", "--top", "3"))
    x = torch.from_numpy(np.load(tmp_path / "x.npy"))
    for row, all_three, theirs in zip(rows, every, mlp(3).eval()(x).sigmoid().tolist(), strict=True):
        assert {p["index"]: p["probability"] for p in all_three["predictions"]} == pytest.approx(
            dict(enumerate(theirs))
        )
        expected = sorted((p for p in theirs if p > 0.5), reverse=True)
        assert [p["probability"] for p in row["predictions"]] == pytest.approx(expected)
    info = describe_model(mlp(3), loss="BCEWithLogitsLoss", classes=["a", "b", "c"])
    assert shown(describe_outputs(info, torch.full((1, 3), 0.4))[0]) == ["no label above 50 %"]


def test_probabilities_that_the_model_made_are_not_made_again():
    info = describe_model(mlp(2), loss="BCELoss")
    assert describe_outputs(info, torch.tensor([[0.25, 0.75]]))[0]["predictions"][0] == {
        "class": "1",
        "index": 1,
        "probability": 0.75,
    }


def test_one_logit_tells_two_classes_apart():
    info = describe_model(mlp(1), loss="BCEWithLogitsLoss", classes=["no", "yes"])
    found = describe_outputs(info, torch.tensor([[0.75]]))[0]
    assert shown(found) == ["yes 75.0 %  no 25.0 %"]


def test_a_segmentation_tells_the_share_of_each_class():
    info = describe_model(mlp(2), loss="CrossEntropyLoss", classes=["ground", "cat"])
    outputs = torch.zeros(1, 2, 2, 2)
    outputs[0, 1, 0, 0] = 1
    assert shown(describe_outputs(info, outputs)[0]) == ["ground 75.0 %  cat 25.0 % of 4 positions"]


def test_many_numbers_are_summed_up_for_people_only():
    info = describe_model(mlp(2), loss="MSELoss")
    found = describe_outputs(info, torch.arange(10.0)[None])[0]
    assert len(found["values"]) == 10
    assert shown(found) == ["0  1  2  3  4  5  6  7  ... (10 numbers, mean 4.5)"]


@pytest.mark.parametrize("count", [2, 11])
def test_a_description_with_other_classes_than_outputs_is_one_message(tmp_path, capsys, count):
    saved(tmp_path, 3, loss="CrossEntropyLoss", classes=[f"c{i}" for i in range(count)])
    np.save(tmp_path / "x.npy", np.zeros((1, 4), "float32"))
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "x.npy")]) == 2
    assert f"names {count} classes and its model has 3 outputs" in capsys.readouterr().err


def garments_of(count):
    """A saved LeNet-5 of so many classes, and a recipe with data of ten."""
    classes = [f"c{i}" for i in range(count)]
    model = MODELS.build("LeNet5", {"classes": count})
    save_model(model, "model", loss="CrossEntropyLoss", classes=classes, input_shape=(1, 28, 28), input_dtype="uint8")
    with open("few.yaml", "w") as file:
        file.write(
            "epochs: 1\nmodel: LeNet5\ndata: {name: garments, train_size: 20, val_size: 20, batch_size: 10}\n"
            "loss: CrossEntropyLoss\noptimizer: {name: SGD, lr: 0.1}\n"
        )


@pytest.mark.parametrize("count", [3, 12])
def test_eval_of_a_model_with_other_classes_is_one_message(tmp_path, capsys, monkeypatch, count):
    monkeypatch.chdir(tmp_path)
    garments_of(count)
    assert main(["eval", "model", "--data", "few.yaml"]) == 2
    err = capsys.readouterr().err
    assert f"{count} classes and the data have 10" in err and "Traceback" not in err


class Output:
    def __init__(self, logits):
        self.logits = logits


class Wrapped(nn.Linear):
    def forward(self, x):
        return Output(super().forward(x))


def test_an_output_object_gives_its_logits_and_one_without_is_named(tmp_path):
    save_model(Wrapped(4, 2), tmp_path / "m", input_shape=(4,), input_dtype="float32", loss="CrossEntropyLoss")
    layer = Wrapped(4, 2)
    x = torch.randn(3, 4)
    found = open_model(tmp_path / "m", layer).predict(x, batch_size=2)
    assert torch.allclose(found, nn.functional.linear(x, layer.weight, layer.bias).softmax(1))
    layer.forward = lambda x: object()
    with pytest.raises(UsageError, match=r"returns object; predictions need tensors of \(N, \.\.\.\)"):
        open_model(tmp_path / "m", layer).predict(x)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32"), ("float16", "float32")],
)
def test_predictions_are_as_precise_as_the_models_outputs(tmp_path, dtype, expected):
    model = nn.Linear(4, 2).to(getattr(torch, dtype))
    save_model(model, tmp_path / "m", input_shape=(4,), input_dtype=dtype, loss="MSELoss")
    x = torch.randn(3, 4).to(getattr(torch, dtype))
    found = open_model(tmp_path / "m", nn.Linear(4, 2).to(x.dtype)).predict(x)
    assert found.dtype == getattr(torch, expected) and torch.equal(found, model(x).detach().to(found.dtype))


class Numbered(nn.Linear):
    def forward(self, x):
        return torch.full((len(x), 1), 2**24 + 1)


def test_whole_numbers_that_a_model_gives_stay_as_they_are(tmp_path):
    save_model(Numbered(4, 1), tmp_path / "m", input_shape=(4,), input_dtype="float32", loss="MSELoss")
    assert open_model(tmp_path / "m", Numbered(4, 1)).predict(torch.zeros(1, 4)).tolist() == [[2**24 + 1]]


def test_a_confusion_matrix_fits_its_width_or_the_worst_confusions_are_told():
    small = matrix_lines(["cat", "dog"], [[9, 1], [0, 10]], 60)
    assert small[-2:] == ["  0 cat   9   1", "  1 dog   .  10"]
    count = 100
    matrix = [[5 if i == j else int(i == j + 1) * (i + 1) for j in range(count)] for i in range(count)]
    large = matrix_lines([f"c{i}" for i in range(count)], matrix, 80)
    assert large[2] == "      100  c99 predicted as c98" and len(large) == 12
    assert all(len(line) <= 80 for line in large)
    assert matrix_lines(["a" * 50, "b" * 50], [[1, 0], [0, 1]], 40) == []


def test_eval_prints_the_matrix(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    garments_of(10)
    assert main(["eval", "model", "--data", "few.yaml"]) == 0
    out = capsys.readouterr().out
    assert "confusion matrix (rows: true class, columns: predicted)" in out and "  9 c9 " in out


@pytest.mark.parametrize(
    "loss, kind",
    [
        ([{"name": "CrossEntropyLoss"}, {"name": "MSELoss", "factor": 0.1}], "softmax"),
        ([{"name": "CrossEntropyLoss"}, {"name": "BCEWithLogitsLoss"}], "numbers"),
        ([{"import": "a:b"}], "numbers"),
        ([], "numbers"),
    ],
)
def test_a_sum_of_losses_tells_how_outputs_are_read(loss, kind):
    assert kind_of(describe_model(nn.Linear(1, 1), loss=loss, classes=["a", "b"])) == kind


def test_fit_saves_the_losses_of_a_sum(tmp_path):
    model = nn.Linear(4, 2)
    loss = WeightedSum([(1.0, nn.CrossEntropyLoss()), (0.5, nn.MultiMarginLoss())])
    data = (torch.randn(32, 4), torch.arange(32) % 2)
    settings = {"epochs": 1, "batch_size": 8, "progress": False, "execution": {"threads": 1, "compile": "none"}}
    fit(
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.1),
        data,
        **fit_arguments(run_dir=tmp_path / "run", **settings),
    )
    assert read_info(tmp_path / "run/model").loss == [
        {"name": "CrossEntropyLoss", "factor": 1.0},
        {"name": "MultiMarginLoss", "factor": 0.5},
    ]


@pytest.mark.parametrize("scale, taken", [(None, False), (1 / 255, True)])
def test_pictures_are_not_given_to_a_model_of_another_scale(scale, taken, tmp_path, capsys):
    Image.new("RGB", (8, 8), (9, 99, 200)).save(tmp_path / "i.png")
    about = {"input_shape": (3, 8, 8), "input_dtype": "float32", "preprocessing": Preprocessing(scale=scale)}
    save_model(MODELS.build("SmallResNet", {"channels": 3}), tmp_path / "model", **about)
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "i.png")]) == (0 if taken else 2)
    told = capsys.readouterr().err
    assert ("pixels of 0 to 255; the model was trained on float32" in told) == (not taken)


OWN = """
import torch

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, left, right):
        return {"logits": self.layer(torch.cat([left, right], 1))}

def rows():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    columns = {"left": x[:, :2], "right": x[:, 2:], "label": (x[:, 0] > 0).long()}
    return columns, columns
"""
RECIPE = """
model: {import: "two_inputs:Two"}
data: {import: "two_inputs:rows", batch_size: 8}
loss: CrossEntropyLoss
optimizer: {name: SGD, lr: 0.1}
epochs: 1
execution: plain
tensorboard: false
"""


def test_eval_calls_a_model_by_keywords_as_training_did(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two_inputs.py").write_text(OWN)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    capsys.readouterr()
    assert main(["eval", "run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    last = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][-1]
    assert report["loss"] == pytest.approx(last["loss"]) and report["accuracy"] == last["accuracy"]


class Constant(nn.Module):
    """Two numbers, whatever the sample."""

    def __init__(self):
        super().__init__()
        self.both = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.both.expand(len(x), 2)


def test_a_model_of_samples_without_numbers_is_saved_and_opens(tmp_path):
    model = Constant()
    data = torch.zeros(8, 0), torch.zeros(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, nn.MSELoss(), optimizer, data, epochs=1, batch_size=4, run_dir=tmp_path / "run")
    assert open_model(tmp_path / "run", Constant()).predict(torch.zeros(3, 0)).shape == (3, 2)
