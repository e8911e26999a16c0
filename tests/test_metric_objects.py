"""Metrics of torchmetrics and functions of one's own: measured like accuracy, exact after a resume, free in a step."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional

import surefoot
from surefoot.errors import Problems, UsageError
from surefoot.losses import metric_options
from surefoot.metrics import RunningMetrics
from surefoot.training import Checkpoints, EarlyStopping, RunOptions

N = 40
F1 = functools.partial(torchmetrics.F1Score, task="multiclass", num_classes=3, average="macro")


def tensors(binary: bool = False):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(N, 6, generator=generator)
    return x, (x[:, :1] > 0).float() if binary else torch.randint(3, (N,), generator=generator)


def trained(metrics, loss=None, outputs=3, data=None, run=None, **settings):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = tensors() if data is None else data
    run = RunOptions(**{"lint_off": ["all"], "progress": False} | (run or {}))
    loss = nn.CrossEntropyLoss() if loss is None else loss
    settings = {"epochs": 2, "batch_size": 8} | settings
    return model, surefoot.fit(model, loss, optimizer, data, val=data, metrics=metrics, run=run, **settings)


def test_an_object_gives_what_it_gives_over_the_whole_data_at_once():
    metrics = ["accuracy", F1()]
    model, result = trained(metrics)
    x, y = tensors()
    assert result.metrics["val/F1Score"] == pytest.approx(float(F1()(model(x), y)), rel=1e-6)
    assert set(result.metrics) == {f"{s}/{n}" for s in ("train", "val") for n in ("loss", "accuracy", "F1Score")}
    assert float(metrics[1].tp.sum()) == 0  # the object that was given is not the one that counts
    evaluated = surefoot.evaluate(model, nn.CrossEntropyLoss(), (x, y), metrics=metrics[1], batch_size=7)
    assert evaluated.metrics["F1Score"] == result.metrics["val/F1Score"]


def test_a_binary_classifier_needs_no_glue():
    """Outputs (N, 1) and float targets, as BCEWithLogitsLoss wants them, are what torchmetrics refuses."""
    data = tensors(binary=True)
    model, result = trained([torchmetrics.AUROC(task="binary")], nn.BCEWithLogitsLoss(), 1, data)
    expected = torchmetrics.AUROC(task="binary")(model(data[0]).squeeze(-1), data[1].squeeze(-1).long())
    assert result.metrics["val/AUROC"] == pytest.approx(float(expected), rel=1e-6)


def test_regression_functions_and_several_values():
    x, _ = tensors()
    data = (x, x[:, :2] * 2)

    def worst(outputs, targets):
        return (outputs - targets).abs().amax(1)

    model, result = trained(
        {"worst": worst, "r2": torchmetrics.R2Score(multioutput="raw_values"), "mae": functional.l1_loss},
        nn.MSELoss(), 2, data,
    )  # fmt: skip
    outputs = model(x).detach()
    assert result.metrics["val/worst"] == pytest.approx(float(worst(outputs, data[1]).mean()), rel=1e-6)
    assert result.metrics["val/mae"] == pytest.approx(float((outputs - data[1]).abs().mean()), rel=1e-6)
    both = torchmetrics.R2Score(multioutput="raw_values")(outputs, data[1]).tolist()
    assert [result.metrics[f"val/r2.{i}"] for i in (0, 1)] == pytest.approx(both, rel=1e-5)


def test_what_is_measured_can_be_watched(tmp_path):
    _, result = trained(
        {"f1": F1()},
        epochs=3,
        run_dir=tmp_path / "run",
        run={
            "checkpoints": Checkpoints(keep_best="val/f1"),
            "early_stopping": EarlyStopping("val/f1", patience=9, mode="max"),
        },
    )
    assert result.best.value == max(result.best.value, result.metrics["val/f1"])
    with pytest.raises(Problems, match="measured are: train/loss, train/f1, val/loss, val/f1"):
        trained({"f1": F1()}, run={"early_stopping": EarlyStopping("val/F1Score")})


@pytest.mark.parametrize("at", [1, 3, 5, 8])
def test_a_run_stopped_in_the_middle_of_an_epoch_measures_the_same(at):
    """Counts, sums and lists of an epoch that is half done are in the checkpoint."""
    running = lambda: RunningMetrics(  # noqa: E731
        objects={"f1": F1(), "auc": torchmetrics.AUROC(task="multiclass", num_classes=3), "worst": lambda o, t: o.max()}
    )
    x, y = tensors()
    outputs = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
    whole, part = running(), running()
    parts = [(outputs[i : i + 4], y[i : i + 4]) for i in range(0, N, 4)]
    for number, (o, t) in enumerate(parts):
        whole.add(o.mean(), o, t, 4)
        part.add(o.mean(), o, t, 4)
        if number == at:
            state, part = part.state_dict(), running()
            part.load_state_dict(state)
    assert whole.result() == part.result()


def test_a_resumed_run_measures_what_an_untouched_one_does(tmp_path):
    _, expected = trained([F1()], epochs=3, run_dir=tmp_path / "whole")
    trained([F1()], epochs=1, run_dir=tmp_path / "part")
    _, result = trained([F1()], epochs=3, run_dir=tmp_path / "part", resume=True)
    assert result.metrics == expected.metrics
    with pytest.raises(UsageError, match=r"metrics.F1Score: was MulticlassF1Score.*, is absent"):
        trained(["accuracy"], epochs=4, run_dir=tmp_path / "part", resume=True)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([torchmetrics.F1Score], "found the class F1Score; give an object of it"),
        ([3], "found 3; expected names"),
        (["f1"], "unknown metric 'f1'"),
        ([F1(), F1()], "'F1Score' is taken or no name; give each its own"),
        ({"loss": F1()}, "'loss' is taken"),
        ({"a/b": F1()}, "'a/b' is taken or no name"),
        ([torchmetrics.F1Score(task="multiclass", num_classes=2)], "F1Score cannot be computed from outputs"),
        ([lambda o, t: "high"], "it returned str, which is no number"),
        ([lambda o, t: 10**400], "int too large to convert to float"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(metrics, message):
    with pytest.raises(UsageError, match=message):
        trained(metrics)


def test_a_step_only_holds_what_is_measured_later():
    calls = []
    running = RunningMetrics(**metric_options(nn.CrossEntropyLoss(), {"f": lambda o, t: calls.append(1) or 0.0}))
    for _ in range(5):
        running.add(torch.tensor(1.0), torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), 4)
    assert not calls
    running.window()
    assert len(calls) == 5


class Own:
    """A metric of one's own that gives `value`."""

    def __init__(self, value):
        self.value = value

    def update(self, outputs, targets):
        pass

    def compute(self):
        return self.value() if callable(self.value) else self.value

    def reset(self):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def refuse():
    raise ValueError("only one class is present")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (refuse, "q cannot be computed from one batch: only one class is present"),
        (None, "q cannot be computed from one batch: it gave NoneType, which is no number"),
        ("high", "it gave str, which is no number"),
    ],
)
def test_a_metric_that_gives_no_number_is_refused_before_the_first_step(value, message):
    with pytest.raises(UsageError, match=message):
        trained({"q": Own(value)})


def test_arrays_and_numbers_of_numpys_are_values():
    _, result = trained({"q": Own(np.array([0.25, 0.5])), "p": Own(np.float32(0.5)), "f": lambda o, t: np.float32(2)})
    assert {name: result.metrics[f"val/{name}"] for name in ("q.0", "q.1", "p", "f")} == {
        "q.0": 0.25, "q.1": 0.5, "p": 0.5, "f": 2.0,
    }  # fmt: skip


def test_the_mean_of_a_function_is_over_samples_also_where_targets_are_no_tensor():
    running = RunningMetrics(objects={"f": lambda o, t: t["boxes"].mean()})
    for count, value in ((8, 1.0), (2, 0.0)):
        running.add(torch.tensor(1.0), {"y": torch.zeros(count)}, {"boxes": torch.full((count, 4), value)}, count)
    assert running.result()["f"] == 0.8


def test_a_metric_that_cannot_be_copied_is_named():
    metric = Own(1.0)
    metric.lock = threading.Lock()
    with pytest.raises(UsageError, match="metrics: q cannot be copied: cannot pickle"):
        trained({"q": metric})
