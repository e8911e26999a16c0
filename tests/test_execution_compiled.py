"""The step as one graph: its gradients, its update, its buffers and random numbers, and when it is not used."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import types

import numpy
import pytest
import torch
from fit_arguments import FIXED
from graph_steps import RULES, batches, close, differs, made, step_of, updater
from torch import nn

import surefoot
from surefoot import RunOptions
from surefoot.execution import CannotCompile, Execution, make_backend
from surefoot.execution.compiled import compile_step, compiler, why_not
from surefoot.execution.constants import Constants
from surefoot.execution.graph_step import GraphStep
from surefoot.execution.measure import Bench, Trial
from surefoot.models import MODELS
from surefoot.nonfinite import NonFinite
from surefoot.step import StepOptions, TrainStep

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler here")


@pytest.mark.parametrize("limits", [{}, {"max_grad_norm": 0.1, "clip_value": 0.02}])
@pytest.mark.parametrize("rule", RULES)
def test_the_graph_trains_as_the_plain_step_does(rule, limits):
    loss = nn.CrossEntropyLoss()
    model, optimizer = made(RULES[rule])
    other, reference = made(RULES[rule])
    fast = updater(model, loss, optimizer, batches()[0], **limits)
    plain = TrainStep(other, loss, reference, StepOptions(**limits))
    for i, batch in enumerate(batches()):
        for o in (optimizer, reference):
            o.param_groups[0]["lr"] = 0.01 * (i + 1)  # the graph is the same one for every learning rate
        a, b = fast([batch]), plain([batch])
        assert close(a, b)
    assert close(model.state_dict(), other.state_dict())
    assert close(optimizer.state_dict()["state"], reference.state_dict()["state"])
    assert int(model.norm.num_batches_tracked) == 5
    assert bool(model.seen.any())


def test_random_numbers_are_those_of_eager():
    loss, batch = nn.CrossEntropyLoss(), batches()[0]
    model, optimizer = made(dropout=0.5)
    step = step_of(model, loss, optimizer, batch)
    state = torch.get_rng_state()
    assert differs(step, batch) is None
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    model(batch[0])
    assert torch.equal(torch.get_rng_state(), after)


def test_a_loss_that_is_not_finite_leaves_parameters_and_state_alone():
    loss = nn.CrossEntropyLoss()
    model, optimizer = made(RULES["Adam"])
    fast = updater(model, loss, optimizer, batches()[0])
    fast([batches()[0]])
    before = copy.deepcopy((list(model.parameters()), optimizer.state_dict()["state"]))
    inputs, targets = batches()[1]
    with pytest.raises(NonFinite):
        fast([(inputs * math.nan, targets)])
    for a, b in zip(before[0], model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(before[1].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}])
def test_a_gradient_that_is_not_finite_leaves_parameters_and_state_alone(options):
    from test_execution_captured import Root

    torch.manual_seed(0)
    model = Root()
    optimizer = RULES["Adam"](model.parameters())
    fast = updater(model, nn.CrossEntropyLoss(), optimizer, batches()[0], **options)
    fast([batches()[0]])
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    inputs, targets = batches()[1]
    with pytest.raises(NonFinite, match=r"the gradient of layer\.weight is not finite"):
        fast([(inputs.index_fill(0, torch.tensor([2]), 0.0), targets)])
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), model.state_dict().values(), strict=True))
    for a, b in zip(before[1].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_other_shapes_several_micro_batches_and_evaluation_mode_run_eagerly():
    loss = nn.CrossEntropyLoss()
    model, optimizer = made()
    fast = updater(model, loss, optimizer, batches()[0])
    fast.graph.run = None  # calling it would fail
    assert fast([batches(size=4)[0]]).samples == 4
    assert fast(batches(2)).samples == 12
    model.eval()
    assert fast([batches()[0]]).samples == 6


def test_a_part_in_another_mode_than_the_graph_was_made_in_runs_eagerly():
    model, optimizer = made()
    fast = updater(model, nn.CrossEntropyLoss(), optimizer, batches()[0])
    for training in (False, True):  # frozen after it was compiled, and freed again
        model.norm.train(training)
        assert fast.graph.fits(batches()[0]) == training
        before = model.norm.running_mean.clone()
        fast([batches()[0]])
        assert torch.equal(before, model.norm.running_mean) != training


def test_a_parameter_unfrozen_later_is_trained_by_a_graph_made_anew():
    loss = nn.CrossEntropyLoss()
    model, _ = made()
    model.first.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    fast = updater(model, loss, optimizer, batches()[0])
    graph, weight = fast.graph, model.first.weight.clone()
    fast([batches()[0]])
    assert fast.graph is graph and torch.equal(model.first.weight, weight)
    model.first.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.first.parameters())})
    fast([batches()[0]])
    assert fast.graph is not graph and not torch.equal(model.first.weight, weight)


def test_a_parameter_that_a_loss_closes_over_is_no_constant():
    model, _ = made()
    scale = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.01)

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * (-scale).exp() + scale

    with pytest.raises(CannotCompile, match="the optimizer has a parameter that is in neither model nor loss"):
        step_of(model, loss, optimizer, batches()[0])


def test_a_graph_is_made_anew_on_a_batch_that_it_can_be_compared_on():
    model, _ = made()
    model.first.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    fast = updater(model, nn.CrossEntropyLoss(), optimizer, batches()[0])
    graph = fast.graph
    model.first.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.first.parameters())})
    inputs, targets = batches()[1]
    with pytest.raises(NonFinite):
        fast([(inputs * math.nan, targets)])
    assert fast.graph is graph
    fast([(inputs[:4], targets[:4])])  # of another shape, which goes round it
    assert fast.graph is graph
    fast([batches()[2]])
    assert fast.graph not in (graph, None)


def test_what_a_graph_would_leave_out_is_not_compiled():
    model, optimizer = made()
    loss = nn.CrossEntropyLoss()
    handle = model.norm.register_forward_hook(lambda *_: None)
    assert why_not(model) == "module norm has hooks, which a graph would leave out"
    handle.remove()
    with pytest.raises(CannotCompile, match="ctc loss"):
        GraphStep(TrainStep(model, nn.CTCLoss(), optimizer), None, print)
    with pytest.raises(CannotCompile, match="more than plain tensors"):
        compile_step(TrainStep(model, loss, optimizer), (batches()[0][0], ["a", "b"]))
    wrapped = TrainStep(nn.DataParallel(model), loss, optimizer)
    with pytest.raises(CannotCompile, match="DataParallel would leave out"):
        make_backend(Execution(compile="gradients"), wrapped, batches()[0])
    of_two = TrainStep(model, loss, torch.optim.SGD([p for n, p in model.named_parameters() if n != "first.weight"]))
    with pytest.raises(CannotCompile, match=r"first.weight asks for a gradient and is in no parameter group"):
        compile_step(of_two, batches()[0])
    in_place = TrainStep(model, loss, optimizer, StepOptions(set_to_none=False))
    with pytest.raises(CannotCompile, match="set_to_none"):
        make_backend(Execution(compile="gradients"), in_place, batches()[0])


class LooksAtValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear(x) if float(x.sum()) > 0 else -self.linear(x)


def test_a_forward_that_branches_on_values_is_refused_with_a_reason():
    model = LooksAtValues()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CannotCompile, match="data-dependent|DataDependent"):
        compile_step(TrainStep(model, nn.CrossEntropyLoss(), optimizer), batches()[0])


def test_without_a_compiler_the_reason_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in why_not(made()[0])


def lenets_bench():
    torch.manual_seed(0)
    model = MODELS.build("LeNet5", {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pairs = [(torch.randn(4, 1, 28, 28), torch.randint(0, 10, (4,))) for _ in range(2)]
    return Bench(TrainStep(model, nn.CrossEntropyLoss(), optimizer), pairs)


@needs_compiler
def test_lenet_compiled_whole_has_eagers_gradients():
    with lenets_bench() as bench:
        whole = Trial(Execution(onednn=False, compile="gradients"))
        assert bench.check(whole), whole.refused


def test_a_compiled_module_with_wrong_gradients_is_caught(monkeypatch):
    """As torch 2.13 on some processors, where both convolutions of a compiled LeNet-5 get zero gradients, silently."""

    def miscompiled(model, options):
        def forward(x):
            wrong = {n: p.detach() + 0 * p for n, p in model.named_parameters() if n.startswith("conv")}
            return torch.func.functional_call(model, wrong, (x,))

        return forward

    monkeypatch.setattr(torch, "compile", miscompiled)
    with lenets_bench() as bench:
        module = Trial(Execution(onednn=False, compile="module"))
        assert not bench.check(module)
        norm = float(bench.expected[0].gradients[0]["conv1.weight"].norm())
    assert module.refused == (
        f"it differs from eager by more than rounding: the gradient of conv1.weight is all zeros where eager has a "
        f"2-norm of {norm:.3g}"
    )


def test_a_model_in_evaluation_mode_is_not_compiled():
    model, optimizer = made()
    with pytest.raises(CannotCompile, match="evaluation mode"):
        compile_step(TrainStep(model.eval(), nn.CrossEntropyLoss(), optimizer), batches()[0])


def test_a_step_that_cannot_be_compiled_anew_goes_on_eagerly():
    loss = nn.CrossEntropyLoss()
    model, _ = made()
    model.first.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    fast = updater(model, loss, optimizer, batches()[0])

    def refuses():
        raise CannotCompile("no")

    fast._make = refuses
    model.first.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.first.parameters())})
    weight = model.first.weight.clone()
    fast([batches()[0]])
    assert fast.graph is None and not torch.equal(model.first.weight, weight)


@needs_compiler
def test_a_run_that_inductor_compiled_ends_as_one_that_was_stopped(tmp_path, monkeypatch):
    """With the compiler itself: what it makes is held by the run, and is another where its cache had it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inputs, targets = zip(*batches(8), strict=True)
    ended = []
    for run, epochs in [("whole", 2), ("stopped", 1), ("stopped", 2)]:
        model, optimizer = made(lambda p: torch.optim.AdamW(p, lr=0.01), dropout=0.5)
        surefoot.fit(
            model,
            nn.CrossEntropyLoss(),
            optimizer,
            (torch.cat(inputs), torch.cat(targets)),
            epochs=epochs,
            batch_size=6,
            run_dir=tmp_path / run,
            resume=True,
            step=StepOptions(ema_decay=0.9),
            run=RunOptions(execution={**FIXED, "compile": "gradients"}, progress=False, allow={"fit.epochs"}),
        )
        saved = json.loads((tmp_path / run / "run.json").read_text())
        assert saved["conditions"]["execution.compile"] == "gradients"
        ended.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(value, ended[2][name]) for name, value in ended[0].items())


