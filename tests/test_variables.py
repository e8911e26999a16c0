"""Values that Python alone sees (counters in attributes, closures, globals, classes): no look moves them, a resume
puts them back."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from fit_arguments import FIXED, fit_arguments
from torch import nn

import surefoot
from surefoot import Checkpointer, fit
from surefoot.checkpoint import object_states
from surefoot.errors import UsageError
from surefoot.variables import Variables

CALLS = 0
SEEN: list[float] = []


def counted(outputs, targets, number):
    return nn.functional.cross_entropy(outputs, targets) * (1 + number / 100)


def in_a_closure():
    calls = 0

    def loss(outputs, targets):
        nonlocal calls
        calls += 1
        return counted(outputs, targets, calls)

    return loss


def in_a_global():
    def loss(outputs, targets):
        global CALLS
        CALLS += 1
        return counted(outputs, targets, CALLS)

    return loss


def in_a_global_of_a_helper():
    def loss(outputs, targets):
        return counted(outputs, targets, next_call())

    return loss


def next_call():
    SEEN.append(1.0)
    return len(SEEN)


def in_a_function():
    def loss(outputs, targets):
        loss.calls += 1
        return counted(outputs, targets, loss.calls)

    loss.calls = 0
    return loss


class InAnAttribute:
    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, targets):
        self.calls += 1
        return counted(outputs, targets, self.calls)


class InASlot:
    __slots__ = ("calls",)

    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, targets):
        self.calls += 1
        return counted(outputs, targets, self.calls)


class InAClass:
    calls = 0

    def __call__(self, outputs, targets):
        InAClass.calls += 1
        return counted(outputs, targets, InAClass.calls)


class Counter:
    def __init__(self):
        self.calls = 0

    def next(self):
        self.calls += 1
        return self.calls


def in_an_object_that_is_closed_over():
    counter = Counter()
    return lambda outputs, targets: counted(outputs, targets, counter.next())


LOSSES = [
    in_a_closure,
    in_a_global,
    in_a_global_of_a_helper,
    in_a_function,
    InAnAttribute,
    InASlot,
    InAClass,
    in_an_object_that_is_closed_over,
]


class Remembering(nn.Module):
    """Counts its calls in a number, in a module of its own, and carries a state from batch to batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.drop = nn.Dropout(0.0)
        self.calls, self.last, self.recent = 0, None, deque(maxlen=3)

    def forward(self, x):
        if not self.training:
            return self.layer(x)
        self.calls += 1
        self.drop.p = min(0.5, 0.05 * self.calls)
        self.recent.append(float(x.detach().mean()))
        state = 0 if self.last is None else self.last
        out = self.layer(self.drop(x)) * (1 + self.calls / 50) + state + sum(self.recent)
        self.last = out.detach().mean(0)
        return out


def anew():
    global CALLS
    CALLS, InAClass.calls = 0, 0
    SEEN.clear()


def samples():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(40, 6, generator=generator), torch.arange(40) % 3


def trained(make_model, make_loss, execution, *, epochs=4, val=None, **run):
    anew()
    torch.manual_seed(1)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = fit_arguments(epochs=epochs, batch_size=8, val=val, execution=execution, **run)
    fit(model, make_loss(), optimizer, samples(), **arguments)
    return model


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def by_hand(make_model, make_loss):
    """The same run as a loop that anybody would write, over the batches that the loader gives."""
    anew()
    torch.manual_seed(1)
    model, loss = make_model(), make_loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = surefoot.Loader(samples(), batch_size=8, seed=0)
    for _ in range(4):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
    return model


def linear():
    return nn.Linear(6, 3)


@pytest.mark.parametrize("execution", ["plain", FIXED], ids=["plain", "lean"])
@pytest.mark.parametrize("make_loss", LOSSES)
def test_no_look_moves_what_a_loss_counts(make_loss, execution):
    assert same(trained(linear, make_loss, execution), by_hand(linear, make_loss))


