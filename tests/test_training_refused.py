"""What `fit` refuses: before the first step, in one message, with everything that was there left as it was."""

from __future__ import annotations

import signal

import pytest
import torch
from fit_arguments import fit_arguments
from torch import nn
from training_job import CLASSES, FEATURES, make_data, make_model, sgd

from surefoot import Checkpointer, RunOptions
from surefoot.data import Loader
from surefoot.errors import Stopped, UsageError
from surefoot.schedules import LinearWarmup, Schedule
from surefoot.training import About, Checkpoints, EarlyStopping, fit


@pytest.fixture
def data():
    return make_data()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs: 0"),
        ({"epochs": 10**400}, "is above 9223372036854775807"),
        ({"grad_accum_steps": 0}, "grad_accum_steps: 0"),
        ({"log_every": 0}, "log_every: 0"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite: 'ignore'"),
        ({"batch_size": 51}, "larger than the data set of 50"),
        ({"precision": "int8"}, "precision: 'int8'"),
        ({"early_stopping": EarlyStopping()}, "early_stopping.monitor: 'val/loss' is not measured"),
        ({"checkpoints": Checkpoints(keep_best="val/acc")}, "checkpoint.keep_best: 'val/acc' is not measured"),
        ({"unfreeze": [(1, "head.*")]}, "'head.*' (epoch 1) matches no frozen parameter"),
        ({"start_epoch": 3, "epochs": 3}, "epochs: 3 is not above the 3 epochs that are done already"),
    ],
)
def test_a_mistake_is_told_and_leaves_nothing_behind(data, run_dir, arguments, message):
    model = make_model()
    with pytest.raises(UsageError) as caught:
        settings = {"epochs": 1, "batch_size": 10, **arguments}
        fit(model, nn.CrossEntropyLoss(), sgd(model), data, **fit_arguments(run_dir=run_dir, **settings))
    assert message in str(caught.value)
    assert not run_dir.exists()


class Unrated(torch.optim.Optimizer):
    """Computes its own rate, as Adafactor does with ``relative_step``."""

    def __init__(self, params, **options):
        super().__init__(params, {"gain": 0.1, **options})

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.sub_(group["gain"] * parameter.grad)


@pytest.mark.parametrize("options", [{}, {"lr": None}])
def test_an_optimizer_without_a_rate_is_told_what_to_say_and_is_trained_with_it(data, options):
    optimizer = Unrated((model := make_model()).parameters(), **options)
    with pytest.raises(UsageError, match=r"group 0 of Unrated has no learning rate") as caught:
        fit(model, nn.CrossEntropyLoss(), optimizer, data, **fit_arguments(epochs=1, batch_size=10))
    assert "optimizer.param_groups[0]['lr'] = 1.0" in str(caught.value)
    with pytest.raises(UsageError, match=r"LinearWarmup: optimizer: group 0 of Unrated has no learning rate"):
        LinearWarmup(optimizer, 3)  # in a loop of one's own
    optimizer.param_groups[0]["lr"] = 1.0
    fit(model, nn.CrossEntropyLoss(), optimizer, data, **fit_arguments(epochs=1, batch_size=10))


class NeedsClosure(torch.optim.SGD):
    """As most second-order optimizers have it."""

    def step(self, closure):
        with torch.enable_grad():
            closure()
        super().step()


class AssertsClosure(torch.optim.SGD):
    """As SAM has it, whose closure is another one than that of L-BFGS: of the gradients that it steps with first."""

    def step(self, closure=None):
        assert closure is not None, "Sharpness Aware Minimization requires closure, but it was not provided"


class CallsClosure(torch.optim.SGD):
    """Does not look whether there is one."""

    def step(self, closure=None):
        return closure()


