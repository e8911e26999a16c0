"""What the functions of the package take and refuse: arguments, data, schedules, modes; all mistakes in one message."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import operator
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from fit_arguments import FIXED, Heard, fit_arguments
from torch import nn
from torch.optim import lr_scheduler

import surefoot
from surefoot import (
    Checkpointer,
    Checkpoints,
    EarlyStopping,
    Loader,
    Preprocessing,
    Schedule,
    TensorSource,
    UsageError,
    evaluate,
    fit,
    lint,
    predict,
)
from surefoot.data import DatasetSource
from surefoot.planning import lr_find, mistakes, plan_report
from surefoot.schedules.as_schedule import as_schedule

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def sgd(model: nn.Module, lr=0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def fitted(model=None, *, loss=None, optimizer=None, data=(X, Y), epochs=1, batch_size=8, progress=False, **settings):
    model = net() if model is None else model
    optimizer = sgd(model) if optimizer is None else optimizer
    loss = nn.CrossEntropyLoss() if loss is None else loss
    settings = {"execution": FIXED, "batch_size": batch_size, "progress": progress, **settings}
    return fit(model, loss, optimizer, data, **fit_arguments(epochs=epochs, **settings))


# --- arguments ----------------------------------------------------------------------------------------------------

WRONG_ARGUMENTS = {
    "max_grad_norm of 0": ({"max_grad_norm": 0}, "max_grad_norm: 0 is not above 0"),
    "max_grad_norm below 0": ({"max_grad_norm": -1.0}, "max_grad_norm: -1.0 is below 0"),
    "max_grad_norm nan": ({"max_grad_norm": math.nan}, "max_grad_norm: nan is not a number"),
    "max_grad_norm huge": ({"max_grad_norm": 10**400}, "max_grad_norm: 1000000000"),
    "max_grad_norm infinite": ({"max_grad_norm": math.inf}, "max_grad_norm: inf is not finite"),
    "clip_value of 0": ({"clip_value": 0}, "clip_value: 0 is not above 0"),
    "ema_decay of 1": ({"ema_decay": 1}, "ema_decay: 1 is not below 1"),
    "ema_decay above 1": ({"ema_decay": 1.5}, "ema_decay: 1.5 is above 1"),
    "checkpoints a mapping": ({"checkpoints": {"every": "1 epoch"}}, "checkpoints: a mapping (dict) was given"),
    "early_stopping a mapping": ({"early_stopping": {"patience": 3}}, "early_stopping: a mapping (dict) was given"),
    "optimizer a class": ({"optimizer": torch.optim.SGD}, "optimizer: the class SGD was given; give an object"),
    "optimizer a list": ({"optimizer": [sgd(net()), sgd(net())]}, "optimizer: a list of 2 optimizers was given"),
    "optimizer a name": ({"optimizer": "SGD"}, "optimizer: 'SGD' was given"),
    "loss a class": ({"loss": nn.CrossEntropyLoss}, "loss: the class CrossEntropyLoss was given"),
    "loss a name": ({"loss": "CrossEntropyLoss"}, "loss: 'CrossEntropyLoss' was given"),
    "model a class": ({"model": nn.Linear}, "model: the class Linear was given"),
    "seed not whole": ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
    "seed an array": ({"seed": np.array([1])}, "seed: an object of numpy.ndarray is not a whole number"),
    "seed below 0": ({"seed": -1}, "seed: -1 is not a whole number of 0 or more"),
    "epochs true": ({"epochs": True}, "epochs: True is not a whole number of 1 or more"),
    "a setting that is text": ({"strict": "yes"}, "strict: 'yes' is neither True nor False"),
    "precision": ({"precision": "int8"}, "precision: 'int8' is not one of float32, bf16, fp16"),
    "allow a number": ({"allow": 3}, "allow: 3 is not a list of texts"),
    "run_dir a number": ({"run_dir": 3}, "run_dir: 3 is not a path"),
    "progress": ({"progress": "bar"}, "progress: 'bar' was given"),
    "metric object": ({"metrics": [object()]}, "metrics: found <object object at"),
    "metric unknown": ({"metrics": ["f1"]}, "unknown metric 'f1'"),
    "batch size twice": ({"data": Loader((X, Y), 4), "batch_size": 8}, "batch_size: 8 was given beside a Loader"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_fit_refuses_an_argument_that_cannot_be(arguments, message):
    model = net()
    before = model.weight.detach().clone()
    with pytest.raises(UsageError) as refusal:
        fitted(**{"model": model, "optimizer": sgd(model), **arguments})
    assert message in str(refusal.value)
    assert torch.equal(model.weight, before)


def test_fit_has_at_most_14_parameters():
    assert len(inspect.signature(fit).parameters) <= 14


def test_all_mistakes_of_a_call_are_told_at_once():
    calls = {
        "epochs seed step": lambda: fit(
            net(), nn.CrossEntropyLoss(), sgd(net()), (X, Y), epochs=0, seed="a", step={"ema_decay": 0.9}
        ),
        "max_grad_norm ema_decay on_nonfinite": lambda: surefoot.StepOptions(
            max_grad_norm=-1, ema_decay=2, on_nonfinite="ignore"
        ),
        "early_stopping log_every allow": lambda: surefoot.RunOptions(early_stopping=5, log_every=0, allow=3),
    }
    for names, call in calls.items():
        with pytest.raises(surefoot.Problems) as refusal:
            call()
        assert {problem.partition(":")[0] for problem in refusal.value.problems} == set(names.split())


def test_numbers_of_numpy_are_taken_as_the_numbers_that_they_are():
    plain = fitted(seed=3, max_grad_norm=1.0, epochs=2, batch_size=8, grad_accum_steps=2, log_every=2)
    theirs = fitted(
        seed=np.int64(3),
        max_grad_norm=np.float32(1.0),
        epochs=np.int32(2),
        batch_size=np.uint8(8),
        grad_accum_steps=torch.tensor(2),
        log_every=np.int16(2),
        strict=np.bool_(False),
    )
    assert theirs.metrics == plain.metrics


class Comparable:
    """As a metric of torchmetrics: equal to everything, and the answer is an object."""

    def __eq__(self, other):
        return self

    __hash__ = object.__hash__


@pytest.mark.parametrize("metrics", [[Comparable()], (Comparable(),), Comparable(), {"f1": Comparable()}])
def test_a_metric_that_is_an_object_is_refused_and_never_ignored(metrics):
    for call in (
        lambda: fitted(metrics=metrics),
        lambda: evaluate(net(), nn.CrossEntropyLoss(), (X, Y), metrics=metrics),
    ):
        with pytest.raises(UsageError, match="metrics"):
            call()


class Returns(nn.Module):
    """Gives whatever a function makes of its layer's outputs."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 2), function

    def forward(self, inputs):
        return self.function(self.layer(inputs))


