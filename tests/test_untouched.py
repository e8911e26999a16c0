"""Running live objects leaves no trace: a model that was looked at is, to the bit, one that never was."""

from __future__ import annotations

import copy
import functools
import random

import numpy
import pytest
import torch
from torch import nn

import surefoot
from surefoot import rng
from surefoot.build import build
from surefoot.execution import Execution, choose_execution, evaluation_batch, tune, verified_backend
from surefoot.losses import lint
from surefoot.planning import lr_find
from surefoot.planning.cost import memory_of
from surefoot.recipe import load_recipe
from surefoot.step import TrainStep
from surefoot.untouched import Snapshot, untouched


class Notes:
    """An object of the user's own with state."""

    def __init__(self):
        self.seen = [0]


class Changes(nn.Module):
    """Everything that a forward pass may change."""

    def __init__(self):
        super().__init__()
        self.lazy = nn.LazyLinear(6)
        self.norm = nn.BatchNorm1d(6)
        self.frozen = nn.BatchNorm1d(6).eval()
        self.old = nn.utils.weight_norm(nn.Linear(6, 6)) if hasattr(nn.utils, "weight_norm") else nn.Linear(6, 6)
        self.out = nn.Linear(6, 2)
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("shape_of_batch", torch.zeros(0))
        self.register_buffer("expanded", torch.zeros(1, 6).expand(3, 6))
        self.plain = torch.zeros(2)
        self.calls, self.notes, self.table = 0, Notes(), {"a": [1]}
        self.array = numpy.zeros(2)
        self.dice, self.generator = random.Random(1), torch.Generator().manual_seed(1)
        self.hooked = lambda value: self.norm(value)  # closes over this very module, in a copy too

    def forward(self, x):
        x = self.lazy(x)
        if not self.ready:  # data-dependent initialisation
            with torch.no_grad():
                self.out.weight.copy_(x.mean() * torch.randn(2, 6))
            self.ready.fill_(True)
        self.shape_of_batch = torch.ones(len(x))
        self.plain += 1
        self.plain = self.plain + 1
        self.calls += 1
        self.notes.seen.append(self.calls)
        self.notes.last = x.detach()
        self.table["a"].append(len(x))
        self.array += 1
        self.dice.random()
        torch.rand(2, generator=self.generator)
        random.random(), numpy.random.random()
        return self.out(self.old(self.frozen(self.hooked(x))))


@pytest.fixture
def model():
    with pytest.warns(Warning):  # lazy modules, and the old weight_norm, warn of themselves
        torch.manual_seed(0)
        return Changes()


def state(model: Changes) -> list:
    """Everything of `model` and the process that a pass changes, as plain values."""
    tensors = {
        name: (type(t), None if isinstance(t, nn.UninitializedParameter) else t.tolist(), id(t))
        for name, t in (*model.named_parameters(), *model.named_buffers())
    }
    return [
        tensors,
        [
            (type(m), m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
            for m in model.modules()
        ],
        (model.plain.tolist(), model.calls, model.notes.seen.copy(), sorted(vars(model.notes)), model.array.tolist()),
        copy.deepcopy(model.table),
        (model.dice.getstate(), model.generator.get_state().tolist()),
        {k: str(v) for k, v in rng.get_state().items()},
        (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    ]


def test_whatever_a_pass_changes_is_put_back(model):
    before = state(model)
    with untouched(model):
        model(torch.randn(8, 3)).sum().backward()
        model.eval()
    assert state(model) == before
    assert model.norm.weight.grad is None


def test_after_an_error_too(model):
    before = state(model)
    with pytest.raises(KeyError), untouched(model):
        model(torch.randn(8, 3))
        raise KeyError
    assert state(model) == before


def test_gradients_and_optimizer_state_are_put_back():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    grad, before = model.weight.grad, copy.deepcopy((model.state_dict(), model.weight.grad))
    with untouched(model, None, optimizer):
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 5.0
        model.weight.grad.zero_()
        optimizer.zero_grad()
    assert model.weight.grad is grad and torch.equal(grad, before[1])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before[0].values(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.1 and not optimizer.state


def test_what_changed_in_python_is_named(model):
    snapshot = Snapshot(model)
    assert snapshot.put_back() is None
    model.notes.seen.append(1)
    assert snapshot.put_back() == "the forward pass changes model.notes.seen"
    random.random()
    assert snapshot.put_back() == "the forward pass draws from Python's random"
    model.dice.random()
    assert snapshot.put_back() == "the forward pass draws from model.dice"


def looks(model, batch):
    """Every look at live objects that the house has."""
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD([p for p in model.parameters() if not isinstance(p, nn.UninitializedParameter)], lr=0.1)
    yield lambda: lint(model, loss, optimizer, batch)
    yield lambda: evaluation_batch(model, batch[0][:1])
    yield lambda: memory_of(model, optimizer, batch, lambda m, b: loss(m(b[0]), b[1]))
    step = TrainStep(model, loss, optimizer)
    yield lambda: choose_execution("auto", step, [batch], steps_expected=1000, cache=False)
    model(batch[0])
    yield lambda: tune({"threads": 1, "compile": False}, step, [batch], budget_s=0)
    yield lambda: verified_backend(Execution(), step, [batch])


@pytest.mark.filterwarnings("ignore")
def test_no_look_before_the_first_step_leaves_a_trace(model):
    batch = torch.randn(8, 3), torch.randint(2, (8,))
    for look in looks(model, batch):
        before = state(model)
        look()
        assert state(model) == before


def test_the_range_test_leaves_a_model_in_evaluation_mode_in_it():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2))
    before = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lr_find(model, nn.CrossEntropyLoss(), optimizer, [(torch.randn(8, 3), torch.randint(2, (8,)))], steps=12)
    assert [m.training for m in model.modules()] == before[1]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before[0].values(), strict=True))


