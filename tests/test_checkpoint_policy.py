"""When a run saves its checkpoints, and which of them stay."""

from __future__ import annotations

import json
import threading

import pytest
from saving import saver_for, steps_of

from surefoot.checkpoint import scan, store
from surefoot.checkpoint.policy import Every, Keep
from surefoot.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 epoch", (1, "epochs")),
        ("2epochs", (2, "epochs")),
        ("500 steps", (500, "steps")),
        ("10 min", (600, "seconds")),
        ("1.5 h", (5400, "seconds")),
        ("30 s", (30, "seconds")),
        ("2 minutes", (120, "seconds")),
    ],
)
def test_intervals(text, expected):
    every = Every.parse(text)
    assert (every.amount, every.unit) == expected


@pytest.mark.parametrize("text", ["", "epoch", "0 steps", "1.5 epochs", "10 parsecs", "-1 steps", 5, "1 epoch 2 steps"])
def test_intervals_that_are_none(text):
    with pytest.raises(UsageError, match="is not an interval"):
        Every.parse(text)


def test_steps_are_counted_and_only_due_ones_saved(run_dir):
    with saver_for(run_dir, every="3 steps", keep_last=None) as saver:
        for _ in range(10):
            saver.step()
    assert steps_of(run_dir) == [3, 6, 9, 10]  # the end is always saved


def test_the_newest_stay(run_dir):
    with saver_for(run_dir, keep_last=2) as saver:
        for _ in range(7):
            saver.step()
    assert steps_of(run_dir) == [6, 7]


def test_the_best_stays_beside_the_newest(run_dir):
    with saver_for(run_dir, every="1 epoch", keep_last=1, keep_best="val/loss") as saver:
        for loss in (3.0, 1.0, float("nan"), 2.0, 1.0):
            saver.step()
            saver.epoch({"val/loss": loss})
    assert steps_of(run_dir) == [2, 5]
    found = list(scan(run_dir))
    assert found[0].metrics == {"val/loss": 1.0}


def test_a_new_best_is_saved_though_no_save_was_due(run_dir):
    with saver_for(run_dir, every="100 steps", keep_best="acc", mode="max", keep_last=1) as saver:
        for value in (0.5, 0.4, 0.7, 0.6):
            saver.step()
            saver.epoch({"acc": value})
    assert steps_of(run_dir) == [3, 4]


def test_the_best_of_an_earlier_sitting_still_counts(run_dir):
    options = {"every": "1 epoch", "keep_last": 1, "keep_best": "loss"}
    with saver_for(run_dir, **options) as saver:
        for loss in (1.0, 5.0):
            saver.step()
            saver.epoch({"loss": loss})
    with saver_for(run_dir, **options) as saver:
        saver.resume()
        saver.step()
        saver.epoch({"loss": 4.0})
    assert steps_of(run_dir) == [1, 3]


def test_a_metric_that_is_not_there_is_told(run_dir):
    with saver_for(run_dir, keep_best="val/loss") as saver, pytest.raises(UsageError, match=r"not among .*\(loss\)"):
        saver.epoch({"loss": 1.0})


def test_the_same_step_saved_twice_keeps_the_later_state(run_dir):
    box = {"phase": "train"}
    with saver_for(run_dir, every=None, box=box, keep_last=None) as saver:
        saver.step()
        saver.save()
        box["phase"] = "validate"
        saver.save()
    assert [status.path.name for status in scan(run_dir)] == ["step-000000001", "step-000000001-1"]
    box["phase"] = "?"
    with saver_for(run_dir, box=box) as saver:
        assert saver.resume().step == 1
    assert box == {"phase": "validate"}


@pytest.mark.parametrize(("options", "told"), [({"keep_last": 0}, "keep_last"), ({"mode": "best"}, "mode")])
def test_policies_that_are_none(run_dir, options, told):
    with pytest.raises(UsageError, match=told):
        saver_for(run_dir, **options)
    assert not run_dir.exists()


def test_keep_all():
    assert Keep(last=None).surplus(range(9), [{}] * 9) == []


def test_of_one_step_only_the_latest_counts():
    assert Keep(last=2).surplus([1, 2, 2, 3, 3], [{}] * 5) == [0, 1, 3]
    assert Keep(last=1, best="v", mode="min").surplus([1, 1, 2, 2], [{}, {"v": 0.5}, {}, {"v": 1.0}]) == [0, 2]


@pytest.mark.parametrize("when_busy", ["wait", "skip"])
def test_a_save_that_is_due_while_the_disk_is_busy_is_awaited_or_left_out(run_dir, monkeypatch, when_busy):
    """The disk takes nothing until the fourth step is done, or until somebody waits for it."""
    room, inner = threading.Event(), store.commit

    def commit(*arguments):
        room.wait()
        return inner(*arguments)

    monkeypatch.setattr(store, "commit", commit)
    lines = []
    with saver_for(run_dir, every="1 step", keep_last=None, when_busy=when_busy, say=lines.append) as saver:
        saver.resume()
        waited, wait = [], saver.wait

        def noted():
            if saver._writer.in_flight:
                waited.append(saver.steps)
                room.set()
            wait()

        monkeypatch.setattr(saver, "wait", noted)
        for _ in range(4):
            saver.step()
        saver.epoch({"val/loss": 1.0})
        room.set()
    steps = [status.step for status in scan(run_dir)]
    about = json.loads((run_dir / "run.json").read_text())
    if when_busy == "wait":
        assert set(steps) == {1, 2, 3, 4} and "saves_skipped" not in about
    else:
        assert set(steps) == {1, 4} and about["saves_skipped"] == 3
        assert any("step 2 is left out" in line for line in lines) and "3 saves were left out" in lines[-1]


def test_what_is_best_is_never_left_out(run_dir, monkeypatch):
    room, inner = threading.Event(), store.commit

    def commit(*arguments):
        room.wait()
        return inner(*arguments)

    monkeypatch.setattr(store, "commit", commit)
    with saver_for(run_dir, every="1 step", keep_best="val/loss", when_busy="skip") as saver:
        saver.resume()
        wait = saver.wait
        monkeypatch.setattr(saver, "wait", lambda: (room.set(), wait()))
        saver.step()
        assert saver._writer.in_flight
        saver.epoch({"val/loss": 0.5})
    assert [status.metrics for status in scan(run_dir)][-1] == {"val/loss": 0.5}


def test_when_busy_is_checked(run_dir):
    with pytest.raises(UsageError, match="when_busy: 'never' is not one of wait, skip"):
        saver_for(run_dir, when_busy="never")
    assert not run_dir.exists()
