"""The commands that a run prints at its end work as printed, whatever it trained."""

from __future__ import annotations

import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from surefoot.cli import main

CODE = """
import torch
from torch import nn
from torch.utils.data import Dataset

from surefoot.data import DatasetSource

X = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
PICTURES = X[:, :1, None, None].expand(-1, 1, 8, 8).clone()
CLASS = (X[:, 0] > 0).long()


class Samples(Dataset):
    def __init__(self, inputs, targets, classes=None):
        self.inputs, self.targets, self.classes = inputs, targets, classes

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return self.inputs(i), self.targets[i]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, pair):
        return self.a(pair[0]) + self.b(pair[1])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(20, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.o(self.e(x).mean(1))


class Head(nn.Module):
    def __init__(self, n=2):
        super().__init__()
        self.l = nn.Linear(5, n)

    def forward(self, x):
        return self.l(x)


class Points(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.c(x)


def each(data):
    return data, data


def classes():
    return each(Samples(lambda i: X[i], CLASS, ["low", "high"]))


def alone():
    return Samples(lambda i: X[i], CLASS, ["low", "high"]), None


def pairs():
    return each(Samples(lambda i: (X[i], -X[i]), CLASS, ["low", "high"]))


def words():
    return each(DatasetSource(Samples(lambda i: torch.full((3 + i // 8,), i % 20), CLASS), collate=padded))


def padded(samples):
    inputs, targets = zip(*samples)
    return nn.utils.rnn.pad_sequence(inputs, batch_first=True), torch.stack(targets)


def numbers():
    return each((X, X[:, :1] * 3))


def labels():
    return each((X, (X[:, :3] > 0).float()))


def points():
    return each((PICTURES, (PICTURES[:, 0] > 0).long()))


def pixels():
    return each(((PICTURES * 50 + 128).to(torch.uint8), (PICTURES[:, 0] > 0).long()))
"""
OWN = '{import: "next_commands_things:%s"}'
KINDS = {  # model, data, loss, what predict is offered (None: nothing), export's ending
    "classes": (OWN % "Head", "classes", "CrossEntropyLoss", "FILE.npy", "onnx"),
    "no validation data": (OWN % "Head", "alone", "CrossEntropyLoss", "FILE.npy", "onnx"),
    "two inputs": (OWN % "Two", "pairs", "CrossEntropyLoss", None, "safetensors"),
    "lengths": (OWN % "Words", "words", "CrossEntropyLoss", "FILE.npy", "safetensors"),
    "numbers": ('{import: "next_commands_things:Head", n: 1}', "numbers", "MSELoss", "FILE.npy", "onnx"),
    "labels": ('{import: "next_commands_things:Head", n: 3}', "labels", "BCEWithLogitsLoss", "FILE.npy", "onnx"),
    "points": (OWN % "Points", "points", "CrossEntropyLoss", "FILE.npy", "onnx"),
    "pictures": (OWN % "Points", "pixels", "CrossEntropyLoss", "IMAGE...", "onnx"),
    "registry": ("{name: MLP, in_features: 5, classes: 2}", "classes", "CrossEntropyLoss", "FILE.npy", "onnx"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with a space in its name, with the code and the files that the commands are given."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "next_commands_things.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "next_commands_things", raising=False)
    np.save("words.npy", np.full((2, 4), 3))
    np.save("rows.npy", np.zeros((2, 5), dtype=np.float32))
    np.save("points.npy", np.zeros((2, 1, 8, 8), dtype=np.float32))
    Image.new("L", (8, 8), 100).save("picture.png")
    yield folder
    sys.modules.pop("next_commands_things", None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_that_a_run_prints_works_as_printed(kind, here, capsys):
    model, data, loss, offered, ending = KINDS[kind]
    normalize = ", normalize: {mean: 0.5, std: 0.5}" if data == "pixels" else ""
    (here / "recipe.yaml").write_text(
        f"name: mine\nepochs: 1\nmodel: {model}\nloss: {loss}\noptimizer: {{name: SGD, lr: 0.01}}\ntensorboard: false\n"
        f'data: {{import: "next_commands_things:{data}", batch_size: 8{normalize}}}\n'
        "execution: {threads: 1, compile: none}\n"
    )
    assert main(["train", "recipe.yaml", "--run", str(here / "the run")]) == 0
    told = capsys.readouterr().out.partition("next:\n")[2].splitlines()
    commands = [shlex.split(line, comments=True) for line in told]
    verbs = [command[1] for command in commands]
    assert verbs == ["eval", *(["predict"] if offered else []), "export", "resume"]
    assert ("confusion matrix" in told[0]) == (kind not in ("numbers", "labels", "points", "pictures", "lengths"))
    arrays = {"lengths": "words.npy", "points": "points.npy"}
    files = {"IMAGE...": "picture.png", "FILE.npy": arrays.get(kind, "rows.npy")}
    for command in commands:
        words = [files.get(word, word) for word in command[1:]]
        assert (words != command[1:]) == (words[0] == "predict")
        assert main(words) == 0, command
        out = capsys.readouterr().out
        if words[0] == "predict":
            assert offered in command
            assert ("%" in out) == (kind != "numbers")
        if words[0] == "eval":
            assert ("confusion matrix" in out) == ("confusion matrix" in told[0])
    assert (here / f"model.{ending}").is_file()


def test_a_model_of_two_inputs_says_in_one_message_what_cannot_be_done(here, capsys):
    model, data, loss, *_ = KINDS["two inputs"]
    (here / "recipe.yaml").write_text(
        f"epochs: 1\nmodel: {model}\nloss: {loss}\noptimizer: {{name: SGD, lr: 0.01}}\ntensorboard: false\n"
        f'data: {{import: "next_commands_things:{data}", batch_size: 8}}\nexecution: {{threads: 1, compile: none}}\n'
    )
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    capsys.readouterr()
    for words, said in {
        ("predict", "run", "rows.npy"): "the model gives [2] for 2 samples; expected (2, classes)",
        ("predict", "run", "words.npy"): "does not take a batch of shape [2, 4]",
        ("predict", "run", "picture.png"): "does not say the shape of its input; give a .npy array",
        ("export", "run", "--to", "m.onnx"): "export its weights (.safetensors or .pth)",
    }.items():
        assert main([*words, "--trust-code"]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error and len(error.splitlines()) == 1
    assert not (here / "m.onnx").exists()


def test_arrays_for_a_model_of_unknown_shape_are_taken_as_they_are(tmp_path):
    from surefoot.artifacts import read_images
    from surefoot.errors import Problems

    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.int64).reshape(3, 2))
    np.save(tmp_path / "b.npy", np.zeros((3, 4), dtype=np.int64))
    np.save(tmp_path / "one.npy", np.array(1.0))
    images = read_images([tmp_path / "a.npy", tmp_path / "a.npy"], None, None)
    assert torch.equal(images.batch, torch.arange(6).reshape(3, 2).repeat(2, 1)) and len(images.names) == 6
    with pytest.raises(Problems, match="differ from those of"):
        read_images([tmp_path / "a.npy", tmp_path / "b.npy"], None, None)
    with pytest.raises(Problems, match="holds one number"):
        read_images([tmp_path / "one.npy"], None, None)


GPT = "{name: GPT, width: 8, depth: 1, heads: 2}"
IMPORTED = {  # model, data, loss, what predict is offered, a file of that kind
    "table": ("{name: TabularMLP, hidden: [4]}", "csv, path: t.csv, target: price", "MSELoss", "FILE.csv", "t.csv"),
    "text": (GPT, "text, path: t.txt, length: 8, stride: 8", "CrossEntropyLoss", "FILE.txt", "u.txt"),
    "array": ("{name: MLP, hidden: [4]}", "npz, path: t.npz", "MSELoss", "FILE.npy", "rows.npy"),
}


@pytest.mark.parametrize("kind", IMPORTED)
def test_imported_weights_answer_as_the_run_that_they_were_exported_from(kind, here, capsys):
    model, data, loss, offered, file = IMPORTED[kind]
    (here / "t.csv").write_text(
        "area,city,price\n" + "".join(f"{k},{('Ulm', 'Bonn')[k % 2]},{k * 3}.5\n" for k in range(40))
    )
    (here / "t.txt").write_text("the quick brown fox jumps over the lazy dog. " * 10)
    (here / "u.txt").write_text("a quick dog")
    np.savez("t.npz", x=np.arange(200.0, dtype=np.float32).reshape(40, 5), y=np.arange(40.0, dtype=np.float32))
    (here / "recipe.yaml").write_text(
        f"epochs: 1\nmodel: {model}\nloss: {loss}\noptimizer: {{name: Adam, lr: 0.01}}\ntensorboard: false\n"
        f"data: {{name: {data}, batch_size: 8}}\nexecution: {{threads: 1, compile: none}}\n"
    )
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    assert main(["export", "run", "--to", "weights.pth"]) == 0
    capsys.readouterr()
    assert main(["import", "weights.pth", "--model", "recipe.yaml"]) == 0
    eval_, predict = (shlex.split(line.removeprefix("next:")) for line in capsys.readouterr().out.splitlines()[-2:])
    assert predict[-1] == offered
    answers = []
    for words in (eval_, ["eval", "run"], [*predict[:-1], file], ["predict", "run", file]):
        assert main([*words[words[0] == "surefoot" :], "--csv"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[2] == answers[3] and len(answers[2].splitlines()) > 1
