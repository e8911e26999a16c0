"""The loop: plain torch bit for bit, records that are means over samples, losses that are not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fit_arguments import Heard, fit_arguments
from torch import nn
from training_job import CLASSES, FEATURES, SAMPLES, make_data, make_model, sgd

from surefoot import RunOptions, StepOptions
from surefoot.artifacts import read_info
from surefoot.data import DatasetSource, Loader
from surefoot.data.orders import epoch_order
from surefoot.errors import RunFailed
from surefoot.schedules import LinearWarmup, Schedule
from surefoot.step import TrainStep
from surefoot.tracking import read_records
from surefoot.training import About, Checkpoints, EarlyStopping, evaluate, fit, predict


@pytest.fixture
def data():
    return make_data()


def steps_of(run: Path) -> list[dict]:
    return [r for r in read_records(run / "metrics.jsonl") if r["kind"] == "step"]


def epochs_of(run: Path, split: str) -> list[dict]:
    return [r for r in read_records(run / "metrics.jsonl") if r["kind"] == "epoch" and r["split"] == split]


def test_the_losses_are_those_of_a_hand_written_loop_bit_for_bit(data, run_dir):
    """Same seed, same order, dropout, a plateau by epoch under a warmup by epoch: the tutorial's last chapter."""
    inputs, targets = data
    model = make_model(dropout=0.3)
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.9)
    schedule = Schedule(optimizer, scheduler, LinearWarmup(optimizer, 3), by="epoch", warmup_by="epoch")
    fit(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        data,
        val=(inputs[:20], targets[:20]),
        schedule=schedule,
        epochs=5,
        batch_size=8,
        seed=11,
        run_dir=run_dir,
        run=RunOptions(log_every=1),
    )

    pytorch_warmup = pytest.importorskip("pytorch_warmup")
    oracle, loss = make_model(dropout=0.3), nn.CrossEntropyLoss()
    optimizer = sgd(oracle)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.9)
    warmup = pytorch_warmup.LinearWarmup(optimizer, 3)
    expected, val_losses, rates = [], [], []
    torch.manual_seed(11)
    for epoch in range(5):
        oracle.train()
        rates.append(optimizer.param_groups[0]["lr"])
        for indices in epoch_order(SAMPLES, 11, epoch).split(8):
            optimizer.zero_grad()
            value = loss(oracle(inputs[indices]), targets[indices])
            value.backward()
            optimizer.step()
            expected.append(value.item())
        oracle.eval()
        with torch.no_grad():
            val_losses.append(loss(oracle(inputs[:20]), targets[:20]).item())
        with warmup.dampening():
            scheduler.step(val_losses[-1])

    assert [r["loss"] for r in steps_of(run_dir)] == expected
    assert [r["loss"] for r in epochs_of(run_dir, "val")] == val_losses
    assert [r["lr"][0] for r in epochs_of(run_dir, "train")] == rates
    assert len(set(rates)) > 3, "the schedule never moved, so nothing was compared"
    pairs = zip(model.parameters(), oracle.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_epoch_means_are_over_samples_and_not_over_batches(data, run_dir):
    """With a rate of 0 the model stands still, so the epoch's mean is the loss of all samples at once."""
    model = make_model()
    fit(model, nn.CrossEntropyLoss(), sgd(model, 0.0), data, epochs=1, batch_size=16, run_dir=run_dir)
    (record,) = epochs_of(run_dir, "train")
    with torch.no_grad():
        outputs = model(data[0])
    assert SAMPLES % 16, "the last batch must be short"
    assert record["loss"] == pytest.approx(nn.functional.cross_entropy(outputs, data[1]).item(), rel=1e-6)
    assert record["accuracy"] == (outputs.argmax(1) == data[1]).sum().item() / SAMPLES


def test_records_have_the_promised_fields_in_the_promised_number(data, run_dir):
    model = make_model()
    fit(
        model,
        nn.CrossEntropyLoss(),
        sgd(model),
        data,
        val=data,
        epochs=2,
        batch_size=5,
        run_dir=run_dir,
        step=StepOptions(max_grad_norm=1.0),
        run=RunOptions(log_every=4),
    )
    records = list(read_records(run_dir / "metrics.jsonl"))
    told = [(r["kind"], r["split"], r["epoch"], r["step"]) for r in records]
    assert told == [
        ("step", "train", 0, 4),
        ("step", "train", 0, 8),
        ("epoch", "train", 0, 10),
        ("epoch", "val", 0, 10),
        ("step", "train", 1, 12),
        ("step", "train", 1, 16),
        ("step", "train", 1, 20),
        ("epoch", "train", 1, 20),
        ("epoch", "val", 1, 20),
    ]
    assert all({"loss", "accuracy", "lr", "wall_s"} <= set(r) for r in records)
    assert all("grad_norm" in r for r in records if r["kind"] == "step")
    assert all(isinstance(r["lr"], list) for r in records)


def test_about_fifty_records_an_epoch_unless_said_otherwise(run_dir):
    model = make_model()
    data = torch.randn(1000, FEATURES), torch.randint(CLASSES, (1000,))
    fit(model, nn.CrossEntropyLoss(), sgd(model), data, epochs=1, batch_size=1, run_dir=run_dir)
    assert len(steps_of(run_dir)) == 50


def test_the_best_model_is_the_one_of_its_epoch(data, run_dir):
    """The rate is so high at the end that the last model is not the best."""
    model = make_model()
    optimizer = sgd(model, 0.01)
    schedule = Schedule(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=300.0), by="epoch")
    result = fit(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        data,
        val=data,
        schedule=schedule,
        epochs=5,
        batch_size=10,
        run_dir=run_dir,
        run=RunOptions(checkpoints=Checkpoints(keep_best="val/loss")),
    )
    losses = [r["loss"] for r in epochs_of(run_dir, "val")]
    assert result.best.value == min(losses) != losses[-1]
    from surefoot.artifacts import load_model

    best = load_model(run_dir / "model" / "best", make_model())
    assert evaluate(best, nn.CrossEntropyLoss(), data).metrics["loss"] == min(losses)
    last = load_model(run_dir / "model", make_model())
    assert evaluate(last, nn.CrossEntropyLoss(), data).metrics["loss"] == losses[-1]


