"""The plan: drawn, in numbers, with its marks, and with the mistakes that show before the run."""

from __future__ import annotations

import copy
import json
import sys
import xml.etree.ElementTree as xml
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from surefoot.charts.scale import Axis, axis_for
from surefoot.charts.terminal import drawn, envelope
from surefoot.models import LeNet5, SmallResNet
from surefoot.optimizers import OPTIMIZERS, build_optimizer
from surefoot.planning import MISTAKES, memory_of, mistakes, plan_report
from surefoot.schedules import LaterGroup, Schedule, SchedulerSpec, WarmupSpec, build_schedule, simulate_schedule

S, W = SchedulerSpec, WarmupSpec
COSINE = S("CosineAnnealingLR")


def planned(
    spec=COSINE, warm=None, per_epoch=100, epochs=12, *, refuse=True, optimizer="SGD", args=None, later=(), **how
):
    model = LeNet5()
    made = build_optimizer(optimizer, args or {"lr": 0.1}, model, **how)
    schedule = build_schedule(made, spec, warm, per_epoch, epochs, refuse=refuse)
    return plan_report(schedule, per_epoch, epochs, title="mine", later=later)


def marked(report):
    return [(event.step, event.kind) for event in report.events]


# Marks


@pytest.mark.parametrize(
    ("spec", "warm", "expected"),
    [
        (S("StepLR", {"step_size": 5}), None, [(500, "milestone"), (1000, "milestone")]),
        (S("MultiStepLR", {"milestones": [2, 7]}), W("LinearWarmup", {"warmup_period": 50}),
         [(49, "warmup"), (200, "milestone"), (700, "milestone")]),
        (S("CosineAnnealingWarmRestarts", {"T_0": 2, "T_mult": 2}), None, [(200, "restart"), (600, "restart")]),
        (S("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 250}), None,
         [(250, "peak"), (500, "bottom"), (750, "peak"), (1000, "bottom")]),
        (S("OneCycleLR", {"max_lr": 0.1}), None, [(359, "peak")]),
        (S("SequentialLR", {"milestones": [4]},
           children=(S("LinearLR", {"total_iters": 2}), S("ExponentialLR", {"gamma": 0.9}))),
         W("LinearWarmup", {"warmup_period": 3}, "epoch"), [(200, "warmup"), (200, "end"), (400, "switch")]),
        (S("ReduceLROnPlateau", {"patience": 2}), None, [(400, "reduction"), (700, "reduction"), (1000, "reduction")]),
        (S("CosineAnnealingLR", {"T_max": 5}), None, [(500, "bottom"), (1000, "peak")]),
        (None, W("ExponentialWarmup", {"warmup_period": 100}), [(460, "warmup")]),
    ],
)  # fmt: skip
def test_what_happens_is_marked_where_it_happens(spec, warm, expected):
    assert marked(planned(spec, warm)) == expected


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=7.5), [(8, "bottom"), (15, "peak")]),
        (lambda o: lr_scheduler.StepLR(o, step_size=2.5), [(5, "milestone"), (10, "milestone"), (15, "milestone")]),
        (lambda o: lr_scheduler.StepLR(o, step_size=7.1), []),
        (lambda o: lr_scheduler.LinearLR(o, total_iters=2.5), [(3, "end")]),
    ],
    ids=["cosine", "steps", "never", "linear"],
)
def test_lengths_that_are_fractions_are_marked_too(make, expected):
    """torch takes ``T_max=len(loader) / 2``."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    report = plan_report(Schedule(optimizer, make(optimizer), by="step"), 20, 1)
    assert marked(report) == expected and all(type(event.step) is int for event in report.events)
    if expected and expected[0][1] == "milestone":
        changed = np.flatnonzero(np.diff(report.run.rates())) + 1
        assert [step for step, _ in expected] == changed.tolist()


def test_marks_lie_where_the_rate_changes():
    report = planned(S("MultiStepLR", {"milestones": [2, 7]}))
    rates = report.run.rates()
    assert [event.step for event in report.events] == [k + 1 for k in np.flatnonzero(np.diff(rates))]


def test_a_plateau_is_drawn_as_two_lines():
    report = planned(S("ReduceLROnPlateau", {"patience": 2}))
    (never, flat), (always, falling) = report.lines()
    assert (never, always) == ("plateau never reduces", "plateau always reduces")
    assert set(flat) == {0.1}
    assert falling[-1] == pytest.approx(1e-4)


# Mistakes


WRONG = {
    "warmup-longer-than-run": {"warm": W("LinearWarmup", {"warmup_period": 2000})},
    "warmup-redundant": {"warm": W("LinearWarmup", {"warmup_period": 20}), "optimizer": "RAdam", "args": {}},
    "onecycle-total-steps": {"spec": S("OneCycleLR", {"max_lr": 0.1, "total_steps": 5000})},
    "per-step-scheduler-by-epoch": {"spec": S("OneCycleLR", {"max_lr": 0.1}, "epoch")},
    "rises-again": {"spec": S("CosineAnnealingLR", {"T_max": 8})},
    "cosine-unfinished": {"spec": S("CosineAnnealingLR", {"T_max": 1200})},
    "milestones-past-end": {"spec": S("MultiStepLR", {"milestones": [4, 30, 60]})},
    "step-size-past-end": {"spec": S("StepLR", {"step_size": 30})},
    "unfinished": {"spec": S("LinearLR", {"total_iters": 40})},
    "no-restart": {"spec": S("CosineAnnealingWarmRestarts", {"T_0": 50})},
    "ends-after-restart": {"spec": S("CosineAnnealingWarmRestarts", {"T_0": 11})},
    "plateau-cannot-trigger": {"spec": S("ReduceLROnPlateau", {"patience": 10})},
    "rate-vanishes": {"spec": S("StepLR", {"step_size": 5}, "step")},
    "rate-negative": {"spec": S("LambdaLR", {"lr_lambda": lambda k: 1 - k / 5})},
    "groups-flattened": {
        "spec": S("OneCycleLR", {"max_lr": 0.1}), "groups": [{"match": "fc3.*", "lr": 0.01}],
    },
    "scheduler-fails": {
        "spec": S("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "step_size_up": 1, "mode": "triangular2"}),
        "per_epoch": 3000, "epochs": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_told_alone_with_its_fix(name):
    report = planned(**WRONG[name])
    assert [finding.name for finding in report.findings] == [name]
    assert name in str(report.findings[0])
    assert "Fix: " in report.render_terminal()


def test_the_remedy_of_a_long_warmup_is_one_that_ends_it_sooner():
    def remedy(by: str, per_epoch: int, epochs: int) -> str:
        (finding,) = planned(None, W("LinearWarmup", {"warmup_period": 2000}, by), per_epoch, epochs).findings
        return finding.fix

    assert remedy("step", 10, 5) == "give a warmup_period below 50, or train for more steps"
    assert remedy("epoch", 10, 5) == "give a warmup_period below 5, or count it by step"
    assert remedy("step", 1, 1) == "train for more steps"  # no period is below 1


@pytest.mark.parametrize(
    ("spec", "per_epoch", "epochs"),
    [
        (S("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 10}), 5, 12),  # gone for good
        (S("CyclicLR", {"base_lr": 0.0, "max_lr": 0.1, "step_size_up": 1}), 4, 5),  # every second step
        (S("CosineAnnealingLR", {"T_max": 1}), 5, 2),  # one of two epochs
        (None, 5, 2),
    ],
)
def test_a_rate_that_vanishes_for_good_or_for_much_of_the_run_is_told(spec, per_epoch, epochs):
    report = planned(spec, None, per_epoch, epochs, args={"lr": 0.1 if spec else 0.0})
    assert "rate-vanishes" in [finding.name for finding in report.findings]


def test_a_mistake_inside_of_a_composite_is_told():
    spec = S("SequentialLR", {"milestones": [4, 20]}, children=(COSINE, S("StepLR", {"step_size": 2}), COSINE))
    assert [finding.name for finding in planned(spec).findings] == ["milestones-past-end"]
    chain = S("ChainedScheduler", children=(S("StepLR", {"step_size": 99}), S("MultiStepLR", {"milestones": [99]})))
    assert [finding.name for finding in planned(chain).findings] == ["step-size-past-end", "milestones-past-end"]


def test_a_cycle_that_torch_would_stop_is_an_error():
    (finding,) = [
        f
        for f in planned(S("OneCycleLR", {"max_lr": 0.1, "total_steps": 60}), refuse=False).findings
        if f.name == "onecycle-total-steps"
    ]
    assert finding.severity == "error"


RIGHT = [
    (None, None),
    (COSINE, W("LinearWarmup", {"warmup_period": 50})),
    (COSINE, W("LinearWarmup", {"warmup_period": 12}, "epoch")),
    (S("CosineAnnealingLR", {"T_max": 11}), None),
    (S("CosineAnnealingLR", {"T_max": 12}), None),
    (S("CosineAnnealingLR", by="step"), None),
    (S("StepLR", {"step_size": 4}), W("ExponentialWarmup", {"warmup_period": 20})),
    (S("MultiStepLR", {"milestones": [6, 11]}), None),
    (S("ExponentialLR", {"gamma": 0.8}), None),
    (S("OneCycleLR", {"max_lr": 0.1}), None),
    (S("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 100}), None),
    (S("ReduceLROnPlateau", {"patience": 5}), W("LinearWarmup", {"warmup_period": 5}, "epoch")),
    (S("CosineAnnealingWarmRestarts", {"T_0": 4}), None),
    (S("PolynomialLR", {"total_iters": 12}), None),
    (S("LinearLR", {"total_iters": 12, "end_factor": 0.1, "start_factor": 1.0}), None),
    (S("SequentialLR", {"milestones": [3]}, children=(S("LinearLR", {"total_iters": 3}), COSINE)), None),
    (
        S("ChainedScheduler", children=(S("ExponentialLR", {"gamma": 0.9}), S("ReduceLROnPlateau", {"patience": 3}))),
        None,
    ),
]


@pytest.mark.parametrize(("spec", "warm"), RIGHT)
def test_right_schedules_raise_no_alarm(spec, warm):
    assert planned(spec, warm).findings == []


@pytest.mark.parametrize(
    "part",
    [
        S("ConstantLR", {"factor": 1}),
        S("LinearLR", {"start_factor": 0.5, "end_factor": 0.5, "total_iters": 30}),
        S("PolynomialLR", {"power": 0.0, "total_iters": 40}),
        S("StepLR", {"gamma": 1.0, "step_size": 40}),
        S("MultiStepLR", {"gamma": 1.0, "milestones": [2, 40]}),
    ],
)
def test_a_part_that_never_moves_the_rate_has_neither_mistake_nor_mark(part):
    report = planned(part, None, 10, 3)
    assert (report.findings, report.events) == ([], [])
    first_of_two = S("SequentialLR", {"milestones": [8]}, children=(part, S("ReduceLROnPlateau")))
    assert [finding.name for finding in planned(first_of_two, None, 10, 1).findings] == ["milestones-past-end"]


@pytest.mark.parametrize(
    ("spec", "warm", "looked_at"),
    [
        (S("StepLR", {"step_size": 5}), W("LinearWarmup", {"warmup_period": 9}), True),  # five calls
        (S("StepLR", {"step_size": 5}, "step"), None, False),
        (None, W("RAdamWarmup"), False),
    ],
)
def test_training_does_not_wait_for_the_rates_of_many_calls(spec, warm, looked_at, monkeypatch):
    calls = []
    monkeypatch.setattr(
        sys.modules["surefoot.planning.mistakes"],
        "simulate_schedule",
        lambda *a, **k: calls.append(1) or simulate_schedule(*a, **k),
    )
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    mistakes(build_schedule(optimizer, spec, warm, 20_000, 5), 20_000, 5)
    assert bool(calls) is looked_at


@st.composite
def right_set_ups(draw):
    """A run and a schedule that suits it, whatever the numbers."""
    per_epoch, epochs = draw(st.integers(2, 50)), draw(st.integers(4, 60))
    by = draw(st.sampled_from(["step", "epoch"]))
    calls = epochs * per_epoch if by == "step" else epochs
    inside = st.integers(1, calls - 1)
    spec = draw(
        st.one_of(
            st.none(),
            st.builds(
                lambda n: S("StepLR", {"step_size": n, "gamma": 0.9}, by), st.integers(max(1, calls // 8), calls - 1)
            ),
            st.builds(lambda m: S("MultiStepLR", {"milestones": sorted(m)}, by), st.lists(inside, max_size=4)),
            st.builds(lambda n: S("CosineAnnealingLR", {"T_max": n}, by), st.sampled_from([calls - 1, calls])),
            st.just(S("CosineAnnealingLR", {}, by)),
            st.just(S("OneCycleLR", {"max_lr": 0.1})),
            st.builds(lambda n: S("ExponentialLR", {"gamma": 0.1 ** (n / calls)}, by), st.floats(0, 4)),
            st.builds(lambda n: S("LinearLR", {"total_iters": n}, by), st.integers(1, calls)),
            st.builds(lambda n: S("ReduceLROnPlateau", {"patience": n}), st.integers(0, epochs - 4)),
            st.builds(lambda n: S("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": n}), st.integers(1, 40)),
        )
    )
    warm_by = draw(st.sampled_from(["step", "epoch"]))
    most = epochs * per_epoch if warm_by == "step" else epochs
    warm = draw(
        st.one_of(
            st.none(), st.builds(lambda n: W("LinearWarmup", {"warmup_period": n}, warm_by), st.integers(1, most))
        )
    )
    return spec, warm, per_epoch, epochs


@settings(max_examples=150)
@given(right_set_ups())
@example((S("CosineAnnealingLR", {"T_max": 7}, "step"), None, 2, 4))
@example((S("CosineAnnealingLR", {"T_max": 3}, "epoch"), None, 2, 4))
def test_no_right_set_up_raises_an_alarm(set_up):
    spec, warm, per_epoch, epochs = set_up
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    assert mistakes(build_schedule(optimizer, spec, warm, per_epoch, epochs), per_epoch, epochs) == []


def test_the_packaged_recipes_raise_no_alarm():
    from surefoot.build import schedule_specs
    from surefoot.recipe import load_recipe, packaged_names

    for name in packaged_names():
        recipe = load_recipe(name)
        optimizer = build_optimizer("SGD", {"lr": 0.1, "momentum": 0.9}, LeNet5())
        schedule = build_schedule(optimizer, *schedule_specs(recipe), 100, recipe.epochs)
        assert mistakes(schedule, 100, recipe.epochs) == []


def test_every_mistake_has_its_section_and_nothing_else_has():
    from surefoot.cli.explain import sections

    assert {name for name, (page, _) in sections().items() if page == "schedules"} == set(MISTAKES)


# Numbers


def state_after_a_step(name, model):
    optimizer = build_optimizer(name, {}, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    expected_before = memory_of(model, optimizer).optimizer
    optimizer.step(*([lambda: torch.zeros(())] if name == "LBFGS" else []))
    held = sum(
        t.numel() * t.element_size()
        for s in optimizer.state.values()
        for t in s.values()
        if isinstance(t, torch.Tensor)
    )
    return expected_before, held


class Counting(torch.optim.Optimizer):
    """With an attribute of its own, which no copy of an optimizer has, and one buffer a parameter."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                kept = self.state[parameter].setdefault("kept", torch.zeros_like(parameter))
                parameter.sub_(kept.add_(parameter.grad), alpha=group["lr"])


