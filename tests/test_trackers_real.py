"""MLflow and Weights & Biases themselves, where they are installed (`pip install mlflow wandb`): each point once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from run_directories import make_run

from surefoot.tracking.trackers import Feed, open_tracker

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return make_run(tmp_path / "run", [0.5, 0.25, 0.75], settings={"optimizer.lr": 0.1})


def test_mlflow_has_each_point_once_whatever_was_killed_or_made_again(run):
    mlflow = pytest.importorskip("mlflow")
    feed = Feed(run, "mlflow", open_tracker("mlflow"))
    feed.catch_up()
    feed.close()
    (run / "trackers" / "mlflow.json").unlink()  # a kill after the points were sent and before that was noted
    make_run(run, [0.5, 0.25, 0.75, 0.8], settings={"optimizer.lr": 0.1})
    with contextlib.closing(Feed(run, "mlflow", open_tracker("mlflow"))) as feed:
        feed.end()
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    history = client.get_metric_history(found.info.run_id, "accuracy/val")
    assert [(point.step, point.value) for point in history] == [(10, 0.5), (20, 0.25), (30, 0.75), (40, 0.8)]
    assert found.data.params["optimizer.lr"] == "0.1" and found.info.status == "FINISHED"
    assert found.info.run_name == "run"


def test_wandb_keeps_an_offline_run_in_the_run_directory(run):
    pytest.importorskip("wandb")
    with contextlib.closing(Feed(run, "wandb", open_tracker("wandb"))) as feed:
        feed.end()
    (kept,) = (run / "trackers").glob("wandb/offline-run-*/*.wandb")
    assert kept.stat().st_size > 500
    with contextlib.closing(Feed(run, "wandb", lambda about, path: None)) as feed:
        assert feed.catch_up() == 0, "all of it was sent and noted"