class Stateful(nn.Module):
    """Does in Python, beside its tensors, what `does` says."""

    def __init__(self, does):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.count, self.seen, self.by_name, self.factor = 0, [1], {"a": 1}, 2.0
        self.does = does

    def forward(self, x):
        return self.layer(x) * self.factor * self.does(self, x)


def counts(self, x):
    self.count += 1
    return 1


def appends(self, x):
    self.seen.append(x)
    return 1


def replaces(self, x):
    self.by_name["a"] = x.mean()
    return 1


def sets(self, x):
    self.layer.fresh = x
    return 1


def throws_a_coin(self, x):
    return random.choice([1, 2])


def throws_numpys_coin(self, x):
    return float(numpy.random.rand())


@pytest.mark.parametrize(
    ("does", "words"),
    [
        (counts, "the forward pass changes model.count, which a graph would not"),
        (appends, "the forward pass changes model.seen, "),
        (replaces, "the forward pass changes model.by_name, "),
        (sets, "the forward pass sets model.layer.fresh, "),
        (throws_a_coin, "the forward pass draws from Python's random, "),
        (throws_numpys_coin, "the forward pass draws from numpy's random, "),
    ],
)
def test_a_forward_pass_that_does_more_than_tensors_is_not_compiled(does, words):
    model, batch = Stateful(does), batches()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = random.getstate(), numpy.random.get_state()[2]
    with pytest.raises(CannotCompile) as raised:
        step_of(model, nn.CrossEntropyLoss(), optimizer, batch)
    assert str(raised.value).startswith(words)
    # And nothing of the attempt is left.
    assert (model.count, model.seen, model.by_name) == (0, [1], {"a": 1})
    assert not hasattr(model.layer, "fresh")
    assert (random.getstate(), numpy.random.get_state()[2]) == before