OTHER_CALLS = {
    "evaluate, a class": (lambda: evaluate(nn.Linear, nn.CrossEntropyLoss(), (X, Y)), "model: the class Linear"),
    "evaluate, batch size": (lambda: evaluate(net(), nn.MSELoss(), (X, X), batch_size=0), "batch_size: 0 is not"),
    "evaluate, loss": (lambda: evaluate(net(), nn.MSELoss, (X, X)), "loss: the class MSELoss"),
    "predict, batch size": (lambda: predict(net(), X, batch_size=-1), "batch_size: -1 is not"),
    "predict, precision": (lambda: predict(net(), X, precision="half"), "precision: 'half' is not one of"),
    "lint, a class": (lambda: lint(net(), nn.MSELoss, None, (X, Y)), "loss: the class MSELoss"),
    "lint, a batch": (lambda: lint(net(), nn.MSELoss(), None, X), "batch: Tensor is no batch"),
    "Loader": (lambda: Loader((X, Y), 8, workers=-1, shuffle=1), "data: workers: -1 is not"),
    "Loader, device": (lambda: Loader((X, Y), 8, device="gpu"), "data: device: 'gpu' is no device"),
    "Loader, augment": (lambda: Loader((X, Y), 8, augment=[3]), "data: augment: 3 was given"),
    "DatasetSource": (lambda: DatasetSource([(1, 2)], collate=3), "data: collate: 3 was given"),
    "TensorSource": (lambda: TensorSource(X, Y, classes=2), "data: classes: 2 is not a list of names"),
    "Preprocessing, scale": (lambda: Preprocessing(scale=True), "preprocessing: scale: True is not a number"),
    "Preprocessing, mean": (lambda: Preprocessing(mean="12"), "preprocessing: mean: '12' is not a number"),
    "EarlyStopping": (lambda: EarlyStopping(patience=0), "early_stopping.patience: 0 is not"),
    "EarlyStopping, delta": (lambda: EarlyStopping(min_delta="x"), "early_stopping.min_delta: 'x' is not a number"),
    "Checkpoints": (lambda: Checkpoints(keep_last=0), "keep_last: 0 is not"),
    "Checkpoints, every": (lambda: Checkpoints(every="daily"), "every: 'daily' is not an interval"),
    "Schedule, a class": (lambda: Schedule(sgd(net()), lr_scheduler.StepLR), "scheduler: the class StepLR"),
    "Schedule, optimizer": (lambda: Schedule(net()), "optimizer: an object of torch.nn.modules.linear.Linear"),
    "Schedule, unit": (lambda: Schedule(sgd(net()), by="batch"), "by: 'batch' is not one of epoch, step"),
    "Checkpointer": (lambda: Checkpointer(3, model=net(), background="x"), "background: 'x' is neither True nor False"),
    "Checkpointer, conditions": (lambda: Checkpointer("r", conditions=[1], model=net()), "conditions: the list [1]"),
    "Checkpointer, allow": (lambda: Checkpointer("r", allow=3, model=net()), "allow: 3 is not a list of texts"),
    "Checkpointer, journal": (lambda: Checkpointer("r", journal="j", model=net()), "journal: str has no offset"),
    "Checkpointer, a class": (lambda: Checkpointer("r", model=nn.Linear), "model: the class Linear was given"),
    "save_model, a class": (lambda: surefoot.save_model(nn.Linear, "m"), "model: the class Linear was given"),
    "save_model, a state": (lambda: surefoot.save_model({}, "m"), "model: a mapping (dict) was given"),
    "save_model, where": (lambda: surefoot.save_model(net(), 3), "directory: 3 is not a path"),
    "save_model, shape": (lambda: surefoot.save_model(net(), "m", input_shape=4), "input_shape: 4 is not a list of"),
    "save_model, source": (lambda: surefoot.save_model(net(), "m", source="a:B"), "source: 'a:B' is not a pair"),
    "load_model, a class": (lambda: surefoot.load_model("m", nn.Linear), "model: the class Linear was given"),
    "load_model, trust": (lambda: surefoot.load_model("m", trust_code="yes"), "trust_code: 'yes' is neither"),
    "open_model": (lambda: surefoot.open_model("m", preprocessing=0.5), "preprocessing: 0.5 was given"),
    "open_model, key": (lambda: surefoot.open_model("m", key=3), "key: 3 is not a text"),
    "import_weights": (lambda: surefoot.import_weights(None, net()), "path: None is not a path"),
    "import_weights, cast": (lambda: surefoot.import_weights("m", net(), cast="f32"), "cast: 'f32' is neither"),
    "export": (lambda: surefoot.export("m", 3), "to: 3 is not a path"),
    "export, batch": (lambda: surefoot.export("m", "m.pt2", batch=[1.0]), "batch: the list [1.0] was given"),
    "load_recipe": (lambda: surefoot.load_recipe(3), "recipe: 3 is not a path"),
    "fit, about": (lambda: fitted(about={"name": "x"}), "about: a mapping (dict) was given"),
    "fit, resume": (lambda: fitted(resume=True), "resume: there is no run_dir to go on in"),
    "fit, unfreeze": (lambda: fitted(unfreeze=[("fc*", 1)]), "unfreeze: epoch: 'fc*' is not a whole number"),
    "fit, unfreeze a text": (lambda: fitted(unfreeze="fc*"), "unfreeze: pairs: 'fc*' is no pair"),
    "predict, a pair": (lambda: predict(net(), (X, Y)), "data: a tuple was given; predict takes the inputs alone"),
    "predict, nothing": (lambda: predict(net(), {}), "data: a dict was given; predict takes the inputs alone"),
    "predict, shuffled": (lambda: predict(net(), Loader((X, Y), 4)), "this loader reads its samples shuffled"),
    "fit, val of another width": (lambda: fitted(val=(X[:, :3], Y)), "val: model and loss cannot be run on the"),
    "fit, three parts": (
        lambda: fitted(data=[(x, 0, 1) for x in X]),
        "this one is [(8, 4) float32, (8,) int64, (8,)",
    ),
    "fit, mappings": (
        lambda: fitted(data=[{"x": x, "z": 0} for x in X]),
        "this one is a mapping with 'x', 'z'; call the target one of labels, label, targets",
    ),
    "fit, texts": (lambda: fitted(data=[("text", 0)] * 8), "the inputs are texts: encode them"),
    "fit, lists": (
        lambda: fitted(data=[([0.0] * 4, 0)] * 8),
        "samples hold lists of numbers, of which a batch has a list of columns: give torch.tensor(values)",
    ),
    "fit, a rate that is no number": (
        lambda: fitted(optimizer=sgd(net(), math.nan)),
        "optimizer: the lr of group 0 is nan; give a finite rate",
    ),
    "fit, a model without return": (lambda: fitted(Returns(lambda x: None)), "the model returns None"),
    "fit, a model of two outputs": (lambda: fitted(Returns(lambda x: (x, x))), "loss_function(outputs[0], targets)"),
    "Loader, seek": (lambda: Loader((X, Y), 8).seek("a"), "data: epoch: 'a' is not a whole number"),
    "Loader, another device": (lambda: setattr(Loader((X, Y), 8), "device", "gpu"), "data: device: 'gpu' is no"),
    "Schedule, a metric": (lambda: _plateau("val/loss").epoch("low"), "schedule: the metric is 'low', which is no"),
    "execution, threads": (lambda: fitted(execution={"threads": np.ones(2)}), "execution: threads: an object of numpy"),
    "execution, many": (lambda: fitted(execution={"threads": 10**20}), f"threads: {10**20} is above 4096"),
    "execution, a key": (lambda: fitted(execution={1: 2}), "execution: unknown key 1"),
    "plan_report": (lambda: plan_report(Schedule(sgd(net())), 8 / 2, 0), "plan: steps_per_epoch: 4.0 is not a whole"),
    "plan_report, a scheduler": (
        lambda: plan_report(lr_scheduler.StepLR(sgd(net()), 2), 4, 1),
        "plan: schedule: an ob",
    ),
    "mistakes": (
        lambda: mistakes(Schedule(sgd(net())), 4, "3"),
        "plan: epochs: '3' is not a whole number of 1 or more",
    ),
    "lr_find": (lambda: lr_find(net(), nn.MSELoss(), sgd(net()), [], start="x"), "lr-find: start: 'x' is not a number"),
    "lr_find, steps": (lambda: lr_find(net(), nn.MSELoss(), sgd(net()), [], steps=1e2), "lr-find: steps: 100.0 is not"),
    "warmup, last_step": (lambda: surefoot.LinearWarmup(sgd(net()), 2, last_step="x"), "last_step: 'x' is not"),
    "warmup": (lambda: surefoot.LinearWarmup(sgd(net()), 2.5), "warmup_period 2.5 is not a whole number"),
}


