"""What a resume does with settings that changed: seen and refused by name, or allowed, marked, and in effect."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
import signal
import sys
from pathlib import Path

import pytest
import torch
from fit_arguments import Heard, fit_arguments
from test_exactness import samples
from torch import nn
from torch.optim import lr_scheduler as schedulers

import surefoot
from surefoot.artifacts import read_info
from surefoot.checkpoint import Checkpointer, ConditionsChanged, code_of, describe, environment
from surefoot.errors import Stopped, UsageError
from surefoot.schedules import LinearWarmup, Schedule
from surefoot.tracking import Progress
from surefoot.tracking.validation import read_validation
from surefoot.training import Checkpoints, EarlyStopping, fit
from surefoot.training.evaluation import evaluate_on


def train(run: Path | None, epochs: int, *, lr=0.1, optimizer=None, schedule=None, p=0.0, loss=None, **given):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.Dropout(p), nn.Linear(10, 3))
    made = torch.optim.SGD(model.parameters(), lr=lr, **(optimizer or {}))
    arguments = {
        "val": samples(),
        "batch_size": 4,
        "run_dir": run,
        "resume": True,
        "progress": False,
        "lint_off": ["all"],
    }
    data = given.pop("data", samples())
    fit(
        model,
        loss or nn.CrossEntropyLoss(),
        made,
        data,
        **fit_arguments(
            epochs=epochs,
            schedule=schedule and schedule(made),
            tensorboard=False,
            execution={"compile": False},
            **{**arguments, **given},
        ),
    )
    return made


def inexact(run: Path) -> list[str]:
    return json.loads((run / "run.json").read_text())["inexact"]


CHANGES = {
    "optimizer.lr": {"lr": 0.01},
    "optimizer.weight_decay": {"optimizer": {"weight_decay": 0.1}},
    "optimizer.momentum": {"optimizer": {"momentum": 0.5}},
    "loss": {"loss": nn.CrossEntropyLoss(label_smoothing=0.5)},
    "model.1": {"p": 0.5},
    "checkpoint.keep_best": {"checkpoints": Checkpoints(keep_best="val/loss")},
    "loader.batch_size": {"batch_size": 5},
    "loader.seed": {"seed": 3},
    "data.val": {"val": (samples()[0] + 1, samples()[1])},
    "data.loader": {"data": (samples()[0][:36], samples()[1][:36])},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_refused_by_name_and_marked_where_it_is_allowed(tmp_path, name):
    train(tmp_path / "run", 1)
    with pytest.raises(ConditionsChanged) as refused:
        train(tmp_path / "run", 2, **CHANGES[name])
    assert any(change.name == name for change in refused.value.changes), str(refused.value)
    train(tmp_path / "run", 2, **CHANGES[name], allow=[change.name for change in refused.value.changes])
    assert any(text.startswith(f"{name}: was") for text in inexact(tmp_path / "run"))


def test_arguments_of_functions_and_of_what_a_transform_holds_are_settings():
    class Often:
        def __init__(self, transforms, p=0.5):
            self.transforms, self.p = transforms, p

        def __call__(self, x):
            return x

    class Act(nn.Module):
        def extra_repr(self):
            return f"fn={nn.functional.relu}"

    def described(value):
        return describe({"it": value})["it"]

    def smoothed(value):
        return functools.partial(nn.functional.cross_entropy, label_smoothing=value)

    assert described(smoothed(0.5)) == "partial(torch.nn.functional.cross_entropy, label_smoothing=0.5)"
    different = [
        *(smoothed(value) for value in (0.1, 0.2)),
        *(functools.partial(max, value) for value in (1, 2)),
        *(surefoot.objective(smoothed(value)) for value in (0.1, 0.2)),
        *(Often([Often([], value), nn.Dropout(0.1), print]) for value in (0.1, 0.2)),
        *(nn.TransformerEncoderLayer(4, 2, 8, activation=name) for name in ("relu", "gelu")),
    ]
    assert len({described(value) for value in different}) == len(different)
    itself = Often([])
    itself.transforms.append(itself)
    assert described(itself).count("Often") < 20
    assert " at 0x" not in described(Act()), "where something lies is another place in each process"


@pytest.mark.parametrize("changed", [{"max_grad_norm": 1.0}, {"grad_accum_steps": 2}, {"ema_decay": 0.9}])
def test_one_change_has_one_name(tmp_path, changed):
    train(tmp_path / "run", 1)
    with pytest.raises(ConditionsChanged) as refused:
        train(tmp_path / "run", 2, **changed)
    assert [change.name for change in refused.value.changes] == [f"fit.{next(iter(changed))}"]


def test_class_weights_that_changed_are_seen(tmp_path):
    train(tmp_path / "run", 1, loss=nn.CrossEntropyLoss(weight=torch.ones(3)))
    with pytest.raises(ConditionsChanged, match="loss: was"):
        train(tmp_path / "run", 2, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])))


def test_other_options_of_the_optimizer_take_effect(tmp_path):
    train(tmp_path / "run", 1, optimizer={"momentum": 0.9})
    made = train(tmp_path / "run", 2, optimizer={"momentum": 0.5, "weight_decay": 0.1}, allow=["optimizer"])
    assert (made.param_groups[0]["momentum"], made.param_groups[0]["weight_decay"]) == (0.5, 0.1)


SCHEDULES = {
    "none": None,
    "StepLR": lambda o: Schedule(o, schedulers.StepLR(o, 1, 0.5)),
    "by step": lambda o: Schedule(o, schedulers.ExponentialLR(o, 0.99), by="step"),
    "LambdaLR": lambda o: Schedule(o, schedulers.LambdaLR(o, lambda epoch: 1 / (1 + epoch))),
    "cosine": lambda o: Schedule(o, schedulers.CosineAnnealingLR(o, 6, eta_min=1e-4)),
    "plateau": lambda o: Schedule(o, schedulers.ReduceLROnPlateau(o, patience=0, threshold=0.9, min_lr=1e-4)),
    "warmed": lambda o: Schedule(o, schedulers.StepLR(o, 1, 0.5), LinearWarmup(o, warmup_period=50)),
    "warmed only": lambda o: Schedule(o, None, LinearWarmup(o, warmup_period=50)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rate_given_on_resume_is_the_schedules_new_base(tmp_path, name):
    """From there on the rates are those of a run that had it from the start."""
    schedule = SCHEDULES[name]
    train(tmp_path / "run", 2, schedule=schedule)
    train(tmp_path / "run", 4, lr=0.02, schedule=schedule, allow=["optimizer.lr"])
    train(tmp_path / "new", 4, lr=0.02, schedule=schedule)
    rates = {}
    for run in ("run", "new"):
        records = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        rates[run] = {r["step"]: r["lr"][0] for r in records if r["kind"] == "step" and r["epoch"] >= 2}
    assert rates["run"] == pytest.approx(rates["new"], rel=1e-12) and len(rates["run"]) > 5
    # And the next resume finds nothing changed.
    train(tmp_path / "run", 5, lr=0.02, schedule=schedule)
    assert len(inexact(tmp_path / "run")) == 1


def test_a_rate_that_would_have_no_effect_is_refused_all_the_same(tmp_path):
    schedule = lambda o: Schedule(o, schedulers.CyclicLR(o, 0.01, 0.1), by="step")  # noqa: E731
    train(tmp_path / "run", 1, schedule=schedule)
    # CyclicLR writes its own rate over the optimizer's, so that none is seen to change.
    train(tmp_path / "run", 2, lr=0.02, schedule=schedule)
    assert inexact(tmp_path / "run") == []


@pytest.mark.parametrize("bare", [True, False])
def test_another_highest_rate_of_a_cycle_given_in_python_is_named_and_can_be_allowed(tmp_path, bare):
    def cycle(top):
        made = lambda o: schedulers.OneCycleLR(o, top, total_steps=200, cycle_momentum=False)  # noqa: E731
        return made if bare else lambda o: Schedule(o, made(o), by="step")

    train(tmp_path / "run", 1, schedule=cycle(0.1))
    with pytest.raises(UsageError, match="max_lr was 0.1 and is 0.2; .*resume with the same arguments.*allow="):
        train(tmp_path / "run", 2, schedule=cycle(0.2))
    train(tmp_path / "run", 2, schedule=cycle(0.2), allow=["schedule"])
    train(tmp_path / "run", 3, schedule=cycle(0.2))


def test_a_run_that_stopped_early_goes_on_with_more_patience_as_if_it_had_had_it(tmp_path):
    stop = lambda patience: {"early_stopping": EarlyStopping(patience=patience, min_delta=10.0)}  # noqa: E731
    train(tmp_path / "run", 6, **stop(1))
    train(tmp_path / "run", 6, **stop(3))
    train(tmp_path / "new", 6, **stop(3))
    epochs = [(tmp_path / run / "metrics.jsonl").read_text().count('"kind": "epoch"') for run in ("run", "new")]
    model = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "new")]
    assert epochs[0] == epochs[1] and model[0] == model[1] and inexact(tmp_path / "run") == []


@pytest.mark.parametrize(("epochs", "by"), [(2, "step"), (3, "epoch")])
def test_a_bare_scheduler_is_moved_by_the_unit_that_its_run_was_begun_with(tmp_path, epochs, by):
    """It is as long as the run's first 2 epochs in steps, or as all 3: the second sitting alone says another unit."""
    steps = math.ceil(len(samples()[1]) / 4)
    bare = lambda o: schedulers.LinearLR(o, 0.1, 1.0, epochs * steps)  # noqa: E731
    for name, schedule in (("run", bare), ("told", lambda o: Schedule(o, bare(o), by=by))):
        for end in (2, 3):
            train(tmp_path / name, end, schedule=schedule)
    run, told = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "told")]
    assert run == told


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: schedulers.ChainedScheduler([s])])
def test_a_cycle_that_ends_before_the_run_is_refused_before_it_begins(tmp_path, wrap):
    steps = math.ceil(len(samples()[1]) / 4)
    cycle = lambda o: Schedule(o, wrap(schedulers.OneCycleLR(o, 0.1, 2 * steps)), by="step")  # noqa: E731
    begun = f"total_steps is {2 * steps}, but the run calls it {3 * steps} times \\(by step\\)"
    with pytest.raises(UsageError, match=begun):
        train(tmp_path / "new", 3, schedule=cycle)
    assert not (tmp_path / "new").exists()
    train(tmp_path / "run", 2, schedule=cycle)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UsageError, match=begun):
        train(tmp_path / "run", 3, schedule=cycle)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