class Wrapper(torch.optim.Optimizer):
    """Moves what the optimizer in it holds, and has no state itself."""

    def __init__(self, base):
        self.base = base
        super().__init__(base.param_groups, {})

    def step(self, closure=None):
        self.base.step()


def test_the_memory_of_an_optimizer_of_ones_own_is_told_and_nothing_is_moved():
    model = nn.Linear(3, 2)
    memory = memory_of(model, Counting(model.parameters()))
    assert memory.optimizer == memory.parameters
    model(torch.randn(4, 3)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    wrapper = Wrapper(torch.optim.Adam(model.parameters(), lr=0.1))
    assert memory_of(model, wrapper).optimizer > 0 and not wrapper.base.state
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS.names() if n not in ("LBFGS", "SparseAdam")])
def test_the_optimizers_memory_is_what_it_takes(name):
    model = nn.Sequential(nn.Linear(30, 40, bias=False), nn.Linear(40, 20, bias=False))
    expected, held = state_after_a_step(name, model)
    if name == "Adafactor":
        assert held <= expected
    else:
        assert expected == held


class Neighbours(nn.Module):
    """A layer over a graph, whose neighbours are a sparse matrix."""

    def __init__(self, matrix):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("matrix", matrix)

    def forward(self, inputs):
        return self.matrix @ self.layer(inputs)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_tensors_take_what_they_have(layout):
    sparse = getattr(torch.eye(100), layout)()
    model, inputs = Neighbours(sparse), torch.randn(100, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = memory_of(model, optimizer, (inputs, sparse), lambda model, batch: model(batch[0]).sum())
    assert 1000 < told.buffers < 3000 and told.batch == told.buffers + 1600
    assert 0 <= told.activations < 2000


def test_activations_are_those_that_autograd_keeps():
    model, batch = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10)), (torch.randn(8, 100),)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory = memory_of(model, optimizer, batch, lambda m, b: m(b[0]).sum())
    assert memory.activations == 8 * 50 * 4  # ReLU's output, which is the second layer's input; the batch is told apart
    assert memory.batch == 8 * 100 * 4
    assert memory.parameters == memory.gradients == sum(p.numel() for p in model.parameters()) * 4


