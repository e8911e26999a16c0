"""What `surefoot predict` takes and gives: folders, lists, archives; several outputs; CSV, JSON and masks in files."""

from __future__ import annotations

import csv
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from surefoot import save_model
from surefoot.artifacts.info import describe_model
from surefoot.cli import main
from surefoot.models import MODELS


class Several(nn.Module):
    """Classes and a number of each sample, as a dictionary."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        outputs = self.layer(x)
        return {"kind": outputs[:, :3], "price": outputs[:, 3]}


class Masks(nn.Module):
    """Class 1 where a pixel is bright."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def forward(self, x):
        return (x - 0.5) * self.weight[:, None, None]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(model, **about):
    about = {"input_shape": (4,), "input_dtype": "float32"} | about
    save_model(model, "model", **about)
    np.save("x.npy", np.random.default_rng(0).normal(size=(3, 4)).astype("float32"))
    return torch.from_numpy(np.load("x.npy"))


def mlp(outputs):
    torch.manual_seed(0)
    return MODELS.build("MLP", {"in_features": 4, "hidden": [8], "classes": outputs}).eval()


def predicted(capsys, *words):
    assert main(["predict", "model", *words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    assert main(["predict", "model", *words]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_what_is_not_finite_is_json_still(capsys):
    np.save("x.npy", save(mlp(3), classes=["a", "b", "c"], loss="CrossEntropyLoss") * float("nan"))
    row = json.loads(predicted(capsys, "x.npy", "--trust-code", "--json"), parse_constant=pytest.fail)[0]
    assert [each["probability"] for each in row["predictions"]] == ["NaN"] * 3


def table(text):
    return list(csv.reader(io.StringIO(text)))


def test_each_of_several_outputs_has_its_line_by_name(capsys):
    x = save(Several(), classes=["a", "b", "c"], loss="CrossEntropyLoss")
    outputs = {name: part.detach() for name, part in Several()(x).items()}
    lines = predicted(capsys, "x.npy", "--trust-code").splitlines()
    assert len(lines) == 6 and lines[0].startswith("x.npy[0]: kind: ") and "%" in lines[0]
    assert lines[1] == f"x.npy[0]: price: {outputs['price'][0]:.6g}"
    row = json.loads(predicted(capsys, "x.npy", "--trust-code", "--json"))[2]
    assert (row["path"], row["row"]) == ("x.npy", 2)
    first = row["outputs"]["kind"]["predictions"][0]
    assert first["probability"] == pytest.approx(float(outputs["kind"][2].softmax(0).max()))
    assert row["outputs"]["price"] == {"value": pytest.approx(float(outputs["price"][2]))}
    header, *rows = table(predicted(capsys, "x.npy", "--trust-code", "--csv"))
    assert header == ["path", "row", "output", "class", "probability", "value"]
    assert len(rows) == 6 and rows[0][:3] == ["x.npy", "0", "kind"] and rows[1][2:5] == ["price", "", ""]


@pytest.mark.parametrize(
    ("outputs", "about", "words", "columns", "rows"),
    [
        (3, {"loss": "CrossEntropyLoss", "classes": ["a", "b", "c"]}, (), "class probability", 3),
        (3, {"loss": "CrossEntropyLoss", "classes": ["a", "b", "c"]}, ("--top", "2"), "class probability", 6),
        (3, {"classes": ["a", "b", "c"]}, (), "class score", 3),
        (1, {"loss": "MSELoss"}, (), "value", 3),
        (2, {"loss": "MSELoss"}, (), "value_0 value_1", 3),
        (2, {"loss": "BCEWithLogitsLoss"}, ("--top", "2"), "class probability", 6),
    ],
)
def test_csv_has_the_same_columns_for_each_kind_of_answer(outputs, about, words, columns, rows, capsys):
    x = save(mlp(outputs), **about)
    header, *found = table(predicted(capsys, "x.npy", "--csv", *words))
    assert header == ["path", "row", *columns.split()] and len(found) == rows
    assert [row[:2] for row in found][:: rows // 3] == [["x.npy", str(number)] for number in range(3)]
    if columns == "class probability" and rows == 3:
        expected = mlp(3)(x).softmax(1).max(1)
        assert [float(row[3]) for row in found] == pytest.approx(expected.values.tolist())
        assert [row[2] for row in found] == ["abc"[i] for i in expected.indices]


def test_a_sample_without_a_label_has_a_row(capsys):
    model = mlp(2)
    nn.init.constant_(list(model.parameters())[-1], -100.0)
    save(model, loss="BCEWithLogitsLoss", classes=["a", "b"])
    assert predicted(capsys, "x.npy", "--csv").splitlines()[1:] == [f"x.npy,{row},," for row in range(3)]


def test_a_file_of_answers_is_there_as_a_whole_or_not_at_all(here, capsys):
    save(mlp(3), loss="CrossEntropyLoss")
    printed = predicted(capsys, "x.npy", "--csv")
    assert predicted(capsys, "x.npy", "--out", "answers.csv") == ""
    assert (here / "answers.csv").read_text() == printed
    assert predicted(capsys, "x.npy", "--json", "--out", "answers.txt") == ""
    assert len(json.loads((here / "answers.txt").read_text())) == 3
    (here / "bad.npy").write_bytes(b"\x93NUMPY")
    assert "bad.npy" in refused(capsys, "x.npy", "bad.npy", "--out", "other.csv")
    assert not (here / "other.csv").exists() and (here / "answers.csv").read_text() == printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--json", "--csv"), "--json and --csv: give one of them"),
        (("--out", "answers.txt"), "say --json or --csv, or give a name that ends in"),
        (("--out", "no/where.csv"), "there is no directory no; name a file in a directory that exists"),
        (("--out", ".", "--csv"), "--out .: is a directory"),
        (("--out", "pipe", "--csv"), "--out pipe: is no regular file"),
        (("empty",), "empty: holds no files that can be read"),
        (("two.npz",), "two.npz: holds 2 arrays (a, b); give one of them as .npy"),
        (("bad.npz",), "bad.npz: cannot be read as .npz"),
        (("--masks", "masks"), "the model gives no class to each pixel"),
        (("--masks", "empty"), "--masks empty: is there already"),
    ],
)
def test_what_cannot_be_is_one_message(here, words, message, capsys):
    save(mlp(3), loss="CrossEntropyLoss")
    (here / "empty").mkdir()
    os.mkfifo(here / "pipe")
    np.savez("two.npz", a=np.zeros((1, 4), "float32"), b=np.zeros((1, 4), "float32"))
    (here / "bad.npz").write_bytes((here / "two.npz").read_bytes()[:100])
    assert message in refused(capsys, "x.npy", *words)
    assert not (here / "masks").exists()


def test_folders_lists_and_archives_are_read_in_order(here, capsys, monkeypatch):
    x = save(mlp(2), loss="MSELoss")
    (here / "in" / "b").mkdir(parents=True)
    for number, name in enumerate(("in/b/0.npy", "in/a.npy", "in/c.npz")):
        np.savez(name, x[number].numpy()) if name.endswith("z") else np.save(name, x[number].numpy())
    (here / "in" / "notes.txt").write_text("no sample")
    (here / "in" / ".hidden.npy").write_text("no sample")
    expected = [("in/a.npy", 1), ("in/b/0.npy", 0), ("in/c.npz", 2)]
    rows = json.loads(predicted(capsys, "in", "--json"))
    assert [row["path"] for row in rows] == [path for path, _ in expected]
    for row, (_, number) in zip(rows, expected, strict=True):
        assert row["values"] == pytest.approx(mlp(2)(x)[number].tolist(), abs=1e-6)
    monkeypatch.setattr("sys.stdin", io.StringIO("in/c.npz\nin/a.npy\n"))
    assert [row["path"] for row in json.loads(predicted(capsys, "-", "--json"))] == ["in/c.npz", "in/a.npy"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no files were given" in refused(capsys, "-")


def test_masks_are_files_of_the_class_of_each_pixel(here, capsys):
    info = {"input_shape": (1, 4, 4), "input_dtype": "uint8", "loss": "CrossEntropyLoss", "classes": ["no", "yes"]}
    save(Masks(), **info)
    pixels = np.random.default_rng(1).integers(0, 2, (3, 4, 4), dtype=np.uint8)
    np.save("two.npy", pixels[:2])
    Image.fromarray(pixels[2]).save("one.png")
    predicted(capsys, "two.npy", "one.png", "--masks", "masks", "--trust-code")
    found = {path.name: np.asarray(Image.open(path)) for path in (here / "masks").iterdir()}
    expected = {"two[0].png": pixels[0], "two[1].png": pixels[1], "one.png": pixels[2]}
    assert found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in found)
    header, first, second = table(predicted(capsys, "one.png", "--csv", "--trust-code"))
    assert header == ["path", "row", "class", "share"] and float(first[3]) + float(second[3]) == 1
    assert float(first[3]) == max(pixels[2].mean(), 1 - pixels[2].mean())
    (here / "sub").mkdir()
    Image.fromarray(pixels[2]).save("sub/one.png")
    error = refused(capsys, "one.png", "sub/one.png", "--masks", "others", "--trust-code")
    assert "two samples would be one.png" in error and not (here / "others").exists()


def test_the_loss_of_a_model_itself_is_read_as_of_classes():
    from surefoot.artifacts.answers import kind_of

    assert kind_of(describe_model(mlp(2), loss={"objective": "model"}, classes=["a", "b"])) == "softmax"
    assert kind_of(describe_model(mlp(2), loss={"objective": "model"})) == "numbers"
    assert kind_of(describe_model(mlp(2), loss={"objective": "mine"}, classes=["a", "b"])) == "scores"
