"""Lazy modules get their shapes from the first batch: fit, resume, recipe and saved model work as with any other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from surefoot import RunOptions, StepOptions, UsageError, fit
from surefoot.cli import main
from surefoot.data import Loader
from surefoot.training.checks import give_shapes

pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
QUIET = RunOptions(progress=False)


def make() -> nn.Sequential:
    layers = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(2)
    return nn.Sequential(*layers)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 3, 6, 6, generator=generator), torch.arange(32) % 2


def test_shapes_are_all_that_a_model_gets(data):
    torch.manual_seed(0)
    model = make()
    model[1].eval()
    parameters = list(model.parameters())
    give_shapes(model, nn.CrossEntropyLoss(), Loader(data, 8))
    assert [type(part) for part in model] == [nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Dropout, nn.Linear]
    assert [tuple(p.shape) for p in model.parameters()] == [(4, 3, 3, 3), (4,), (4,), (4,), (2, 64), (2,)]
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True)), "an optimizer holds them"
    assert model[1].num_batches_tracked == 0 and not model[1].running_mean.any()
    assert [part.training for part in model] == [True, False, True, True, True]
    assert not any(part._forward_pre_hooks for part in model)


def test_a_resumed_run_ends_as_one_that_never_stopped(data, tmp_path):
    def train(epochs, run, **options):
        torch.manual_seed(3)
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step = StepOptions(ema_decay=0.9)
        fit(
            model, nn.CrossEntropyLoss(), optimizer, data,
            epochs=epochs, batch_size=8, run_dir=run, step=step, run=QUIET, **options,
        )  # fmt: skip
        return model.state_dict()

    whole = train(2, tmp_path / "whole")
    train(1, tmp_path / "stopped")
    resumed = train(2, tmp_path / "stopped", resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_module_that_no_batch_reaches_is_named(data):
    model = make()
    model.add_module("spare", nn.LazyLinear(1))
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    with pytest.raises(UsageError, match=r"spare.weight, spare.bias: no shape yet.*does not reach"):
        give_shapes(model, nn.CrossEntropyLoss(), Loader(data, 8))


def test_a_batch_that_does_not_go_through_is_one_message(data):
    model = nn.Sequential(nn.Linear(5, 5), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(UsageError, match="lazy modules get no shape: the first batch cannot go through: mat1 and mat2"):
        give_shapes(model, nn.CrossEntropyLoss(), Loader(data, 8))
    assert len(model[2]._forward_pre_hooks) == 1, "torch's own"


def test_a_recipe_checks_trains_and_evaluates_a_model_of_lazy_modules(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lazy_net.py").write_text(
        "from torch import nn\n\n\n"
        "def make():\n    return nn.Sequential(nn.LazyConv2d(2, 3, stride=4), nn.Flatten(), nn.LazyLinear(10))\n"
    )
    (tmp_path / "lazy.yaml").write_text(
        "model: {import: 'lazy_net:make'}\nloss: CrossEntropyLoss\noptimizer: AdamW\n"
        "data: {name: garments, train_size: 32, val_size: 16, batch_size: 16}\nepochs: 1\nexecution: plain\n"
    )
    assert main(["check", "lazy.yaml"]) == 0
    assert "1,010 parameters" in capsys.readouterr().out
    assert main(["train", "lazy.yaml", "--run", "run"]) == 0
    assert main(["eval", "run", "--trust-code"]) == 0
    assert "accuracy" in capsys.readouterr().out
