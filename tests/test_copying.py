"""Copies of what `copy.deepcopy` alone refuses, or copies in part: wherever a copy is made, it is made."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from surefoot import Schedule, fit
from surefoot.artifacts import export
from surefoot.copying import twins
from surefoot.errors import UsageError
from surefoot.execution import tune
from surefoot.planning import lr_find
from surefoot.step import TrainStep

X, Y = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
BATCHES = [(X[:16], Y[:16]), (X[16:], Y[16:])]


class Keeps(nn.Module):
    """Has a lock, and keeps a result of its last pass."""

    def __init__(self):
        super().__init__()
        self.layer, self.lock, self.last = nn.Linear(8, 3), threading.Lock(), None

    def forward(self, inputs):
        self.last = self.layer(inputs)
        return self.last


def weight_normed():
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 3)))


MODELS = {"a lock and a result": Keeps, "weight_norm of old": weight_normed}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    made = MODELS[request.param]()
    made(X)
    return made


class Counting(torch.optim.Optimizer):
    """Has attributes beside its state, which torch's own copy leaves out."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.divisor, self.steps = 3.0, 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad, alpha=-group["lr"] / self.divisor)


class Lookahead(torch.optim.Optimizer):
    """Wraps an optimizer and does not call torch's constructor, as many do."""

    def __init__(self, base):
        self.base, self.steps = base, 0
        self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step()
        self.steps += 1
        if self.steps % 3 == 0:
            for group, slow in zip(self.param_groups, self.slow, strict=True):
                for parameter, kept in zip(group["params"], slow, strict=True):
                    parameter.copy_(kept.lerp_(parameter, 0.5))


def lookahead(parameters):
    class Own(Lookahead):  # a class of which nothing was made before: torch changes one at its first instance's use
        step = Lookahead.step

    return Own(torch.optim.SGD(list(parameters), lr=0.1))


OPTIMIZERS = {
    "torch's": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "with attributes": Counting,
    "a wrapper": lambda parameters: lookahead(parameters),
}


def test_a_range_test_runs_on_copies(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.clone() for p in model.parameters()]
    assert len(lr_find(model, nn.CrossEntropyLoss(), optimizer, BATCHES, steps=12).rates) >= 10
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("ending", ["pth", "onnx"])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_an_export_is_of_a_copy(model, ending, tmp_path):
    export(model, tmp_path / f"m.{ending}", batch=X)
    assert (tmp_path / f"m.{ending}").stat().st_size > 0


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_settings_are_measured_on_copies(model, kind):
    optimizer = OPTIMIZERS[kind](model.parameters())
    said = []
    table = tune({"compile": False}, TrainStep(model, nn.CrossEntropyLoss(), optimizer), BATCHES, say=said.append)
    assert said == [] and any(row.ms for row in table.rows)
    assert getattr(optimizer, "steps", 0) == 0


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_copy_makes_the_updates_of_its_original(kind):
    torch.manual_seed(0)
    model, loss = nn.Linear(8, 3), nn.CrossEntropyLoss()
    step = TrainStep(model, loss, OPTIMIZERS[kind](model.parameters()))
    for batch in BATCHES * 2:
        step([batch])
    twin = TrainStep(*twins(model, loss, step.optimizer))
    before = [p.clone() for p in model.parameters()]
    for batch in BATCHES:
        twin([batch])
    assert all(map(torch.equal, before, model.parameters()))
    for batch in BATCHES:
        step([batch])
    assert all(map(torch.equal, twin.model.parameters(), model.parameters()))


def test_what_of_an_optimizer_cannot_be_copied_is_named():
    model = nn.Linear(8, 3)
    optimizer = Counting(model.parameters())
    optimizer.log = threading.Lock()
    with pytest.raises(UsageError, match="the optimizer cannot be copied: its log: TypeError"):
        twins(model, nn.CrossEntropyLoss(), optimizer)


def test_a_wrapper_without_torchs_constructor_trains_under_a_schedule():
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    schedule = Schedule(optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), by="epoch")
    fit(model, nn.CrossEntropyLoss(), optimizer, (X, Y), epochs=2, batch_size=8, schedule=schedule)
    other = Lookahead(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))
    other.step()  # another of its class, in another's loop, as before
    assert optimizer.steps == 8 and optimizer.base.param_groups[0]["lr"] == 0.025


def test_what_only_looks_like_an_optimizer_is_refused():
    class Wrapped:
        def __init__(self, base):
            self.param_groups, self.step, self.state_dict = base.param_groups, base.step, base.state_dict

    model = nn.Linear(8, 3)
    wrapped = Wrapped(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UsageError, match="optimizer: an object of .*Wrapped was given; give an object, e.g. torch"):
        fit(model, nn.CrossEntropyLoss(), wrapped, (X, Y), epochs=1)


def test_what_of_a_loss_cannot_be_copied_is_named_and_its_locks_are_shared():
    loss, model = nn.CrossEntropyLoss(), nn.Linear(8, 3)
    loss.lock = threading.Lock()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert twins(model, loss, optimizer)[1].lock is loss.lock
    loss.locks = [threading.Lock()]
    with pytest.raises(UsageError, match=r"the loss cannot be copied: loss\.locks: TypeError"):
        twins(model, loss, optimizer)
