"""Histograms of weights and gradients: as the tensors are, each once, whatever was stopped and resumed."""

from __future__ import annotations

import contextlib

import pytest
import torch
from command_runs import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import surefoot
from surefoot import Problems, RunOptions
from surefoot.checkpoint import read_about
from surefoot.cli import main
from surefoot.errors import RunFailed
from surefoot.recipe import load_recipe
from surefoot.tracking import RunRecords, read_records
from surefoot.tracking.event_files import EventFiles
from surefoot.tracking.histograms import BINS, _histogram, histograms_of

X = torch.linspace(-1, 1, 96).reshape(24, 4)


def read(run):
    """tag -> [(step, histogram)] as TensorBoard itself reads them, and the scalars' steps by tag."""
    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    reader.Reload()
    tags = reader.Tags()
    found = {tag: [(e.step, e.histogram_value) for e in reader.Histograms(tag)] for tag in tags["histograms"]}
    return found, {tag: [e.step for e in reader.Scalars(tag)] for tag in tags["scalars"]}


def train(run, epochs, how, resume=False):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = RunOptions(progress=False, tensorboard=how, execution="plain", log_every=2)
    surefoot.fit(
        model, nn.MSELoss(), optimizer, (X, X[:, :2]), epochs=epochs, batch_size=8, val=(X, X[:, :2]),
        run_dir=run, resume=resume, run=options,
    )  # fmt: skip
    return model


def test_a_histogram_counts_every_value_between_the_lowest_and_the_highest():
    model = nn.Linear(40, 30)
    model.weight.grad = torch.full_like(model.weight, 2.0)
    found = histograms_of(nn.DataParallel(model))
    assert set(found) == {"weights/weight", "weights/bias", "gradients/weight"}, "names of the model's own"
    weights = found["weights/weight"]
    assert (weights.low, weights.high) == (model.weight.min().item(), model.weight.max().item())
    assert weights.number == sum(weights.counts) == 1200 and len(weights.counts) == len(weights.limits()) == BINS
    assert weights.total == pytest.approx(model.weight.sum().item(), abs=1e-4) and weights.limits()[-1] == weights.high
    assert found["gradients/weight"].counts == (1200.0,) and found["gradients/weight"].squares == 4800.0


def test_more_values_in_a_bin_than_float32_counts_are_counted():
    values = torch.zeros(2**24 + 9)
    values[-1] = 1.0
    histogram = _histogram(values)
    assert histogram.counts[0] == 2**24 + 8 and sum(histogram.counts) == histogram.number == 2**24 + 9


def test_what_is_not_finite_is_left_out_and_sparse_gradients_and_complex_weights_are_counted():
    model = nn.Embedding(5, 2, sparse=True)
    model(torch.tensor([1, 1])).sum().backward()
    with torch.no_grad():
        model.weight[0, 0], model.weight[0, 1] = float("nan"), float("inf")
    found = histograms_of(model)
    assert found["weights/weight"].number == 8 and found["gradients/weight"].total == 4.0
    module = nn.Module()
    module.wave = nn.Parameter(torch.tensor([1 + 2j]))
    module.empty, module.lost = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.full((3,), float("nan")))
    assert {name: each.number for name, each in histograms_of(module).items()} == {"weights/wave": 2}


@pytest.mark.parametrize(("every", "steps"), [("1 epoch", [3, 6, 9]), ("2 epochs", [6]), ("2 steps", [2, 4, 6, 8])])
def test_a_resumed_run_has_the_histograms_of_one_that_never_stopped(every, steps, tmp_path):
    model = train(tmp_path / "whole", 3, {"histograms": every})
    for epochs in (1, 2, 3):
        train(tmp_path / "parts", epochs, {"histograms": every}, resume=epochs > 1)
    (whole, points), (parts, points_of_parts) = read(tmp_path / "whole"), read(tmp_path / "parts")
    assert whole == parts and set(whole) == {
        f"{kind}/{n}" for kind in ("weights", "gradients") for n in ("weight", "bias")
    }
    assert {tag: [step for step, _ in each] for tag, each in whole.items()} == dict.fromkeys(whole, steps)
    assert points == points_of_parts and points["loss/val"] == [3, 6, 9]
    if every == "1 epoch":
        assert whole["weights/weight"][-1][1].max == model.weight.max().item()


@pytest.mark.parametrize(("every", "steps"), [("1 epoch", [2]), ("2 steps", [2])])
def test_an_epoch_whose_last_update_is_skipped_has_its_histogram_and_the_rates_of_its_last_update(
    every, steps, tmp_path
):
    inputs = X.clone()
    inputs[-1] = float("nan")
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    options = RunOptions(
        progress=False, tensorboard={"histograms": every}, execution="plain", log_every=9, lint_off=["all"]
    )
    schedule = surefoot.Schedule(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), by="step")
    surefoot.fit(
        model, nn.MSELoss(), optimizer, surefoot.Loader((inputs, X[:, :2]), 8, shuffle=False), epochs=1,
        schedule=schedule, run_dir=tmp_path, step=surefoot.StepOptions(on_nonfinite="skip"),
        run=options,
    )  # fmt: skip
    assert [step for step, _ in read(tmp_path)[0]["weights/weight"]] == [2]
    (record,) = read_records(tmp_path / "metrics.jsonl")
    assert record["step"] == 2 and record["lr"] == [0.5]


