"""Warmups equal pytorch_warmup 0.2.0 to the last bit, and have none of its faults."""

from __future__ import annotations

import json

import pytest
import pytorch_warmup
import torch
from test_schedules_table import NO_METRIC, SPECS, WARM, adam, metric_at, plain_torch, rates_of

import surefoot.schedules as schedules
from surefoot.errors import UsageError
from surefoot.schedules import LinearWarmup, Schedule

STEPS = 400
WARMUP_NAMES = [name for name in WARM if name != "none"]


def by_hand(warmups, scheduler_name, warmup_name):
    """The rates in a hand-written loop over plain torch, with a warmup of the package `warmups`."""
    optimizer = adam()
    scheduler = plain_torch(SPECS[scheduler_name], optimizer)
    warmup = getattr(warmups, warmup_name)(optimizer, **WARM[warmup_name].args)
    rates = []
    for step in range(STEPS):
        rates.append(rates_of(optimizer))
        optimizer.step()
        with warmup.dampening():
            scheduler.step(*([metric_at(step)] if scheduler_name == "ReduceLROnPlateau" else []))
    return rates


@pytest.mark.parametrize("scheduler_name", [*NO_METRIC, "ReduceLROnPlateau"])
@pytest.mark.parametrize("warmup_name", WARMUP_NAMES)
def test_equal_to_pytorch_warmup_to_the_last_bit(scheduler_name, warmup_name):
    expected = by_hand(pytorch_warmup, scheduler_name, warmup_name)
    metric = scheduler_name == "ReduceLROnPlateau"
    assert by_hand(schedules, scheduler_name, warmup_name) == expected

    optimizer = adam()
    scheduler = plain_torch(SPECS[scheduler_name], optimizer)
    warmup = getattr(schedules, warmup_name)(optimizer, **WARM[warmup_name].args)
    schedule = Schedule(optimizer, scheduler, warmup, by="step", warmup_by="step")
    through_schedule = []
    for step in range(STEPS):
        through_schedule.append(schedule.lrs)
        optimizer.step()
        schedule.step(*([metric_at(step)] if metric else []))
    assert through_schedule == expected


@pytest.mark.parametrize("warmup_by", ["step", "epoch"])
@pytest.mark.parametrize("warmup_name", WARMUP_NAMES)
@pytest.mark.parametrize(
    ("scheduler_name", "by"),
    [
        ("CosineAnnealingLR", "step"),
        ("CosineAnnealingLR", "epoch"),
        ("StepLR", "step"),
        ("StepLR", "epoch"),
        ("ReduceLROnPlateau", "epoch"),
    ],
)
def test_scheduler_and_warmup_each_in_its_unit_equal_pytorch_warmups_loop(scheduler_name, warmup_name, by, warmup_by):
    per_epoch, epochs = 5, 30

    def loop(warmup_module, step):
        optimizer = adam()
        scheduler = plain_torch(SPECS[scheduler_name], optimizer)
        warmup = getattr(warmup_module, warmup_name)(optimizer, **WARM[warmup_name].args)
        rates = []
        for epoch in range(epochs):
            for index in range(per_epoch):
                rates.append(rates_of(optimizer))
                optimizer.step()
                step(scheduler, warmup, epoch, index == per_epoch - 1)
        return rates

    def by_hand(scheduler, warmup, epoch, last):
        """As its README has it: whoever's turn it is goes inside of dampening(), which is the warmup's turn."""
        metric = [metric_at(epoch)] if scheduler_name == "ReduceLROnPlateau" else []
        scheduled = by == "step" or last
        if warmup_by == "step" or last:
            with warmup.dampening():
                if scheduled:
                    scheduler.step(*metric)
        elif scheduled:
            # The warmup rests: take it back a step first, so that dampening() comes to where it is.
            warmup.last_step -= 1
            with warmup.dampening():
                scheduler.step(*metric)

    schedules_made = {}

    def by_schedule(scheduler, warmup, epoch, last):
        key = id(scheduler)
        if key not in schedules_made:
            schedules_made[key] = Schedule(scheduler.optimizer, scheduler, warmup, by=by, warmup_by=warmup_by)
        schedules_made[key].step()
        if last:
            schedules_made[key].epoch(metric_at(epoch))

    assert loop(schedules, by_schedule) == loop(pytorch_warmup, by_hand)


