"""A Schedule is torch's scheduler to the last bit, resumes anywhere, and takes in groups that come later."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_helpers import PER_EPOCH, respecified, train
from test_schedules_table import (
    NEEDS_METRIC,
    NO_METRIC,
    SPECS,
    UNITS,
    WARM,
    adam,
    metric_at,
    plain_torch,
    stored,
)

from surefoot.errors import UsageError
from surefoot.registry import Range
from surefoot.schedules import (
    SCHEDULERS,
    LinearWarmup,
    Schedule,
    SchedulerSpec,
    SequentialLR,
    WarmupSpec,
    build_schedule,
)


@pytest.mark.parametrize("name", [*NO_METRIC, "ReduceLROnPlateau"])
@pytest.mark.parametrize("by", ["step", "epoch"])
def test_equal_to_torch_to_the_last_bit_in_every_hyperparameter(name, by):
    def plain(steps):
        optimizer = adam()
        scheduler = plain_torch(SPECS[name], optimizer)
        told = []
        for step in range(steps):
            groups = copy.deepcopy(optimizer.param_groups)
            told.append([{k: v for k, v in g.items() if k != "params"} for g in groups])
            optimizer.step()
            if by == "step" or (step + 1) % PER_EPOCH == 0:
                metric = metric_at(step if by == "step" else step // PER_EPOCH)
                scheduler.step(*([metric] if name == "ReduceLROnPlateau" else []))
        return told

    optimizer = adam()
    schedule = build_schedule(optimizer, respecified(SPECS[name], by), None, PER_EPOCH, 50)
    assert train(optimizer, schedule, 0, 200) == plain(200)


@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize("warm", ["none", "LinearWarmup", "RAdamWarmup"])
@pytest.mark.parametrize("name", SPECS)
def test_resumed_at_any_step_equals_untouched(name, by, warm):
    resume_anywhere(name, by, warm, "epoch" if by == "step" else "step", (0, 1, 2, 3, 13, 40, 41, 79))


@pytest.mark.slow
@pytest.mark.parametrize("warmup_by", ["step", "epoch"])
@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize("warm", WARM)
@pytest.mark.parametrize("name", SPECS)
def test_every_schedule_resumed_at_every_step_equals_untouched(name, by, warm, warmup_by):
    resume_anywhere(name, by, warm, warmup_by, range(0, 80))


def resume_anywhere(name, by, warm, warmup_by, stops):
    spec = respecified(SPECS[name], by)
    warmup = WARM[warm] and WarmupSpec(warm, WARM[warm].args, warmup_by)

    def fresh():
        optimizer = adam()
        return optimizer, build_schedule(optimizer, spec, warmup, PER_EPOCH, 20)

    expected = train(*fresh(), 0, 80)
    optimizer, schedule = fresh()
    for stop in stops:
        told = train(optimizer, schedule, 0, stop)
        state = stored(schedule.state_dict())
        again, resumed = fresh()
        resumed.load_state_dict(state)
        again.load_state_dict(optimizer.state_dict())
        train(again, resumed, stop, 80, told=told)
        assert told == expected, f"stopped after {stop} steps"
        optimizer, schedule = fresh()


@pytest.mark.parametrize("name", SPECS)
def test_loading_in_the_other_order_works_too(name):
    def fresh():
        optimizer = adam()
        return optimizer, build_schedule(optimizer, SPECS[name], WARM["LinearWarmup"], PER_EPOCH, 20)

    expected = train(*fresh(), 0, 60)
    optimizer, schedule = fresh()
    told = train(optimizer, schedule, 0, 31)
    again, resumed = fresh()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert train(again, resumed, 31, 60, told=told) == expected


@pytest.mark.parametrize(("name", "by"), UNITS)
def test_a_tensor_rate_stays_one_tensor_and_is_the_float_rate_rounded(name, by):
    spec = respecified(SPECS[name], by)

    def run(optimizer):
        homes = [group["lr"] for group in optimizer.param_groups]
        schedule = build_schedule(optimizer, spec, WARM["LinearWarmup"], PER_EPOCH, 20)
        told = []
        for epoch in range(20):
            for _ in range(PER_EPOCH):
                told.append(schedule.lrs)
                optimizer.step()
                schedule.step()
            schedule.epoch(metric_at(epoch))
        kept = [group["lr"] is home for group, home in zip(optimizer.param_groups, homes, strict=True)]
        return told, kept

    # Rates that float32 holds exactly, so that both runs begin with the same.
    expected, _ = run(adam((0.5, 0.125)))
    told, kept = run(adam((0.5, 0.125), tensor=True))
    assert all(kept)
    assert told == [[torch.tensor(lr).item() for lr in lrs] for lrs in expected]


def test_a_skipped_update_does_not_move_the_schedule():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = build_schedule(optimizer, SchedulerSpec("ExponentialLR", {"gamma": 0.5}, "step"), None, 10, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()  # torch would warn that optimizer.step() was not called; a GradScaler may have skipped it
    assert schedule.lrs == [0.5]


@pytest.mark.parametrize(("name", "by"), UNITS)
def test_a_later_group_is_scheduled_as_if_it_had_been_there(name, by):
    spec = respecified(SPECS[name], by)
    present = adam((0.1, 0.1))
    expected = train(present, build_schedule(present, spec, None, PER_EPOCH, 30), 0, 120)

    optimizer = adam((0.1,))
    schedule = build_schedule(optimizer, spec, None, PER_EPOCH, 30)
    train(optimizer, schedule, 0, 48)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1})
    schedule.adopt_groups()
    told = train(optimizer, schedule, 48, 120)
    assert [[g["lr"] for g in groups] for groups in told] == [[g["lr"] for g in groups] for groups in expected[48:]]


@pytest.mark.parametrize("name", SPECS)
def test_a_run_with_a_later_group_resumes(name):
    spec = SPECS[name]

    def fresh(groups):
        optimizer = adam((0.1, 0.2)[:groups])
        return optimizer, build_schedule(optimizer, spec, WARM["LinearWarmup"], PER_EPOCH, 30)

    def add(optimizer):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.2})

    optimizer, schedule = fresh(1)
    train(optimizer, schedule, 0, 20)
    add(optimizer)
    train(optimizer, schedule, 20, 35)
    saved, state = copy.deepcopy(optimizer.state_dict()), stored(schedule.state_dict())
    expected = train(optimizer, schedule, 35, 80)
    for groups in (1, 2):
        again, resumed = fresh(groups)
        if groups == 1:
            with pytest.raises(UsageError, match="has 2 param groups, the optimizer has 1"):
                resumed.load_state_dict(state)
            add(again)
        resumed.load_state_dict(state)
        again.load_state_dict(saved)
        assert train(again, resumed, 35, 80) == expected


def test_a_plateau_in_a_sequence_starts_from_the_first_rate_and_counts_only_its_turn():
    spec = SchedulerSpec(
        "SequentialLR",
        {"milestones": [3]},
        children=(
            SchedulerSpec("ExponentialLR", {"gamma": 0.5}),
            SchedulerSpec("ReduceLROnPlateau", {"factor": 0.1, "patience": 0}),
        ),
    )
    optimizer = adam((1.0,))
    schedule = build_schedule(optimizer, spec, None, 1, 10)
    rates = []
    for _ in range(7):
        rates += schedule.lrs
        optimizer.step()
        schedule.step()
        schedule.epoch(1.0)
    assert rates == [1.0, 0.5, 0.25, 1.0, 1.0, 0.1, pytest.approx(0.01)]


def test_plateaus_go_by_epoch_while_the_rest_goes_by_step():
    spec = SchedulerSpec(
        "ChainedScheduler",
        by="step",
        children=(
            SchedulerSpec("ConstantLR", {"factor": 0.5, "total_iters": 3}),
            SchedulerSpec("ReduceLROnPlateau", {"factor": 0.1, "patience": 0}),
        ),
    )
    optimizer = adam((1.0,))
    schedule = build_schedule(optimizer, spec, None, 2, 10)
    rates = []
    for _ in range(3):
        for _ in range(2):
            rates += schedule.lrs
            optimizer.step()
            schedule.step()
        schedule.epoch(1.0)
    assert schedule.needs_metric
    assert rates == [0.5, 0.5, 0.5, 1.0, 0.1, 0.1]


def test_a_composite_can_only_begin_a_sequence():
    optimizer = adam((1.0,))
    step = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    chain = torch.optim.lr_scheduler.ChainedScheduler([step])
    with pytest.raises(UsageError, match="can only be its first part"):
        SequentialLR(optimizer, [step, chain], [2])


def test_a_missing_metric_is_told():
    schedule = build_schedule(adam(), SPECS["ReduceLROnPlateau"], None, PER_EPOCH, 3)
    with pytest.raises(UsageError, match="watches 'val/loss', but the epoch ended without it"):
        schedule.epoch()


def test_a_scheduler_of_another_optimizer_is_refused():
    with pytest.raises(UsageError, match="belongs to another optimizer"):
        Schedule(adam(), torch.optim.lr_scheduler.StepLR(adam(), 1))
    with pytest.raises(UsageError, match="belongs to another optimizer"):
        Schedule(adam(), None, LinearWarmup(adam(), 1))


@pytest.mark.parametrize(
    ("name", "args", "told"),
    [
        ("MultiStepLR", {"milestones": [3, 1]}, "not in rising order"),
        ("MultiStepLR", {"milestones": "3"}, "not a list of whole numbers"),
        ("StepLR", {"step_size": 0}, "below 1"),
        ("StepLR", {"stepsize": 3}, "did you mean 'step_size'"),
        ("StepLR", {}, "needs the argument 'step_size'"),
        ("ReduceLROnPlateau", {"factor": 1.0}, "not below 1"),
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 10}, "the run calls it 40 times"),
        ("SequentialLR", {"milestones": [2]}, "needs 'schedulers'"),
        ("StepLr", {"step_size": 3}, "did you mean 'StepLR'"),
        ("CosineAnnealingLR", {"last_epoch": 3}, "no argument 'last_epoch'"),
    ],
)
def test_bad_arguments_are_told(name, args, told):
    with pytest.raises(UsageError, match=told):
        build_schedule(adam(), SchedulerSpec(name, args), None, 10, 4)


def test_what_the_runs_length_answers_may_be_absent():
    assert SCHEDULERS.problems("CosineAnnealingLR", {}) == []
    assert SCHEDULERS.problems("OneCycleLR", {"max_lr": 0.1}) == []
    assert build_schedule(adam(), SchedulerSpec("OneCycleLR", {"max_lr": 1.0}), None, 10, 4).scheduler.total_steps == 40
    by_step = SchedulerSpec("CosineAnnealingLR", by="step")
    assert build_schedule(adam(), by_step, None, 10, 4).scheduler.T_max == 40
    sequence = SchedulerSpec(
        "SequentialLR",
        {"milestones": [3]},
        children=(SchedulerSpec("LinearLR"), SchedulerSpec("CosineAnnealingLR")),
    )
    assert build_schedule(adam(), sequence, None, 10, 10).scheduler._schedulers[1].T_max == 7


def test_limits_name_arguments_that_exist():
    for entry in SCHEDULERS:
        assert set(entry.limits) <= set(entry.parameters())
        assert all(isinstance(limit, Range) for limit in entry.limits.values())


_RATE = st.floats(1e-6, 1.0)


_COUNT = st.integers(1, 90)


def _any(name, **arguments):
    return st.fixed_dictionaries(arguments).map(lambda given: SchedulerSpec(name, given))


_ANY = st.one_of(
    _any("StepLR", step_size=_COUNT, gamma=_RATE),
    _any("MultiStepLR", milestones=st.lists(_COUNT, max_size=5).map(sorted), gamma=_RATE),
    _any("CosineAnnealingLR", T_max=_COUNT, eta_min=st.floats(0, 0.1)),
    _any("LinearLR", start_factor=st.floats(0.01, 1), end_factor=st.floats(0.01, 1), total_iters=_COUNT),
    _any("PolynomialLR", total_iters=_COUNT, power=st.floats(0.5, 3)),
    _any("CosineAnnealingWarmRestarts", T_0=_COUNT, T_mult=st.integers(1, 3)),
    _any("CyclicLR", base_lr=_RATE, max_lr=_RATE, step_size_up=_COUNT, step_size_down=_COUNT),
    _any("OneCycleLR", max_lr=_RATE, pct_start=st.floats(0.1, 0.45), three_phase=st.booleans()),
)


@settings(max_examples=60)
@given(spec=_ANY, by=st.sampled_from(["step", "epoch"]), stop=st.integers(0, 79), period=st.integers(1, 100))
def test_any_schedule_resumes_anywhere_and_is_what_was_planned(spec, by, stop, period):
    from surefoot.schedules import simulate

    spec = respecified(spec, by)
    warmup = WarmupSpec("LinearWarmup", {"warmup_period": period})

    def fresh():
        optimizer = adam()
        return optimizer, build_schedule(optimizer, spec, warmup, PER_EPOCH, 20)

    optimizer, schedule = fresh()
    told = train(optimizer, schedule, 0, stop)
    again, resumed = fresh()
    resumed.load_state_dict(stored(schedule.state_dict()))
    again.load_state_dict(optimizer.state_dict())
    train(again, resumed, stop, 80, told=told)
    plan = simulate(adam(), spec, warmup, PER_EPOCH, 20)
    assert [[g["lr"] for g in groups] for groups in told] == [plan.at(step) for step in range(80)]


def test_needs_metric_is_known_before_the_run():
    for name in SPECS:
        assert build_schedule(adam(), SPECS[name], None, 4, 30).needs_metric == (name in NEEDS_METRIC)