@pytest.mark.parametrize("part", [False, True])
def test_a_resume_with_less_patience_than_is_spent_trains_nothing_more(tmp_path, part):
    stop = lambda patience: {"early_stopping": EarlyStopping(patience=patience, min_delta=10.0)}  # noqa: E731
    run, said, steps = tmp_path / "run", Heard(), math.ceil(len(samples()[1]) / 4)
    if part:  # the weights hold a part of an epoch, which is trained to its end

        class Stops(Progress):
            def record(self, record):
                if record["step"] == 3 * steps + 2:
                    raise Stopped(signal.SIGTERM, "stopped")

        with pytest.raises(Stopped):
            train(run, 6, progress=Stops(), log_every=1, checkpoints=Checkpoints("1 steps"), **stop(5))
    else:
        train(run, 3, log_every=1, **stop(5))
    train(run, 6, progress=said, log_every=1, **stop(2))
    epochs = (run / "metrics.jsonl").read_text().count('"kind": "epoch", "split": "val"')
    assert epochs == 3 + part
    assert any("nothing to do: the run was stopped early, after epoch 3" in text for text in said.messages) != part


@pytest.mark.parametrize("then", ["best", "not best", "trained again"])
def test_what_was_written_after_the_checkpoint_that_a_resume_has_is_not_taken_for_this_runs(
    tmp_path, monkeypatch, then
):
    """Killed after model/best and validation.json, before the checkpoint of their epoch."""
    run, epochs, said = tmp_path / "run", 3 if then == "trained again" else 2, Heard()
    # The best value is that of the second epoch, or of the first, and after that of the one which is lost.
    values = iter([2.0, 1.0 if then != "not best" else 3.0, 0.5, 0.5])

    def measured(*arguments, **given):
        result = evaluate_on(*arguments, **given)
        return dataclasses.replace(result, metrics={**result.metrics, "loss": next(values)})

    def killed(saver, values=None):
        if saver.epochs == 2:
            raise KeyboardInterrupt
        return at_end(saver, values)

    at_end = Checkpointer.epoch
    monkeypatch.setattr("surefoot.training.loop.evaluate_on", measured)
    keeps = {"checkpoints": Checkpoints(keep_best="val/loss")}
    with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
        kill.setattr(Checkpointer, "epoch", killed)
        train(run, 3, **keeps)
    assert read_info(run / "model" / "best").metrics["val/loss"] == 0.5 and read_validation(run)["epoch"] == 2
    train(run, epochs, progress=said, **keeps)
    best = run / "model" / "best"
    expected = {"best": 1.0, "trained again": 0.5, "not best": None}[then]
    assert (read_info(best).metrics["val/loss"] if best.exists() else None) == expected
    assert read_validation(run).get("epoch") == (2 if then == "trained again" else None)
    (line,) = [text for text in said.messages if "model/best" in text]
    assert ("is removed" if then == "not best" else "of epoch 2 again") in line
    assert not list((run / "model").glob(".*"))