@pytest.mark.parametrize("kind", [NeedsClosure, AssertsClosure, CallsClosure])
@pytest.mark.parametrize("execution", ["plain", "auto"])
def test_an_optimizer_that_needs_a_closure_is_told_what_to_do_and_changes_nothing(data, kind, execution):
    optimizer = kind((model := make_model()).parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(UsageError, match=rf"optimizer: {kind.__name__}.step needs a closure, .* keep your own loop"):
        fit(model, nn.CrossEntropyLoss(), optimizer, data, epochs=1, run=RunOptions(execution=execution))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("options", [{}, {"lr": None}])
def test_a_loop_of_ones_own_may_have_an_optimizer_without_a_rate(run_dir, options):
    optimizer = Unrated((model := make_model()).parameters(), **options)
    for steps in (0, 1):
        with Checkpointer(run_dir, model=model, optimizer=optimizer) as saver:
            saver.resume()
            assert saver.steps == steps
            saver.step()


def test_what_lay_in_a_runs_directory_stays_there_where_the_run_is_refused(data, run_dir):
    (run_dir / "tensorboard").mkdir(parents=True)
    kept = [run_dir / "tensorboard" / "mine.txt", run_dir / "notes.md"]
    for path in kept:
        path.write_text("years of work")
    optimizer = sgd(model := make_model())
    schedule = Schedule(optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3), by="step")
    with pytest.raises(UsageError, match="total_steps is 3"):
        fit(model, nn.CrossEntropyLoss(), optimizer, data, epochs=1, batch_size=10, run_dir=run_dir, schedule=schedule)
    assert sorted(path for path in run_dir.rglob("*") if path.is_file()) == sorted(kept)


def test_directories_that_were_made_for_a_run_go_with_it_where_it_is_refused(data, run_dir):
    (run_dir / "kept").mkdir(parents=True)
    optimizer = sgd(model := make_model())
    schedule = Schedule(optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3), by="step")
    job = {"epochs": 1, "batch_size": 10, "schedule": schedule}
    with pytest.raises(UsageError, match="total_steps is 3"):
        fit(model, nn.CrossEntropyLoss(), optimizer, data, run_dir=run_dir / "kept" / "new" / "er" / "run", **job)
    assert [*run_dir.rglob("*")] == [run_dir / "kept"]


@pytest.mark.parametrize("name", ["recipe.yaml", "model", "report.html", "validation.json"])
def test_what_a_run_would_write_over_is_refused(data, run_dir, name):
    run_dir.mkdir()
    (run_dir / name).write_text("# by hand")
    about = RunOptions(about=About(name="mine", files={"recipe.yaml": "epochs: 1\n"}))
    model = make_model()
    job = (model, nn.CrossEntropyLoss(), sgd(model), data)
    with pytest.raises(UsageError, match=f"{name}: is there already, and a run keeps its own"):
        fit(*job, epochs=1, batch_size=10, run_dir=run_dir, run=about)
    assert [path.read_text() for path in run_dir.iterdir()] == ["# by hand"]


def test_a_directory_that_holds_a_run_is_not_taken_over(data, run_dir):
    model = make_model()
    fit(model, nn.CrossEntropyLoss(), sgd(model), data, epochs=1, batch_size=10, run_dir=run_dir)
    before = (run_dir / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match="already holds a run"):
        fit(model, nn.CrossEntropyLoss(), sgd(model), data, epochs=1, batch_size=10, run_dir=run_dir)
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_a_plateau_that_goes_by_step_is_refused_before_the_first_step(data, run_dir):
    model = make_model()
    optimizer = sgd(model)
    schedule = Schedule(optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), by="step")
    with pytest.raises(UsageError, match="ReduceLROnPlateau watches val/loss, which is known once an epoch; leave by"):
        fit(model, nn.CrossEntropyLoss(), optimizer, data, val=data, epochs=1, schedule=schedule, run_dir=run_dir)
    assert not run_dir.exists()


