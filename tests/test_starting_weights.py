"""A recipe's `weights`: what a model begins with, from any file; what does not fit is named; a resume needs no file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from surefoot import load_model, save_model
from surefoot.artifacts.importing import start_weights
from surefoot.build import build
from surefoot.cli import main
from surefoot.errors import UsageError
from surefoot.models import LeNet5
from surefoot.recipe import parse_recipe

RECIPE = """\
epochs: 2
model: {name: LeNet5, WEIGHTS}
data: {name: garments, train_size: 32, val_size: 16, batch_size: 16}
loss: CrossEntropyLoss
optimizer: {name: SGD, lr: 0.1}
execution: {threads: 1, compile: none}
tensorboard: false
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def built(weights: str, lines: list | None = None, **more):
    recipe = parse_recipe(RECIPE.replace("WEIGHTS", weights), "r.yaml")
    return build(recipe, say=(lines if lines is not None else []).append, **more)


def other(**arguments) -> LeNet5:
    torch.manual_seed(99)
    return LeNet5(**arguments)


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def write(kind: str, model: nn.Module) -> str:
    if kind == "run":
        Path("run").mkdir()
        save_model(model, "run/model")
        return "run"
    if kind == "directory":
        return str(save_model(model, "dir"))
    if kind == "state_dict":
        torch.save(model.state_dict(), "w.pt")
    elif kind == "checkpoint of a compiled model":
        torch.save({"epoch": 3, "model": {f"_orig_mod.{n}": t for n, t in model.state_dict().items()}}, "w.pt")
    elif kind == "half":
        torch.save({name: tensor.half() for name, tensor in model.state_dict().items()}, "w.pt")
    return "w.pt"


@pytest.mark.parametrize("kind", ["run", "directory", "state_dict", "checkpoint of a compiled model", "half"])
def test_a_model_begins_with_the_weights_of_any_file(kind):
    model, lines = other(), []
    made = built(f"weights: {write(kind, model)}", lines)
    wanted = model.half().float() if kind == "half" else model
    assert same(made.model, wanted) and made.model.training
    assert len(lines) == 1 and lines[0].endswith(
        ": 10 tensors" + (" from its entry 'model'" if "checkpoint" in kind else "")
    )
    # Nothing else of the run is another: the optimizer's order, the data and what is drawn after it.
    drawn = torch.rand(1)
    built("classes: 10")
    assert torch.equal(drawn, torch.rand(1))


def test_what_does_not_fit_is_named_with_its_place_and_refused_unless_it_is_not_strict():
    torch.save({**other().state_dict(), "extra.weight": torch.zeros(3)}, "w.pt")
    with pytest.raises(UsageError) as caught:
        built("classes: 3, weights: w.pt")
    said = str(caught.value)
    assert "r.yaml:2:" in said and "model.weights" in said
    for line in ("unexpected: extra.weight (float32 [3])", "fc3.weight: its shape is [10, 84], the model's is [3, 84]"):
        assert line in said
    assert said.endswith("strict: false in the model's section takes what fits; of the rest the model keeps its own")
    assert "--except" not in said  # an option of `import`
    lines = []
    made = built("classes: 3, weights: w.pt, strict: false", lines)
    assert lines[0] == "w.pt: 8 tensors" and len(lines) == 4
    assert torch.equal(made.model.fc2.weight, other().fc2.weight)
    assert torch.equal(made.model.fc3.weight, built("classes: 3").model.fc3.weight)


def test_many_differences_are_listed_up_to_a_bound():
    torch.save({**other().state_dict(), **{f"x{i}": torch.zeros(1) for i in range(500)}}, "w.pt")
    lines = []
    built("weights: w.pt, strict: false", lines)
    assert len(lines) < 30 and "480 more" in lines[-1]


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: torch.save({"a.b": torch.zeros(2)}, "w.pt"), "no tensor fits LeNet5"),
        (lambda: Path("w.pt").write_bytes(b"\x80\x04N."), "bare pickle"),
        (lambda: None, "w.pt"),
        (lambda: os.mkdir("w.pt"), "no weights by a name that is known"),
    ],
)
def test_a_file_of_which_nothing_can_be_taken_is_refused(make, said, capsys):
    make()
    Path("r.yaml").write_text(RECIPE.replace("WEIGHTS", "weights: w.pt, strict: false"))
    assert main(["train", "r.yaml", "--run", "run"]) == 2
    error = capsys.readouterr().err
    assert said in error and "r.yaml:2:" in error and "Traceback" not in error and not Path("run").exists()


