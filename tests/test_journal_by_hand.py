"""A loop of one's own gets records, TensorBoard and a report by one line, and goes on with them exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fit_arguments import fit_arguments
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from surefoot import Checkpointer, Journal, Loader, UsageError, fit
from surefoot.tracking import read_records

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Killed(BaseException):
    """Stands for a kill: nothing after it runs but what the operating system does."""


def train(run, epochs, *, kill_at=None):
    """Two steps between checkpoints; leaves as a killed process would, the files as they are."""
    torch.manual_seed(0)
    model, loss = nn.Linear(3, 2), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = Loader((X, Y), 4, seed=0)
    journal = Journal(run)
    saver = Checkpointer(
        run, journal=journal, every="4 steps", background=False, model=model, optimizer=optimizer, loader=loader
    )
    saver.resume()
    while loader.epoch < epochs:
        for inputs, targets in loader:
            optimizer.zero_grad()
            value = loss(model(inputs), targets)
            value.backward()
            optimizer.step()
            journal.step(saver.steps + 1, {"loss": value}, epoch=loader.epoch, lr=[np.float32(0.1)])
            if saver.steps == kill_at:
                saver.run.close()
                return
            saver.step()
        journal.epoch(loader.epoch - 1, {"train/loss": value, "val/loss": 0.5}, step=saver.steps)
        saver.epoch({"val/loss": 0.5})
    saver.__exit__(None, None, None)
    journal.close()


def told(run):
    return [{k: v for k, v in r.items() if k != "wall_s"} for r in read_records(run / "metrics.jsonl")]


def test_a_killed_loop_has_every_record_once(tmp_path):
    train(tmp_path / "whole", 2)
    train(tmp_path / "killed", 2, kill_at=9)
    assert len(told(tmp_path / "killed")) > 8
    train(tmp_path / "killed", 2)
    records = told(tmp_path / "killed")
    assert records == told(tmp_path / "whole")
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(1, 13))
    assert [(r["split"], r["epoch"]) for r in records if r["kind"] == "epoch"] == [
        ("train", 0), ("val", 0), ("train", 1), ("val", 1),
    ]  # fmt: skip
    walls = [r["wall_s"] for r in read_records(tmp_path / "killed" / "metrics.jsonl")]
    assert walls == sorted(walls)
    for run in ("whole", "killed"):
        assert "<svg" in (tmp_path / run / "report.html").read_text(encoding="utf-8")
        events = EventAccumulator(str(tmp_path / run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        steps = {tag: [point.step for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        assert steps and all(len(set(found)) == len(found) for found in steps.values())


def test_what_is_no_record_is_refused(tmp_path):
    journal = Journal(tmp_path / "run")
    for call, message in (
        (lambda: journal.step(1, {"loss": "low"}), "metrics: loss: 'low' is not a number"),
        (lambda: journal.step(1.5, {"loss": 1.0}), "journal: step: 1.5 is not a whole number"),
        (lambda: journal.epoch(-1, {"val/loss": 1.0}, step=1), "journal: epoch: -1 is not a whole number of 0 or more"),
        (lambda: journal.step(1, 0.5), "metrics: 0.5 is not a mapping"),
        (lambda: journal.step(1, {"loss": 1.0, "step": 7.0}), "journal: 'step': is what each record has by itself"),
        (lambda: journal.epoch(0, {"val/epoch": 1.0}, step=1), "call it otherwise, e.g. my_epoch"),
        (lambda: Journal(3), "run: 3 is not a path"),
    ):
        with pytest.raises(UsageError) as refusal:
            call()
        assert message in str(refusal.value)
    journal.close()
    assert not (tmp_path / "run").exists()


def test_a_cell_that_is_run_twice_is_told_what_works(tmp_path):
    """A run of fit has no recipe for `surefoot resume`."""

    def cell(**more):
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        execution = {"threads": 1, "compile": "none"}
        return fit(
            model,
            nn.CrossEntropyLoss(),
            optimizer,
            (X, Y),
            **fit_arguments(epochs=1, run_dir=tmp_path / "run", progress=False, execution=execution, **more),
        )

    cell()
    with pytest.raises(UsageError, match=r"already holds a run; go on with it \(in Python: resume=True\)"):
        cell()
    assert cell(resume=True).epochs == 1