def test_a_model_that_cannot_be_saved_is_refused_before_the_first_step(data, run_dir):
    model = make_model()
    model.register_buffer("near", torch.eye(3).to_sparse())
    with pytest.raises(UsageError, match="near: "):
        fit(model, nn.CrossEntropyLoss(), sgd(model), data, epochs=1, run_dir=run_dir)
    assert not run_dir.exists()
    fit(model, nn.CrossEntropyLoss(), sgd(model), data, epochs=1)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"classes": ["a", "b", "b"]}, "classes: 'b' stands twice"),
        ({"classes": ["a", "b", "c"], "input_dtype": "float33"}, "input_dtype: 'float33' is not one of"),
        ({"loss_name": object()}, "loss: .* is not made of numbers, text, lists and mappings"),
        ({"classes": 3}, "classes: 3 is not a list of names"),
        ({"input_shape": (0,)}, "input_shape: 0 is not a whole number"),
        ({"source": "net:Net"}, "source: 'net:Net' is not a pair"),
        ({"name": 3}, "name: 3 is not a text"),
        ({"conditions": [3]}, "conditions: .* is not a mapping"),
        ({"details": [1]}, r"details: the list \[1\] is not a mapping"),
        ({"input_shape": 4}, "input_shape: 4 is not a list of sizes"),
        ({"classes": 5}, "classes: 5 is not a list of names"),
    ],
)
def test_what_could_not_be_saved_with_the_model_is_refused_before_the_first_step(data, run_dir, about, message):
    model = make_model()
    before = model[0].weight.clone()
    with pytest.raises(UsageError, match=message):
        fit(
            model,
            nn.CrossEntropyLoss(),
            sgd(model),
            data,
            epochs=1,
            run_dir=run_dir,
            run=RunOptions(about=About(**about)),
        )
    assert torch.equal(model[0].weight, before) and not run_dir.exists()


def test_a_model_that_could_not_be_saved_at_its_end_is_refused_before_the_first_step(data, run_dir):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"calls": 1}

        def set_extra_state(self, state):
            pass

    model = Extra(FEATURES, CLASSES)
    before = model.weight.clone()
    with pytest.raises(UsageError, match="_extra_state: .*without pickle"):
        fit(model, nn.CrossEntropyLoss(), sgd(model), data, epochs=1, run_dir=run_dir)
    assert torch.equal(model.weight, before) and not run_dir.exists()


def test_fewer_epochs_than_were_done_are_refused_and_change_nothing(data, run_dir):
    def run(epochs: int, **more) -> None:
        model = make_model()
        about = About(files={"recipe.yaml": f"epochs: {epochs}\n"})
        fit(
            model,
            nn.CrossEntropyLoss(),
            sgd(model),
            data,
            **fit_arguments(epochs=epochs, batch_size=10, run_dir=run_dir, about=about, **more),
        )

    run(3)
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file() and p.name != "LOCK"}
    with pytest.raises(UsageError, match="epochs: 2 is below the 3"):
        run(2, resume=True)
    after = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file() and p.name != "LOCK"}
    # A board that was opened has a file of its own; it holds no point yet.
    changed = {p.relative_to(run_dir).parts[0] for p in before | after if after.get(p) != before.get(p)}
    assert changed <= {"tensorboard"}


@pytest.mark.parametrize(("call", "step"), [(12, 7), (16, 10)])  # of the loss, in the second epoch and its validation
def test_an_epoch_that_was_begun_counts_among_those_that_were_done(data, run_dir, call, step):
    """Its updates are in the weights, and the first epoch's metrics would be told of them."""
    calls = iter(range(1000))

    def loss(outputs, targets):
        if next(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return nn.functional.cross_entropy(outputs, targets)

    def run(epochs: int, **more) -> int:
        model = make_model()
        more |= {"batch_size": 10, "run_dir": run_dir, "val": Loader(data, 10, shuffle=False), "lint_off": ["all"]}
        return fit(model, loss, sgd(model), data, **fit_arguments(epochs=epochs, execution="plain", **more)).steps

    with pytest.raises(Stopped, match=f"after step {step};"):
        run(2)
    with pytest.raises(UsageError, match="epochs: 1 is below the 1 and a part of one more .* epochs=N of 2 or more"):
        run(1, resume=True)
    assert run(2, resume=True) == 10
