"""Going on from the tutorial's checkpoint dictionary equals a hand-written loop that loads the same dictionary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from surefoot.build import build
from surefoot.cli import main
from surefoot.errors import UsageError
from surefoot.recipe import load_recipe
from surefoot.training.start import start_from

RECIPE = """\
epochs: 4
seed: 3
model: {name: LeNet5}
data: {name: garments, train_size: 60, val_size: 20, batch_size: 16}
loss: CrossEntropyLoss
optimizer: OPTIMIZER
execution: {threads: 1, compile: none}
tensorboard: false
"""
OPTIMIZERS = {
    "SGD": "{name: SGD, lr: 0.02, momentum: 0.9}",
    "AdamW": "{name: AdamW, lr: 0.01}",
    "groups": "{name: AdamW, lr: 0.01, weight_decay: 0.1, no_decay: ['*.bias']}",
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(optimizer: str, more: str = "") -> str:
    Path("r.yaml").write_text(RECIPE.replace("OPTIMIZER", OPTIMIZERS[optimizer]) + more)
    return "r.yaml"


def own_optimizer(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "SGD":
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def own_epochs(model, optimizer, loader, epochs: range, schedule=None) -> None:
    """The tutorial's loop, over the same batches."""
    for epoch in epochs:
        loader.seek(epoch)
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        if schedule is not None:
            schedule.step()


def tutorials(kind: str, epochs: int = 2, schedule=None) -> nn.Module:
    """Train by the loop and leave its dictionary; returns the model."""
    built = build(load_recipe("r.yaml"))
    optimizer = own_optimizer(kind, built.model)
    own_epochs(built.model, optimizer, built.train, range(epochs), schedule and schedule(optimizer))
    dictionary = {
        "epoch": epochs - 1,
        "model_state_dict": built.model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": torch.tensor(0.5),
    }
    torch.save(dictionary, "checkpoint.pt")
    return built.model


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_training_on_equals_a_loop_that_loads_the_same_dictionary(kind, capsys):
    torch.set_num_threads(1)
    recipe = written(kind)
    tutorials(kind)
    built = build(load_recipe(recipe))
    saved = torch.load("checkpoint.pt", weights_only=True)
    built.model.load_state_dict(saved["model_state_dict"])
    optimizer = own_optimizer(kind, built.model)
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    own_epochs(built.model, optimizer, built.train, range(saved["epoch"] + 1, 4))

    assert main(["train", recipe, "--from", "checkpoint.pt", "--run", "run"]) == 0
    out = capsys.readouterr().out
    assert "its epoch 1 is taken as 2 done" in out and "cannot give back" in out and "left aside: 'loss'" in out
    from surefoot.artifacts import load_model

    found = load_model("run/model").state_dict()
    assert all(torch.equal(found[n], t) for n, t in built.model.state_dict().items())


def test_another_rate_is_told_as_the_recipe_has_it_before_its_warmup():
    recipe = written("SGD", "warmup: {name: LinearWarmup, warmup_period: 4}\n")
    tutorials("SGD")
    built = build(load_recipe(recipe, ["optimizer.lr=0.5"]))
    lines = []
    objects = (built.model, built.optimizer, built.schedule, built.train)
    start_from("checkpoint.pt", *objects, steps_per_epoch=built.steps_per_epoch, say=lines.append)
    assert any(line.endswith("lr 0.5 (the file has 0.02)") for line in lines)


def test_other_betas_are_told_and_the_same_ones_are_not():
    recipe = written("AdamW")
    tutorials("AdamW")
    for betas, told in (("[0.8, 0.9]", True), ("[0.9, 0.999]", False)):
        built = build(load_recipe(recipe, [f"optimizer.betas={betas}"]))
        lines = []
        objects = (built.model, built.optimizer, built.schedule, built.train)
        start_from("checkpoint.pt", *objects, steps_per_epoch=built.steps_per_epoch, say=lines.append)
        assert any("betas" in line and "(the file has (0.9, 0.999))" in line for line in lines) is told, lines


def test_the_schedule_goes_on_at_the_files_epoch():
    recipe = written("SGD", "scheduler: {name: StepLR, step_size: 1, gamma: 0.5}\n")
    tutorials("SGD")
    built = build(load_recipe(recipe))
    objects = (built.model, built.optimizer, built.schedule, built.train)
    assert start_from("checkpoint.pt", *objects, steps_per_epoch=built.steps_per_epoch) == 2
    assert built.schedule.lrs == [0.02 * 0.25] and (built.train.epoch, built.train.position) == (2, 0)


def test_state_goes_by_name_where_the_recipe_has_other_groups():
    recipe = written("groups")
    model = tutorials("AdamW")
    built = build(load_recipe(recipe))
    assert len(built.optimizer.param_groups) == 2
    lines = []
    objects = (built.model, built.optimizer, built.schedule, built.train)
    start_from("checkpoint.pt", *objects, steps_per_epoch=built.steps_per_epoch, say=lines.append)
    saved = torch.load("checkpoint.pt", weights_only=True)["optimizer_state_dict"]["state"]
    for position, (name, _) in enumerate(model.named_parameters()):
        found = built.optimizer.state[built.model.get_parameter(name)]
        assert torch.equal(found["exp_avg"], saved[position]["exp_avg"]), name
    assert any("weight_decay 0.1 (the file has 0.01)" in line for line in lines)


def test_what_does_not_fit_is_refused_and_nothing_is_changed():
    recipe = written("SGD")
    tutorials("SGD")
    saved = torch.load("checkpoint.pt", weights_only=True)
    built = build(load_recipe(recipe))
    before = {n: t.clone() for n, t in built.model.state_dict().items()}
    objects = (built.model, built.optimizer, built.schedule, built.train)

    def refused(change, said: str) -> None:
        broken = {**saved, "optimizer_state_dict": change(dict(saved["optimizer_state_dict"]))}
        torch.save(broken, "broken.pt")
        with pytest.raises(UsageError, match=said):
            start_from("broken.pt", *objects, steps_per_epoch=4)
        assert all(torch.equal(t, before[n]) for n, t in built.model.state_dict().items())
        assert not built.optimizer.state

    group = saved["optimizer_state_dict"]["param_groups"][0]
    refused(lambda o: o | {"param_groups": [group | {"params": [0, 1]}]}, "names a parameter twice, or one that no")
    refused(lambda o: {"state": {}, "param_groups": [group | {"params": [0, 1]}]}, "cannot be matched")
    wrong = {0: {"momentum_buffer": torch.zeros(3)}}
    refused(lambda o: o | {"state": wrong}, r"conv1.weight: the shape of momentum_buffer is \[3\]")
    refused(lambda o: o | {"state": {0: {"momentum_buffer": "x"}}}, "holds a str under 'momentum_buffer'")
    assert main(["train", recipe, "--from", "missing.pt", "--run", "run"]) == 2
    assert main(["train", recipe, "--epochs-done", "1", "--run", "run"]) == 2
    assert not Path("run").exists()


def test_weights_alone_begin_at_epoch_0_and_say_so(capsys):
    recipe = written("SGD")
    torch.save(build(load_recipe(recipe)).model.state_dict(), "w.pth")
    assert main(["train", recipe, "--from", "w.pth", "--run", "run", "epochs=1"]) == 0
    assert "the optimizer's state (it begins anew)" in capsys.readouterr().out
    assert main(["resume", "run"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    for folder in Path("run/checkpoints").iterdir():
        folder.rename(Path("run") / folder.name)
    assert main(["resume", "run"]) == 2  # never silently from fresh weights
    assert "was stopped before its first save" in capsys.readouterr().err