class DataDependent(nn.Module):
    """Takes its scale from the first batch that it is given, as ActNorm does."""

    def __init__(self):
        super().__init__()
        self.flat, self.out = nn.Flatten(), nn.Linear(784, 10)
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, x):
        if not self.scale:
            self.scale.fill_(x.std().item())
        return self.out(self.flat(x) / self.scale)


@pytest.mark.parametrize("size", ["null", "32"])
def test_a_data_dependent_start_comes_from_the_first_training_batch(size, tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text("from test_untouched import DataDependent\n")
    monkeypatch.syspath_prepend(tmp_path)
    changes = ["model={import: 'my_model:DataDependent'}", "data.train_size=200", "data.val_size=100"]
    recipe = load_recipe("quickstart", [*changes, f"data.eval_batch_size={size}"])
    built = build(recipe)
    assert built.model.scale == 0


def test_a_look_at_data_draws_nothing():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return torch.randn(3) + random.random(), i % 2

    loader = surefoot.Loader(surefoot.data.as_source(Noisy()), 4)
    before = str(rng.get_state())
    loader.peek(), loader.batch_at(0, 1)
    assert str(rng.get_state()) == before


def test_the_systems_own_randomness_has_no_state_to_put_back():
    model = nn.Linear(2, 2)
    model.dice = random.SystemRandom()
    with untouched(model) as looked:
        model(torch.ones(1, 2))
    assert looked.put_back() is None


SHARED = torch.Generator()


def with_teacher(model, batch, teacher, calls):
    calls.append(1)
    return (model(batch[0]) - teacher(batch[0])).square().mean()


def drawing(model, batch, own=numpy.random.default_rng(0)):  # noqa: B008
    return model(batch[0] + torch.rand(3, generator=SHARED) + own.random()).mean()


@pytest.mark.parametrize("how", ["closure", "partial", "default", "a partial in a closure"])
def test_what_an_objective_is_given_is_put_back(how):
    teacher, calls = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), []
    partial = functools.partial(with_teacher, teacher=teacher, calls=calls)
    function = {
        "closure": lambda model, batch: with_teacher(model, batch, teacher, calls),
        "partial": partial,
        "default": lambda model, batch, teacher=teacher, *, calls=calls: with_teacher(model, batch, teacher, calls),
        "a partial in a closure": lambda model, batch: partial(model, batch),
    }[how]
    objective, model = surefoot.objective(function), nn.Linear(3, 2)
    with untouched(model, objective) as looked:
        objective(model, (torch.ones(4, 3),))
        assert looked.put_back() is not None
    assert teacher[1].num_batches_tracked == 0 and not calls


def test_generators_that_an_objective_finds_elsewhere_are_put_back():
    objective, model = surefoot.objective(drawing), nn.Linear(3, 2)
    torchs, numpys = SHARED.get_state(), str(drawing.__defaults__[0].bit_generator.state)
    with untouched(model, objective):
        objective(model, (torch.ones(4, 3),))
    assert torch.equal(SHARED.get_state(), torchs)
    assert str(drawing.__defaults__[0].bit_generator.state) == numpys


def test_an_array_that_nothing_can_write_to_is_left_alone():
    model = nn.Linear(3, 2)
    model.table = numpy.frombuffer(bytes(8), dtype=numpy.float32)
    with untouched(model):
        model(torch.ones(1, 3))
    assert model.table.tolist() == [0, 0]
