"""Training follows its plan: the rates recorded in metrics.jsonl are those planned, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fit_arguments import fit_arguments
from test_schedules_table import SPECS, WARM
from torch import nn

from surefoot import fit
from surefoot.planning import plan_report
from surefoot.schedules import LaterGroup, SchedulerSpec, WarmupSpec, build_schedule

EPOCHS, PER_EPOCH = 6, 5


def setup(spec, warm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    schedule = build_schedule(optimizer, spec, warm, PER_EPOCH, EPOCHS)
    return model, optimizer, schedule


def recorded(tmp_path, model, optimizer, schedule, **more):
    data = (torch.randn(40, 4), torch.randint(0, 3, (40,)))
    settings = {"batch_size": 8, "log_every": 1, "lint_off": ["all"], "execution": {}, "tensorboard": False}
    fit(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        data,
        **fit_arguments(
            val=data, epochs=EPOCHS, schedule=schedule, run_dir=tmp_path / "run", checkpoints=None, **settings, **more
        ),
    )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "step"]


@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize("name", [n for n in SPECS if "lateau" not in n])
def test_recorded_rates_are_the_planned_ones(name, by, tmp_path):
    spec = SchedulerSpec(SPECS[name].name, SPECS[name].args, by, children=SPECS[name].children)
    warm = WarmupSpec("LinearWarmup", {"warmup_period": 3}, "epoch" if by == "step" else "step")
    model, optimizer, schedule = setup(spec, warm)
    plan = plan_report(schedule, PER_EPOCH, EPOCHS)
    records = recorded(tmp_path, model, optimizer, schedule)
    assert [record["lr"] for record in records] == [plan.run.at(step) for step in range(EPOCHS * PER_EPOCH)]


def test_a_plateau_keeps_between_its_two_lines(tmp_path):
    spec = SchedulerSpec("ReduceLROnPlateau", {"patience": 0, "threshold": 0.5, "factor": 0.5})
    model, optimizer, schedule = setup(spec, WARM["none"])
    plan = plan_report(schedule, PER_EPOCH, EPOCHS)
    records = recorded(tmp_path, model, optimizer, schedule)
    told = np.array([record["lr"] for record in records]).T
    for group in range(2):
        assert (told[group] <= plan.run.rates(group)).all()
        assert (told[group] >= plan.always.rates(group)).all()
    assert told[0][-1] < told[0][0]


def test_what_is_unfrozen_follows_its_plan_too(tmp_path):
    spec, warm = SchedulerSpec("StepLR", {"step_size": 2}), WarmupSpec("LinearWarmup", {"warmup_period": 4})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].named_parameters(), lr=0.1)
    schedule = build_schedule(optimizer, spec, warm, PER_EPOCH, EPOCHS)
    plan = plan_report(
        schedule, PER_EPOCH, EPOCHS, later=[LaterGroup(3, {"name": "0.*", "params": model[0].parameters()})]
    )
    records = recorded(tmp_path, model, optimizer, schedule, unfreeze=[(3, "0.*")])
    for step, record in enumerate(records):
        planned = [rate for rate in plan.run.at(step) if not np.isnan(rate)]
        assert record["lr"] == planned
        assert len(planned) == (2 if step >= 3 * PER_EPOCH else 1)