@pytest.mark.parametrize(("call", "message"), OTHER_CALLS.values(), ids=OTHER_CALLS)
def test_every_public_function_refuses_what_cannot_be(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refusal:
        call()
    assert message in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_caller_that_wants_no_gradients_trains_all_the_same():
    model = net()
    before = [p.clone() for p in model.parameters()]
    with torch.no_grad():
        fitted(model)
        assert not torch.is_grad_enabled()
    assert not any(map(torch.equal, before, model.parameters()))


METRIC_VALUES = {
    "float32": (np.float32(0.5), 0.5),
    "float64": (np.float64(0.5), 0.5),
    "float16": (np.float16(0.5), 0.5),
    "int64": (np.int64(3), 3),
    "bool": (True, 1),
    "numpy bool": (np.bool_(False), 0),
    "tensor": (torch.tensor(0.5), 0.5),
    "tensor that needs a gradient": (torch.tensor(0.5, requires_grad=True), 0.5),
    "bfloat16": (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    "array": (np.array(0.5), 0.5),
    "Decimal": (Decimal("0.5"), 0.5),
    "Fraction": (Fraction(1, 2), 0.5),
    "whole": (3, 3),
    "nan": (math.nan, "nan"),
    "infinite": (-math.inf, "-inf"),
    "None": (None, None),
}


@pytest.mark.parametrize(("value", "kept"), METRIC_VALUES.values(), ids=METRIC_VALUES)
def test_every_kind_of_number_is_a_metric(value, kept, run_dir, tmp_path):
    with Checkpointer(run_dir, keep_best="val/loss", model=net()) as saver:
        saver.resume()
        saver.step()
        saver.epoch({"val/loss": value})
    (status,) = surefoot.checkpoint.scan(run_dir)
    assert status.metrics == {"val/loss": kept} and type(status.metrics["val/loss"]) is type(kept)
    surefoot.save_model(net(), tmp_path / "m", metrics={"val/loss": value})


@pytest.mark.parametrize("value", [v for v, kept in METRIC_VALUES.values() if isinstance(kept, float)])
def test_a_plateau_is_given_every_kind_of_number(value):
    one, other = _plateau("val/loss", patience=0), _plateau("val/loss", patience=0)
    for _ in range(2):
        one.epoch(value)
        other.epoch(0.5)
    assert one.state_dict() == other.state_dict() and one.lrs == other.lrs


@pytest.mark.parametrize("value", ["0.5", 1j, torch.ones(1), np.ones(2), [0.5], object()])
def test_what_is_no_number_is_no_metric(value, run_dir):
    with Checkpointer(run_dir, model=net()) as saver:
        saver.resume()
        saver.step()
        with pytest.raises(UsageError, match="metrics: val/loss: .* is not a number"):
            saver.epoch({"val/loss": value})


# --- which value is better ----------------------------------------------------------------------------------------


def test_an_accuracy_is_better_when_higher_at_every_door(run_dir):
    """The loss of a falling model, the accuracy of a rising one: mode is never to be given."""
    for made in (Checkpoints(keep_best="val/accuracy"), EarlyStopping("val/accuracy")):
        assert made.mode == "max"
    assert Checkpoints(keep_best="val/loss").mode == "min"
    with Checkpointer(run_dir, keep_best="val/accuracy", keep_last=1, every=None, model=net()) as saver:
        saver.resume()
        for value in (0.2, 0.9, 0.5):
            saver.step()
            saver.epoch({"val/accuracy": value})
    kept = [status.metrics for status in surefoot.checkpoint.scan(run_dir)]
    assert {"val/accuracy": 0.9} in kept and {"val/accuracy": 0.2} not in kept


@pytest.mark.parametrize(
    "make",
    [
        lambda: Checkpoints(keep_best="val/accuracy", mode="min"),
        lambda: EarlyStopping("val/accuracy", mode="min"),
        lambda: EarlyStopping("val/loss", mode="max"),
        lambda: Checkpointer("unused", keep_best="val/accuracy", mode="min", model=net()),
        lambda: _plateau("val/accuracy"),
        lambda: _plateau("val/loss", mode="max"),
    ],
)
def test_a_mode_that_takes_the_worst_for_the_best_is_refused(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="would take the worst val/"):
        make()
    assert not list(tmp_path.iterdir())


def _plateau(monitor, **arguments):
    optimizer = sgd(net())
    return Schedule(optimizer, lr_scheduler.ReduceLROnPlateau(optimizer, **arguments), monitor=monitor)


def test_a_name_that_does_not_say_needs_a_mode():
    """Nor does the metric itself: only a run knows that, before its first step."""
    x, model = torch.randn(8, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = surefoot.RunOptions(progress=False, checkpoints=Checkpoints(keep_best="val/spread"))
    settings = {"val": (x, x[:, :1]), "epochs": 1, "metrics": {"spread": lambda o, t: o.std()}, "run": run}
    with pytest.raises(UsageError, match="'val/spread' does not say which is better; give mode="):
        surefoot.fit(model, nn.MSELoss(), optimizer, (x, x[:, :1]), **settings)
    assert Checkpoints(keep_best="val/spread", mode="max").mode == "max"


# --- training and evaluation mode ---------------------------------------------------------------------------------


def moody() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(tmp_path):
    surefoot.save_model(moody(), tmp_path / "m")
    loaded = surefoot.load_model(tmp_path / "m", moody())
    assert not loaded.training
    heard = Heard()
    fitted(loaded, progress=heard)
    fresh = moody()
    fitted(fresh)
    assert torch.equal(loaded[2].weight, fresh[2].weight) and int(loaded[0].num_batches_tracked) == 5
    assert all(module.training for module in loaded.modules())
    assert [m for m in heard.messages if "evaluation mode" in m] == [
        "the model was in evaluation mode (model.eval()) and is trained in training mode"
    ]


def test_parts_frozen_in_evaluation_mode_stay_so():
    model = moody()
    model[0].eval()
    heard = Heard()
    fitted(model, val=(X, Y), progress=heard)
    assert int(model[0].num_batches_tracked) == 0 and not model[0].training and model[1].training
    assert not [m for m in heard.messages if "evaluation mode" in m]


def test_a_new_head_on_a_model_in_evaluation_mode_is_told():
    model = moody().eval()
    model[2] = nn.Linear(4, 2)
    heard = Heard()
    fitted(model, progress=heard)
    (message,) = (m for m in heard.messages if "evaluation mode" in m)
    assert "(0, 1)" in message and "call model.train() first" in message


# --- schedules ----------------------------------------------------------------------------------------------------


def test_a_scheduler_of_torch_is_taken_by_its_usual_unit():
    for make, rates in (
        (lambda o: lr_scheduler.StepLR(o, 1, 0.5), [0.05]),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=5), None),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5), [0.0]),
        (lambda o: surefoot.LinearWarmup(o, 10), [0.06]),
    ):
        model = net()
        optimizer = sgd(model)
        heard = Heard()
        fitted(model, optimizer=optimizer, schedule=make(optimizer), progress=heard)
        if rates:
            assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(rates)
        else:
            assert any("OneCycleLR moves once a step" in message for message in heard.messages)


