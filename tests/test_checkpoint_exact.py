"""Resumed equals untouched, as bytes: each scheduler, warmup, optimizer, and all else that has state."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
import torchmetrics
from checkpoint_helpers import BATCH, EPOCHS, SAMPLES, Net, Run, assert_exact, digest
from torch import nn
from torchmetrics.aggregation import CatMetric

from surefoot import Checkpointer, UsageError, files
from surefoot.optimizers import OPTIMIZERS, build_optimizer
from surefoot.schedules import WARMUPS, Schedule, SchedulerSpec, WarmupSpec, build_schedule

STEPS = -(-SAMPLES // BATCH)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """What is durable is tested elsewhere; here it is what is saved."""
    monkeypatch.setattr(files.System, "fsync", lambda *_: None)


# Arguments with which each scheduler moves the rate within two epochs.
SCHEDULERS = {
    "none": None,
    "StepLR": {"step_size": 1, "gamma": 0.5},
    "MultiStepLR": {"milestones": [1, 4, 8]},
    "ConstantLR": {"total_iters": 3},
    "LinearLR": {"total_iters": 7},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 9, "power": 2.0},
    "CosineAnnealingLR": {},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "ReduceLROnPlateau": {"patience": 0, "factor": 0.5},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
    "OneCycleLR": {"max_lr": 0.1},
}


def scheduled(name: str, by: str, warmup: str | None):
    args = SCHEDULERS[name]

    def build(model: nn.Module):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        warm = None
        if warmup is not None:
            warm = WarmupSpec(warmup, {"warmup_period": 4} if warmup.startswith(("Linear", "Expo")) else {})
        spec = None if args is None else SchedulerSpec(name, args, by=by)
        schedule = build_schedule(optimizer, spec, warm, steps_per_epoch=STEPS, epochs=EPOCHS)
        after_step = (lambda: schedule.step(1.0)) if schedule.needs_step_metric else schedule.step
        return optimizer, after_step, schedule.epoch, {"schedule": schedule}

    return build


@pytest.mark.parametrize("warmup", [None, "LinearWarmup"])
@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(tmp_path, name, by, warmup):
    assert_exact(tmp_path, scheduled(name, by, warmup))


@pytest.mark.parametrize("warmup", ["LinearWarmup", "ExponentialWarmup"])
def test_warmups(tmp_path, warmup):
    assert_exact(tmp_path, scheduled("CosineAnnealingLR", "step", warmup))


def test_every_warmup_is_tried():
    tried = {"LinearWarmup", "ExponentialWarmup"}
    derived = {"UntunedLinearWarmup", "UntunedExponentialWarmup", "RAdamWarmup"}  # with Adam, below
    assert set(WARMUPS.names()) == tried | derived


@pytest.mark.parametrize("warmup", ["UntunedLinearWarmup", "UntunedExponentialWarmup", "RAdamWarmup"])
def test_warmups_that_read_the_optimizer(tmp_path, warmup):
    def build(model: nn.Module):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = build_schedule(optimizer, None, WarmupSpec(warmup), steps_per_epoch=STEPS, epochs=EPOCHS)
        return optimizer, schedule.step, schedule.epoch, {"schedule": schedule}

    assert_exact(tmp_path, build)


def idle(*_: object) -> None:
    """No schedule."""


ARGUMENTS = {"SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True}, "LBFGS": {"lr": 0.1, "max_iter": 3}}
# Muon takes matrices only, SparseAdam sparse gradients only: tests of their own, below.
OF_THEIR_OWN = {"Muon", "SparseAdam"}


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS.names()) - OF_THEIR_OWN))
def test_optimizers(tmp_path, name):
    def build(model: nn.Module):
        return build_optimizer(name, {"lr": 0.01, **ARGUMENTS.get(name, {})}, model), idle, idle, {}

    assert_exact(tmp_path, build)


def test_muon_beside_another_optimizer(tmp_path):
    """Two optimizers, each with its part of one model."""

    def build(model: nn.Module):
        matrices = [model.one.weight, model.head.weight]
        rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
        muon, other = torch.optim.Muon(matrices, lr=0.01), torch.optim.RMSprop(rest, lr=0.01)

        def after_step() -> None:
            other.step()
            other.zero_grad()

        return muon, after_step, idle, {"other": other}

    assert_exact(tmp_path, build)


def test_sparse_adam(tmp_path):
    def build(model: nn.Module):
        table = nn.Embedding(5, 2, sparse=True)
        sparse = torch.optim.SparseAdam(table.parameters(), lr=0.1)

        def after_step() -> None:
            sparse.zero_grad()
            table(torch.randint(5, (3,))).square().sum().backward()
            sparse.step()

        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return optimizer, after_step, idle, {"table": table, "sparse": sparse}

    assert_exact(tmp_path, build)


class Sharp(torch.optim.Optimizer):
    """As davda54's SAM: steps by an optimizer that it holds, whose momentum is in no state_dict of its own."""

    def __init__(self, params, share):
        super().__init__(params, {"lr": 0.1, "rho": 0.05})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        if share == "list":
            self.param_groups = self.base.param_groups
        if share == "state":
            self.base.state = self.state

    def step(self, closure=None):
        self.base.step(closure)


