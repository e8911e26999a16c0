"""The lint leaves no trace: whatever a forward and backward pass changes is put back, to the last bit."""

from __future__ import annotations

import copy
import random

import numpy
import pytest
import torch
from right_setups import right_setup
from torch import nn
from wrong_setups import WRONG

from surefoot import rng
from surefoot.errors import UsageError
from surefoot.losses import lint


def bits(value):
    """Anything as comparable plain values: tensors by their bytes, type and version-free identity."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1).cpu()
        return (tuple(value.shape), value.dtype, value.requires_grad, flat.view(torch.uint8).numpy().tobytes())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value


def trace(model, loss, optimizer) -> list:
    """Everything that must be the same afterwards."""
    modules = [m for root in (model, loss) if isinstance(root, nn.Module) for m in root.modules()]
    return [
        bits(rng.get_state()),
        [bits(m.state_dict()) for m in modules],
        [bits([p.grad for p in m.parameters(recurse=False)]) for m in modules],
        [m.training for m in modules],
        [(sorted(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
        [[id(t) for t in (*m.parameters(), *m.buffers())] for m in modules],
        bits(optimizer.state_dict()) if optimizer else None,
        numpy.random.get_state()[2],
        random.getstate()[1][-1],
    ]


def trained_a_little(setup):
    """Gradients, optimizer state and running statistics that are not those of a fresh model."""
    for parameter in (p for group in setup.optimizer.param_groups for p in group["params"]):
        parameter.grad = torch.randn_like(parameter)
    setup.optimizer.step()
    for buffer in setup.model.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.25)
    return setup


def test_random_right_set_ups_are_as_before():
    for seed in range(200, 260):
        setup = trained_a_little(right_setup(seed))
        children = list(setup.model.modules())
        children[len(children) // 2].eval()
        before = trace(setup.model, setup.loss, setup.optimizer)
        lint(setup.model, setup.loss, setup.optimizer, setup.batch, classes=setup.classes)
        assert trace(setup.model, setup.loss, setup.optimizer) == before, setup.about


def test_wrong_set_ups_are_as_before_too():
    for _, label, make in WRONG:
        torch.manual_seed(0)
        arguments = make()
        model, loss, optimizer = (arguments[name] for name in ("model", "loss", "optimizer"))
        before = trace(model, loss, optimizer)
        lint(**arguments)
        assert trace(model, loss, optimizer) == before, label


class Remembers(nn.Module):
    """Everything that a forward pass may write to."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.noise = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("rebound", torch.zeros(3))
        self.plain = torch.zeros(3)
        self.history, self.table, self.count, self.seen = [1], {"a": 1}, 0, {7}
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x):
        self.calls += 1
        self.rebound = self.rebound + 1
        self.plain.add_(1)
        self.history.append(len(x))
        self.table["b"] = 2
        self.table["a"] = 3
        self.seen.add(8)
        self.count += 1
        self.hidden = x
        random.random(), numpy.random.rand(), torch.rand(1)
        noise = torch.rand(len(x), 3, generator=self.generator)
        return self.noise(self.norm(self.linear(x))) + 0.01 * noise


def test_whatever_a_forward_pass_writes_is_put_back():
    model, batch = Remembers().eval(), (torch.randn(8, 4), torch.arange(8) % 3)
    state = (bits(model.state_dict()), bits(model.plain), [*model.history], {**model.table}, {*model.seen}, model.count)
    drawn = model.generator.get_state().clone()
    before = bits(rng.get_state())
    buffer = model.rebound
    assert lint(model, nn.CrossEntropyLoss(), None, batch) == []
    now = (bits(model.state_dict()), bits(model.plain), [*model.history], {**model.table}, {*model.seen}, model.count)
    assert now == state
    assert torch.equal(model.generator.get_state(), drawn)
    assert bits(rng.get_state()) == before
    assert model.rebound is buffer and not hasattr(model, "hidden") and not model.training


def test_a_crash_leaves_no_trace_either():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Linear(5, 3))
    batch = (torch.randn(8, 4), torch.zeros(8, dtype=torch.long))
    before = trace(model, None, None)
    with pytest.raises(UsageError):
        lint(model, nn.CrossEntropyLoss(), None, batch)
    assert trace(model, None, None) == before


def test_training_after_the_lint_is_training_without_it():
    def losses(look: bool) -> list[float]:
        rng.seed_all(3)
        model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))
        if look:
            lint(model, nn.CrossEntropyLoss(), optimizer, (x, y), classes=3)
        values = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    assert losses(True) == losses(False)


def test_a_hook_that_steps_during_backward_is_not_set_off():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepped = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: stepped.append(p))
    weight = model.weight.detach().clone()
    lint(model, nn.CrossEntropyLoss(), optimizer, (torch.randn(8, 4), torch.arange(8) % 3))
    assert stepped == [] and torch.equal(model.weight, weight)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        hidden = self.first(x).requires_grad_()
        return self.last(checkpoint(torch.tanh, hidden, use_reentrant=True))


def test_reentrant_checkpointing_is_looked_at_too():
    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = model.first.weight.grad = torch.ones(8, 4)
    batch = (torch.randn(8, 4), torch.arange(8) % 3)
    assert lint(model, nn.CrossEntropyLoss(), optimizer, batch) == []
    assert model.first.weight.grad is kept and bool((kept == 1).all()) and model.last.weight.grad is None


def test_a_compiled_model_is_looked_at_without_compiling():
    plain = nn.Sequential(nn.Linear(4, 3))
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    batch = (torch.randn(8, 4), torch.arange(8) % 3)
    assert lint(torch.compile(plain, backend=backend), nn.CrossEntropyLoss(), None, batch) == []
    in_place = copy.deepcopy(plain)
    in_place.compile(backend=backend)
    call = in_place._compiled_call_impl
    assert lint(in_place, nn.CrossEntropyLoss(), None, batch) == []
    assert compiled == [] and in_place._compiled_call_impl is call
