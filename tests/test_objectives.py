"""Objectives: any function of model and batch is trained as a loss is, and keeps every promise that a loss keeps."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

import surefoot
from surefoot import batches
from surefoot.data import DatasetSource, Loader
from surefoot.errors import Problems, UsageError
from surefoot.losses import averaging
from surefoot.step import StepOptions, TrainStep
from surefoot.training import Checkpoints, EarlyStopping, RunOptions

N = 24


def tensors():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(N, 6, generator=generator), torch.randint(3, (N,), generator=generator)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


@surefoot.objective
def classify(model, batch):
    inputs, targets = batch
    outputs = model(inputs)
    return {"loss": functional.cross_entropy(outputs, targets), "outputs": outputs, "targets": targets}


@surefoot.objective
def by_token(model, batch):
    """A mean over the tokens that are not padding (-1), of which batches hold different numbers."""
    tokens, labels = batch
    counted = labels >= 0
    losses = (model(tokens).squeeze(-1) - labels).square() * counted
    return {
        "loss": losses.sum() / counted.sum(),
        "weight": counted.sum(),
        "size": (labels * counted).sum() / counted.sum(),
    }


def trained(loss, data=None, model=None, run=None, **settings):
    model = network() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = tensors() if data is None else data
    settings = {"epochs": 2, "batch_size": 4} | settings
    run = RunOptions(**{"lint_off": ["all"], "progress": False} | (run or {}))
    return model, surefoot.fit(model, loss, optimizer, data, val=data, run=run, **settings)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}, {"precision": "bf16"}, {"ema_decay": 0.9}])
def test_an_objective_trains_to_the_bits_of_the_loss_that_it_computes(options):
    """Outputs and targets that it returns are measured as a loss's are."""
    ours, result = trained(classify, metrics=["accuracy"], step=StepOptions(**options))
    theirs, expected = trained(nn.CrossEntropyLoss(), metrics=["accuracy"], step=StepOptions(**options))
    assert same(ours, theirs)
    assert result.metrics == expected.metrics


@pytest.mark.parametrize("checks", [True, False])  # False: as on a device
def test_micro_batches_of_unequal_weight_make_the_update_of_one_large_batch(checks):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(8, 5, 2, generator=generator)
    labels = torch.randint(0, 5, (8, 5), generator=generator).float()
    for row, length in enumerate([5, 1, 0, 0, 3, 5, 2, 4]):  # the second micro-batch has no token at all
        labels[row, length:] = -1
    results = []
    for parts in ([slice(0, 8)], [slice(0, 2), slice(2, 4), slice(4, 8)]):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        step = TrainStep(
            model, by_token, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(grad_accum_steps=len(parts))
        )
        step.checks = checks
        result = step([(tokens[part], labels[part]) for part in parts])
        results.append((float(result.loss), float(result.weight), model))
    (loss, weight, one), (other_loss, other_weight, many) = results
    assert weight == other_weight == 20
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_numbers_of_an_objective_are_means_over_its_weight_recorded_and_watched(tmp_path):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(10, 5, 2, generator=generator)
    labels = torch.randint(0, 5, (10, 5), generator=generator).float()
    for row in range(10):
        labels[row, 1 + row % 5 :] = -1
    torch.manual_seed(0)
    _, result = trained(
        by_token,
        (tokens, labels),
        nn.Linear(2, 1),
        run_dir=tmp_path / "run",
        run={
            "checkpoints": Checkpoints(keep_best="val/size", mode="max"),
            "early_stopping": EarlyStopping("val/size", patience=1, mode="max"),
        },
        epochs=4,
    )
    mean = float(labels[labels >= 0].mean())  # the same in every epoch, so that the second stops the run
    assert result.metrics["val/size"] == pytest.approx(mean, rel=1e-6) == result.metrics["train/size"]
    assert result.stopped_early and result.epochs == 2
    assert result.best.value == pytest.approx(mean, rel=1e-6)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["size"] for r in records if r["kind"] == "epoch" and r["split"] == "val"] == pytest.approx([mean] * 2)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_number_of_some_batches_is_a_mean_over_those_however_they_are_accumulated(steps, weighted):
    inputs, targets = tensors()
    targets[4:8] = targets[16:20] = 0  # two batches in which no sample is of class 1

    @surefoot.objective
    def at_times(model, batch):
        outputs = model(batch[0])
        of_class_1 = int((batch[1] == 1).sum())
        returned = {"loss": functional.cross_entropy(outputs, batch[1])}
        if of_class_1:
            returned["rare"] = 10.0 * of_class_1
        return returned | ({"weight": of_class_1 + 1} if weighted else {})

    _, result = trained(
        at_times, (inputs, targets), epochs=1, step=StepOptions(grad_accum_steps=steps), run={"log_every": 1}
    )
    order = surefoot.Loader((inputs, targets), batch_size=4, seed=0)
    counts = [int((labels == 1).sum()) for _, labels in order]
    assert 0 in counts and len(set(counts)) > 2
    weights = [n + 1 if weighted else 4 for n in counts]
    expected = sum(10.0 * n * w for n, w in zip(counts, weights, strict=True)) / sum(
        w for n, w in zip(counts, weights, strict=True) if n
    )
    assert result.metrics["train/rare"] == pytest.approx(expected, rel=1e-9)