@pytest.mark.parametrize(
    ("make", "by"),
    [
        (lambda o: [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.CosineAnnealingLR(o, T_max=8)], "step"),
        (lambda o: [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.CosineAnnealingLR(o, T_max=6)], "epoch"),
        (lambda o: [lr_scheduler.LinearLR(o, total_iters=12), lr_scheduler.ExponentialLR(o, 0.9)], "epoch"),
        (lambda o: [lr_scheduler.ConstantLR(o), lr_scheduler.CyclicLR(o, 0.1, 0.2)], "step"),
    ],
)
def test_schedulers_in_a_sequence_are_taken_by_the_length_of_the_whole_or_the_unit_of_any(make, by):
    optimizer = sgd(net())
    sequence = lr_scheduler.SequentialLR(optimizer, make(optimizer), milestones=[4])
    for steps in (4, None):
        schedule = as_schedule(
            sequence, optimizer, epochs=3, steps_per_epoch=steps, validates=False, say=lambda text: None
        )
        assert schedule.by == (by if steps or "CyclicLR" in str(sequence._schedulers) else "epoch")


WRONG_SCHEDULES = {
    "a warmup of pytorch_warmup": (
        lambda o: _theirs(o),
        "give surefoot.Schedule(optimizer, warmup=surefoot.LinearWarmup(",
    ),
    "a function": (lambda o: lambda epoch: 0.5, "LambdaLR(optimizer, function)"),
    "a scheduler with a function": (lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n), "counts steps"),
    "a list": (lambda o: [lr_scheduler.StepLR(o, 1)], "SequentialLR or ChainedScheduler"),
    "a name": (lambda o: "cosine", "schedule: a str was given"),
    "a class": (lambda o: lr_scheduler.StepLR, "schedule: the class StepLR"),
    "another optimizer's": (lambda o: Schedule(sgd(net())), "it was made for another optimizer"),
    "another optimizer's scheduler": (lambda o: lr_scheduler.StepLR(sgd(net()), 1), "belongs to another optimizer"),
}


