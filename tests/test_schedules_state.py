"""Schedules that are loaded: what is refused, what is taken, and what becomes of a longer run."""

from __future__ import annotations

import copy

import pytest
import torch
from schedule_helpers import PER_EPOCH, respecified, train
from test_schedules_table import (
    SPECS,
    WARM,
    adam,
    rates_of,
    stored,
)
from torch.optim import lr_scheduler

from surefoot.errors import UsageError
from surefoot.schedules import (
    Schedule,
    SchedulerSpec,
    WarmupSpec,
    build_schedule,
)


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


def gone_on(spec, *stages):
    """The rates and momenta of the last of `stages`: (epochs of the run, choice, steps until it stops)."""
    optimizer, schedule, done = None, None, 0
    for epochs, choice, stop in stages:
        before = (optimizer, schedule)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4, momentum=0.9)
        schedule = build_schedule(optimizer, spec, None, PER_EPOCH, epochs)
        if before[0] is not None:
            schedule.on_horizon = choice
            schedule.load_state_dict(stored(before[1].state_dict()))
            optimizer.load_state_dict(before[0].state_dict())
        told = []
        for step in range(done, stop):
            optimizer.step()
            told.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            schedule.step()
            if (step + 1) % PER_EPOCH == 0:
                schedule.epoch()
        done = stop
    return told


BY_HAND = SchedulerSpec("CosineAnnealingLR", {"T_max": 6})


@pytest.mark.parametrize("spec", [*HORIZONS, BY_HAND], ids=lambda spec: f"{spec.title} {spec.unit} {len(spec.args)}")
@pytest.mark.parametrize(
    "stages",
    [
        [(6, None, 10), (12, "stretch", 48)],
        [(6, None, 10), (9, "stretch", 20), (12, "stretch", 48)],
        [(6, None, 24), (9, "keep", 33), (12, "stretch", 48)],
        [(6, None, 13), (9, "keep", 30), (10, "keep", 33), (12, "stretch", 48)],
    ],
    ids=["once", "twice", "after it was kept", "after it was kept twice"],
)
def test_a_stretched_run_goes_on_as_one_that_was_so_long_from_the_start(spec, stages):
    # Momentum included: OneCycleLR moves both. A length given by hand is in proportion to its run.
    begun = stages[-2][2]
    long = SchedulerSpec("CosineAnnealingLR", {"T_max": 12}) if spec is BY_HAND else spec
    assert gone_on(spec, *stages) == gone_on(long, (12, None, begun), (12, None, 48))


def test_a_kept_curve_holds_its_last_momentum_too():
    kept = gone_on(HORIZONS[0], (6, None, 24), (9, "keep", 36))
    assert set(kept) == {gone_on(HORIZONS[0], (6, None, 24))[-1]}


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