def test_a_run_with_an_objective_goes_on_to_the_bits_of_an_untouched_one(tmp_path):
    whole, expected = trained(classify, epochs=3, run_dir=tmp_path / "whole")
    trained(classify, epochs=1, run_dir=tmp_path / "part")
    resumed, result = trained(classify, epochs=3, run_dir=tmp_path / "part", resume=True)
    assert same(whole, resumed)
    assert result.metrics == expected.metrics


class Rows(Dataset):
    """Samples that are dictionaries."""

    def __init__(self, *names: str):
        self.names, (self.inputs, self.targets) = names, tensors()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict:
        parts = [self.inputs[index, :2], self.inputs[index, 2:]] if len(self.names) == 3 else [self.inputs[index]]
        return dict(zip(self.names, [*parts, self.targets[index]], strict=True))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, left, right):
        return self.inner(torch.cat([left, right], 1))


def test_samples_that_are_dictionaries_need_no_wrapper():
    plain, expected = trained(nn.CrossEntropyLoss())
    one, result = trained(nn.CrossEntropyLoss(), Rows("pixels", "label"))
    two, split = trained(nn.CrossEntropyLoss(), Rows("left", "right", "target"), wrapped := TwoInputs())
    assert wrapped is two
    assert same(plain, one) and same(plain, two.inner)
    assert result.metrics == expected.metrics == split.metrics


def test_accumulation_over_dictionaries_divides_by_what_the_loss_averages_over():
    x, y = tensors()
    loss = nn.CrossEntropyLoss(ignore_index=2)
    pairs = [(x[:4], y[:4]), (x[4:12], y[4:12])]
    dictionaries = [({"input": a, "label": b},) for a, b in pairs]
    assert [float(s) for s in averaging.shares(loss, dictionaries)] == [float(s) for s in averaging.shares(loss, pairs)]


class Output(UserDict):
    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