def _theirs(optimizer):
    return pytest.importorskip("pytorch_warmup").LinearWarmup(optimizer, 10)


@pytest.mark.parametrize(("make", "message"), WRONG_SCHEDULES.values(), ids=WRONG_SCHEDULES)
def test_what_is_no_schedule_is_refused_with_the_line_that_works(make, message):
    model = net()
    optimizer = sgd(model)
    with pytest.raises(UsageError) as refusal:
        fitted(model, optimizer=optimizer, schedule=make(optimizer))
    assert message in str(refusal.value)


class Decay:
    """Remembers how often it was called."""

    def __init__(self):
        self.factor = 1.0

    def __call__(self, count):
        self.factor *= 0.9
        return self.factor

    def method(self, count):
        return self(count)


class Slots:
    __slots__ = ()

    def method(self, count):
        return 0.5**count


CALLABLES = {
    "lambda": lambda: lambda count: 0.9**count,
    "partial": lambda: functools.partial(pow, 0.9),
    "object": Decay,
    "method": lambda: Decay().method,
    "bound call": lambda: Decay().__call__,
    "method of an object without attributes": lambda: Slots().method,
    "numpy function": lambda: np.exp2,
    "builtin": lambda: math.cos,
    "operator": lambda: operator.neg,
    "cached": lambda: functools.lru_cache(Slots().method),
    "numpy float32": lambda: lambda count: np.float32(0.9) ** count,
    "numpy float64": lambda: lambda count: np.float64(0.9) ** count,
    "numpy array of one": lambda: lambda count: np.array(0.9**count),
    "tensor": lambda: lambda count: torch.tensor(0.9) ** count,
    "whole number": lambda: lambda count: 1,
    "boolean": lambda: lambda count: True,
    "fraction": lambda: lambda count: Fraction(9, 10) ** count,
}


