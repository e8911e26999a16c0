"""verify: each difference between a backend and the plain step is found and named."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from graph_steps import RULES, batches, close, made, step_of, updater
from torch import nn

from surefoot import objective
from surefoot.execution import CannotCompile, Execution, prepare, verified_backend, verify
from surefoot.execution.eager import EagerStep
from surefoot.execution.graph_step import GraphStep
from surefoot.step import StepOptions, TrainStep


@pytest.mark.parametrize("limits", [{}, {"max_grad_norm": 0.1}])
def test_a_compiled_step_is_compared_with_the_plain_one_without_a_trace(limits):
    model, optimizer = made(RULES["Adam"], dropout=0.5)
    fast = updater(model, nn.CrossEntropyLoss(), optimizer, batches()[0], **limits)
    before, random = copy.deepcopy((model.state_dict(), optimizer.state_dict())), torch.get_rng_state()
    assert verify(fast.step, fast, [batches()[0]]) is None
    assert close(before, (model.state_dict(), optimizer.state_dict()))
    assert torch.equal(random, torch.get_rng_state())


def lie(what):
    """A backend that is the plain step, but for one thing."""

    def backend(step):
        def run(micro_batches):
            result = step.plain(micro_batches)
            with torch.no_grad():
                if what == "update":  # another rule: p + 123 * grad
                    for p in step.model.parameters():
                        p.add_(p.grad, alpha=123)
                elif what == "outputs":
                    result = result._replace(outputs=result.outputs + 1)
                elif what == "NaN":
                    result = result._replace(outputs=result.outputs * torch.nan)
                elif what == "parameter":
                    step.optimizer.param_groups[-1]["params"][0].zero_()
                elif what == "loss":
                    result = result._replace(loss=result.loss * 1.1)
                elif what == "buffer":
                    step.model.norm.running_mean.add_(1)
                elif what == "state":
                    step.optimizer.state[step.model.last.weight]["exp_avg"].mul_(2)
                elif what == "gradient":
                    step.model.last.bias.grad = torch.zeros(3)
            return result

        run.writes_unseen = True
        return run

    return backend


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("update", "the loss is .* where eager has"),
        ("outputs", "its outputs are off"),
        ("NaN", "its outputs are off"),
        ("parameter", "parameter 5 of the optimizer is off by"),
        ("loss", "the loss is"),
        ("buffer", "buffer norm.running_mean is off by"),
        ("state", "last.weight is off by .* of its change after two updates"),
        ("gradient", "the gradient of last.bias is all zeros where eager has"),
    ],
)
def test_each_difference_from_the_plain_step_is_found(what, words):
    model, optimizer = made(RULES["Adam"])
    outside = nn.Parameter(torch.ones(()))
    optimizer.add_param_group({"params": [outside]})
    step = TrainStep(model, lambda o, t: nn.functional.cross_entropy(o, t) + outside * 0.01, optimizer)
    assert re.search(words, verify(step, lie(what)(step), [batches()[0]]))
    assert verify(step, lie("nothing")(step), [batches()[0]]) is None


def test_an_eager_backend_is_held_to_the_bit():
    model, optimizer = made()
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)

    def nearly(micro_batches):
        result = step.plain(micro_batches)
        with torch.no_grad():
            model.last.weight.mul_(1 + 1e-6)
        return result

    assert "differs from eager: the loss is" in verify(step, nearly, [batches()[0]])


class Gated(nn.Module):
    """Its second layer has a gradient of zeros."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x):
        return self.first(x) + 0.0 * self.second(x)


def test_to_the_bit_no_parameter_is_passed_over():
    model = Gated()
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5))

    def forgets(micro_batches):
        before = model.second.weight.detach().clone()
        result = step.plain(micro_batches)
        with torch.no_grad():
            model.second.weight.copy_(before)
        return result

    assert "second.weight is off" in verify(step, forgets, [(torch.randn(8, 3), torch.randn(8, 1))], exact=True)


def test_a_compiled_module_may_round_otherwise(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    monkeypatch.setattr("surefoot.execution.backends.why_not", lambda *_: None)
    monkeypatch.setattr(torch, "compile", lambda module, options: lambda x: module(x) * (1 + 2**-20))
    batch = torch.randn(8, 3), torch.randn(8, 1)
    settings = Execution(threads=torch.get_num_threads(), compile="module")
    with prepare(settings, model, step.optimizer):
        assert isinstance(verified_backend(settings, step, [batch]), EagerStep)


@pytest.mark.parametrize("rest", [[], [1, 2]])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_backend_is_not_accepted_on_a_batch_that_nothing_can_be_compared_on(rest, compiled, monkeypatch):
    model, optimizer = made()
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, StepOptions(on_nonfinite="skip"))
    examples, other = batches(3), (torch.randn(9, 5), torch.arange(9) % 3)  # of another shape, which no graph is for
    examples[0][0][0] = torch.nan
    looked_at = [examples[0], *([other] if compiled else []), *(examples[each] for each in rest)]
    monkeypatch.setattr("surefoot.execution.backends.why_not", lambda *_: None)
    monkeypatch.setattr(
        "surefoot.execution.backends.compile_step",
        lambda step, batch: step_of(step.model, step.loss, step.optimizer, batch, on_nonfinite="skip"),
    )
    settings = Execution(threads=torch.get_num_threads(), compile="gradients" if compiled else "none")
    said = []
    with prepare(settings, model, optimizer):
        if rest or not compiled:
            backend = verified_backend(settings, step, looked_at, said.append)
            assert isinstance(backend, GraphStep if compiled else EagerStep) if rest else backend is None
        else:
            with pytest.raises(CannotCompile, match="cannot be compared with eager: .* not finite"):
                verified_backend(settings, step, looked_at, said.append)
    assert len(said) == (not rest and not compiled) and all("cannot be compared with eager" in line for line in said)
    # One that is wrong where all is finite.
    assert "the loss is" in (verify(step, lie("loss")(step), examples) or "")


def test_a_forward_pass_may_write_into_batches_of_any_form():
    @objective
    def writes(model, batch):
        return model(batch["x"].mul_(2)).mean()

    model, batch = nn.Linear(3, 1), ({"x": torch.ones(4, 3)},)
    step = TrainStep(model, writes, torch.optim.SGD(model.parameters(), lr=0.1))
    assert verify(step, EagerStep(step), [batch]) is None
    assert torch.equal(batch[0]["x"], torch.ones(4, 3))
