"""The captured step, on the CPU: a stand-in captures by remembering the work and replays by doing it again."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from graph_steps import Remembered, batches
from torch import nn

from surefoot.errors import UsageError
from surefoot.execution import CannotCompile, Execution, make_backend, verify
from surefoot.execution.captured import capture_step
from surefoot.execution.graph_step import GraphStep
from surefoot.nonfinite import NonFinite
from surefoot.step import StepOptions, TrainStep


def made(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return model, optimizer(model.parameters())


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01, fused=True),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


def captured(model, optimizer, graphs=None, loss=None, **options):
    step = TrainStep(model, loss or nn.CrossEntropyLoss(), optimizer, StepOptions(**options))
    return graph_step(step, graphs or Remembered())


def graph_step(step, graphs):
    return GraphStep(step, lambda: capture_step(step, batches(4)[0], graphs), print)


def close(a, b):
    if isinstance(a, torch.Tensor):
        return torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b


@pytest.mark.parametrize("limits", [{}, {"max_grad_norm": 0.1, "clip_value": 0.05}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replays_train_as_the_plain_step_does_at_every_rate(name, limits):
    model, optimizer = made(OPTIMIZERS[name])
    other, reference = made(OPTIMIZERS[name])
    graphs = Remembered()
    update = captured(model, optimizer, graphs, **limits)
    plain = TrainStep(other, nn.CrossEntropyLoss(), reference, StepOptions(**limits))
    kept = []
    for i, batch in enumerate(batches(4)):
        for o in (optimizer, reference):
            o.param_groups[0]["lr"] = 0.01 * (i + 1)
        a, b = update([batch]), plain([batch])
        assert close(tuple(a), tuple(b))
        kept.append((a, copy.deepcopy(a)))
    assert graphs.replays == 4
    assert close(model.state_dict(), other.state_dict())
    assert close(optimizer.state_dict()["state"], reference.state_dict()["state"])
    # What was returned is not written over by later replays.
    assert all(torch.equal(a.outputs, b.outputs) and torch.equal(a.loss, b.loss) for a, b in kept)


def test_capturing_leaves_no_trace():
    model, optimizer = made(OPTIMIZERS["Adam"])
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    captured(model, optimizer)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not optimizer.state
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("limits", [{}, {"max_grad_norm": 0.1}])
def test_it_is_compared_with_the_plain_step_without_a_trace(limits):
    model, optimizer = made(OPTIMIZERS["SGD with momentum"])
    update = captured(model, optimizer, **limits)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    assert verify(update.step, update, [batches(4)[1]]) is None
    assert close(before, (model.state_dict(), optimizer.state_dict()["state"]))


class Root(nn.Module):
    """At a row of zeros the value is 0 and the slope of the root infinite: a finite loss, NaN gradients."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(5, 4, bias=False), nn.Linear(1, 3)

    def forward(self, x):
        return self.out(self.layer(x).pow(2).sum(1, keepdim=True).sqrt())


def test_a_gradient_that_is_not_finite_leaves_everything_alone():
    torch.manual_seed(0)
    model = Root()
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    update = captured(model, optimizer)
    update([batches(4)[0]])
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    inputs, targets = batches(4)[1]
    with pytest.raises(NonFinite, match=r"the gradient of layer\.weight is not finite"):
        update([(inputs.index_fill(0, torch.tensor([2]), 0.0), targets)])
    for a, b in zip(before[0].values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(before[1][i][name], after[i][name]) for i in after for name in after[i])


@pytest.mark.parametrize("loaded", ["before the capture", "after it", "elsewhere"])
def test_a_state_that_was_loaded_is_the_one_that_is_trained(loaded):
    """A graph writes to the addresses that it met; what was loaded later lies elsewhere."""
    results = []
    for fast in (False, True):
        model, optimizer = made(OPTIMIZERS["SGD with momentum"])
        step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
        for batch in batches(4):
            step([batch])
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        model, optimizer = made(OPTIMIZERS["SGD with momentum"])
        step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
        graphs = Remembered()
        if fast and loaded != "before the capture":
            step.backend = graph_step(step, graphs)
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(copy.deepcopy(saved[1]))
        if loaded == "elsewhere":
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        if fast and loaded == "before the capture":
            step.backend = graph_step(step, graphs)
        for batch in batches(4):
            step([batch])
        assert graphs.replays == (4 if fast and loaded != "elsewhere" else 0)
        results.append((model.state_dict(), optimizer.state_dict()["state"]))
    assert close(*results)


