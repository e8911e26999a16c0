"""The captured step, on the CPU: a stand-in captures by remembering the work and replays by doing it again."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from surefoot.execution import CannotCompile
from surefoot.execution.captured import CapturedUpdate
from surefoot.execution.eager import EagerUpdate
from surefoot.execution.parity import eager_gradients, first_difference
from surefoot.step import NonFiniteLoss, StepResult, TrainStep


class Remembered:
    """What a CUDA graph does, by hand: replays write into the tensors that the capture gave."""

    def __init__(self):
        self.replays = 0

    def capture(self, work):
        filled = [tensor.clone() for tensor in work()]

        def replay():
            self.replays += 1
            for place, value in zip(filled, work(), strict=True):
                place.copy_(value)

        return replay, filled


def made(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return model, optimizer(model.parameters())


def batches(count=4, size=6):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 5, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for _ in range(count)
    ]


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01, fused=True),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


def captured(model, optimizer, graphs=None, nonfinite=NonFiniteLoss, loss=None, **limits):
    loss = loss or nn.CrossEntropyLoss()
    plain = TrainStep(model, loss, optimizer, **limits)
    clip = plain.clip if plain.clips else None
    eager = EagerUpdate(model, loss, optimizer, fallback=plain.plain, result=StepResult, nonfinite=nonfinite, clip=clip)
    return CapturedUpdate(model, loss, optimizer, batches()[0], eager, graphs=graphs or Remembered(), **limits)


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
    plain = TrainStep(other, nn.CrossEntropyLoss(), reference, **limits)
    kept = []
    for i, batch in enumerate(batches()):
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
    assert all(not bool(value.any()) for state in optimizer.state.values() for value in state.values())
    assert torch.equal(random, torch.get_rng_state())


def test_its_gradients_can_be_checked_without_a_trace():
    model, optimizer = made(OPTIMIZERS["SGD with momentum"])
    update = captured(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    expected = eager_gradients(copy.deepcopy(model), nn.CrossEntropyLoss(), batches()[1])
    assert first_difference(expected, update.gradients(batches()[1])) is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_leaves_parameters_and_state_alone():
    model, optimizer = made(OPTIMIZERS["Adam"])
    update = captured(model, optimizer)
    update([batches()[0]])
    before = copy.deepcopy((list(model.parameters()), optimizer.state_dict()["state"]))
    with pytest.raises(NonFiniteLoss):
        update([(batches()[1][0] * math.inf, batches()[1][1])])
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
    update([batches()[0]])
    model.train()
    assert graphs.replays == 0
    optimizer.param_groups[0]["momentum"] = 0.5
    update([batches()[0]])
    assert graphs.replays == 0 and update.retired


def test_what_cannot_be_captured_says_why():
    with pytest.raises(CannotCompile, match="RMSprop has no fused update"):
        captured(*made(lambda p: torch.optim.RMSprop(p)))
    with pytest.raises(CannotCompile, match="SGD has no fused update"):
        captured(*made(lambda p: torch.optim.SGD(p, lr=0.1)))
    with pytest.raises(CannotCompile, match="amsgrad"):
        captured(*made(lambda p: torch.optim.Adam(p, amsgrad=True, fused=True)))
    model, optimizer = made(OPTIMIZERS["Adam"])
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(CannotCompile, match="module 0 has hooks"):
        captured(model, optimizer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_the_graph_trains_as_the_plain_step_does():
    loss = nn.CrossEntropyLoss()
    results = []
    for fast in (True, False):
        model, _ = made(OPTIMIZERS["Adam"])
        model = model.cuda()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        plain = TrainStep(model, loss, optimizer, check_finite=False)
        step = plain.plain
        on_gpu = [tuple(part.cuda() for part in batch) for batch in batches()]
        if fast:
            eager = EagerUpdate(model, loss, optimizer, fallback=plain.plain, result=StepResult)
            step = CapturedUpdate(model, loss, optimizer, on_gpu[0], eager)
        for batch in on_gpu:
            step([batch])
        results.append({name: value.cpu() for name, value in model.state_dict().items()})
    assert close(*results)