def records_of_step(run, step, histogram):
    at = {"epoch": 0, "step": step, "lr": [0.1], "wall_s": 0.1 * step}
    run.append({"kind": "step", "split": "train", "loss": 1 / step, **at})
    run.histograms({"weights/w": histogram}, 0, step, 0.1 * step)
    yield run.offset, run.marks()
    run.append({"kind": "epoch", "split": "train", "loss": 2 / step, **at})
    yield run.offset, run.marks()


def test_a_checkpoint_within_a_step_keeps_its_histogram_and_drops_what_came_after(tmp_path):
    histogram = histograms_of(nn.Linear(3, 3))["weights/weight"]
    with contextlib.closing(RunRecords(tmp_path)) as run:
        list(records_of_step(run, 10, histogram))
        (offset, marks), _ = records_of_step(run, 20, histogram)
    for _ in range(3):  # stopped again and again without having come any further
        with contextlib.closing(RunRecords(tmp_path)) as run:
            assert run.truncate(offset, marks) == ([], [])
            offset, marks = run.offset, run.marks()
            found, points = read(tmp_path)
            assert [step for step, _ in found["weights/w"]] == [10, 20]
            assert points == {"loss/train_step": [10, 20], "loss/train": [10], "lr/0": [10, 20]}
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) <= 3 and files[-1].stat().st_size < 4000
    with contextlib.closing(RunRecords(tmp_path)) as run:
        run.truncate(offset, marks)
        run.append({"kind": "step", "split": "train", "epoch": 0, "step": 30, "loss": 0.5, "wall_s": 3.0})
    assert read(tmp_path)[1]["loss/train_step"] == [10, 20, 30]


def test_a_kill_between_cutting_and_writing_anew_loses_at_most_the_newest_histogram(tmp_path, monkeypatch):
    histogram = histograms_of(nn.Linear(3, 3))["weights/weight"]
    with contextlib.closing(RunRecords(tmp_path)) as run:
        list(records_of_step(run, 10, histogram))
        _, (offset, marks) = records_of_step(run, 20, histogram)
    with monkeypatch.context() as patched:
        patched.setattr(EventFiles, "append", lambda self, frames: (_ for _ in ()).throw(RunFailed("killed")))
        with pytest.raises(RunFailed), contextlib.closing(RunRecords(tmp_path)) as run:
            run.truncate(offset, marks)
    with contextlib.closing(RunRecords(tmp_path)) as run:
        run.truncate(offset, marks)
    found, points = read(tmp_path)
    assert [step for step, _ in found["weights/w"]] == [10]
    assert points == {**dict.fromkeys(("loss/train_step", "loss/train", "lr/0"), [10, 20]), "steps_per_s/train": [20]}


def test_a_loop_of_ones_own_writes_them_too(tmp_path):
    model = nn.Linear(2, 1)
    with surefoot.Journal(tmp_path) as journal:
        journal.step(1, {"loss": 0.5})
        journal.histograms(model, step=1)
    assert [step for step, _ in read(tmp_path)[0]["weights/weight"]] == [1]


def test_a_recipe_asks_for_them():
    assert load_recipe("quickstart", ["tensorboard={histograms: 500 steps}"]).tensorboard.histograms == "500 steps"
    for how in (True, False, "together", {"histograms": None}, {"histograms": "2 epochs", "together": True}):
        options = RunOptions(tensorboard=how)
        assert (options.histograms is not None) == (isinstance(how, dict) and how["histograms"] is not None)
    assert RunOptions(tensorboard={"together": True}).events == "together" and RunOptions().events is True


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"histogram": "1 epoch"}, "tensorboard: 'histogram' is not one of histograms, together; did you mean"),
        ({"histograms": "10 min"}, "tensorboard.histograms: '10 min' is no interval; give '1 epoch' or '500 steps'"),
        ({"histograms": 3}, "tensorboard.histograms: 3 is no interval"),
        ({"histograms": True}, "tensorboard.histograms: True is no interval"),
        ({"together": "yes"}, "tensorboard.together: 'yes' is neither True nor False"),
        ("both", "tensorboard: 'both' is neither True nor False"),
    ],
)
def test_mistakes_in_python(how, told):
    with pytest.raises(Problems) as caught:
        RunOptions(tensorboard=how)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "{histograms: 10 min}",
            "tensorboard.histograms: the text '10 min' is not a count of epochs or steps; write for example",
        ),
        ("{histogram: 1 epoch}", "'histogram'"),
        ("histograms", "tensorboard: the text 'histograms' is not together, true, false or a mapping"),
        ("[together]", "tensorboard: a list is not a mapping"),
    ],
)
def test_mistakes_in_a_recipe(how, told):
    with pytest.raises(Problems) as caught:
        load_recipe("quickstart", [f"tensorboard={how}"])
    assert told in str(caught.value)


def test_a_run_may_be_resumed_with_or_without_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [word for word in SMALL if not word.startswith(("epochs", "tensorboard"))]
    assert main(["train", "quickstart", "--run", "run", *small, "epochs=1", "tensorboard={histograms: 1 epoch}"]) == 0
    assert main(["resume", "run", "epochs=2", "--horizon", "stretch", "tensorboard=true"]) == 0
    assert not any(name.startswith("recipe.tensorboard") for name in read_about("run")["conditions"])