@pytest.mark.parametrize("share", ["list", "groups", "state"])
def test_an_optimizer_within_another_keeps_its_state_and_follows_the_others_rates(tmp_path, share):
    """What a loop of one's own would do without an interruption is the reference."""
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))

    def trained(run, steps, *, first=0):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = Sharp(model.parameters(), share)
        with Checkpointer(run, model=model, optimizer=optimizer) as saver:
            saver.resume()
            assert saver.steps == first
            for step in range(first, steps):
                optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                optimizer.step()
                saver.step()
        return model.weight

    trained(tmp_path / "a", 3)
    assert torch.equal(trained(tmp_path / "a", 6, first=3), trained(tmp_path / "b", 6))


def test_an_optimizer_whose_inner_one_is_missing_is_refused(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = Sharp(model.parameters(), "list")
    with Checkpointer(tmp_path, model=model, optimizer=optimizer) as saver:
        saver.save()
    del optimizer.base
    refused = pytest.raises(UsageError, match=r"the optimizers within are \['base'\] in the checkpoint and \[\] here")
    with Checkpointer(tmp_path, model=model, optimizer=optimizer) as saver, refused:
        saver.resume()


def test_an_optimizer_that_is_not_torchs_own_shape(tmp_path):
    """A wrapper that numbers its state its own way is kept by its own state_dict."""

    class Lookahead(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer):
            self.inner, self.calls = inner, 0
            super().__init__(inner.param_groups, {})
            self.slow = [p.detach().clone() for g in inner.param_groups for p in g["params"]]

        def step(self, closure=None):
            loss = self.inner.step(closure)
            self.calls += 1
            if self.calls % 3 == 0:
                fast = [p for g in self.inner.param_groups for p in g["params"]]
                with torch.no_grad():
                    for slow, p in zip(self.slow, fast, strict=True):
                        p.copy_(slow.add_(p - slow, alpha=0.5))
            return loss

        def state_dict(self):
            return {"inner": self.inner.state_dict(), "calls": self.calls, "slow": self.slow}

        def load_state_dict(self, state):
            self.inner.load_state_dict(state["inner"])
            self.calls, self.slow = state["calls"], state["slow"]

    def build(model: nn.Module):
        return Lookahead(torch.optim.Adam(model.parameters(), lr=0.01)), idle, idle, {}

    assert_exact(tmp_path, build)


@pytest.mark.parametrize("arguments", [{"amsgrad": True}, {"foreach": True}, {"fused": True}, {"capturable": False}])
def test_adam_in_its_forms(tmp_path, arguments):
    assert_exact(tmp_path, lambda model: (torch.optim.Adam(model.parameters(), lr=0.01, **arguments), idle, idle, {}))


def test_tensor_rates_and_groups_of_their_own(tmp_path):
    def build(model: nn.Module):
        groups = [
            {"params": [model.conv.weight, model.conv.bias], "lr": torch.tensor(0.01)},
            {"params": [p for n, p in model.named_parameters() if not n.startswith("conv")], "weight_decay": 0.1},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.02)
        schedule = Schedule(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))
        return optimizer, schedule.step, schedule.epoch, {"schedule": schedule}

    assert_exact(tmp_path, build)


