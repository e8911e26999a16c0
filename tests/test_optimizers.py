"""Every optimizer of torch by name, equal to torch's own; each parameter in exactly one group."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from surefoot.errors import UsageError
from surefoot.models import LeNet5, SmallResNet
from surefoot.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    missing_groups,
    named_groups,
    param_groups,
)
from surefoot.schedules import SchedulerSpec, WarmupSpec, build_schedule, simulate

ARGS = {
    "Muon": {"lr": 0.02},
    "LBFGS": {"lr": 0.5, "max_iter": 4, "line_search_fn": "strong_wolfe"},
    "Adadelta": {"lr": 1.0},
    "Rprop": {"lr": 0.01, "etas": [0.5, 1.2]},
    "Adam": {"lr": 0.01, "betas": [0.8, 0.99]},
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
}
ONE_GROUP = ("LBFGS",)


def toy(name):
    """A model that the optimizer can train: Muon wants matrices, SparseAdam wants sparse gradients."""
    torch.manual_seed(0)
    if name == "SparseAdam":
        return nn.Sequential(nn.Embedding(8, 3, sparse=True))
    if name == "Muon":
        return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


def batch(name):
    generator = torch.Generator().manual_seed(1)
    if name == "SparseAdam":
        inputs = torch.randint(0, 8, (5,), generator=generator)
    else:
        inputs = torch.randn(5, 4, generator=generator)
    return inputs, torch.randn(5, 3, generator=generator)


def train(name, model, optimizer, steps, after=lambda: None):
    inputs, targets = batch(name)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    for _ in range(steps):
        if name == "LBFGS":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        after()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_every_optimizer_of_torch_is_in_the_registry():
    of_torch = {
        name
        for name in torch.optim.__all__
        if inspect.isclass(c := getattr(torch.optim, name)) and issubclass(c, torch.optim.Optimizer)
    }
    assert set(OPTIMIZERS.names()) == of_torch - {"Optimizer"}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_equal_to_plain_torch_to_the_last_bit(name):
    args = ARGS.get(name, {})
    plain = toy(name)
    mine = copy.deepcopy(plain)
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}
    train(name, plain, getattr(torch.optim, name)(plain.parameters(), **tuples), 6)
    train(name, mine, build_optimizer(name, args, mine), 6)
    assert same(plain, mine)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS.names() if n not in (*ONE_GROUP, "SparseAdam")])
def test_groups_equal_those_made_by_hand(name):
    plain = toy(name)
    mine = copy.deepcopy(plain)
    args = ARGS.get(name, {})
    last = [p for n, p in plain.named_parameters() if n.startswith(str(len(plain) - 1))]
    rest = [p for n, p in plain.named_parameters() if not n.startswith(str(len(plain) - 1))]
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}
    kind = getattr(torch.optim, name)
    train(name, plain, kind([{"params": rest}, {"params": last, "lr": 0.003}], **tuples), 5)
    optimizer = build_optimizer(name, args, mine, groups=[{"match": f"{len(mine) - 1}.*", "lr": 0.003}])
    train(name, mine, optimizer, 5)
    assert same(plain, mine)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_scheduled_run_resumes_and_follows_its_plan(name):
    args = ARGS.get(name, {})
    spec, warm = (
        SchedulerSpec("StepLR", {"step_size": 2, "gamma": 0.5}),
        WarmupSpec("LinearWarmup", {"warmup_period": 5}),
    )

    def fresh():
        model = toy(name)
        optimizer = build_optimizer(name, args, model)
        return model, optimizer, build_schedule(optimizer, spec, warm, 2, 6)

    def run(model, optimizer, schedule, first, last):
        for step in range(first, last):
            assert schedule.lrs == plan.at(step)
            train(name, model, optimizer, 1, schedule.step)
            if step % 2:
                schedule.epoch()

    plan = simulate(fresh()[1], None, None, 1, 1)
    model, optimizer, schedule = fresh()
    plan = simulate(build_optimizer(name, args, toy(name)), spec, warm, 2, 6)
    run(model, optimizer, schedule, 0, 12)

    half, half_optimizer, half_schedule = fresh()
    run(half, half_optimizer, half_schedule, 0, 7)
    again, again_optimizer, again_schedule = fresh()
    again.load_state_dict(half.state_dict())
    again_schedule.load_state_dict(half_schedule.state_dict())
    again_optimizer.load_state_dict(copy.deepcopy(half_optimizer.state_dict()))
    run(again, again_optimizer, again_schedule, 7, 12)
    assert same(again, model)


# Groups


def members(groups):
    return {group["name"]: [name for name, _ in group["params"]] for group in groups}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.token = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight


@settings(max_examples=60)
@given(
    groups=st.lists(
        st.fixed_dictionaries(
            {"match": st.sampled_from(["*.bias", "embed.*", "head.*", "blocks.*", "blocks.0.*", "*", "norm.weight"])},
            optional={"lr": st.floats(0, 1), "weight_decay": st.floats(0, 1)},
        ),
        max_size=3,
    ),
    no_decay=st.sampled_from([None, "norm_and_bias", ["*.bias"]]),
    layer_decay=st.sampled_from([None, 0.5, 1.0]),
    frozen=st.sets(st.sampled_from(["embed.weight", "blocks.0.bias", "token"])),
)
def test_each_trainable_parameter_is_in_exactly_one_group(groups, no_decay, layer_decay, frozen):
    model = Tied()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    try:
        made = param_groups(model, 0.1, groups, no_decay, layer_decay)
    except UsageError as error:
        assert "is already in" in str(error)
        return
    held = [id(p) for group in made for _, p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len({group["name"] for group in made}) == len(made) or len({g["match"] for g in groups}) < len(groups)


def test_the_first_match_counts_and_the_rest_comes_first():
    made = param_groups(
        LeNet5(), 0.1, [{"match": "fc3.*", "lr": 1.0}, {"match": ["*.bias"], "weight_decay": 0.0, "name": "biases"}]
    )
    assert [group["name"] for group in made] == ["default", "fc3.*", "biases"]
    assert members(made)["fc3.*"] == ["fc3.weight", "fc3.bias"]
    assert "fc3.bias" not in members(made)["biases"]
    assert [group["lr"] for group in made] == [0.1, 1.0, 0.1]


def test_norms_and_biases_are_spared_the_decay():
    made = param_groups(Tied(), no_decay="norm_and_bias")
    assert members(made) == {
        "default": ["token", "embed.weight", "blocks.0.weight", "blocks.1.weight"],
        "no_decay": ["norm.weight", "norm.bias", "blocks.0.bias", "blocks.1.bias", "head.bias"],
    }
    batch_norm = members(param_groups(SmallResNet(), no_decay="norm_and_bias"))["default"]
    assert all(dict(SmallResNet().named_parameters())[name].ndim > 1 for name in batch_norm)
    lstm = members(param_groups(nn.LSTM(2, 3), no_decay="norm_and_bias"))
    assert lstm["no_decay"] == ["bias_ih_l0", "bias_hh_l0"]


def test_a_weight_decay_given_by_name_is_not_spared():
    made = param_groups(Tied(), groups=[{"match": "head.*", "weight_decay": 0.3}], no_decay="norm_and_bias")
    assert [g["weight_decay"] for g in made if "head.bias" in [n for n, _ in g["params"]]] == [0.3]


def test_layers_near_the_input_learn_slower():
    made = param_groups(Tied(), 1.0, layer_decay=0.5)
    rates = {name: group["lr"] for group in made for name, _ in group["params"]}
    assert rates == {
        "token": 0.5**4,
        "embed.weight": 0.5**4,
        "norm.weight": 0.5**3,
        "norm.bias": 0.5**3,
        "blocks.0.weight": 0.25,
        "blocks.0.bias": 0.25,
        "blocks.1.weight": 0.5,
        "blocks.1.bias": 0.5,
        "head.bias": 1.0,
    }


def test_a_tied_parameter_is_matched_by_any_of_its_names():
    made = param_groups(Tied(), groups=[{"match": "head.weight", "lr": 0.5}])
    assert members(made)["head.weight"] == ["embed.weight"]


def test_the_optimizer_knows_the_names():
    model = Tied()
    optimizer = build_optimizer("SGD", {"lr": 0.1}, model, no_decay="norm_and_bias")
    assert named_groups(optimizer) == named_groups(optimizer, model)
    assert named_groups(optimizer)[1] == (
        "no_decay",
        ["norm.weight", "norm.bias", "blocks.0.bias", "blocks.1.bias", "head.bias"],
    )


def test_what_was_unfrozen_gets_groups_of_the_same_kind():
    model = Tied()
    model.blocks.requires_grad_(False)
    how = {"groups": [{"match": "*.1.*", "lr": 0.5}], "no_decay": "norm_and_bias"}
    optimizer = build_optimizer("SGD", {"lr": 0.1, "weight_decay": 0.2}, model, **how)
    assert missing_groups(optimizer, model, **how) == []
    model.blocks.requires_grad_(True)
    added = missing_groups(optimizer, model, suffix="@3", **how)
    for group in copy.copy(added):
        optimizer.add_param_group(dict(group))
    assert members(added) == {
        "default@3": ["blocks.0.weight"],
        "no_decay@3": ["blocks.0.bias"],
        "*.1.*@3": ["blocks.1.weight"],
        "*.1.*/no_decay@3": ["blocks.1.bias"],
    }
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups[-4:]] == [
        (0.1, 0.2),
        (0.1, 0.0),
        (0.5, 0.2),
        (0.5, 0.0),
    ]


def test_unfreezing_suits_an_optimizer_without_names():
    model = Tied()
    model.head.bias.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.head.bias.requires_grad_(True)
    (added,) = missing_groups(optimizer, model)
    optimizer.add_param_group(added)
    assert optimizer.param_groups[1]["params"][0] is model.head.bias


# Mistakes


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"groups": [{"match": "blcks.*"}]}, r"'blcks.\*' matches no parameter; did you mean 'blocks.\*'"),
        ({"groups": [{"match": "*"}, {"match": "head.*"}]}, r"already in groups\[0\]; put the more special"),
        ({"groups": [{"lr": 0.1}]}, r"groups\[0\]: 'match' must be a name pattern"),
        ({"groups": ["head.*"]}, r"groups\[0\]: the text 'head.\*' is not a mapping"),
        ({"groups": [{"match": "head.*", "momentun": 1}]}, r"groups\[0\].momentun: .*did you mean 'momentum'"),
        ({"groups": [{"match": "head.*", "lr": -1}]}, r"groups\[0\].lr: -1 is below 0"),
        ({"groups": [{"match": "head.*", "lr": math.inf}]}, r"groups\[0\].lr: inf is not a finite number"),
        ({"no_decay": "norm_and_bia"}, "did you mean 'norm_and_bias'"),
        ({"no_decay": ["zzz"]}, "'zzz' matches no parameter"),
        ({"layer_decay": 0}, "layer_decay: 0 is not above 0"),
        ({"layer_decay": "0.9"}, "layer_decay: the text '0.9' is not a number"),
        ({"no_decay": 3}, "no_decay: 3 is not a list of texts"),
    ],
)
def test_bad_groups_are_told(how, told):
    with pytest.raises(UsageError, match=told):
        build_optimizer("SGD", {"lr": 0.1}, Tied(), **how)


@pytest.mark.parametrize(
    ("name", "args", "how", "told"),
    [
        ("Adm", {}, {}, "did you mean 'Adam'"),
        ("SGD", {"lr": -0.1}, {}, "-0.1 is below 0"),
        ("SGD", {"lr": math.inf}, {}, "lr: inf is not a finite number; give a rate of 0 or more"),
        ("SGD", {"lr": 10**400}, {}, "is not a finite number"),
        ("Adam", {"weight_decay": math.inf}, {}, "weight_decay: inf is not a finite number"),
        ("SGD", {"momentun": 0.9}, {}, "did you mean 'momentum'"),
        ("Adam", {"betas": [0.9, 1.0]}, {}, r"betas\[1\]: 1.0 is not below 1"),
        ("Adam", {"betas": 0.9}, {}, "0.9 is not a list of 2"),
        ("SGD", {"lr": 0.1, "nesterov": True}, {}, "SGD: Nesterov momentum requires"),
        ("LBFGS", {}, {"groups": [{"match": "head.*", "lr": 0.1}]}, "LBFGS takes one parameter group"),
        ("Rprop", {}, {"no_decay": "norm_and_bias"}, "Rprop has no weight_decay"),
        ("SGD", {"lr": "fast"}, {"layer_decay": 0.9}, "layer_decay needs .* and the text 'fast' is no number; give lr"),
        ("Muon", {}, {}, "Muon"),
    ],
)
def test_bad_arguments_are_told(name, args, how, told):
    with pytest.raises(UsageError, match=told):
        build_optimizer(name, args, Tied(), **how)


def test_a_model_with_nothing_to_train_is_told():
    with pytest.raises(UsageError, match="no trainable parameter"):
        build_optimizer("SGD", {}, LeNet5().requires_grad_(False))


def test_an_optimizer_of_ones_own():
    class Mine(torch.optim.SGD):
        def __init__(self, params, lr, momentum=0.5):
            super().__init__(params, lr=lr, momentum=momentum)

    optimizer = build_optimizer(Mine, {"lr": 0.1}, LeNet5(), groups=[{"match": "fc3.*", "momentum": 0.1}])
    assert [g["momentum"] for g in optimizer.param_groups] == [0.5, 0.1]
    with pytest.raises(UsageError, match="did you mean 'momentum'"):
        build_optimizer(Mine, {"lr": 0.1, "momentm": 0.9}, LeNet5())
    with pytest.raises(UsageError, match="needs the argument 'lr'"):
        build_optimizer(Mine, {}, LeNet5())


def test_limits_name_arguments_that_some_optimizer_has():
    every = {n for entry in OPTIMIZERS for n in entry.parameters()}
    assert all(set(entry.limits) <= every for entry in OPTIMIZERS)


def test_a_class_of_ones_own_may_be_called_as_one_of_torchs():
    class AdamW(torch.optim.Optimizer):
        def __init__(self, params, lr=0.1, trust=1.0):
            super().__init__(params, {"lr": lr, "trust": trust})

    optimizer = build_optimizer(AdamW, {}, nn.Linear(2, 2), groups=[{"match": "bias", "trust": 2.0}])
    assert [group["trust"] for group in optimizer.param_groups] == [1.0, 2.0]
    with pytest.raises(UsageError, match="AdamW has no argument 'betas'"):
        build_optimizer(AdamW, {}, nn.Linear(2, 2), groups=[{"match": "bias", "betas": [0.9, 0.99]}])