def test_a_loss_that_counts_is_not_compiled_either():
    class Annealed:
        def __init__(self):
            self.step = 0

        def __call__(self, outputs, targets):
            self.step += 1
            return nn.functional.cross_entropy(outputs, targets) / self.step

    model, optimizer = made()
    loss = Annealed()
    with pytest.raises(CannotCompile, match="the forward pass changes loss.step"):
        step_of(model, loss, optimizer, batches()[0])
    assert loss.step == 0


def test_attributes_that_are_only_read_do_no_harm():
    model, batch, loss = Stateful(lambda self, x: self.by_name["a"]), batches()[0], nn.CrossEntropyLoss()
    step = step_of(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), batch)
    assert differs(step, batch) is None


SCALE, SHARED, UNREAD = 1.5, {"scale": [1.0]}, 1.0


@dataclasses.dataclass
class Config:
    power: float = 1.0
    training: bool = True


class Settings(nn.Module):
    """Reads a value from each place where one can stand."""

    factor, switch = 1.0, None

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.number, self.sizes, self.by_name = 1.0, [1.0, 2.0], {"a": {"b": 1.0}}
        self.scale, self.one, self.array = torch.ones(3), torch.ones(()), numpy.ones(3)
        self.config, self.space, self.names = Config(), types.SimpleNamespace(shift=0.0), {"a"}
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = self.drop(self.layer(x)) * self.number * self.sizes[1] * self.by_name["a"]["b"] * self.scale * self.one
        y = y * torch.as_tensor(self.array, dtype=y.dtype) ** self.config.power + self.space.shift + len(self.names)
        return self.turned(y) * SHARED["scale"][0] * (1.0 if self.config.training else 2.0)

    def turned(self, y):
        return [y * SCALE * self.factor for _ in range(1)][0].neg() if self.switch else y * SCALE * self.factor