def test_torchs_schedulers_without_a_schedule(tmp_path):
    def build(model: nn.Module):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5, 8])
        return optimizer, scheduler.step, idle, {"scheduler": scheduler}

    assert_exact(tmp_path, build)


def test_other_generators_are_part_of_the_state(tmp_path):
    def build(model: nn.Module):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def after_step() -> None:
            noise = random.random() + float(numpy.random.rand())
            optimizer.param_groups[0]["lr"] = 0.01 * noise

        return optimizer, after_step, idle, {}

    assert_exact(tmp_path, build)


def test_a_generator_that_a_module_holds_is_part_of_the_state(tmp_path):
    def build(model: nn.Module):
        model.drop.generator = torch.Generator().manual_seed(4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def after_step() -> None:
            with torch.no_grad():
                model.head.bias += 0.1 * torch.randn(3, generator=model.drop.generator)

        return optimizer, after_step, idle, {}

    assert_exact(tmp_path, build)


def test_moving_average_and_plain_numbers(tmp_path):
    def build(model: nn.Module):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        sums = {"steps": 0, "history": []}

        def after_step() -> None:
            average.update_parameters(model)
            sums["steps"] += 1
            sums["history"].append(float(model.head.bias.detach()[0]))

        return optimizer, after_step, idle, {"average": average, "sums": sums}

    assert_exact(tmp_path, build)


def test_scaler_and_low_precision(tmp_path):
    def build(model: nn.Module):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

        def after_step() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(torch.randn(2, 1, 4, 4)).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return optimizer, after_step, idle, {"scaler": scaler}

    assert_exact(tmp_path, build)


class Jitter:
    """Random noise, a batch at a time, from the draws that the loader hands out."""

    batched = True

    def __call__(self, inputs, draws):
        return inputs * draws.uniform(0.5, 1.5).reshape(-1, 1, 1, 1).to(inputs.dtype)


def plain_sgd(model: nn.Module):
    return torch.optim.SGD(model.parameters(), lr=0.05), idle, idle, {}


def test_augmentation(tmp_path):
    assert_exact(tmp_path, plain_sgd, augment=[Jitter()])


def test_short_batches_dropped_and_no_shuffle(tmp_path):
    first = Run(tmp_path / "a", plain_sgd, seed=1, drop_last=True, shuffle=False)
    first.train(4)
    second = Run(tmp_path / "a", plain_sgd, seed=2, drop_last=True, shuffle=False)
    assert second.train() == Run(tmp_path / "b", plain_sgd, seed=1, drop_last=True, shuffle=False).train()


def test_a_checkpoint_at_every_step_restores_that_step(tmp_path):
    """As grain tests its iterators: save at every step, restore each, compare the rest."""
    whole = Run(tmp_path / "whole", plain_sgd, seed=1)
    end = whole.train()
    for kill_at in range(1, EPOCHS * STEPS + 1):
        path = tmp_path / str(kill_at)
        Run(path, plain_sgd, seed=1).train(kill_at)
        assert Run(path, plain_sgd, seed=kill_at).train() == end, kill_at


def test_killed_again_and_again(tmp_path):
    end = Run(tmp_path / "whole", plain_sgd, seed=1).train()
    for kill_at in (2, 3, 6, 7, 11):
        Run(tmp_path / "run", plain_sgd, seed=kill_at if kill_at > 2 else 1).train(kill_at)
    assert Run(tmp_path / "run", plain_sgd, seed=50).train() == end


def test_the_digest_sees_one_bit():
    model = Net()
    before = digest({"model": model})
    with torch.no_grad():
        model.head.bias.view(torch.int32)[0] ^= 1
    assert digest({"model": model}) != before


def test_a_frozen_weight_that_is_tied_is_frozen_after_a_resume(tmp_path):
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[0].weight.requires_grad_(False)
        net[1].weight = net[0].weight
        return net

    with Checkpointer(tmp_path / "run", model=tied()) as saver:
        saver.step()
    net = tied()
    with Checkpointer(tmp_path / "run", model=net) as saver:
        assert saver.resume() is not None
    assert [name for name, tensor in net.named_parameters() if not tensor.requires_grad] == ["0.weight"]


def test_a_dict_that_holds_a_loss_with_its_graph_is_resumed(tmp_path):
    net = nn.Linear(1, 1)
    state = {"loss": net(torch.ones(1, 1)).sum()}
    for _ in range(2):  # a cell that is run twice
        with Checkpointer(tmp_path / "run", model=net, state=state, every="1 step") as saver:
            saver.resume()
            saver.step()
    assert saver.steps == 2 and not state["loss"].requires_grad


@pytest.mark.parametrize("inside", [False, True])
def test_what_metrics_have_added_up_is_part_of_the_state(tmp_path, inside):
    """Alone, in a collection whose metrics share what they count, of lists; named, or a part of the model."""

    def made():
        accuracy = {
            name: torchmetrics.Accuracy("multiclass", num_classes=3, average=name) for name in ("micro", "macro")
        }
        parts = {"all": torchmetrics.MetricCollection(accuracy), "mean": torchmetrics.MeanMetric(), "cat": CatMetric()}
        net = nn.Linear(1, 1)
        return (nn.ModuleDict({"net": net, **parts}), {}) if inside else (net, parts)

    def train(run, steps):
        net, named = made()
        parts = net if inside else named
        with Checkpointer(run, model=net, every="1 step", **named) as saver:
            saver.resume()
            for step in steps:
                parts["all"].update(torch.tensor([step % 3, 0]), torch.tensor([0, 2]))
                parts["mean"].update(float(step))
                parts["cat"].update(torch.tensor([float(step)]))
                saver.step()
        return [parts[name].compute() for name in ("all", "mean", "cat")]

    untouched = train(tmp_path / "untouched", range(5))
    train(tmp_path / "resumed", range(3))
    all_, mean, cat = train(tmp_path / "resumed", range(3, 5))
    assert all_ == untouched[0] and mean == untouched[1] and torch.equal(cat, untouched[2])


def test_what_a_module_adds_to_its_own_state_dict_is_part_of_the_state(tmp_path):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.count = nn.Linear(1, 1), 0

        def state_dict(self, *args, **kwargs):
            return {**self.inner.state_dict(), "count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]
            return self.inner.load_state_dict({name: state[name] for name in ("weight", "bias")})

    first = Counting()
    with Checkpointer(tmp_path / "run", model=first) as saver:
        first.count = 3
        saver.step()
    net = Counting()
    with Checkpointer(tmp_path / "run", model=net) as saver:
        saver.resume()
    assert net.count == 3 and torch.equal(net.inner.weight, first.inner.weight)


def test_tensors_of_a_plain_dict_that_overlap_in_memory_do_so_after_a_resume(tmp_path):
    def overlapping() -> dict[str, torch.Tensor]:
        block = torch.zeros(6)
        return {"block": block, "part": block[2:4]}

    with Checkpointer(tmp_path / "run", model=nn.Linear(1, 1), state=overlapping()) as saver:
        saver.step()
    state = overlapping()
    with Checkpointer(tmp_path / "run", model=nn.Linear(1, 1), state=state) as saver:
        assert saver.resume() is not None
        state["block"].fill_(7.0)
        assert state["part"].tolist() == [7.0, 7.0]