@pytest.mark.parametrize("part", ["a frozen parameter", "a buffer", "a weight of the loss"])
def test_what_is_put_elsewhere_retires_the_graph(part):
    model, _ = made(OPTIMIZERS["SGD"])
    model[:3].requires_grad_(False)
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    graphs = Remembered()
    update = captured(model, torch.optim.SGD(model[3].parameters(), lr=0.1), graphs, loss)
    update([batches(4)[0]])
    if part == "a frozen parameter":
        model[0].weight.data = torch.zeros(8, 5)
    elif part == "a buffer":
        model[1].running_mean = torch.ones(8)
    else:
        loss.weight = torch.tensor([0.0, 1.0, 2.0])
    other, other_loss = copy.deepcopy((model, loss))
    plain = TrainStep(other, other_loss, torch.optim.SGD(other[3].parameters(), lr=0.1))
    assert torch.equal(update([batches(4)[1]]).loss, plain([batches(4)[1]]).loss)
    assert graphs.replays == 1
    assert close(model.state_dict(), other.state_dict())


def test_a_loss_that_is_not_finite_leaves_parameters_and_state_alone():
    model, optimizer = made(OPTIMIZERS["Adam"])
    update = captured(model, optimizer)
    update([batches(4)[0]])
    before = copy.deepcopy((list(model.parameters()), optimizer.state_dict()["state"]))
    with pytest.raises(NonFinite):
        update([(batches(4)[1][0] * math.inf, batches(4)[1][1])])
    assert all(torch.equal(a, b) for a, b in zip(before[0], model.parameters(), strict=True))
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(before[1][i][name], after[i][name]) for i in after for name in after[i])


def test_what_the_graph_is_not_for_runs_eagerly():
    model, optimizer = made(OPTIMIZERS["SGD with momentum"])
    graphs = Remembered()
    update = captured(model, optimizer, graphs)
    assert update([batches(size=4)[0]]).samples == 4
    assert update(batches(2)).samples == 12
    model.eval()
    update([batches(4)[0]])
    model.train()
    assert graphs.replays == 0
    optimizer.param_groups[0]["momentum"] = 0.5  # of the update, which is no part of the graph
    update([batches(4)[0]])
    assert graphs.replays == 1


def test_what_cannot_be_captured_says_why():
    with pytest.raises(CannotCompile, match="ctc loss"):
        captured(*made(OPTIMIZERS["Adam"]), loss=nn.CTCLoss())
    model, optimizer = made(OPTIMIZERS["Adam"])
    model[0].register_forward_hook(lambda *_: None)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    with pytest.raises(CannotCompile, match="module 0 has hooks"):
        make_backend(Execution(cuda_graph=True), step, batches(4)[0])
    inside = nn.Sequential(nn.DataParallel(nn.Linear(5, 3)))
    step = TrainStep(inside, nn.CrossEntropyLoss(), torch.optim.SGD(inside.parameters(), lr=0.1))
    for execution in (Execution(cuda_graph=True), Execution(compile="gradients")):
        with pytest.raises(CannotCompile, match="graph of a DataParallel would leave out what it does between"):
            make_backend(execution, step, batches(4)[0])
    with pytest.raises(UsageError, match="a captured step is not a compiled one"):
        Execution(cuda_graph=True, compile="gradients")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_the_graph_trains_as_the_plain_step_does():
    loss = nn.CrossEntropyLoss()
    results = []
    for fast in (True, False):
        model, _ = made(OPTIMIZERS["Adam"])
        model = model.cuda()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        step = TrainStep(model, loss, optimizer)
        on_gpu = [tuple(part.cuda() for part in batch) for batch in batches(4)]
        if fast:
            step.backend = GraphStep(step, functools.partial(capture_step, step, on_gpu[0]), print)
        for batch in on_gpu:
            step([batch])
        results.append({name: value.cpu() for name, value in model.state_dict().items()})
    assert close(*results)


def test_a_part_in_another_mode_than_at_the_capture_runs_eagerly():
    model, optimizer = made(OPTIMIZERS["SGD"])
    graphs = Remembered()
    fast = captured(model, optimizer, graphs)
    for training, replays in ((False, 0), (True, 1)):
        model[1].train(training)
        fast([batches(4)[0]])
        assert graphs.replays == replays