def linear(rates=(1.0,), period=4, **more):
    optimizer = adam(rates, **more)
    return optimizer, LinearWarmup(optimizer, period)


def test_a_plateau_outside_dampening_is_kept():
    optimizer, warmup = linear(period=10)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    plateau.step(1.0)
    plateau.step(1.0)
    for _ in range(12):
        warmup.advance()
    assert rates_of(optimizer) == [0.5]


def test_a_plateau_outside_dampening_after_the_warmup_is_exact():
    optimizer, warmup = linear(rates=(0.3,), period=2)
    for _ in range(5):
        warmup.advance()
    optimizer.param_groups[0]["lr"] *= 0.1
    warmup.advance()
    assert rates_of(optimizer) == [0.3 * 0.1]


def test_a_tensor_rate_stays_the_same_tensor():
    optimizer, warmup = linear(tensor=True)
    before = optimizer.param_groups[0]["lr"]
    told = []
    for _ in range(5):
        told.append(float(before))
        optimizer.step()
        with warmup.dampening():
            pass
    assert optimizer.param_groups[0]["lr"] is before
    assert told == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("done", [0, 9])
def test_after_an_exception_the_rates_are_what_they_were(done, tensor):
    optimizer, warmup = linear(tensor=tensor)
    for _ in range(done):
        warmup.advance()
    before = rates_of(optimizer)
    with pytest.raises(KeyError), warmup.dampening():
        optimizer.param_groups[0]["lr"] = 123.0
        raise KeyError("scheduler failed")
    assert rates_of(optimizer) == before
    warmup.advance()
    assert rates_of(optimizer) == [1.0 if done else 0.5]


def test_a_warmup_that_is_done_still_sees_groups_rates_and_lost_states():
    optimizer, warmup = linear()
    for _ in range(9):
        warmup.advance()
    other, fresh = linear()
    early = other.state_dict()
    optimizer.param_groups[0]["lr"] = 0.3
    warmup.advance()
    assert rates_of(optimizer) == [0.3]
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 2.0})
    warmup.advance()
    assert rates_of(optimizer) == [0.3, 1.0]
    single, done = linear()
    for _ in range(9):
        done.advance()
    single.load_state_dict(early)
    with pytest.raises(UsageError, match="was not restored"):
        done.advance()


def test_a_group_added_later_is_warmed_from_its_own_first_step():
    optimizer, warmup = linear()
    for _ in range(6):
        optimizer.step()
        warmup.advance()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 2.0})
    rates = []
    for _ in range(5):
        optimizer.step()
        rates.append(rates_of(optimizer))
        warmup.advance()
    assert rates == [[1.0, 0.5], [1.0, 1.0], [1.0, 1.5], [1.0, 2.0], [1.0, 2.0]]


@pytest.mark.parametrize("loaded_first", [True, False])
def test_a_restart_without_the_warmups_state_is_told(loaded_first):
    optimizer, warmup = linear(period=10)
    for _ in range(3):
        warmup.advance()
    saved, mine = optimizer.state_dict(), warmup.state_dict()

    again = adam((1.0,))
    if loaded_first:
        again.load_state_dict(saved)
    fresh = LinearWarmup(again, 10)
    if not loaded_first:
        again.load_state_dict(saved)
    with pytest.raises(UsageError, match="warmup step 3.*was not restored"):
        fresh.advance()
    fresh.load_state_dict(mine)
    assert rates_of(again) == rates_of(optimizer) == [0.4]


def test_a_second_warmup_in_the_same_process_starts_from_undampened_rates():
    optimizer, warmup = linear(period=10)
    warmup.advance()
    LinearWarmup(optimizer, 4)
    assert rates_of(optimizer) == [0.25]