def given(change):
    """A change of the model alone."""
    return lambda model, monkeypatch: change(model)


CHANGES = {
    "model.number": given(lambda m: setattr(m, "number", 2.0)),
    "model.sizes": given(lambda m: m.sizes.__setitem__(1, 3.0)),
    "model.by_name": given(lambda m: m.by_name["a"].update(b=2.0)),
    "model.scale": given(lambda m: m.scale.mul_(2)),
    "model.one": given(lambda m: setattr(m, "one", torch.full((), 2.0))),
    "model.array": given(lambda m: m.array.__setitem__(0, 2.0)),
    "model.config.power": given(lambda m: setattr(m.config, "power", 2.0)),
    "model.config.training": given(lambda m: setattr(m.config, "training", False)),
    "model.space.shift": given(lambda m: setattr(m.space, "shift", 1.0)),
    "model.names": given(lambda m: m.names.add("b")),
    "model.drop.p": given(lambda m: setattr(m.drop, "p", 0.0)),
    "model.drop": given(lambda m: setattr(m, "drop", nn.Identity())),
    "model.fresh": given(lambda m: setattr(m, "fresh", 1)),
    "SCALE": lambda m, monkeypatch: monkeypatch.setitem(globals(), "SCALE", 2.0),
    "SHARED": lambda m, monkeypatch: SHARED["scale"].__setitem__(0, 2.0),
    "Settings.factor": lambda m, monkeypatch: monkeypatch.setattr(Settings, "factor", 2.0),
    "Settings.switch": lambda m, monkeypatch: monkeypatch.setattr(Settings, "switch", True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_constant_ends_the_graph_and_the_step_is_eager(name, monkeypatch, capsys):
    monkeypatch.setitem(SHARED, "scale", list(SHARED["scale"]))
    steps = []
    for fast in (True, False):
        torch.manual_seed(0)
        model, loss = Settings(), nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        steps.append((model, updater(model, loss, optimizer, batches()[0]) if fast else None, optimizer, loss))
    (model, fast, _, _), (plain, _, optimizer, loss) = steps
    reference = TrainStep(plain, loss, optimizer)

    def both(batch):
        torch.manual_seed(1)
        results = [fast([batch])]
        torch.manual_seed(1)
        assert close(results[0], reference([batch])) and close(model.state_dict(), plain.state_dict())

    both(batches()[0])
    assert fast.graph is not None and fast.graph.constants.changed() is None
    CHANGES[name](model, monkeypatch)
    if not name[0].isupper():
        CHANGES[name](plain, monkeypatch)
    both(batches()[1])
    both(batches()[2])
    said = f"the step is not compiled any more: {name} was changed, which a graph would not see\n"
    assert fast.graph is None and capsys.readouterr().out == said


def test_a_number_that_a_loss_closes_over_is_a_constant():
    weight = 1.0

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * weight

    model, optimizer = made()
    graph = step_of(model, loss, optimizer, batches()[0])
    assert graph.constants.changed() is None
    weight = 2.0
    assert graph.constants.changed() == "weight was changed, which a graph would not see"


def test_a_number_that_a_loss_holds_is_a_constant():
    class Weighted:
        def __init__(self):
            self.weight = 1.0

        def __call__(self, outputs, targets):
            return nn.functional.cross_entropy(outputs, targets) * self.weight

    for loss, name in [(nn.CrossEntropyLoss(label_smoothing=0.1), "label_smoothing"), (Weighted(), "weight")]:
        model, optimizer = made()
        graph = step_of(model, loss, optimizer, batches()[0])
        assert graph.constants.changed() is None
        setattr(loss, name, 0.2)
        assert graph.constants.changed() == f"loss.{name} was changed, which a graph would not see"


def test_what_is_equal_or_not_read_ends_no_graph():
    model = Settings()
    constants = Constants(model=model, loss=nn.CrossEntropyLoss())
    model.number, model.drop.p = float("1.0"), float("0.5")
    globals()["UNREAD"] = 2.0
    model.layer.weight.data.mul_(2)
    assert constants.changed() is None
    model.eval()
    assert constants.changed() is None and not constants.modes_hold()
    model.train()
    assert constants.changed() is None and constants.modes_hold()


def test_a_hook_that_was_given_later_ends_the_graph(capsys):
    for give, name in [
        (lambda model: model.norm.register_forward_hook(lambda *_: None), "model.norm"),
        (lambda model: model.last.weight.register_hook(torch.zeros_like), "model.last.weight"),
        (lambda model: model.last.bias.register_post_accumulate_grad_hook(lambda p: None), "model.last.bias"),
    ]:
        model, optimizer = made()
        fast = updater(model, nn.CrossEntropyLoss(), optimizer, batches()[0])
        fast([batches()[0]])
        give(model)
        before = model.last.weight.clone()
        fast([batches()[1]])
        assert torch.equal(before, model.last.weight) == (name == "model.last.weight")
        said = f"the step is not compiled any more: {name} was given a hook, which a graph would not call\n"
        assert fast.graph is None and capsys.readouterr().out == said
