"""`objective:` in a recipe: a function of model and batch in the place of the loss, with every verb."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from command_runs import refused

import surefoot
from surefoot.build import build
from surefoot.cli import main
from surefoot.errors import Problems, UsageError
from surefoot.proof import compare
from surefoot.recipe import parse_recipe
from surefoot.training import RunOptions

MINE = """
import os
import signal

import torch
from torch import nn

import surefoot

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 3))
    def forward(self, x):
        return self.body(x)

class Rows(torch.utils.data.Dataset):
    def __init__(self, start, stop):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(80, 4, generator=g)[start:stop]
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        return {"inputs": self.x[i], "labels": (self.x[i].sum() > 0).long()}

class Output(dict):
    __getattr__ = dict.__getitem__

class Own(Net):
    def forward(self, inputs, labels=None):
        logits = self.body(inputs)
        return Output(loss=nn.functional.cross_entropy(logits, labels), logits=logits)

def data():
    rows = Rows(0, 80)
    y = (rows.x.sum(1) > 0).long()
    return (rows.x[16:], y[16:]), (rows.x[:16], y[:16])

def dictionaries():
    return Rows(16, 80), Rows(0, 16)

def scores(model, batch, beta: float = 0.0):
    x, y = batch
    outputs = model(x)
    if left := int(os.environ.get("MINE_STOPS_AFTER", 0)):
        os.environ["MINE_STOPS_AFTER"] = str(left - 1)
        if left == 1:
            signal.raise_signal(signal.SIGTERM)
    loss = nn.functional.cross_entropy(outputs, y) + beta * outputs.square().mean()
    return {"loss": loss, "outputs": outputs, "targets": y, "size": outputs.abs().mean()}

decorated = surefoot.objective(scores)

class Objective:
    def __init__(self, beta: float):
        self.beta = beta
    def __call__(self, model, batch):
        return scores(model, batch, self.beta)