def test_a_scheduler_made_after_the_warmup_is_told():
    optimizer, warmup = linear()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    with pytest.raises(UsageError, match="make the scheduler first"), warmup.dampening():
        scheduler.step()


def test_a_state_of_pytorch_warmup_is_understood():
    optimizer = adam((1.0, 0.5))
    theirs_ = pytorch_warmup.LinearWarmup(optimizer, 10)
    for _ in range(3):
        with theirs_.dampening():
            pass
    mine_optimizer = adam((1.0, 0.5))
    mine = LinearWarmup(mine_optimizer, 10)
    mine.load_state_dict(theirs_.state_dict())
    mine_optimizer.load_state_dict(optimizer.state_dict())
    with theirs_.dampening():
        pass
    mine.advance()
    assert rates_of(mine_optimizer) == rates_of(optimizer)


@pytest.mark.parametrize("name", WARMUP_NAMES)
@pytest.mark.parametrize("stop", [0, 1, 7, 40])
def test_resumed_equals_untouched(name, stop):
    def run(steps, optimizer, warmup):
        rates = []
        for _ in range(steps):
            rates.append(rates_of(optimizer))
            warmup.advance()
        return rates

    kind = getattr(schedules, name)
    whole = adam()
    expected = run(60, whole, kind(whole, **WARM[name].args))
    first = adam()
    warmup = kind(first, **WARM[name].args)
    told = run(stop, first, warmup)
    state = json.loads(json.dumps(warmup.state_dict(), allow_nan=False))
    second = adam()
    resumed = kind(second, **WARM[name].args)
    resumed.load_state_dict(state)
    second.load_state_dict(first.state_dict())
    assert told + run(60 - stop, second, resumed) == expected


def test_another_warmups_state_is_refused():
    optimizer, warmup = linear()
    with pytest.raises(UsageError, match="is 'LinearWarmup', not 'ExponentialWarmup'"):
        schedules.ExponentialWarmup(adam((1.0,)), 4).load_state_dict(warmup.state_dict())
    with pytest.raises(UsageError, match="has 1 param groups, the optimizer has 2"):
        LinearWarmup(adam(), 4).load_state_dict(warmup.state_dict())


@pytest.mark.parametrize("period", [0, -1, 2.5, True, "4", [4, 4, 4], [0, 1]])
def test_a_bad_warmup_period_is_told(period):
    with pytest.raises(UsageError, match="warmup_period"):
        LinearWarmup(adam(), period)


def test_untuned_warmups_need_betas():
    for name in ("UntunedLinearWarmup", "UntunedExponentialWarmup", "RAdamWarmup"):
        with pytest.raises(UsageError, match="needs an optimizer with betas"):
            getattr(schedules, name)(adam(kind=torch.optim.SGD))


def test_the_live_groups_hold_nothing_that_would_compile_a_step_again():
    optimizer, warmup = linear(tensor=True)
    before = {key: value for key, value in optimizer.param_groups[0].items() if key not in ("params", "lr")}
    for _ in range(3):
        optimizer.step()
        warmup.advance()
    assert {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "lr")} == before
    assert optimizer.state_dict()["param_groups"][0]["warmup_step"] == 3
    again, resumed = linear(tensor=True)
    resumed.load_state_dict(warmup.state_dict())
    again.load_state_dict(optimizer.state_dict())
    assert "warmup_step" not in again.param_groups[0]


def test_warmups_that_are_gone_are_forgotten(request):
    import gc
    import weakref

    gc.freeze()  # what other tests have left is not gone through each time
    request.addfinalizer(gc.unfreeze)
    optimizer, warmup = linear()
    gone = weakref.ref(warmup)
    del warmup
    gc.collect()
    assert gone() is None
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    for _ in range(5):
        Schedule(optimizer, None, LinearWarmup(optimizer, 3))
        gc.collect()
    assert len(optimizer._optimizer_step_pre_hooks) <= 4
    assert len(optimizer._optimizer_state_dict_post_hooks) <= 2
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) <= 2