def test_early_stopping_ends_after_its_patience(data, run_dir):
    model = make_model()
    result = fit(
        model,
        nn.CrossEntropyLoss(),
        sgd(model, 0.0),
        data,
        val=data,
        epochs=10,
        batch_size=10,
        run_dir=run_dir,
        run=RunOptions(early_stopping=EarlyStopping(patience=2)),
    )
    assert (result.epochs, result.stopped_early) == (3, True)


def test_the_moving_average_is_what_is_validated_and_saved(data, run_dir):
    model = make_model()
    averaged = {"epochs": 2, "batch_size": 10, "ema_decay": 0.9}
    fit(model, nn.CrossEntropyLoss(), sgd(model), data, **fit_arguments(val=data, run_dir=run_dir, **averaged))
    from surefoot.artifacts import load_model

    saved = load_model(run_dir / "model", make_model())
    assert not torch.equal(saved[0].weight, model[0].weight)
    assert evaluate(saved, nn.CrossEntropyLoss(), data).metrics["loss"] == epochs_of(run_dir, "val")[-1]["loss"]


def test_unfrozen_parameters_learn_from_their_epoch_on(data):
    model = make_model()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    settings = {"batch_size": 10, "unfreeze": [(2, "0.*")]}
    heard = Heard()
    fit(model, nn.CrossEntropyLoss(), optimizer, data, **fit_arguments(epochs=2, progress=heard, **settings))
    assert torch.equal(model[0].weight, before)
    assert len(optimizer.param_groups) == 1
    assert "unfreeze: epoch 2 of '0.*' never comes: epochs are counted from 0 and the run has 2" in heard.messages

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    fit(model, nn.CrossEntropyLoss(), optimizer, data, **fit_arguments(epochs=3, **settings))
    assert not torch.equal(model[0].weight, before)
    assert len(optimizer.param_groups) == 2


