"""`metrics:` in a recipe and in fit: torchmetrics' classes by name, functions of one's own, watched by their names."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from pathlib import Path

import pytest
import torch
import torchmetrics
from command_runs import refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import surefoot
from surefoot.build import build
from surefoot.cli import main
from surefoot.errors import Problems, UsageError
from surefoot.metrics.registry import METRICS, OWN, _theirs
from surefoot.proof import compare
from surefoot.recipe import parse_recipe
from surefoot.training import Checkpoints, EarlyStopping, RunOptions

MINE = """
import os
import signal

import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    def forward(self, x):
        return self.body(x)

def data():
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long() + (x[:, 0] > 0.5).long()
    return (x[16:], y[16:]), (x[:16], y[:16])

def loss(outputs, targets):
    if left := int(os.environ.get("MINE_STOPS_AFTER", 0)):
        os.environ["MINE_STOPS_AFTER"] = str(left - 1)
        if left == 1:
            signal.raise_signal(signal.SIGTERM)
    return nn.functional.cross_entropy(outputs, targets)

def worst(outputs, targets, power: int = 1):
    return outputs.abs().amax(1) ** power

class Spread:
    def __init__(self, scale: float = 1.0):
        self.scale, self.higher_is_better = scale, False
        self.reset()
    def reset(self):
        self.total, self.n = 0.0, 0
    def update(self, outputs, targets):
        self.total += self.scale * outputs.double().std(1).sum().item()
        self.n += len(outputs)
    def compute(self):
        return self.total / self.n
    def state_dict(self):
        return {"total": self.total, "n": self.n}
    def load_state_dict(self, state):
        self.total, self.n = state["total"], state["n"]
"""

BASE = """
epochs: 2
model: {import: "mine:Net"}
data: {import: "mine:data", batch_size: 8}
loss: {import: "mine:loss"}
optimizer: {name: SGD, lr: 0.1, momentum: 0.9}
execution: {threads: 1, compile: none}
log_every: 3
metrics:
  - accuracy
  - {name: F1Score, task: multiclass, num_classes: 3, average: macro}
  - {name: F1Score, task: multiclass, num_classes: 3, average: none, as: each}
  - {import: "mine:worst", power: 2, as: sure}
  - {import: "mine:Spread"}
