"""The plan is what happens: simulated rates equal those of a run, to the last bit, in every combination."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_schedules_table import NEEDS_METRIC, SPECS, UNITS, WARM, adam

import surefoot.schedules.simulation as simulation
from surefoot.errors import UsageError
from surefoot.schedules import LaterGroup, SchedulerSpec, WarmupSpec, build_schedule, simulate


def trained(spec, warm, per_epoch, epochs, plateau="never", optimizer=None):
    """The rates that a run records."""
    optimizer = optimizer or adam()
    schedule = build_schedule(optimizer, spec, warm, per_epoch, epochs)
    rates = []
    for epoch in range(epochs):
        for _ in range(per_epoch):
            rates.append(schedule.lrs)
            optimizer.step()
            schedule.step(*([1.0] if schedule.needs_step_metric else []))
        schedule.epoch(2.0**-epoch if plateau == "never" else 1.0)
    return np.array(rates).T


def planned(run):
    return np.array([run.rates(group) for group in range(len(run.names))])


def respecified(spec, by):
    return SchedulerSpec(spec.name, spec.args, by, children=spec.children)


@pytest.mark.parametrize(("name", "by"), UNITS)
@pytest.mark.parametrize("warmup_by", ["step", "epoch"])
def test_the_plan_is_what_happens(name, by, warmup_by):
    spec = respecified(SPECS[name], by)
    for warm_name in ("none", "LinearWarmup", "RAdamWarmup"):
        warm = WARM[warm_name] and WarmupSpec(warm_name, WARM[warm_name].args, warmup_by)
        for plateau in ("never", "always") if name in NEEDS_METRIC else ("never",):
            expected = trained(spec, warm, 5, 40, plateau)
            run = simulate(adam(), spec, warm, 5, 40, plateau=plateau)
            assert np.array_equal(planned(run), expected)


def test_plateau_by_step_is_planned_too():
    spec = SchedulerSpec("ReduceLROnPlateau", {"factor": 0.5, "patience": 3}, by="step")
    run = simulate(adam(), spec, None, 5, 10, plateau="always")
    assert np.array_equal(planned(run), trained(spec, None, 5, 10, "always"))


def test_a_scheduler_of_ones_own_is_planned_too():
    class Halving(torch.optim.lr_scheduler.LRScheduler):
        def get_lr(self):
            return [base * 0.5**self.last_epoch for base in self.base_lrs]

    run = simulate(adam((1.0,)), SchedulerSpec(Halving), None, 1, 4)
    assert run.rates().tolist() == [1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "OneCycleLR", "SequentialLR"])
def test_a_scheduler_of_ones_own_may_be_called_as_one_of_torchs(name):
    def get_lr(self):
        return [base * 0.5**self.last_epoch for base in self.base_lrs]

    spec = SchedulerSpec(type(name, (torch.optim.lr_scheduler.LRScheduler,), {"get_lr": get_lr}))
    assert simulate(adam((1.0,)), spec, None, 2, 2).rates().tolist() == [1.0, 1.0, 0.5, 0.5]
    theirs = SchedulerSpec(torch.optim.lr_scheduler.OneCycleLR, {"max_lr": 0.1})
    assert build_schedule(adam((1.0,)), theirs, None, 5, 4).scheduler.total_steps == 20, "torch's own, imported"


@pytest.mark.parametrize("milestones", [500, "2", [2, 1]])
def test_milestones_that_are_none_are_told(milestones):
    parts = (SchedulerSpec("StepLR", {"step_size": 1}), SchedulerSpec("CosineAnnealingLR"))
    with pytest.raises(UsageError, match="milestones: .* is not "):
        build_schedule(adam(), SchedulerSpec("SequentialLR", {"milestones": milestones}, children=parts), None, 5, 4)


def test_schedulers_in_a_chain_cannot_wait_for_a_warmup():
    chain = SchedulerSpec("ChainedScheduler", children=(SchedulerSpec("StepLR", {"step_size": 1}),) * 2)
    warm = WarmupSpec("LinearWarmup", {"warmup_period": 6}, then="scheduler")
    with pytest.raises(UsageError, match="then: scheduler` cannot delay a ChainedScheduler"):
        build_schedule(adam(), chain, warm, 5, 4)


@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize(
    "name", ["StepLR", "CosineAnnealingLR", "LinearLR", "ReduceLROnPlateau", "OneCycleLR", "SWALR"]
)
def test_a_group_that_joins_later_is_planned_as_it_happens(name, by):
    if name == "ReduceLROnPlateau" and by == "step":
        by = "epoch"
    spec, warm = respecified(SPECS[name], by), WarmupSpec("LinearWarmup", {"warmup_period": 7})
    run = simulate(adam(), spec, warm, 5, 30, plateau="always", later=[LaterGroup(11, {"lr": 0.5, "name": "late"})])

    optimizer = adam()
    schedule = build_schedule(optimizer, spec, warm, 5, 30)
    for epoch in range(30):
        if epoch == 11:
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5})
        for step in range(5):
            optimizer.step()
            rates = schedule.lrs
            at = run.at(epoch * 5 + step)
            assert rates == at[: len(rates)]
            assert epoch >= 11 or np.isnan(at[2])
            schedule.step()
        schedule.epoch(1.0)
    assert run.names[2] == "late"


def test_a_long_simulation_says_how_far_it_is():
    shown = []
    schedule = build_schedule(adam(), SPECS["StepLR"], WARM["LinearWarmup"], 1, 50_000)
    run = simulation.simulate_schedule(schedule, 1, 50_000, show=lambda done, calls: shown.append((done, calls)))
    assert shown == [(20_000, 50_000), (40_000, 50_000)] and run.rates().shape == (50_000,)


def test_where_a_scheduler_fails_in_the_midst_of_the_run_the_plan_says_so():
    args = {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 1, "step_size_down": 1, "mode": "triangular2"}
    run = simulate(adam(), SchedulerSpec("CyclicLR", args), None, 3000, 1)
    step, message = run.failure
    assert "OverflowError" in message
    assert np.isfinite(run.rates()[:step]).all()
    assert np.isnan(run.rates()[step:]).all()

    optimizer = adam()
    schedule = build_schedule(optimizer, SchedulerSpec("CyclicLR", args), None, 3000, 1)
    optimizer.step()
    with pytest.raises(OverflowError):
        for taken in range(3000):  # noqa: B007
            schedule.step()
    assert taken + 1 == step


def test_a_plan_of_a_live_schedule_leaves_it_alone():
    optimizer = adam()
    schedule = build_schedule(optimizer, SPECS["CyclicLR"], WARM["LinearWarmup"], 10, 4)
    before = (schedule.state_dict(), optimizer.state_dict())
    run = simulation.simulate_schedule(schedule, 10, 4)
    assert (schedule.state_dict(), optimizer.state_dict()) == before
    assert run.at(0) == schedule.lrs
    optimizer.step()
    schedule.step()
    with pytest.raises(UsageError, match="plan before training"):
        simulation.simulate_schedule(schedule, 10, 4)