def test_a_resume_needs_no_file_and_knows_what_the_run_began_with(capsys):
    torch.save(other().state_dict(), "w.pt")
    Path("r.yaml").write_text(RECIPE.replace("WEIGHTS", "weights: w.pt"))
    assert main(["train", "r.yaml", "--run", "whole"]) == 0
    assert main(["train", "r.yaml", "--run", "part", "epochs=1"]) == 0
    os.unlink("w.pt")
    assert main(["resume", "part", "epochs=2"]) == 0
    assert same(load_model("whole"), load_model("part"))
    whole, part = (json.loads(Path(run, "run.json").read_text())["conditions"] for run in ("whole", "part"))
    assert whole["model.weights"] == part["model.weights"] and len(whole["model.weights"]) == 64
    capsys.readouterr()
    assert main(["resume", "part", "epochs=3", "model.weights=other.pt"]) == 2
    assert "recipe.model.weights: was w.pt, is other.pt" in capsys.readouterr().err
    torch.save(other(channels=1).state_dict() | {"fc3.bias": torch.ones(10)}, "w.pt")
    assert main(["train", "r.yaml", "--run", "again"]) == 0
    assert json.loads(Path("again/run.json").read_text())["conditions"]["model.weights"] != whole["model.weights"]


def test_a_class_with_an_argument_weights_of_its_own_gets_it(monkeypatch):
    Path("nets_w.py").write_text(
        "from surefoot.models import LeNet5\n\n\ndef net(weights=None):\n"
        "    made = LeNet5()\n    made.given = weights\n    return made\n"
    )
    monkeypatch.syspath_prepend(".")
    text = RECIPE.replace("name: LeNet5, WEIGHTS", 'import: "nets_w:net", weights: DEFAULT')
    made = build(parse_recipe(text, "r.yaml"))
    assert made.model.given == "DEFAULT" and made.about.source == ("nets_w:net", {})
    sys.modules.pop("nets_w")


class Backbone(nn.Module):
    base_model_prefix = "base"

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)


class WithHead(nn.Module):
    base_model_prefix = "base"

    def __init__(self, tied=False):
        super().__init__()
        self.base, self.head = Backbone(), nn.Linear(2, 3)
        self.twin = self.head if tied else nn.Identity()


def test_the_prefix_of_a_base_model_is_put_on_and_taken_off():
    backbone, whole = Backbone(), WithHead()
    torch.save(backbone.state_dict(), "base.pt")
    lines = start_weights("base.pt", whole, strict=False).lines
    assert (
        torch.equal(whole.base.a.weight, backbone.a.weight) and len(lines) == 3 and "missing: head.weight" in lines[1]
    )
    torch.save(WithHead().state_dict(), "whole.pt")
    lines = start_weights("whole.pt", backbone, strict=False).lines
    assert len(lines) == 3 and "unexpected: head.weight" in lines[1]


def test_tied_weights_and_lazy_ones_are_filled():
    source, target = WithHead(tied=True), WithHead(tied=True)
    state = source.state_dict()
    del state["head.weight"], state["base.a.bias"]
    torch.save(state, "w.pt")
    lines = start_weights("w.pt", target, strict=False).lines
    assert (
        torch.equal(target.head.weight, source.head.weight) and "missing: base.a.bias" in lines[1] and len(lines) == 2
    )
    torch.save({"0.weight": torch.ones(2, 5), "0.bias": torch.ones(2)}, "lazy.pt")
    lazy = nn.Sequential(nn.LazyLinear(2))
    start_weights("lazy.pt", lazy)
    assert lazy[0].weight.shape == (2, 5)
    with pytest.raises(UsageError, match=r"holds nothing for 0\.bias, which has no shape yet"):
        torch.save({"0.weight": torch.ones(2, 5)}, "lazy.pt")
        start_weights("lazy.pt", nn.Sequential(nn.LazyLinear(2)), strict=False)
