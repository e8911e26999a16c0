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
@pytest.mark.parametrize("computed", [False, True])
def test_the_plan_is_what_happens(name, by, warmup_by, computed, monkeypatch):
    if computed:
        monkeypatch.setattr(simulation, "_DRIVEN", 0)
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


@pytest.mark.parametrize("name", SPECS)
def test_arithmetic_equals_torch_over_a_long_run(name, monkeypatch):
    steps = 1000
    spec = respecified(SPECS[name], "step")
    if name in ("ReduceLROnPlateau", "SequentialLR plateau", "ChainedScheduler plateau"):
        spec = respecified(SPECS[name], "epoch")
    per_epoch, epochs = (1, steps) if spec.by == "epoch" else (steps, 1)
    driven = simulate(adam(), spec, None, per_epoch, epochs, plateau="always")
    monkeypatch.setattr(simulation, "_DRIVEN", 0)
    monkeypatch.setattr(simulation._Run, "driven", lambda self, calls: self.computed())
    computed = simulate(adam(), spec, None, per_epoch, epochs, plateau="always")
    assert np.array_equal(planned(driven), planned(computed))


def test_a_scheduler_of_ones_own_is_driven(monkeypatch):
    class Halving(torch.optim.lr_scheduler.LRScheduler):
        def get_lr(self):
            return [base * 0.5**self.last_epoch for base in self.base_lrs]

    monkeypatch.setattr(simulation, "_DRIVEN", 0)
    run = simulate(adam((1.0,)), SchedulerSpec(Halving), None, 1, 4)
    assert run.rates().tolist() == [1.0, 0.5, 0.25, 0.125]


def test_where_torch_computes_otherwise_torch_is_believed(monkeypatch):
    monkeypatch.setattr(simulation, "_DRIVEN", 0)
    monkeypatch.setattr(simulation._Run, "computed", lambda self: [np.zeros(self.calls + 1)] * len(self.first))
    spec = SchedulerSpec("ExponentialLR", {"gamma": 0.5})
    assert simulate(adam((1.0,)), spec, None, 1, 3).rates().tolist() == [1.0, 0.5, 0.25]


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


def a_million_steps(name, monkeypatch):
    """Planned by arithmetic: torch's own scheduler, some 20 us a call, does no more than the first calls and the probes."""
    args = dict(SPECS[name].args)
    if "total_steps" in args:
        args["total_steps"] = 1_000_000
    spec = SchedulerSpec(SPECS[name].name, args, "step", children=SPECS[name].children)
    driven, calls = simulation._Run.driven, []
    monkeypatch.setattr(simulation._Run, "driven", lambda self, count: calls.append(count) or driven(self, count))
    run = simulate(adam(), spec, WARM["LinearWarmup"], 10_000, 100)
    assert calls == [simulation._PREFIX]
    assert run.rates().shape == (1_000_000,)


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "OneCycleLR", "CyclicLR exp_range", "ChainedScheduler"])
def test_a_million_steps_are_planned_without_a_million_calls(name, monkeypatch):
    a_million_steps(name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SPECS if n not in ("ReduceLROnPlateau", "CyclicLR")])
def test_a_million_steps_of_every_scheduler_are_planned_without_a_million_calls(name, monkeypatch):
    a_million_steps(name, monkeypatch)


@pytest.mark.parametrize("computed", [False, True])
def test_where_a_scheduler_fails_in_the_midst_of_the_run_the_plan_says_so(computed, monkeypatch):
    if computed:
        monkeypatch.setattr(simulation, "_DRIVEN", 0)
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