def test_an_update_that_fp16_skipped_does_not_step_the_schedule(data, run_dir):
    """The first batches are so large that their scaled gradients overflow; the rate must stand still meanwhile."""
    inputs, targets = data
    inputs = inputs.clone()
    first = epoch_order(SAMPLES, 0, 0)[:20]
    inputs[first] *= 2000
    model = make_model()
    optimizer = sgd(model, 1e-6)
    schedule = Schedule(optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), by="step")
    fit(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        (inputs, targets),
        schedule=schedule,
        epochs=1,
        batch_size=10,
        run_dir=run_dir,
        step=StepOptions(precision="fp16"),
        run=RunOptions(log_every=1, lint_off=["all"]),
    )
    assert [r["lr"][0] for r in steps_of(run_dir)] == [1e-6, 1e-6, 1e-6, 5e-7, 2.5e-7]


# ------------------------------------------------------------------------------------------ losses that are not finite


def poisoned(data, at: int):
    inputs = data[0].clone()
    inputs[at] = math.nan
    return inputs, data[1]


def test_a_nan_loss_stops_the_run_names_the_samples_and_keeps_the_last_finite_state(data, run_dir):
    model = make_model()
    with pytest.raises(RunFailed) as caught:
        fit(model, nn.CrossEntropyLoss(), sgd(model), poisoned(data, 17), epochs=2, batch_size=5, run_dir=run_dir)
    batches = list(epoch_order(SAMPLES, 0, 0).split(5))
    bad = next(i for i, indices in enumerate(batches) if 17 in indices)
    assert f"epoch 1, step {bad + 1}: the loss is nan on samples [{', '.join(map(str, batches[bad].tolist()))}]" in str(
        caught.value
    )
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert (run_dir / "checkpoints" / f"step-{bad:09d}").is_dir()
    assert json.loads((run_dir / "run.json").read_text())["status"] == "failed"


def test_a_nan_loss_can_be_skipped_and_is_told(data, run_dir):
    heard, model = Heard(), make_model()
    result = fit(
        model,
        nn.CrossEntropyLoss(),
        sgd(model),
        poisoned(data, 17),
        epochs=2,
        batch_size=5,
        run_dir=run_dir,
        step=StepOptions(on_nonfinite="skip"),
        run=RunOptions(progress=heard),
    )
    assert result.steps == 18
    assert sum("this update is skipped" in text for text in heard.messages) == 2
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_loss_that_is_seen_at_a_record_is_saved_at_its_own_step(run_dir, monkeypatch):
    """As on a GPU, where no single loss is waited for."""
    made = TrainStep.__init__

    def unchecked(step, *args, **settings):
        made(step, *args, **settings)
        step.checks = False

    monkeypatch.setattr(TrainStep, "__init__", unchecked)
    model, updates = make_model(), iter(range(1, 100))

    def loss(outputs, targets):
        late = torch.is_grad_enabled() and next(updates) > 5
        return nn.functional.cross_entropy(outputs, targets) + (math.inf if late else 0.0)

    with pytest.raises(RunFailed, match="the mean loss up to step 6 is inf; the parameters are finite and saved"):
        data = torch.ones(10, FEATURES), torch.zeros(10).long()
        settings = {"batch_size": 1, "run_dir": run_dir, "lint_off": ["all"], "execution": "plain", "log_every": 1}
        fit(model, loss, sgd(model), data, **fit_arguments(epochs=1, **settings))
    (saved,) = (run_dir / "checkpoints").iterdir()
    state = json.loads((saved / "state.json").read_text())
    assert state["step"] == state["objects"]["progress"]["step"] == 6


def test_samples_are_named_by_the_place_of_a_loader_that_was_read_before(data):
    heard, model, loader = Heard(), make_model(), Loader(poisoned(data, 17), 5)
    loader.seek(3)
    run = RunOptions(progress=heard, lint_off=["all"], execution="plain")
    fit(model, nn.CrossEntropyLoss(), sgd(model), loader, epochs=1, step=StepOptions(on_nonfinite="skip"), run=run)
    (message,) = (text for text in heard.messages if "this update is skipped" in text)
    bad = next(indices.tolist() for indices in epoch_order(SAMPLES, 0, 3).split(5) if 17 in indices)
    assert f"on samples [{', '.join(map(str, bad))}]" in message


