"""Compiled forms in runs: refused ones fall back; those that cannot be made again say how to go on."""

from __future__ import annotations

import ast
import json

import pytest
import torch
from fit_arguments import FIXED, Heard, fit_arguments
from graph_steps import Remembered
from torch import nn

import surefoot
from surefoot import RunOptions
from surefoot.checkpoint.run import _own_hash
from surefoot.errors import UsageError
from surefoot.execution import CannotCompile, Execution
from surefoot.execution.compiled import CompiledGraph
from surefoot.schedules import SchedulerSpec, build_schedule


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(torch.relu(self.drop(self.first(x))))


class InPlace(Net):
    """Writes into its own inputs."""

    def forward(self, x):
        x += 1
        return super().forward(x)


class LooksAtValues(Net):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) > -1e9 else x


@pytest.fixture(autouse=True)
def interpreted(tmp_path, monkeypatch):
    """Graphs are run as they were traced, which takes no time to make; nothing is kept for another test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("surefoot.execution.compiled.by_inductor", lambda graph, arguments: graph)
    monkeypatch.setattr("surefoot.execution.compiled.compiler", lambda: "g++")
    monkeypatch.setattr("torch.compile", lambda model, options: model)


def train(run_dir, kind, compile, epochs, **options):
    torch.manual_seed(0)
    model = kind()
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 2
    result = surefoot.fit(
        model,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        data,
        **fit_arguments(
            epochs=epochs,
            batch_size=16,
            execution={
                "compile": compile,
                "threads": 1,
                "onednn": True,
                "memory_format": "contiguous",
                "optimizer_impl": "for_loop",
            },
            run_dir=run_dir,
            resume=True,
            progress=False,
            lint_off=["all"],
            **options,
        ),
    )
    return result, model


def form_of(run_dir):
    return json.loads((run_dir / "run.json").read_text())["execution"]["compile"]


@pytest.mark.parametrize("compile", [True, "gradients"])
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "max_grad_norm": 1.0}])
def test_a_compiled_run_that_was_stopped_ends_as_one_that_was_not(compile, options, tmp_path):
    train(tmp_path / "stopped", Net, compile, 1, **options)
    _, resumed = train(tmp_path / "stopped", Net, compile, 3, **options)
    _, whole = train(tmp_path / "whole", Net, compile, 3, **options)
    assert form_of(tmp_path / "whole") == form_of(tmp_path / "stopped") != "none"
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_captured_run_is_captured_after_its_state_was_loaded(tmp_path, monkeypatch):
    """The stand-in holds addresses as a graph does: captured before, it would train what was there before."""
    graphs = Remembered()
    settings = Execution(cuda_graph=True)
    monkeypatch.setattr("surefoot.execution.captured.CudaGraphs", lambda: graphs)
    monkeypatch.setattr("surefoot.training.settings.choose_execution", lambda *_, **__: settings)
    train(tmp_path / "stopped", Net, True, 1)
    graphs.replays = 0
    _, resumed = train(tmp_path / "stopped", Net, "auto", 3, allow=["execution"])
    assert graphs.replays >= 8
    _, whole = train(tmp_path / "whole", Net, True, 3)
    settings = Execution(plain=True)
    _, plain = train(tmp_path / "plain", Net, True, 3)
    for a, b, c in zip(resumed.parameters(), whole.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b) and torch.allclose(a, c, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [LooksAtValues, InPlace])
@pytest.mark.parametrize("compile", [True, "gradients"])
def test_a_model_that_cannot_be_compiled_is_trained_eagerly_and_resumed(kind, compile, tmp_path):
    train(tmp_path / "stopped", kind, compile, 1)
    result, resumed = train(tmp_path / "stopped", kind, compile, 3)
    _, whole = train(tmp_path / "whole", kind, compile, 3)
    assert result.steps == 12
    assert form_of(tmp_path / "whole") == form_of(tmp_path / "stopped")
    if kind is LooksAtValues:
        assert form_of(tmp_path / "whole") in ("none", "module")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_form_that_cannot_be_made_again_says_how_to_go_on(tmp_path, monkeypatch):
    run = tmp_path / "run"
    train(run, Net, "gradients", 1, about=surefoot.training.About(files={"notes.txt": "begun"}))

    def refuses(*args, **settings):
        raise CannotCompile("another compiler")

    monkeypatch.setattr(CompiledGraph, "compile", refuses)
    about = (run / "run.json").read_text()
    with pytest.raises(UsageError, match="cannot be made again here: another compiler; go on without it") as raised:
        train(run, Net, "gradients", 2, about=surefoot.training.About(files={"notes.txt": "longer"}))
    assert (run / "notes.txt").read_text() == "begun" and (run / "run.json").read_text() == about
    told = str(raised.value)
    allowed = ast.literal_eval(told[told.index("allow=") + len("allow=") :].rstrip(")"))
    result, _ = train(run, Net, False, 2, allow=allowed)
    assert result.steps == 8 and form_of(run) == "none"


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"products": False}, "unknown field products"), ({"compile": "step"}, "compile: 'step' is not one of none, ")],
)
def test_settings_that_are_gone_are_named(setting, words, tmp_path):
    train(tmp_path / "run", Net, False, 1)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    about["execution"] |= setting
    about["sha256"] = _own_hash(about)
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match=f"run.json: execution: {words}.* another version of surefoot began this run"):
        train(tmp_path / "run", Net, False, 2)


def rates_of(run_dir, epoch):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["lr"], r["loss"]) for r in records if r["kind"] == "step" and r["epoch"] == epoch]


def scheduled(run_dir, epochs, compile, choice=None):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = build_schedule(optimizer, SchedulerSpec("CosineAnnealingLR"), None, steps_per_epoch=4, epochs=epochs)
    schedule.on_horizon = choice
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 2
    said = Heard()
    fixed = {**FIXED, "compile": compile}
    options = RunOptions(execution=fixed, progress=said, lint_off=["all"], log_every=1, allow={"fit.epochs"})
    how = {"epochs": epochs, "batch_size": 16, "schedule": schedule, "run_dir": run_dir, "resume": True, "run": options}
    surefoot.fit(model, nn.CrossEntropyLoss(), optimizer, data, **how)
    return [line for line in said.messages if "plain step is run" in line or "not compiled" in line]


@pytest.mark.parametrize("compile", ["none", "gradients"])
def test_a_run_that_is_made_longer_has_the_rates_of_the_longer_run_from_its_first_step(compile, tmp_path):
    """What is looked at before that step (its updates are compared) must not take the new rates from it."""
    assert scheduled(tmp_path / "long", 2, compile) == []
    for choice in ("stretch", "keep"):
        assert scheduled(tmp_path / choice, 1, compile) == []
        assert scheduled(tmp_path / choice, 2, compile, choice) == []
    assert rates_of(tmp_path / "stretch", 1) == rates_of(tmp_path / "long", 1)
    assert {lr for _, (lr,), _ in rates_of(tmp_path / "keep", 1)} == {0.1}