def loss(outputs, targets, smoothing: float = 0.0):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=smoothing)
"""

BASE = """
epochs: 2
model: {import: "mine:Net"}
data: {import: "mine:data", batch_size: 8}
objective: {import: "mine:scores", beta: 0.1}
optimizer: {name: SGD, lr: 0.1, momentum: 0.9}
execution: {threads: 1, compile: none}
metrics: [accuracy]
"""
FROM_MODEL = BASE.replace("mine:Net", "mine:Own").replace("mine:data", "mine:dictionaries")
FROM_MODEL = FROM_MODEL.replace('{import: "mine:scores", beta: 0.1}', "model")


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("recipe.yaml").write_text(BASE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine", None)


def last_of(run: str) -> dict[str, float]:
    return json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize(
    "objective", ["scores, beta: 0.1", "decorated, beta: 0.1", "Objective, beta: 0.1"], ids=lambda text: text[:9]
)
def test_the_recipe_trains_the_objective_that_fit_trains(objective):
    """A function, one that is decorated, or an object of a class, each with its arguments."""
    built = build(parse_recipe(BASE.replace("scores, beta: 0.1", objective.replace(",", '",', 1)).replace('""', '"')))
    settings = built.settings()
    run = RunOptions(progress=False, tensorboard=False, execution=built.execution, about=built.about)
    ours = surefoot.fit(built.model, built.loss, built.optimizer, built.train, **(settings | {"run": run}))

    import mine

    fresh = build(parse_recipe(BASE))
    plain = surefoot.objective(lambda model, batch: mine.scores(model, batch, beta=0.1))
    settings = fresh.settings()
    theirs = surefoot.fit(fresh.model, plain, fresh.optimizer, fresh.train, **(settings | {"run": run}))
    assert ours.metrics == theirs.metrics and "val/size" in ours.metrics and "val/accuracy" in ours.metrics
    for a, b in zip(built.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("text", [BASE, FROM_MODEL], ids=["import", "model"])
def test_every_verb_takes_it(text, capsys):
    Path("recipe.yaml").write_text(text)
    for verb in ("check", "plan", "lr-find"):
        assert main([verb, "recipe.yaml"]) == 0, capsys.readouterr()
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    trained = last_of("run")
    assert trained["split"] == "val" and trained["accuracy"] > 0.5
    assert main(["tune", "recipe.yaml", "execution={threads: 1}"]) == 0
    capsys.readouterr()
    assert main(["eval", "run", "--trust-code", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(trained["loss"], rel=1e-5)
    assert main(["eval", "run/model", "--trust-code", "--data", "run/recipe.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(trained["loss"], rel=1e-5)
    saved = json.loads(Path("run/model/model.json").read_text())["loss"]
    assert saved == {"objective": "model" if text == FROM_MODEL else {"import": "mine:scores", "beta": 0.1}}


def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits(monkeypatch):
    assert main(["train", "recipe.yaml", "--run", "whole"]) == 0
    monkeypatch.setenv("MINE_STOPS_AFTER", "12")
    assert main(["train", "recipe.yaml", "--run", "stopped"]) == 128 + signal.SIGTERM
    assert os.environ["MINE_STOPS_AFTER"] == "0"
    assert 0 < json.loads(Path("stopped/metrics.jsonl").read_text().splitlines()[-1])["step"] < 16
    assert main(["resume", "stopped"]) == 0
    assert compare(Path("whole"), Path("stopped"))[0] is None


def test_the_model_alone_is_compiled_beside_an_objective(monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.compile", lambda model, options: compiled.append(model) or torch.nn.Sequential(model))
    monkeypatch.setattr("surefoot.execution.backends.why_not", lambda *_: None)
    for form in ("none", "module"):
        assert main(["train", "recipe.yaml", "--run", form, f"execution.compile={form}"]) == 0
        assert bool(compiled) == (form == "module")
        assert json.loads(Path(form, "run.json").read_text())["execution"]["compile"] == form
    assert last_of("module")["loss"] == pytest.approx(last_of("none")["loss"], rel=1e-5)
    compiled.clear()
    assert main(["resume", "module", "epochs=3"]) == 0 and len(compiled) == 1


def test_what_the_objective_is_belongs_to_the_conditions_of_a_resume(capsys):
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    assert "recipe.objective.beta: was 0.1, is 0.2" in refused(
        capsys, "resume", "run", "objective.beta=0.2", "epochs=3"
    )
    Path("mine.py").write_text(MINE.replace("outputs.abs()", "outputs.square()"))
    sys.modules.pop("mine")
    assert "code.mine.py" in refused(capsys, "resume", "run", "epochs=3")


def test_a_function_that_is_a_loss_takes_checked_arguments_too(capsys):
    loss = BASE.replace('objective: {import: "mine:scores", beta: 0.1}', 'loss: {import: "mine:loss", smoothing: 0.1}')
    Path("recipe.yaml").write_text(loss)
    assert main(["check", "recipe.yaml"]) == 0
    assert "recipe.yaml:5:29: loss.smoothing: the text 'much' is not a number" in refused(
        capsys, "check", "recipe.yaml", "loss.smoothing=much"
    ).replace("argument 'loss.smoothing=much'", "recipe.yaml:5:29")


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ('{import: "mine:scores", betta: 1}', "5:43: objective.betta: mine:scores has no argument 'betta'; did you"),
        ('{import: "mine:scores", beta: much}', "5:42: objective.beta: the text 'much' is not a number"),
        ('{import: "mine:Objective"}', "5:12: objective: mine:Objective needs the argument 'beta'"),
        ('{import: "mine:scorse"}', "5:21: objective.import: mine has no 'scorse'; did you mean 'scores'?"),
        ("modle", "5:12: objective: unknown objective 'modle'; did you mean 'model'?"),
        ("{name: model, x: 1}", "5:26: objective: model has no argument 'x'"),
        ('"mine:scores"', "5:12: objective: 'mine:scores' is not a registered name; to use your own, write {import: m"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_objective_is_told_at_its_place(objective, told):
    text = BASE.replace('{import: "mine:scores", beta: 0.1}', objective).lstrip("\n")
    with pytest.raises(UsageError) as caught:
        build(parse_recipe("# first\n" + text, "r.yaml"))
    assert str(caught.value).startswith(f"r.yaml:{told}"), caught.value


def test_exactly_one_of_loss_and_objective_is_given():
    text = BASE.lstrip("\n")
    line = 'objective: {import: "mine:scores", beta: 0.1}\n'
    with pytest.raises(Problems, match=r"r.yaml:5:1: objective: stands beside loss; give one of the two \(null for"):
        parse_recipe(text.replace(line, f"loss: MSELoss\n{line}"), "r.yaml")
    missing = (
        r"^r.yaml:1:1: loss: missing; give one of loss, objective, e.g. loss: CrossEntropyLoss or objective: {import"
    )
    with pytest.raises(Problems, match=missing):
        parse_recipe(text.replace(line, ""), "r.yaml")
    with pytest.raises(Problems) as caught:  # a misspelt one is not missing too
        parse_recipe(text.replace("objective:", "objektive:"), "r.yaml")
    assert len(caught.value.problems) == 1
    switched = parse_recipe(text, "r.yaml", ["objective=null", "loss=MSELoss"])
    assert switched.objective is None and "objective" not in switched.plain()
    switched = parse_recipe(text, "r.yaml", ["objective=model"])
    assert switched.objective.name == "model" and "loss" not in switched.plain()
    assert parse_recipe(switched.to_yaml(), "r.yaml") == switched


def test_a_model_of_an_own_objective_needs_its_recipe_to_be_evaluated(capsys):
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    message = refused(capsys, "eval", "run/model", "--trust-code", "--data", "garments")
    assert "was trained with an objective of its own; give --data with the recipe that has it" in message