def test_the_best_of_another_metric_is_not_this_ones(tmp_path):
    train(tmp_path / "run", 1, checkpoints=Checkpoints(keep_best="val/accuracy"))
    best = (tmp_path / "run" / "model" / "best" / "model.safetensors").read_bytes()
    train(tmp_path / "run", 2, checkpoints=Checkpoints(keep_best="val/loss"), allow=["checkpoint"])
    assert (tmp_path / "run" / "model" / "best" / "model.safetensors").read_bytes() != best
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    found = json.loads((newest / "state.json").read_text())["objects"]["progress"]["best"]
    assert found["metric"] == "val/loss" and found["epoch"] == 1


def test_a_cell_that_is_run_twice_says_what_to_write_in_python(tmp_path):
    train(tmp_path / "run", 1)
    with pytest.raises(UsageError, match="go on with it .in Python: resume=True. or name another directory"):
        train(tmp_path / "run", 1, resume=False)


# ------------------------------------------------------------------------------------------ code, environment

FILES = {
    "base.py": "from torch import nn\nfrom consts import SCALE\nclass Base(nn.Module):\n    scale = SCALE\n",
    "consts.py": "SCALE = 2.0\n",
    "helper.py": "def helped(x):\n    return x + 1\n",
    "net.py": "from base import Base\nclass Net(Base):\n    def forward(self, x):\n"
    "        from helper import helped\n        return helped(x)\n",
    "warm.py": "from surefoot.schedules import LinearWarmup\nclass Own(LinearWarmup):\n    pass\n",
    "rates.py": "def rate(epoch):\n    return 1.0\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    import net, rates, warm  # noqa: E401, I001

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = Schedule(optimizer, schedulers.LambdaLR(optimizer, rates.rate), warm.Own(optimizer, warmup_period=2))
    yield tmp_path, [net.Net(), schedule]
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.parametrize("file", FILES)
def test_code_that_changed_is_seen_file_by_file(project, file):
    folder, parts = project
    before = code_of(parts)
    assert "helper" not in sys.modules, "it is imported when forward() is called"
    assert {f"code.{name}" for name in FILES} <= set(before)
    (folder / file).write_text(FILES[file] + "# a comment is no change\n")
    assert code_of(parts) == before
    (folder / file).write_text(FILES[file] + "CHANGED = 1\n")
    after = code_of(parts)
    assert [name for name in after if after[name] != before[name]] == [f"code.{file}"]


def test_the_versions_of_the_libraries_that_parts_come_from_are_conditions(tmp_path, monkeypatch):
    """Of a module's class, of the base of a user's own, of a loss function; not of what no part comes from."""
    site = tmp_path / "site-packages"
    for name, text in {
        "modelhub": "import unused\nfrom torch import nn\nclass Net(nn.Linear):\n    pass\n",
        "losshub": "def loss(outputs, targets):\n    return ((outputs - targets) ** 2).mean()\n",
        "unused": "",
    }.items():
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("__version__ = '1.0'\n" + text)
    (tmp_path / "mine.py").write_text("from modelhub import Net\nclass Mine(Net):\n    pass\n")
    for folder in (tmp_path, site):
        monkeypatch.syspath_prepend(str(folder))
    try:
        losshub, modelhub, mine = (importlib.import_module(name) for name in ("losshub", "modelhub", "mine"))
        for net in (modelhub.Net(1, 1), nn.Sequential(mine.Mine(1, 1))):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            versions = {key: value for key, value in code_of([net, optimizer, losshub.loss]).items() if "vers" in key}
            assert versions == {"versions.modelhub": "1.0", "versions.losshub": "1.0"}
            run_dir = tmp_path / type(net).__name__
            arguments = fit_arguments(epochs=1, run_dir=run_dir, resume=True, progress=False)
            data = torch.zeros(4, 1), torch.zeros(4, 1)
            fit(net, losshub.loss, optimizer, data, **arguments)
            modelhub.__version__ = "2.0"
            with pytest.raises(ConditionsChanged, match=r"versions.modelhub: was 1\.0, is 2\.0"):
                fit(net, losshub.loss, optimizer, data, **arguments)
            modelhub.__version__ = "1.0"
    finally:
        for name in ("modelhub", "losshub", "unused", "mine"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("variable", ["OMP_DYNAMIC", "OMP_THREAD_LIMIT", "MKL_CBWR"])
def test_variables_that_change_bits_are_conditions(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    assert environment()[f"variables.{variable}"] == "1"


def test_torchs_newer_precision_flags_are_recorded():
    place = torch.backends.mkldnn.matmul
    before = place.fp32_precision
    place.fp32_precision = "bf16"
    try:
        found = environment()
    finally:
        place.fp32_precision = before
    assert found["flags.fp32_precision.mkldnn.matmul"] == "bf16" and found["parallel.backend"]