@pytest.mark.parametrize(("per_epoch", "epochs"), [(10**6, 1000), (10, 10**8), (10**12, 1)])
def test_no_length_of_run_is_refused_or_waited_for(per_epoch, epochs, monkeypatch):
    monkeypatch.setattr("surefoot.planning.report.LONGEST_DRAWN", 5000)  # of five million
    spec = S("CosineAnnealingLR", {"T_max": 10**5}, "step")
    warm = W("LinearWarmup", {"warmup_period": 50})
    schedule = build_schedule(build_optimizer("SGD", {"lr": 0.1}, LeNet5()), spec, warm, per_epoch, epochs)
    with monkeypatch.context() as patch:  # neither train nor check computes a rate
        patch.setattr(sys.modules["surefoot.planning.mistakes"], "simulate_schedule", None)
        assert [finding.name for finding in mistakes(schedule, per_epoch, epochs)] == ["rises-again"]
    report = plan_report(schedule, per_epoch, epochs)
    assert report.run.steps == 5000 and report.run.rates()[:50].max() <= 0.1
    assert report.to_json()["steps"] == report.steps == per_epoch * epochs
    text = report.render_terminal(100)
    assert "the first 5,000 steps" in text and f"{per_epoch * epochs:,} = " in text


def test_planning_leaves_no_trace():
    model = SmallResNet()
    optimizer = build_optimizer("AdamW", {"lr": 0.1}, model)
    schedule = build_schedule(optimizer, COSINE, W("LinearWarmup", {"warmup_period": 5}), 10, 2)
    inputs, targets = torch.randn(4, 1, 28, 28), torch.randint(0, 10, (4,))
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    generator = torch.get_rng_state()
    model.eval()
    plan_report(
        schedule,
        10,
        2,
        model=model,
        batch=(inputs, targets),
        apply=lambda m, b: nn.functional.cross_entropy(nn.functional.dropout(m(b[0])), b[1]),
    )
    after = (model.state_dict(), optimizer.state_dict(), schedule.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values(), strict=True))
    assert before[1:] == after[1:]
    assert torch.equal(generator, torch.get_rng_state())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_time_is_told_from_a_few_steps():
    model = LeNet5()
    schedule = Schedule(torch.optim.SGD(model.parameters(), lr=0.1))
    calls = []
    report = plan_report(schedule, 100, 10, step=lambda: calls.append(1), samples_per_epoch=1600)
    assert 5 <= len(calls) <= 52
    assert report.seconds >= 0
    assert report.samples == 16_000
    assert "time" in report.render_terminal()


