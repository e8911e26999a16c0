"""What the tests of schedules share."""

from __future__ import annotations

import copy

from test_schedules_table import (
    metric_at,
)

from surefoot.schedules import (
    SchedulerSpec,
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
