"""A Schedule is torch's scheduler to the last bit, resumes anywhere, and takes in groups that come later."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedules_table import (
    NEEDS_METRIC,
    NO_METRIC,
    SPECS,
    UNITS,
    WARM,
    adam,
    metric_at,
    plain_torch,
    rates_of,
    stored,
)
from torch.optim import lr_scheduler

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

PER_EPOCH = 4


def respecified(spec, by):
    return SchedulerSpec(spec.name, spec.args, by, children=spec.children)


def train(optimizer, schedule, first, last, per_epoch=PER_EPOCH, told=None):
    """Steps `first` to `last` of a run; the state of every group at each."""
    told = [] if told is None else told
    for step in range(first, last):
        told.append([{k: v for k, v in g.items() if k != "params"} for g in copy.deepcopy(optimizer.param_groups)])
        optimizer.step()
        schedule.step(*([metric_at(step)] if schedule.needs_step_metric else []))
        if (step + 1) % per_epoch == 0:
            schedule.epoch(metric_at(step // per_epoch))
    return told


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


# Groups that come later


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


# Composites with plateaus


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


# Mistakes


def test_a_missing_metric_is_told():
    schedule = build_schedule(adam(), SPECS["ReduceLROnPlateau"], None, PER_EPOCH, 3)
    with pytest.raises(UsageError, match="watches 'val/loss', but the epoch ended without it"):
        schedule.epoch()


@pytest.mark.parametrize(
    ("spec", "warm", "by"),
    [
        (SchedulerSpec("ExponentialLR", {"gamma": 0.5}), None, "epoch"),
        (SchedulerSpec("StepLR", {"step_size": 5}), None, "step"),
        (SchedulerSpec("StepLR", {"step_size": 5}), "LinearWarmup", "epoch"),
        (None, None, "epoch"),
    ],
)
def test_the_state_of_another_schedule_is_refused(spec, warm, by):
    saved = build_schedule(adam(), SchedulerSpec("StepLR", {"step_size": 5}), None, 4, 4).state_dict()
    spec = spec and respecified(spec, by)
    other = build_schedule(adam(), spec, WARM[warm] if warm else None, 4, 4)
    with pytest.raises(UsageError, match="the saved schedule is another one"):
        other.load_state_dict(saved)


@pytest.mark.parametrize(
    ("saved", "now", "told"),
    [
        ({"step_size": 5}, {"step_size": 6}, "StepLR.step_size was 5 and is 6"),
        ({"step_size": 5, "gamma": 0.1}, {"step_size": 5, "gamma": 0.2}, "StepLR.gamma was 0.1 and is 0.2"),
    ],
)
def test_arguments_that_changed_since_are_told_instead_of_silently_put_back(saved, now, told):
    state = build_schedule(adam(), SchedulerSpec("StepLR", saved), None, 4, 4).state_dict()
    with pytest.raises(UsageError, match=told):
        build_schedule(adam(), SchedulerSpec("StepLR", now), None, 4, 4).load_state_dict(state)


def test_changed_milestones_parts_and_warmups_are_told():
    def made(milestones=(3,), gamma=0.5, period=4, T_max=9):
        parts = (
            SchedulerSpec("MultiStepLR", {"milestones": [1, 2], "gamma": gamma}),
            SchedulerSpec("CosineAnnealingLR", {"T_max": T_max}),
        )
        spec = SchedulerSpec("SequentialLR", {"milestones": list(milestones)}, children=parts)
        return build_schedule(adam(), spec, WarmupSpec("LinearWarmup", {"warmup_period": period}), 4, 12)

    state = made().state_dict()
    made().load_state_dict(state)
    for how, told in (
        ({"milestones": (4,)}, r"SequentialLR.milestones was \[3\] and is \[4\]"),
        ({"gamma": 0.4}, "MultiStepLR.gamma was 0.5 and is 0.4"),
        ({"T_max": 8}, "CosineAnnealingLR.T_max was 9 and is 8"),
        ({"period": 5}, "the arguments of LinearWarmup were .*4.* and are .*5"),
    ):
        with pytest.raises(UsageError, match=told):
            made(**how).load_state_dict(state)


def test_a_kept_or_stretched_run_resumes_again_without_a_question():
    for choice in ("keep", "stretch"):
        spec = SchedulerSpec("CosineAnnealingLR", {"T_max": 6})
        optimizer = adam((0.4,))
        schedule = build_schedule(optimizer, spec, None, PER_EPOCH, 6)
        train(optimizer, schedule, 0, 10)
        for step in (10, 15):
            again = adam((0.4,))
            resumed = build_schedule(again, spec, None, PER_EPOCH, 9)
            resumed.on_horizon = choice if step == 10 else None
            resumed.load_state_dict(schedule.state_dict())
            again.load_state_dict(optimizer.state_dict())
            train(again, resumed, step, step + 5)
            optimizer, schedule = again, resumed
        assert optimizer.param_groups[0]["lr"] == longer(spec, choice, 10)[10]


@pytest.mark.parametrize("name", ["StepLR", "MultiStepLR", "SequentialLR plateau", "OneCycleLR", "CyclicLR"])
def test_a_state_with_other_fields_is_refused_before_anything_changes(name):
    optimizer = adam()
    schedule = build_schedule(optimizer, SPECS[name], WARM["LinearWarmup"], 4, 20)
    state = stored(schedule.state_dict())
    train(optimizer, schedule, 0, 9)
    before = (schedule.state_dict(), copy.deepcopy(optimizer.state_dict()))
    inside = [state, state["scheduler"], *state["scheduler"].get("_schedulers", [])]
    for level, fields in enumerate(inside):
        for field in [*fields, "step"]:  # a state may not replace a method
            damaged = copy.deepcopy(state)
            place = [damaged, damaged["scheduler"], *damaged["scheduler"].get("_schedulers", [])][level]
            if field in place:
                del place[field]
            else:
                place[field] = 1
            with pytest.raises(UsageError, match="the saved schedule"):
                schedule.load_state_dict(damaged)
            assert (schedule.state_dict(), optimizer.state_dict()) == before


def _swalr(optimizer, **arguments):
    return torch.optim.swa_utils.SWALR(optimizer, **{"swa_lr": 0.02, "anneal_epochs": 8, **arguments})


def _one_cycle(optimizer, **arguments):
    return lr_scheduler.OneCycleLR(optimizer, **{"max_lr": 0.3, "total_steps": 40, **arguments})


def _cyclic(optimizer, **arguments):
    return lr_scheduler.CyclicLR(optimizer, **{"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5, **arguments})


def _plateau(optimizer, **arguments):
    return lr_scheduler.ReduceLROnPlateau(optimizer, **{"patience": 0, "factor": 0.5, **arguments})


def _cosine(optimizer, **arguments):
    return lr_scheduler.CosineAnnealingLR(optimizer, **{"T_max": 9, **arguments})


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (_one_cycle, {"max_lr": 0.1}, "max_lr of param group 0 was 0.3 and is 0.1"),
        (_one_cycle, {"div_factor": 10}, "initial_lr of param group 0 was 0.012 and is 0.03"),
        (_one_cycle, {"pct_start": 0.2}, "OneCycleLR: pct_start or three_phase is another one"),
        (_one_cycle, {"anneal_strategy": "linear"}, "OneCycleLR.anneal_func_type was cos and is linear"),
        (_cyclic, {"max_lr": 0.2}, r"CyclicLR.max_lrs was \[0.1, 0.1\] and is \[0.2, 0.2\]"),
        (_cyclic, {"base_lr": 0.02}, r"CyclicLR.base_lrs was \[0.01, 0.01\] and is \[0.02, 0.02\]"),
        (_cyclic, {"step_size_up": 7}, "CyclicLR.total_size was 10.0 and is 14.0"),
        (_swalr, {"swa_lr": 0.05}, "swa_lr of param group 0 was 0.02 and is 0.05"),
        (_swalr, {"anneal_strategy": "linear"}, "SWALR.anneal_strategy was cos and is linear"),
        (_plateau, {"min_lr": 0.05}, r"ReduceLROnPlateau.min_lrs was \[0, 0\] and is \[0.05, 0.05\]"),
        (_cosine, {"T_max": 12}, "CosineAnnealingLR.T_max was 9 and is 12"),
    ],
)
def test_changed_arguments_of_a_scheduler_given_in_python_are_named_and_can_be_taken(
    make, change, message, optimizer_first
):
    def fresh(**arguments):
        optimizer = adam()
        return optimizer, Schedule(optimizer, make(optimizer, **arguments))

    optimizer, schedule = fresh()
    train(optimizer, schedule, 0, 12)
    saved, state = copy.deepcopy(optimizer.state_dict()), stored(schedule.state_dict())
    with pytest.raises(UsageError, match=f"the schedule changed since it was saved: .*{message}"):
        fresh(**change)[1].load_state_dict(state)

    def resumed(accept, **arguments):
        again, other = fresh(**arguments)
        other.accept_changes = accept
        if optimizer_first:
            again.load_state_dict(saved)
        other.load_state_dict(state)
        if not optimizer_first:
            again.load_state_dict(saved)
        return [[group["lr"] for group in groups] for groups in train(again, other, 12, 60)]

    expected, same = resumed(False), resumed(True)
    taken = resumed(True, **change)
    assert same == expected
    assert taken != expected and taken[0] == expected[0]  # from here on


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


# Horizons


def longer(spec, choice, done, old=6, new=9, warm=None):
    """The rates of a run that was to have `old` epochs, stopped after `done` steps, and goes on to `new`."""
    optimizer = adam((0.4,))
    schedule = build_schedule(optimizer, spec, warm, PER_EPOCH, old)
    train(optimizer, schedule, 0, done)
    again = adam((0.4,))
    resumed = build_schedule(again, spec, warm, PER_EPOCH, new)
    resumed.on_horizon = choice
    resumed.load_state_dict(stored(schedule.state_dict()))
    again.load_state_dict(optimizer.state_dict())
    told = []
    for step in range(done, new * PER_EPOCH):
        again.step()
        told += rates_of(again)
        resumed.step()
        if (step + 1) % PER_EPOCH == 0:
            resumed.epoch()
    return told


def whole(spec, epochs, warm=None):
    optimizer = adam((0.4,))
    schedule = build_schedule(optimizer, spec, warm, PER_EPOCH, epochs)
    return [groups[0]["lr"] for groups in train(optimizer, schedule, 0, epochs * PER_EPOCH)]


HORIZONS = [
    SchedulerSpec("OneCycleLR", {"max_lr": 0.3}),
    SchedulerSpec("CosineAnnealingLR", {"eta_min": 0.01}),
    SchedulerSpec("CosineAnnealingLR", {}, "step"),
    SchedulerSpec(
        "SequentialLR",
        {"milestones": [2]},
        children=(SchedulerSpec("LinearLR", {"total_iters": 2}), SchedulerSpec("CosineAnnealingLR")),
    ),
]


@pytest.mark.parametrize("spec", HORIZONS, ids=lambda spec: f"{spec.title} {spec.unit}")
@pytest.mark.parametrize("done", [0, 1, 10, 23, 24])
@pytest.mark.parametrize("warm", ["none", "LinearWarmup"])
def test_a_longer_run_keeps_or_stretches_its_horizon(spec, done, warm):
    warm = WARM[warm]
    old, new = whole(spec, 6, warm), whole(spec, 9, warm)
    assert longer(spec, "stretch", done, warm=warm) == new[done:]
    kept = longer(spec, "keep", done, warm=warm)
    assert kept[: len(old) - done] == old[done:]
    if warm is None:
        assert set(kept[len(old) - done :]) == {old[-1]}


@pytest.mark.parametrize("spec", HORIZONS, ids=lambda spec: f"{spec.title} {spec.unit}")
def test_a_changed_horizon_is_asked_for(spec):
    with pytest.raises(UsageError, match="had 6 epochs of 4 steps and now has 9.*choose the horizon"):
        longer(spec, None, 10)


def test_a_length_given_by_hand_is_stretched_in_proportion():
    by_hand = SchedulerSpec("CosineAnnealingLR", {"T_max": 6})
    assert longer(by_hand, "stretch", 10) == whole(SchedulerSpec("CosineAnnealingLR", {"T_max": 9}), 9)[10:]


def test_an_unchanged_horizon_and_one_that_nothing_depends_on_ask_nothing():
    assert longer(HORIZONS[0], None, 10, new=6) == whole(HORIZONS[0], 6)[10:]
    step = SchedulerSpec("StepLR", {"step_size": 2})
    assert longer(step, None, 10) == whole(step, 9)[10:]
    schedule = build_schedule(adam(), HORIZONS[0], None, 4, 6)
    assert schedule.horizon == {
        "by": "step",
        "steps_per_epoch": 4,
        "epochs": 6,
        "lengths": {"OneCycleLR.total_steps": 24},
    }


# Any arguments at all

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