def test_the_plan_as_json():
    report = planned(W("x") and COSINE, later=[LaterGroup(4, {"lr": 0.5, "name": "late", "params": [torch.zeros(3)]})])
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["steps"] == 1200
    assert [group["elements"] for group in plain["groups"]] == [44_426, 3]
    assert plain["groups"][1]["from_epoch"] == 4
    assert plain["curves"][1]["lr"][0][0] == 400
    assert len(plain["curves"][0]["lr"]) <= 502
    for curve, (_, rates) in zip(plain["curves"], report.lines(), strict=True):
        assert all(rates[step] == rate for step, rate in curve["lr"])


# The charts


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [60, 80, 133])
@pytest.mark.parametrize("name", [*WRONG])
def test_the_terminals_chart_keeps_to_its_width(name, width, unicode):
    text = planned(**WRONG[name]).render_terminal(width, unicode)
    assert all(len(line) <= width for line in text.splitlines())
    assert text.isascii() is not unicode


def test_the_terminals_chart_is_the_curve():
    curve = np.concatenate((np.linspace(0, 1, 50), np.full(50, 1.0)))
    assert drawn([curve], Axis(0.0, 1.0), 10, 5, unicode=False, colour=False) == [
        "    ******",
        "   **     ",
        " ***      ",
        "**        ",
        "*         ",
    ]
    # Two columns and four rows of dots a cell: the ramp over the left half, the plateau in the top row of dots.
    assert drawn([curve], Axis(0.0, 1.0), 4, 2, unicode=True, colour=False) == [" \u287c\u2809\u2809", "\u285e\u2801  "]