class OwnLoss(nn.Module):
    """A model in the manner of transformers': keywords in, an object with `loss` and `logits` out."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, inputs, labels=None):
        logits = self.inner(inputs)
        return (
            Output(logits=logits)
            if labels is None
            else Output(loss=functional.cross_entropy(logits, labels), logits=logits)
        )


def test_a_model_that_returns_its_loss_needs_none():
    plain, expected = trained(nn.CrossEntropyLoss())
    own, result = trained(None, Rows("inputs", "labels"), OwnLoss())
    assert same(plain, own.inner)
    assert result.metrics == expected.metrics
    assert surefoot.evaluate(own, None, Rows("inputs", "labels")).metrics["loss"] == result.metrics["val/loss"]
    # So does one of pairs, and of a target by another name that forward does not have.
    for data in (tensors(), Rows("inputs", "label")):
        other, result = trained(None, data, OwnLoss(), metrics=["accuracy"])
        assert same(plain, other.inner) and result.metrics.items() <= expected.metrics.items()
        assert "val/accuracy" in result.metrics


def test_a_loss_of_torchs_takes_the_logits_of_an_object_of_outputs():
    plain, expected = trained(nn.CrossEntropyLoss())
    own, result = trained(nn.CrossEntropyLoss(), None, OwnLoss(), run={"lint_off": []})
    assert same(plain, own.inner) and result.metrics == expected.metrics
    with pytest.raises(UsageError, match="Output"):  # a function of one's own is given the object
        trained(
            lambda outputs, targets: functional.cross_entropy(outputs, targets), None, OwnLoss(), run={"lint_off": []}
        )
    picked, result = trained(
        lambda outputs, targets: functional.cross_entropy(outputs.logits, targets), None, OwnLoss()
    )
    assert same(plain, picked.inner)


@pytest.mark.parametrize(
    ("loss", "model", "data", "message"),
    [
        (None, network, None, "a batch is [(4, 6) float32, (4,) int64] and the model's forward(input); give a loss"),
        (None, OwnLoss, ("inputs", "extra"), "extra"),
        (lambda model, batch: 0, network, None, "give it as surefoot.objective(<lambda>)"),
        (surefoot.objective(lambda m, b: {"value": 1}), network, None, "a mapping with 'value'; it must hold 'loss'"),
        (surefoot.objective(lambda m, b: 0.5), network, None, "returned float; it must return a tensor"),
        (
            surefoot.objective(lambda m, b: {"loss": m(b[0]).mean(), "maps": m(b[0])}),
            network,
            None,
            "returned 'maps' as Tensor; what is recorded is a number",
        ),
    ],
)
def test_what_is_no_objective_is_refused_in_one_message(loss, model, data, message):
    with pytest.raises((UsageError, Problems), match=re.escape(message)):
        trained(loss, Rows(*data) if data else None, model(), run={"lint_off": []})


def test_a_number_that_is_watched_must_be_one_that_the_objective_tells():
    with pytest.raises(Problems, match="'val/mae' is not measured in this run; measured are: train/loss, val/loss"):
        trained(surefoot.objective(lambda m, b: m(b[0]).mean()), run={"early_stopping": EarlyStopping("val/mae")})


@dataclasses.dataclass
class Graph:
    nodes: torch.Tensor
    num_graphs: int


class Ragged:
    """A batch that says itself how many samples it holds: sequences end to end, and where each ends."""

    def __init__(self, numbers, ends):
        self.numbers, self.ends = numbers, ends

    def __len__(self):
        return len(self.ends)

    def to(self, device, **more):
        return Ragged(self.numbers.to(device, **more), self.ends.to(device, **more))


def test_a_batch_of_a_class_of_ones_own_is_counted_by_its_len():
    samples = [torch.full((length, 1), float(length)) for length in (1, 4, 2, 5, 3)]

    def joined(some):
        return Ragged(torch.cat(some), torch.tensor([len(sample) for sample in some]).cumsum(0))

    @surefoot.objective
    def mean_square(model, batch):
        return model(batch.numbers).square().mean()

    data = DatasetSource(samples, collate=joined)
    model, result = trained(mean_square, data=data, model=nn.Linear(1, 1), batch_size=2, epochs=1)
    assert result.steps == 3 and surefoot.evaluate(model, mean_square, data, batch_size=2).samples == 5


def test_batches_of_every_form_are_counted_and_called():
    x = torch.zeros(4, 2)
    assert batches.size((Graph(torch.zeros(9, 2), 3),)) == 3
    assert [batches.size(b) for b in ((x, 1), ({"a": [x]},), (Output(a=x),), ((x, x), x))] == [4, 4, 4, 4]
    with pytest.raises(UsageError, match="cannot be counted: its first part is float"):
        batches.size((1.5,))
    add = TwoInputs()
    add.forward = lambda left, right: left + right
    assert batches.call(add, (x, x + 1)).sum() == 8  # a forward of two arguments is given two
    first = TwoInputs()
    first.forward = lambda pair: pair[0]
    assert batches.call(first, (x, x + 1)) is x  # and one of a single argument the pair


def test_tensors_of_a_batch_are_moved_whatever_holds_them():
    x = torch.zeros(2, 3)
    batch = (x, {"a": [x, (x, "text")]}, Graph(x, 1), Output(a=x))
    moved = batches.moved(batch, torch.device("meta"))
    found = [moved[0], moved[1]["a"][0], moved[1]["a"][1][0], moved[2].nodes, moved[3]["a"]]
    assert {tensor.device.type for tensor in found} == {"meta"}
    assert moved[1]["a"][1][1] == "text" and moved[2].num_graphs == 1


def test_numbers_of_numpys_are_recorded():
    model, result = trained(surefoot.objective(lambda m, b: {"loss": m(b[0]).mean(), "share": np.float32(0.5)}))
    assert result.metrics["val/share"] == 0.5


@pytest.mark.parametrize("training", [True, False])
def test_a_number_of_one_mode_is_watched_in_that_mode(training):
    @surefoot.objective
    def sometimes(model, batch):
        number = {"extra": 0.5} if model.training == training else {}
        return {"loss": model(batch[0]).square().mean(), **number}

    of, other = ("train", "val") if training else ("val", "train")
    watched = lambda split: {"checkpoints": Checkpoints(keep_best=f"{split}/extra", mode="min")}  # noqa: E731
    _, result = trained(sometimes, run=watched(of))
    assert result.metrics[f"{of}/extra"] == 0.5 and f"{other}/extra" not in result.metrics
    with pytest.raises(Problems, match=f"'{other}/extra' is not measured in this run"):
        trained(sometimes, run=watched(other))


def test_a_stretch_without_any_weight_ends_no_run():
    """Sequences of padding alone between two records."""

    @surefoot.objective
    def counted(model, batch):
        inputs, weights = batch
        losses = model(inputs).square().mean(1) * weights
        return {"loss": losses.sum() / weights.sum().clamp(min=1), "weight": weights.sum()}

    x, _ = tensors()
    weights = torch.ones(N)
    weights[4:8] = 0
    data = Loader((x, weights), 4, shuffle=False)
    _, result = trained(counted, data, batch_size=None, epochs=1, run={"log_every": 1})
    assert result.steps == 6 and math.isfinite(result.metrics["train/loss"])


def test_a_number_beside_the_inputs_of_a_batch_is_looked_over():
    @surefoot.objective
    def scaled(model, batch):
        outputs = model(batch["inputs"]) * batch["scale"]
        return {"loss": outputs.square().mean(), "outputs": outputs, "targets": batch["inputs"]}

    batch = ({"scale": torch.tensor(2.0), "inputs": tensors()[0]},)
    assert surefoot.losses.lint(network(), scaled, None, batch) == []


@pytest.mark.parametrize("metrics", [["accuracy"], ["f1_macro"], {"extra": lambda outputs, targets: 0.0}])
def test_a_number_that_is_called_as_a_metric_is_refused(metrics):
    @surefoot.objective
    def twice(model, batch):
        return {**classify(model, batch), "accuracy": 7.0, "f1_macro": 7.0, "extra": 7.0}

    name = next(iter(metrics))
    with pytest.raises(UsageError, match=f"metrics: {name} is a number of the objective too"):
        trained(twice, metrics=metrics)


@pytest.mark.parametrize("steps", [1, 2])
def test_outputs_may_be_returned_in_evaluation_only(steps):
    @surefoot.objective
    def sparing(model, batch):
        returned = classify(model, batch)
        return {"loss": returned["loss"]} if model.training else returned

    _, result = trained(sparing, metrics=["accuracy"], step=StepOptions(grad_accum_steps=steps))
    assert math.isnan(result.metrics["train/accuracy"]) and result.metrics["val/accuracy"] > 0