def test_updates_skipped_in_a_row_are_counted_over_epochs_and_resumes(run_dir):
    """One in two sittings, of epochs with fewer updates than may be skipped."""

    def run(epochs: int) -> None:
        model, nan = make_model(), torch.full((10, FEATURES), math.nan)
        settings = {
            "batch_size": 1,
            "run_dir": run_dir,
            "resume": True,
            "lint_off": ["all"],
            "execution": "plain",
            "on_nonfinite": "skip",
        }
        data = nan, torch.zeros(10).long()
        fit(model, nn.CrossEntropyLoss(), sgd(model), data, **fit_arguments(epochs=epochs, **settings))

    run(4)
    with pytest.raises(RunFailed, match="epoch 10, step 1: .* as on the 99 batches before it"):
        run(11)


def test_a_run_whose_every_batch_is_nan_does_not_go_on_for_ever(data):
    model = make_model()
    inputs = torch.full((400, FEATURES), math.nan)
    with pytest.raises(RunFailed, match="as on the 99 batches before it"):
        fit(
            model,
            nn.CrossEntropyLoss(),
            sgd(model),
            (inputs, torch.zeros(400).long()),
            epochs=9,
            batch_size=1,
            step=StepOptions(on_nonfinite="skip"),
            run=RunOptions(lint_off=["all"]),
        )


def test_names_of_classes_may_be_numbers(data, run_dir):
    model = make_model()
    settings = {"epochs": 1, "batch_size": 10, "val": data, "run_dir": run_dir, "about": About(classes=range(2))}
    fit(model, nn.CrossEntropyLoss(), sgd(model), data, **fit_arguments(**settings))
    assert read_info(run_dir / "model").classes == ("0", "1")


def test_a_collate_function_may_need_more_than_one_sample(data):
    def pairs(samples):
        halves = [torch.stack([x for x, _ in samples[k::2]]) for k in (0, 1)]
        return (halves[0] - halves[1]), torch.tensor([int(y) for _, y in samples[::2]])

    inputs, targets = data
    model = make_model()
    samples = list(zip(inputs, targets, strict=True))
    source = DatasetSource(samples, collate=pairs)
    assert fit(model, nn.CrossEntropyLoss(), sgd(model), Loader(source, 10), epochs=1).steps == 5


# ------------------------------------------------------------------------------------------ evaluation and prediction


def test_evaluation_leaves_no_trace(data):
    model = make_model(dropout=0.5)
    model[1].eval()
    state = torch.get_rng_state()
    evaluate(model, nn.CrossEntropyLoss(), data, batch_size=7)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_does_not_hang_on_the_batch_size(data):
    model = make_model()
    results = [evaluate(model, nn.CrossEntropyLoss(), data, batch_size=n, confusion=CLASSES) for n in (1, 7, 50)]
    assert {r.metrics["accuracy"] for r in results} == {results[0].metrics["accuracy"]}
    assert results[0].metrics["loss"] == pytest.approx(results[2].metrics["loss"], rel=1e-6)
    assert torch.equal(results[0].confusion, results[2].confusion)
    assert results[0].confusion.sum() == SAMPLES
    assert results[0].confusion.diag().sum() == round(results[0].metrics["accuracy"] * SAMPLES)


def test_evaluating_a_loader_again_gives_the_same(data):
    model, loader = make_model(), Loader(data, 7, shuffle=False)
    first = evaluate(model, nn.CrossEntropyLoss(), loader)
    assert evaluate(model, nn.CrossEntropyLoss(), loader) == first


def test_prediction_is_the_model_on_all_inputs(data):
    model = make_model(dropout=0.5).train()
    outputs = predict(model, data[0], batch_size=7)
    assert model.training
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(data[0]))


def test_a_run_is_described_in_its_directory(data, run_dir):
    model = make_model()
    about = About(name="mine", files={"recipe.yaml": "epochs: 1\n"}, classes=["a", "b", "c"])
    fit(
        model,
        nn.CrossEntropyLoss(),
        sgd(model),
        data,
        val=data,
        epochs=1,
        batch_size=10,
        run_dir=run_dir,
        run=RunOptions(about=about),
    )
    assert (run_dir / "recipe.yaml").read_text() == "epochs: 1\n"
    told = json.loads((run_dir / "run.json").read_text())
    assert (told["name"], told["status"], told["inexact"]) == ("mine", "done", [])
    assert json.loads((run_dir / "model" / "model.json").read_text())["classes"] == ["a", "b", "c"]
    assert "<html" in (run_dir / "report.html").read_text()
    assert list((run_dir / "tensorboard").iterdir())
