"""Modules called without nn.Module's wrapper: the same bits, every hook and patch seen, and nothing left behind."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune

from surefoot.execution.calls import DirectCalls
from surefoot.models import MODELS


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.same = nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular", bias=False)
        self.pool = nn.MaxPool2d(2)
        self.act = nn.ReLU()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(inplace=True))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.inner(self.pool(self.act(self.same(self.conv(input=x)))))


def inputs():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def dicts(model):
    return [dict(module.__dict__) for module in model.modules()]


def direct(model, x=None):
    """One pass with direct calls; everything must be as it was after it, but for what the model itself counts."""
    before = dicts(model)
    with DirectCalls(model):
        out = model(inputs() if x is None else x)
    after = dicts(model)
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert all(one[key] is other[key] for key in one if key != "calls")
    return out


@pytest.mark.parametrize("name", [*MODELS.names(), "Net"])
def test_the_bits_are_those_of_plain_calls(name):
    torch.manual_seed(0)
    model = Net() if name == "Net" else MODELS.build(name, {})
    x = inputs() if name == "Net" else torch.randn(4, 1, 28, 28)
    twin = copy.deepcopy(model)
    targets, loss = torch.randint(0, 5, (4,)), nn.CrossEntropyLoss(label_smoothing=0.1, weight=None)
    plain = loss(twin(x), targets)
    with DirectCalls(model, loss):
        value = loss(model(x), targets)
    assert torch.equal(value, plain)
    value.backward()
    plain.backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(one, other)
    assert name != "Net" or model.calls == 1


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5])),
        nn.CrossEntropyLoss(reduction="sum", ignore_index=1),
        nn.CrossEntropyLoss(reduction="none", label_smoothing=0.2),
    ],
)
def test_cross_entropy_takes_all_its_settings(loss):
    outputs, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = loss(outputs, targets)
    with DirectCalls(loss):
        assert torch.equal(loss(outputs, targets), expected)


def test_hooks_are_called_whenever_they_came():
    model, seen = Net(), []
    calls = DirectCalls(model)
    handles = [
        model.conv.register_forward_hook(lambda *_: seen.append("forward")),
        model.inner[1].register_forward_pre_hook(lambda *_: seen.append("before")),
        model.pool.register_full_backward_hook(lambda *_: seen.append("backward")),
        model.same.register_full_backward_pre_hook(lambda *_: seen.append("before backward")),
    ]
    with calls:
        model(inputs()).sum().backward()
    assert sorted(seen) == ["backward", "before", "before backward", "forward"]
    for handle in handles:
        handle.remove()
    seen.clear()
    with calls:
        model(inputs())
    assert seen == []
    handle = register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    with calls:
        model(inputs())
    handle.remove()
    assert seen.count("Conv2d") == 2 and "Net" in seen


def test_what_became_of_a_module_since_is_seen():
    model = Net()
    calls = DirectCalls(model)
    x = inputs()

    def agrees():
        with calls:
            return torch.equal(model(x), model.forward(x))

    model.conv.weight = nn.Parameter(torch.ones_like(model.conv.weight))
    assert agrees()
    model.conv.forward = lambda input: torch.zeros(4, 3, 6, 6)
    with calls:
        assert not model.conv(x).any()
    del model.conv.forward
    prune.l1_unstructured(model.conv, "weight", 0.5)
    assert agrees() and int((model.conv.weight == 0).sum()) == 14
    parametrize.register_parametrization(model.inner[1], "weight", nn.Softplus())
    assert agrees()
    model.pool = nn.AvgPool2d(2)  # not among those that were there
    assert agrees()
    del model.inner[1]
    model.inner.insert(1, nn.LazyLinear(5))
    assert agrees()


def test_weights_that_are_plain_attributes_are_used():
    """As a network does whose weights another network computes."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    calls = DirectCalls(model)
    for layer in (model[0], model[2]):
        weight = layer.weight.detach() * 2
        del layer.weight
        layer.weight = weight
    with calls:
        out = model(inputs())
    assert torch.equal(out, model(inputs()))


def test_where_torch_compile_has_a_part_nothing_is_done():
    model = Net()
    calls = DirectCalls(model)
    model.inner._compiled_call_impl = lambda input: torch.zeros(4, 5)  # as Module.compile leaves it
    with calls:
        assert all("_compiled_call_impl" not in m.__dict__ for m in model.modules() if m is not model.inner)
        assert not model(inputs()).any()
    assert "_compiled_call_impl" in model.inner.__dict__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on importing its compiler
        model = torch.compile(Net())
    with DirectCalls(model):
        assert all("_compiled_call_impl" not in m.__dict__ for m in model.modules())


def test_a_class_with_a_call_of_its_own_is_left_alone():
    class Own(nn.ReLU):
        def __call__(self, x):
            return x * 0 + 7

    assert direct(nn.Sequential(Own()), torch.zeros(1)).item() == 7


def test_an_error_leaves_nothing_behind():
    model = Net()
    before = dicts(model)
    with pytest.raises(RuntimeError), DirectCalls(model):
        model(torch.zeros(4, 2, 8, 8))
    assert [set(d) for d in before] == [set(d) for d in dicts(model)]
    direct(model)


def test_functions_and_script_modules_are_left_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Linear(3, 2))
    x = torch.ones(1, 3)
    with DirectCalls(scripted, nn.functional.cross_entropy):
        assert torch.equal(scripted(x), scripted(x))
