"""The benchmarks that pages name run, on small sizes; their figures are taken elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from surefoot import World
from surefoot.execution import Execution
from surefoot.training import settings

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A file of benchmarks/ as a module, under a name that none of the tests' own has."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def job(script):
    return dataclasses.replace(script("work").JOBS["mlp"], steps=20)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path, script):
    assert script(path.stem).__doc__


def test_a_large_state_is_saved_at_each_step(script, tmp_path, monkeypatch, capsys):
    large_state = script("large_state")
    monkeypatch.setattr(large_state, "time", SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda _: None))
    large_state.main(0.0005, tmp_path)
    out = capsys.readouterr().out
    assert "wait: first four steps" in out and "skip: first four steps" in out


def test_a_long_run_goes_back_and_is_reported(script, tmp_path):
    long_runs = script("long_runs")
    long_runs._write(tmp_path / "metrics.jsonl", 40, 10)
    for part in long_runs.PARTS.values():
        part(tmp_path)
    assert (tmp_path / "report.html").exists()


def test_saves_pause_a_training(script, tmp_path):
    checkpoints = script("checkpoints")
    assert len(checkpoints.pauses(tmp_path, checkpoints.tutorial_job(64), 3)) == 3


def test_a_loader_is_measured_by_the_size_of_the_data(script, monkeypatch):
    side = script("side")
    monkeypatch.setattr(side, "GROWTH", (256,))
    monkeypatch.setattr(side, "BATCHES_TIMED", 6)
    assert side.growth(SimpleNamespace(repeats=1))[-1].startswith("| 256 |")


def test_contenders_take_turns(script, job, monkeypatch):
    contenders = script("contenders")
    monkeypatch.setattr(settings, "choose_execution", settings.choose_execution)  # which they replace
    assert contenders.hand(job)() > 0 and contenders.surefoot_fit(job, "plain")() > 0
    assert all(seconds > 0 for seconds in contenders.fit_and_bare_step(job, "plain")())


def test_each_trick_can_be_left_out(script, job):
    tricks = script("tricks")
    for patch in tricks.PATCHES:
        variant = tricks.Variant(job, Execution(), patch, steps=4)
        variant.turn()
        assert len(variant.seconds) == 1


def test_ranks_are_measured_beside_a_loop_by_hand(script, job, monkeypatch):
    ranks = script("ranks")
    monkeypatch.setattr(ranks, "BATCHES", 5)
    assert ranks.step_ms(job, World.alone()) >= 0 and ranks.by_hand_ms(job, World.alone(), meet=True) > 0