@pytest.mark.parametrize("make_model, make_loss", [(linear, loss) for loss in LOSSES] + [(Remembering, in_a_closure)])
def test_a_resume_puts_back_what_is_counted(tmp_path, make_model, make_loss):
    execution = FIXED
    whole = trained(make_model, make_loss, execution, val=samples(), run_dir=tmp_path / "whole")
    rest = {"val": samples(), "run_dir": tmp_path / "parted"}
    trained(make_model, make_loss, execution, epochs=2, **rest)
    parted = trained(make_model, make_loss, execution, resume=True, **rest)
    assert same(whole, parted)


def test_a_resume_in_a_loop_of_ones_own_puts_back_what_the_model_counts(tmp_path):
    def train(run, steps):
        torch.manual_seed(1)
        model = Remembering()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Checkpointer(run, every="1 steps", model=model, optimizer=optimizer) as saver:
            saver.resume()
            while saver.steps < steps:
                optimizer.zero_grad()
                model(samples()[0]).square().mean().backward()
                optimizer.step()
                saver.step()
        return model

    whole = train(tmp_path / "whole", 6)
    train(tmp_path / "parted", 3)
    parted = train(tmp_path / "parted", 6)
    assert same(whole, parted)
    assert (parted.calls, parted.drop.p, parted.recent) == (whole.calls, whole.drop.p, whole.recent)
    assert torch.equal(parted.last, whole.last)


def test_what_a_script_sets_otherwise_before_a_resume_stays():
    model = Remembering()
    variables = Variables(model=model)
    model.calls = 5
    state = variables.state_dict()
    assert state == {"model": {"calls": 5}}
    again = Remembering()
    again.drop.p = 0.4  # another setting than the saved run had
    Variables(model=again).load_state_dict(state)
    assert (again.calls, again.drop.p) == (5, 0.4)


def test_what_was_put_back_is_saved_again():
    model = Remembering()
    variables = Variables(model=model)
    variables.load_state_dict({"model": {"calls": 5}})
    assert variables.state_dict() == {"model": {"calls": 5}}


def test_tensors_of_the_model_by_another_name_and_of_a_graph_are_not_kept():
    model = Remembering()
    model.first_row, model.large = model.layer.weight.data[0], torch.zeros((1 << 20) + 1)
    variables = Variables(model=model)
    with torch.no_grad():
        model.layer.weight.fill_(3.0)
        model.large += 1
    model.last = model(torch.ones(2, 6))
    assert set(variables.state_dict()["model"]) == {"calls", "recent"}


def test_a_tensor_that_two_names_share_is_shared_after_a_resume():
    def shared():
        model = nn.Linear(2, 2)
        model.one = model.other = torch.zeros(3)
        return model

    model = shared()
    variables = Variables(model=model)
    model.one += 2
    again = shared()
    Variables(model=again).load_state_dict(variables.state_dict())
    assert again.one is again.other and again.one.tolist() == [2, 2, 2]


def test_names_are_those_without_wrappers():
    model = Remembering()
    variables = Variables(model=nn.DataParallel(nn.Sequential(model)))
    model.calls, model.drop.p = 2, 0.25
    assert variables.state_dict() == {"model.0": {"calls": 2}, "model.0.drop": {"p": 0.25}}


def test_a_value_without_a_place_is_refused_before_any_is_changed():
    model = Remembering()
    state = {"model": {"calls": 5}, "model.helper": {"count": 1}}
    with pytest.raises(UsageError, match=r"have no place here: model\.helper\.count; make the objects that hold them"):
        Variables(model=model).load_state_dict(state)
    assert model.calls == 0


def test_a_checkpoint_from_before_there_were_any_fits():
    model = nn.Linear(2, 2)
    old = object_states.get_state({"model": model})
    objects = {"model": model, "variables": Variables(model=model)}
    object_states.require_fit(objects, old, "run")
    object_states.set_state(objects, old)


GENERATOR = torch.Generator()


def noise():
    return torch.rand((), generator=GENERATOR)


def test_a_generator_that_a_helper_draws_from_is_put_back(tmp_path):
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * (1 + noise())

    def run(directory, epochs=4, **more):
        GENERATOR.manual_seed(7)
        return trained(linear, lambda: loss, FIXED, run_dir=tmp_path / directory, epochs=epochs, **more)

    whole = run("whole")
    run("parted", 2)
    assert same(whole, run("parted", resume=True))