@pytest.mark.parametrize("kind", [lr_scheduler.LambdaLR, lr_scheduler.MultiplicativeLR])
@pytest.mark.parametrize("make", CALLABLES.values(), ids=CALLABLES)
def test_a_schedule_holds_any_callable_and_goes_on_with_it(make, kind):
    def schedule():
        optimizer = sgd(net())
        return Schedule(optimizer, kind(optimizer, make()), by="step")

    def advance(one):
        for _ in range(3):
            one.optimizer.step()
            one.step()
        return one.lrs

    whole, first, second = schedule(), schedule(), schedule()
    advance(whole)
    advance(first)
    second.load_state_dict(first.state_dict())
    assert second.lrs == first.lrs == whole.lrs
    assert advance(second) == advance(whole)
    rate = second.optimizer.param_groups[0]["lr"]
    assert isinstance(rate, int | float | torch.Tensor)


def test_what_a_function_remembers_and_cannot_be_saved_is_named_before_the_first_step(tmp_path):
    class Remembers(Decay):
        def __init__(self):
            super().__init__()
            self.rates = object()

    model = net()
    optimizer = sgd(model)
    schedule = Schedule(optimizer, lr_scheduler.LambdaLR(optimizer, Remembers()), by="step")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=r"lr_lambdas/0/rates: a builtins.object cannot be saved without pickle"):
        fitted(model, optimizer=optimizer, schedule=schedule, run_dir=tmp_path / "run")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# --- evaluation ---------------------------------------------------------------------------------------------------


