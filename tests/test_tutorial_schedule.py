"""The tutorial's schedules, to the bit: its own loops with pytorch_warmup 0.2.0 are written out here and compared."""

from __future__ import annotations

import math

import pytest
import pytorch_warmup
import torch
from torch.optim import lr_scheduler

from surefoot.build import schedule_specs
from surefoot.errors import UsageError
from surefoot.recipe import load_recipe
from surefoot.schedules import SchedulerSpec, WarmupSpec, build_schedule, simulate

EPOCHS = 50


def sgd(lr):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)


LOSSES = {
    "noisy": [0.3 + 0.4 * math.exp(-e / 6) + 0.02 * math.sin(7.0 * e) for e in range(EPOCHS)],
    "flat from the start": [0.5] * EPOCHS,
    "best before the plateau counts": [0.2 if e == 4 else 0.3 + 0.001 * e for e in range(EPOCHS)],
    "falls, then rises": [abs(e - 12) / 10 + 0.3 for e in range(EPOCHS)],
    "ever better": [1 / (1 + e) for e in range(EPOCHS)],
}


def tutorial(losses):
    """The tutorial's last chapter: the rate of each epoch."""
    optimizer = sgd(0.001)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.1)
    warmup = pytorch_warmup.LinearWarmup(optimizer, warmup_period=10)
    rates = []
    for loss in losses:
        rates.append(optimizer.param_groups[0]["lr"])
        with warmup.dampening():
            if warmup.last_step + 1 >= 9:
                scheduler.step(loss)
    return rates


@pytest.mark.parametrize("name", LOSSES)
def test_the_packaged_recipe_has_the_tutorials_rates(name):
    recipe = load_recipe("fashion_mnist")
    schedule = build_schedule(sgd(0.001), *schedule_specs(recipe), 2, EPOCHS)
    assert schedule.monitor == "val/loss"
    rates = []
    for loss in LOSSES[name]:
        rates += schedule.lrs
        for _ in range(2):
            schedule.optimizer.step()
            schedule.step()
        schedule.epoch(loss)
    assert rates == tutorial(LOSSES[name])


def documented(make, period, steps):
    """pytorch_warmup's documented loop that delays a scheduler: the rate of each step."""
    optimizer = sgd(0.01)
    scheduler = make(optimizer)
    warmup = pytorch_warmup.LinearWarmup(optimizer, warmup_period=period)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warmup.dampening():
            if warmup.last_step + 1 >= period:
                scheduler.step()
    return rates


AFTER = {
    "ExponentialLR": ({"gamma": 0.9}, lambda o, left: lr_scheduler.ExponentialLR(o, gamma=0.9)),
    "CosineAnnealingLR": ({}, lambda o, left: lr_scheduler.CosineAnnealingLR(o, T_max=left)),
    "StepLR": ({"step_size": 3}, lambda o, left: lr_scheduler.StepLR(o, step_size=3)),
}


@pytest.mark.parametrize("name", AFTER)
@pytest.mark.parametrize("period", [1, 2, 10])
@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_a_scheduler_only_after_the_warmup_is_as_pytorch_warmup_documents_it(name, period, unit):
    args, make = AFTER[name]
    steps = 40
    expected = documented(lambda optimizer: make(optimizer, steps - period + 1), period, steps)
    spec, warm = (
        SchedulerSpec(name, args, unit),
        WarmupSpec("LinearWarmup", {"warmup_period": period}, unit, "scheduler"),
    )
    per_epoch, epochs = (steps, 1) if unit == "step" else (1, steps)
    plan = simulate(sgd(0.01), spec, warm, per_epoch, epochs)
    schedule = build_schedule(sgd(0.01), spec, warm, per_epoch, epochs)
    rates = []
    for step in range(steps):
        rates += schedule.lrs
        schedule.optimizer.step()
        schedule.step()
        if unit == "epoch" or step == steps - 1:
            schedule.epoch()
    assert rates == pytest.approx(expected, rel=1e-12) and rates == plan.rates().tolist()
    assert max(rates) == rates[period - 1] == 0.01  # the warmup's end has the whole rate


def test_the_units_may_differ():
    spec = SchedulerSpec("ExponentialLR", {"gamma": 0.5}, "epoch")
    warm = WarmupSpec("LinearWarmup", {"warmup_period": 5}, "step", "scheduler")
    assert simulate(sgd(1.0), spec, warm, 4, 4).rates()[[4, 8, 12]].tolist() == [1.0, 0.5, 0.25]
    spec = SchedulerSpec("ExponentialLR", {"gamma": 0.5}, "step")
    warm = WarmupSpec("LinearWarmup", {"warmup_period": 2}, "epoch", "scheduler")
    assert simulate(sgd(1.0), spec, warm, 2, 3).rates().tolist() == [0.5, 0.5, 1.0, 1.0, 0.5, 0.25]


def test_a_warmup_without_a_period_is_refused():
    warm = WarmupSpec("RAdamWarmup", {}, "step", "scheduler")
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(UsageError, match="needs a warmup with a warmup_period"):
        build_schedule(adam, SchedulerSpec("ExponentialLR", {"gamma": 0.5}), warm, 2, 3)