def test_no_peak_is_lost_between_columns():
    curve = np.zeros(10_000)
    curve[7_777] = 1.0
    low, high = envelope(curve, 60)
    assert high.max() == 1.0
    assert low.max() == 0.0


@pytest.mark.parametrize(
    ("curve", "log"),
    [
        (np.linspace(0.1, 0, 100), False),
        (0.1 * (1 + np.cos(np.linspace(0, np.pi, 100))), False),
        (0.1 * 0.1 ** (np.arange(100) // 25), True),
        (np.full(100, 0.1), False),
        (np.zeros(100), False),
        (np.linspace(0.1, -0.1, 100), False),
        (np.full(100, np.nan), False),
    ],
)
def test_the_axis_shows_most_of_the_run(curve, log):
    axis = axis_for([curve])
    assert axis.log is log
    assert axis.high > axis.low
    assert len(axis.ticks(5)) >= 1


@pytest.mark.parametrize("name", ["rises-again", "plateau-cannot-trigger", "scheduler-fails", "rate-negative"])
def test_pictures_are_made_and_equal_plans_are_equal_files(name, tmp_path):
    report = planned(**WRONG[name])
    report.save_svg(tmp_path / "a.svg")
    planned(**WRONG[name]).save_svg(tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    found = xml.fromstring((tmp_path / "a.svg").read_text(encoding="utf-8"))
    assert "learning rate" in "".join(found.itertext())
    drawn = list(found.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(drawn) >= len(report.lines())
    width, height = map(float, found.get("viewBox").split()[2:])
    spots = [tuple(map(float, spot.split(","))) for line in drawn for spot in line.get("points").split()]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in spots)


def test_a_name_is_in_the_picture_as_text(tmp_path):
    report = replace(planned(), title="\u7b2c\u4e00\u6b21 <&>")
    report.save_svg(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "\u7b2c\u4e00\u6b21 <&>" in "".join(xml.fromstring(text).itertext())
    assert "var(" not in text and "url(" not in text  # shown by what is no browser, and no request


def test_the_plan_counts_as_people_do():
    text = planned(S("MultiStepLR", {"milestones": [2, 7]}), later=[LaterGroup(4, {"lr": 0.5, "name": "late"})])
    told = text.render_terminal(100)
    assert "after epoch 2: x 0.1" in told and "after epoch 7: x 0.1" in told and "(from epoch 5 on)" in told


def test_many_groups_fit_into_the_chart():
    report = planned(layer_decay=0.5, no_decay="norm_and_bias", optimizer="AdamW", args={"lr": 1e-3})
    text = report.render_terminal(80, True)
    assert "layer4/no_decay" in text
    assert all(len(line) <= 80 for line in text.splitlines())