def test_evaluate_leaves_a_loader_where_it_was():
    loader = Loader((X, Y), 8, seed=3)
    loader.seek(2, 1)
    seen = []
    for position, batch in enumerate(loader, start=1):
        result = evaluate(net(), nn.CrossEntropyLoss(), loader)
        assert (loader.epoch, loader.position, result.samples) == (2, position + 1, 40)
        seen.append(batch[1])
    assert (loader.epoch, loader.position) == (3, 0)
    other = Loader((X, Y), 8, seed=3)
    other.seek(2, 1)
    assert torch.equal(torch.cat(seen), torch.cat([targets for _, targets in other]))


def test_a_shuffled_validation_loader_gives_each_epoch_the_same_batches():
    """Its place is in no checkpoint, so it must not move: a resumed run validates as an untouched one."""
    model = net()
    val = Loader((X, Y), 8, seed=5)
    fitted(model, optimizer=sgd(model, 0.0), val=val, epochs=2)
    assert (val.epoch, val.position) == (0, 0)


class Pairs(torch.utils.data.Dataset):
    """Samples read one by one."""

    classes = ("no", "yes")

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index], int(Y[index])


def test_the_workers_of_a_validation_loader_are_closed(monkeypatch):
    from surefoot.data import indexed as module

    started, closed = [], []

    class Counted(module.Workers):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            started.append(self)

        def close(self):
            super().close()
            closed.append(self)

    monkeypatch.setattr(module, "Workers", Counted)
    fitted(val=Loader(Pairs(), 20, shuffle=False, workers=1), epochs=2)
    assert len(started) == 1 and closed == started
    evaluate(net(), nn.CrossEntropyLoss(), Loader(Pairs(), 20, workers=1))
    assert len(started) == 2 and closed == started
