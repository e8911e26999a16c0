"""Running metrics: exact, the same whenever they are read, and free in the loop."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from surefoot import losses
from surefoot.errors import UsageError
from surefoot.metrics import RunningMetrics


def batches(sizes, classes=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    for n in sizes:
        outputs, targets = torch.randn(n, classes, generator=g), torch.randint(0, classes, (n,), generator=g)
        yield nn.functional.cross_entropy(outputs, targets), outputs, targets, n


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    reads=st.sets(st.integers(0, 29)),
    hold=st.integers(1, 40),
    resume_at=st.integers(0, 29),
)
@settings(max_examples=60)
def test_when_it_is_read_flushed_or_resumed_changes_no_bit(sizes, reads, hold, resume_at):
    plain, disturbed = RunningMetrics(kind="classes"), RunningMetrics(kind="classes", hold_batches=hold)
    for i, batch in enumerate(batches(sizes)):
        plain.add(*batch)
        disturbed.add(*batch)
        if i in reads:
            disturbed.result()
        if i == resume_at:
            saved = json.loads(json.dumps(disturbed.state_dict()))
            disturbed = RunningMetrics(kind="classes", hold_bytes=hold * 100)
            disturbed.load_state_dict(saved)
    assert disturbed.state_dict() == plain.state_dict()
    assert disturbed.window() == plain.window()
    assert disturbed.result() == plain.result()


def test_means_are_over_samples_and_not_over_batches():
    running = RunningMetrics()
    running.add(torch.tensor(1.0), None, None, 9)
    running.add(torch.tensor(11.0), None, None, 1)
    assert running.result() == {"loss": 2.0}
    assert running.samples == 10


def test_a_window_holds_what_came_since_the_last():
    running = RunningMetrics()
    for value in (1.0, 2.0):
        running.add(torch.tensor(value), None, None, 2)
    assert running.window() == {"loss": 1.5}
    running.add(torch.tensor(5.0), None, None, 2)
    assert running.window() == {"loss": 5.0}
    assert math.isnan(running.window()["loss"])
    assert running.result()["loss"] == pytest.approx(8 / 3)


def test_nothing_added_is_not_a_number_and_reset_forgets():
    running = RunningMetrics(kind="classes")
    assert all(map(math.isnan, running.result().values()))
    for batch in batches([3]):
        running.add(*batch)
    running.reset()
    assert all(map(math.isnan, running.result().values())) and running.samples == 0


def test_a_loss_that_is_not_finite_shows():
    running = RunningMetrics()
    running.add(torch.tensor(math.nan), None, None, 1)
    running.add(torch.tensor(1.0), None, None, 1)
    assert math.isnan(running.result()["loss"])


@pytest.mark.parametrize(
    ("accuracy", "outputs", "targets", "expected"),
    [
        ("classes", [[1.0, 2, 0], [3, 2, 1]], [1, 1], 0.5),
        ("classes", [[1.0, 2, 0], [3, 2, 1]], [[0.1, 0.8, 0.1], [0.9, 0.1, 0]], 1.0),
        ("classes", [[1.0, 2, 0], [3, 2, 1]], [1, -100], 1.0),
        ("classes", [[[1.0, 0], [0, 1]], [[1, 1], [0, 0]]], [[0, 1], [0, 1]], 0.75),
        ("classes", [0.1, 0.9], 1, 1.0),
        ("logits", [0.3, -0.2, 4.0], [1.0, 1.0, 1.0], 2 / 3),
        ("logits", [[0.3], [-0.2]], [[1.0], [0.0]], 1.0),
        ("logits", [[0.3], [-0.2]], [1.0, 0.0], 1.0),
        ("probabilities", [0.3, 0.6], [0.0, 1.0], 1.0),
        ("probabilities", [[0.3, 0.6], [0.4, 0.9]], [[0, 1], [1, 0]], 0.5),
        ("signs", [2.0, -3.0, 1.0, 1.0], [1.0, -1.0, -1.0, 1.0], 0.75),
    ],
)
def test_accuracy_of_every_kind(accuracy, outputs, targets, expected):
    running = RunningMetrics(kind=accuracy)
    running.add(torch.tensor(1.0), torch.tensor(outputs), torch.tensor(targets), 1)
    assert running.result()["accuracy"] == pytest.approx(expected)


def test_batches_of_several_shapes_are_counted_together():
    running = RunningMetrics(kind="classes")
    right = 0
    g = torch.Generator().manual_seed(0)
    for shape in [(2, 2), (3, 3), (2, 2), (1, 4)]:
        outputs, targets = torch.randn(2, 4, *shape, generator=g), torch.randint(0, 4, (2, *shape), generator=g)
        right += int((outputs.argmax(1) == targets).sum())
        running.add(torch.tensor(0.0), outputs, targets, 2)
    assert running.result()["accuracy"] == right / (8 + 18 + 8 + 8)


def test_the_confusion_matrix_has_true_classes_in_rows():
    running = RunningMetrics(kind="classes", confusion=3)
    running.add(torch.tensor(0.0), torch.eye(3)[[0, 1, 1, 2]], torch.tensor([0, 0, 1, -100]), 4)
    assert running.matrix().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    again = RunningMetrics(kind="classes", confusion=3)
    again.load_state_dict(json.loads(json.dumps(running.state_dict())))
    again.add(torch.tensor(0.0), torch.eye(3), torch.arange(3), 3)
    assert again.matrix().tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 1]]
    with pytest.raises(UsageError, match="3 classes and this one 0"):
        RunningMetrics(kind="classes").load_state_dict(running.state_dict())


def test_what_it_holds_is_bounded_and_free_of_the_graph():
    running = RunningMetrics(kind="classes", hold_bytes=10_000)
    outputs = torch.randn(4, 100, requires_grad=True) * 2
    for _ in range(50):
        running.add(outputs.sum(), outputs, torch.zeros(4, dtype=torch.long), 4)
        assert len(running._held) < 20
        with_outputs = [outputs for _, outputs, *_ in running._held if outputs is not None]
        assert len(with_outputs) < 10
        assert all(tensor.grad_fn is None for tensor in [*with_outputs, *(held[0] for held in running._held)])


def test_adding_runs_no_kernel_and_reads_nothing_back():
    running = RunningMetrics(**losses.metric_options(nn.CrossEntropyLoss()))
    batch = next(batches([4]))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as seen:
        running.add(*batch)
    assert {event.name for event in seen.events() if event.name.startswith("aten::")} <= {"aten::detach"}


def test_ignored_positions_weigh_nothing():
    loss = nn.CrossEntropyLoss()
    running = RunningMetrics(**losses.metric_options(loss))
    outputs, targets = torch.randn(6, 3), torch.tensor([0, -100, -100, -100, -100, 2])
    for o, t in zip(outputs.split(2), targets.split(2), strict=True):
        running.add(loss(o, t), o, t, 2)
    assert running.result()["loss"] == pytest.approx(loss(outputs, targets).item())


def test_wrong_arguments_are_told():
    with pytest.raises(UsageError, match="not one of"):
        RunningMetrics(kind="top5")
    with pytest.raises(UsageError, match="confusion"):
        RunningMetrics(kind="logits", confusion=2)


@pytest.mark.parametrize(
    "held", [{"own": ("mae",)}, {"own": (), "weigh_many": lambda some: [len(each) for each in some]}]
)
def test_outputs_in_a_tuple_and_targets_alone_are_bounded_too(held):
    running = RunningMetrics(hold_bytes=10_000, **held)
    for _ in range(50):
        running.add(torch.tensor(1.0), (torch.zeros(4, 100), torch.ones(4, 100)), torch.zeros(4, 100), 4)
        assert len(running._held) < 8