"""
NAMES = {"loss", "accuracy", "F1Score", "each.0", "each.1", "each.2", "sure", "Spread"}


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("recipe.yaml").write_text(BASE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine", None)


def quiet(**more) -> RunOptions:
    return RunOptions(**{"progress": False, "tensorboard": False, "execution": {"threads": 1, "compile": False}} | more)


def fitted(metrics, run=None, epochs=1):
    torch.manual_seed(3)
    x = torch.randn(24, 4)
    data = (x, (x.sum(1) > 0).long() + (x[:, 0] > 0.5).long())
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = quiet() if run is None else run
    loss = nn.CrossEntropyLoss()
    return (
        model,
        data,
        surefoot.fit(model, loss, optimizer, data, val=data, epochs=epochs, batch_size=8, metrics=metrics, run=run),
    )


def test_a_recipe_records_each_metric_under_its_name_wherever_a_metric_is_shown(capsys):
    assert main(["check", "recipe.yaml"]) == 0
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for split in ("train", "val"):
        last = [r for r in records if r["kind"] == "epoch" and r["split"] == split][-1]
        assert set(last) - {"kind", "split", "epoch", "step", "lr", "wall_s"} == NAMES
    capsys.readouterr()
    val, last = build(parse_recipe(BASE)).val, records[-1]
    model = surefoot.open_model("run/model", trust_code=True).module
    outputs, targets = model(val.source.tensors[0]).detach(), val.source.tensors[1]
    expected = torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro")(outputs, targets)
    assert last["F1Score"] == pytest.approx(float(expected), rel=1e-6)
    assert last["sure"] == pytest.approx(float((outputs.abs().amax(1) ** 2).mean()), rel=1e-6)
    for page in ("run/model/README.md", "run/report.html"):
        assert "val/F1Score" in (text := Path(page).read_text()) or "val F1Score" in text
    assert ">F1Score</h3>" in Path("run/report.html").read_text()
    events = EventAccumulator("run/tensorboard").Reload()
    drawn = {name: [point.value for point in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert drawn["F1Score/val"][-1] == pytest.approx(last["F1Score"], rel=1e-6) and "F1Score/train" in drawn


def test_a_run_that_is_stopped_and_resumed_measures_the_same(monkeypatch):
    assert main(["train", "recipe.yaml", "--run", "whole"]) == 0
    monkeypatch.setenv("MINE_STOPS_AFTER", "10")
    assert main(["train", "recipe.yaml", "--run", "stopped"]) == 128 + signal.SIGTERM
    steps = [json.loads(line)["step"] for line in Path("stopped/metrics.jsonl").read_text().splitlines()]
    assert 0 < steps[-1] < 8, "in the middle of the first epoch"
    assert main(["resume", "stopped"]) == 0
    assert compare(Path("whole"), Path("stopped"))[0] is None


def test_other_metrics_are_other_conditions(capsys):
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    assert "recipe.metrics" in refused(capsys, "resume", "run", "metrics=[accuracy]", "epochs=3")


def test_in_fit_a_name_or_a_mapping_stands_for_the_object():
    spec = {"name": "F1Score", "task": "multiclass", "num_classes": 3, "average": "macro"}
    _, _, by_name = fitted(["accuracy", spec, {**spec, "average": "weighted", "as": "weighted"}])
    objects = [torchmetrics.F1Score(**{k: v for k, v in spec.items() if k != "name"})]
    _, _, by_object = fitted(["accuracy", *objects])
    assert by_name.metrics["val/F1Score"] == by_object.metrics["val/F1Score"]
    assert set(by_name.metrics) - set(by_object.metrics) == {"train/weighted", "val/weighted"}
    assert fitted({"macro": spec})[2].metrics["val/macro"] == by_object.metrics["val/F1Score"]
    assert fitted(spec)[2].metrics["val/F1Score"] == by_object.metrics["val/F1Score"]
    plain = torch.randn(24, 4)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = (plain, plain[:, :2])
    result = surefoot.fit(model, nn.MSELoss(), optimizer, data, epochs=1, metrics=["MeanAbsoluteError"], run=quiet())
    assert "train/MeanAbsoluteError" in result.metrics


@pytest.mark.parametrize("name", ["spread", "Kendall"])
def test_the_metric_itself_says_which_of_its_values_is_better(name, tmp_path):
    """Its name does not, so that without `higher_is_better` a mode has to be given."""
    import mine

    metric = mine.Spread()
    _, _, result = fitted({name: metric}, quiet(early_stopping=EarlyStopping(f"val/{name}")))
    assert result.metrics[f"val/{name}"] > 0
    with pytest.raises(Problems, match=f"early_stopping.monitor: mode: max would take the worst val/{name} for the"):
        fitted({name: metric}, quiet(early_stopping=EarlyStopping(f"val/{name}", mode="max")))
    with pytest.raises(Problems, match=f"keep_best: the name 'val/{name}' does not say which is better"):
        fitted({name: mine.worst}, quiet(checkpoints=Checkpoints(keep_best=f"val/{name}")))
    assert fitted({name: mine.worst}, quiet(checkpoints=Checkpoints(keep_best=f"val/{name}", mode="max")))


def test_every_monitor_of_a_recipe_takes_a_metric(capsys):
    watching = """
