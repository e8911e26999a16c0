"""The range test: it finds the rates that a model can bear, on copies, and leaves no trace."""

from __future__ import annotations

import copy
import json
import math
import xml.etree.ElementTree as xml

import pytest
import torch
from torch import nn

from surefoot.data import Loader, TensorSource
from surefoot.errors import UsageError
from surefoot.models import SmallResNet
from surefoot.planning import LrFind, lr_find, range_test
from surefoot.step import StepOptions


def quadratic(curvature):
    """Gradient descent on c/2 x^2: safe below 2/c, fastest at 1/c."""
    place = [1.0]

    def step(rate):
        loss = 0.5 * curvature * place[0] ** 2
        place[0] -= rate * curvature * place[0]
        return loss + 1.0

    return step


@pytest.mark.parametrize("curvature", [0.1, 1.0, 30.0])
def test_the_edge_of_stability_of_a_quadratic_is_found(curvature):
    found = range_test(quadratic(curvature), 1e-4 / curvature, 1e3 / curvature, 150)
    assert "diverged" in found.stopped
    assert 0.05 / curvature < found.highest < 4 / curvature
    assert 0.005 / curvature < found.suggestion <= found.highest / 4
    assert found.rates == sorted(found.rates)
    assert found.rates[0] == 1e-4 / curvature


def test_the_noise_of_rates_that_change_nothing_is_not_taken_for_the_fall():
    def suggestion(seed: int) -> float:
        generator, learnt = torch.Generator().manual_seed(seed), [0.0]

        def step(rate: float) -> float:  # exp(-sum of rates) learns next to nothing below 1e-3
            noise = 0.3 * float(torch.randn((), generator=generator))
            loss = math.exp(-learnt[0]) + noise + 10 * max(0.0, rate - 1) ** 2
            learnt[0] += rate
            return loss

        return range_test(step).suggestion

    assert min(map(suggestion, range(40))) > 1e-3


def test_a_loss_that_never_falls_gets_no_suggestion():
    generator = torch.Generator().manual_seed(0)
    flat = range_test(lambda rate: 1.0 + 0.01 * float(torch.randn((), generator=generator)))
    rising = range_test(lambda rate: 1.0 + rate)
    for found in (flat, rising, range_test(lambda rate: 1.0)):
        assert found.suggestion is None
        assert found.highest is None
        assert "No suggestion" in found.render_terminal()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_test(value):
    found = range_test(lambda rate: value if rate > 0.1 else 1.0 - rate)
    assert found.stopped.startswith(f"the loss is {value} at rate")
    assert len(found.rates) < 100
    json.dumps(found.to_json(), allow_nan=False)
    assert found.render_terminal()


def test_losses_below_zero_are_no_divergence():
    found = range_test(lambda rate: -100 * math.sqrt(rate), 1e-6, 1.0)
    assert found.stopped is None


def setup(kind=torch.optim.SGD, tensor=False, **how):
    torch.manual_seed(0)
    model = SmallResNet(width=4, blocks=1)
    groups = [
        {"params": [p for n, p in model.named_parameters() if p.ndim > 1], "lr": torch.tensor(0.1) if tensor else 0.1},
        {
            "params": [p for n, p in model.named_parameters() if p.ndim <= 1],
            "lr": torch.tensor(0.02) if tensor else 0.02,
        },
    ]
    optimizer = kind(model.parameters() if kind is torch.optim.LBFGS else groups, **how)
    source = TensorSource(torch.randn(48, 1, 28, 28), torch.randint(0, 10, (48,)))
    return model, nn.CrossEntropyLoss(), optimizer, Loader(source, 16, seed=3)


@pytest.mark.parametrize(
    ("kind", "tensor", "how"),
    [
        (torch.optim.SGD, False, {"momentum": 0.9}),
        (torch.optim.AdamW, False, {}),
        (torch.optim.AdamW, True, {"capturable": False, "foreach": False}),
        (torch.optim.LBFGS, False, {"max_iter": 2}),
    ],
)
def test_no_trace_is_left(kind, tensor, how):
    model, loss, optimizer, loader = setup(kind, tensor, **how)
    inputs, targets = next(iter(loader))
    if kind is not torch.optim.LBFGS:
        loss(model(inputs), targets).backward()
        optimizer.step()
    model.eval()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), loader.state_dict()))
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    generator = torch.get_rng_state()
    found = lr_find(model, loss, optimizer, loader, steps=12)
    assert len(found.rates) >= 2
    after = (model.state_dict(), optimizer.state_dict(), loader.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values(), strict=True))
    assert str(before[1:]) == str(after[1:])
    assert torch.equal(generator, torch.get_rng_state())
    assert not model.training
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (gradient is None and parameter.grad is None) or torch.equal(parameter.grad, gradient)


def test_groups_keep_their_proportions():
    model, loss, optimizer, loader = setup()
    seen = []
    kept = torch.optim.SGD.step

    def step(self, closure=None):
        seen.append([group["lr"] for group in self.param_groups])
        return kept(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        found = lr_find(model, loss, optimizer, loader, start=1e-4, end=1e-2, steps=10)
    assert [first for first, _ in seen] == found.rates
    assert all(second == pytest.approx(0.2 * first) for first, second in seen)


def test_batches_begin_again_and_are_accumulated():
    model, loss, optimizer, loader = setup()
    few = [next(iter(loader))]
    found = lr_find(
        model, loss, optimizer, few, start=1e-5, end=1e-4, steps=10, options=StepOptions(grad_accum_steps=3)
    )
    assert len(found.losses) == 10


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"start": 0}, "must rise from start to end"),
        ({"start": 1.0, "end": 0.1}, "found 1 to 0.1"),
        ({"steps": 5}, "5 is too few to see a slope"),
    ],
)
def test_bad_arguments_are_told(how, told):
    with pytest.raises(UsageError, match=told):
        lr_find(*setup(), **how)


def test_no_batches_are_told():
    with pytest.raises(UsageError, match="there are no batches"):
        lr_find(*setup()[:3], [])


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_chart_keeps_to_its_width_and_shows_the_suggestion(width, unicode, tmp_path):
    found = range_test(quadratic(1.0), 1e-5, 100.0)
    text = found.render_terminal(width, unicode)
    assert all(len(line) <= width for line in text.splitlines())
    assert text.isascii() is not unicode
    assert f"suggested rate {found.suggestion:.2g}" in text
    if width == 80:
        found.save_svg(tmp_path / "a.svg")
        assert f"suggested {found.suggestion:.2g}" in (tmp_path / "a.svg").read_text()
        with pytest.raises(UsageError, match=r"give .*a\.svg"):
            found.save_svg(tmp_path / "a.png")
        with pytest.raises(UsageError, match="is a directory"):
            found.save_svg(".")


def test_a_test_that_saw_no_loss_has_a_picture_all_the_same(tmp_path):
    found = LrFind([1e-7], [math.nan], [], None, None, "the loss is not finite at rate 1e-07")
    found.save_svg(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "range test" in "".join(xml.fromstring(text).itertext()) and "nan" not in text
    assert "No suggestion" in found.render_terminal()