early_stopping: {monitor: val/Spread}
checkpoint: {keep_best: val/F1Score}
scheduler: {name: ReduceLROnPlateau, monitor: val/each.1, mode: max}
"""
    Path("recipe.yaml").write_text(BASE + watching)
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    values = [r["F1Score"] for r in records if r["split"] == "val"]
    best = json.loads(Path("run/model/best/model.json").read_text())["metrics"]["val/F1Score"]
    assert best == max(values)
    for verb in (["check"], ["train", "--run", "other"]):
        told = refused(capsys, *verb[:1], "recipe.yaml", *verb[1:], "early_stopping.monitor=val/Sprad")
        assert "'val/Sprad' is not measured in this run; did you mean 'val/Spread'?" in told
    told = refused(capsys, "check", "recipe.yaml", "early_stopping.mode=max")
    assert "max would take the worst val/Spread for the best" in told
    told = refused(capsys, "check", "recipe.yaml", "scheduler.monitor=val/Spread")
    assert "max would take the worst val/Spread for the best" in told
    assert not Path("other").exists()


def test_auto_is_what_suits_the_loss_and_may_stand_beside_others(capsys):
    text = BASE.partition("metrics:")[0].replace('{import: "mine:loss"}', "CrossEntropyLoss")
    watching = "checkpoint: {keep_best: val/f1_macro}\n"
    Path("recipe.yaml").write_text(f'{text}metrics: [auto, {{import: "mine:worst", as: worst}}]\n{watching}')
    assert parse_recipe(Path("recipe.yaml").read_text()).checkpoint.mode == "max"
    alone = parse_recipe(text + "metrics: accuracy")
    assert alone == parse_recipe(text + "metrics: [accuracy]") and alone.plain()["metrics"] == ["accuracy"]
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "accuracy", "f1_macro", "worst"} == set(last) - {"kind", "split", "epoch", "step", "lr", "wall_s"}
    Path("recipe.yaml").write_text(text + watching.replace("f1_macro", "mae"))
    told = refused(capsys, "check", "recipe.yaml")
    assert "checkpoint.keep_best: 'val/mae' is not measured in this run" in told and "val/f1_macro" in told


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("F1Scor", "metrics.0: unknown metric 'F1Scor'; did you mean 'F1Score'?"),
        ("torchmetrics.F1Score", "metrics.0: unknown metric 'torchmetrics.F1Score'; write F1Score"),
        ("{name: F1Score, task: multiclass, num_class: 3}", "metrics.0: F1Score has no argument 'num_class'; did you"),
        ("{name: F1Score, task: multiclas}", "metrics.0.task: the text 'multiclas' is not one of 'binary'"),
        ("{name: F1Score, task: multiclass}", "metrics.0: F1Score: `num_classes` is expected to be `int`"),
        ("F1Score", "metrics.0: F1Score needs the argument 'task'"),
        ("{name: accuracy, top_k: 3}", "metrics.0: accuracy has no argument 'top_k'"),
        ("{name: MeanAbsoluteError, as: a/b}", "metrics.0.as: the text 'a/b' is not a name without slash, blank"),
        ("{name: MeanAbsoluteError, as: epoch}", "metrics.0.as: epoch: a record has that already; give"),
        ("MeanAbsoluteError, MeanAbsoluteError", "metrics.1: MeanAbsoluteError: another metric is called so;"),
        ('{import: "mine:worst", pover: 2}', "metrics.0.pover: mine:worst has no argument 'pover'; did you"),
        ('{import: "mine:MINE"}', "metrics.0.import: mine has no 'MINE'"),
        ('{import: "mine:torch"}', "metrics.0: mine:torch is no metric; give a class or object with update, compute"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_metric_is_told_at_its_place(metric, told):
    text = BASE.partition("metrics:")[0] + f"metrics: [{metric}]\n"
    with pytest.raises(UsageError) as caught:
        build(parse_recipe(text, "r.yaml"))
    assert f": {told}" in str(caught.value), caught.value


def test_without_torchmetrics_the_command_to_install_it_is_named(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "torchmetrics" else found(name))
    _theirs.cache_clear()
    try:
        told = refused(capsys, "check", "recipe.yaml")
        assert (
            "metrics.1: unknown metric 'F1Score'; if it is one of torchmetrics', pip install 'surefoot[metrics]'"
            in told
        )
        with pytest.raises(UsageError, match=r"unknown metric 'F1Score'.*pip install 'surefoot\[metrics\]'"):
            fitted(["F1Score"])
        assert main(["list", "metrics"]) == 0
        assert "pip install 'surefoot[metrics]'" in capsys.readouterr().out
        assert fitted(["accuracy"])
    finally:
        _theirs.cache_clear()


def test_the_list_holds_what_compares_outputs_with_targets(capsys):
    assert main(["list", "metrics", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"accuracy", "F1Score", "AUROC", "R2Score", "JaccardIndex", "Perplexity", "MeanIoU"} <= set(rows)
    assert not {"BLEUScore", "MetricCollection", "MeanMetric", "RetrievalMAP", "FrechetInceptionDistance"} & set(rows)
    assert "average" in rows["F1Score"]["arguments"] and rows["R2Score"]["better"] == "max"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_metric_that_needs_no_argument_can_be_made():
    names = [name for name in METRICS.names() if not METRICS.problems(name, {})]
    assert len(names) > 30 and "R2Score" in names
    for name in set(names) - set(OWN):
        METRICS.build(name, {}).reset()


def test_perplexity_takes_outputs_with_classes_second():
    x = torch.randn(12, 5, 4)
    data = (x, torch.randint(3, (12, 5)))
    model = nn.Sequential(nn.Linear(4, 3), Second())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = nn.CrossEntropyLoss()
    result = surefoot.fit(
        model, loss, optimizer, data, val=data, epochs=1, batch_size=4, metrics="Perplexity", run=quiet()
    )
    assert result.metrics["val/Perplexity"] == pytest.approx(2.718281828 ** result.metrics["val/loss"], rel=1e-5)


class Second(nn.Module):
    def forward(self, x):
        return x.movedim(-1, 1)
