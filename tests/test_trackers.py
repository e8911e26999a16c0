"""Trackers: every point once, whatever is killed, resumed or down; and never in the training's way."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
from command_runs import refused
from run_directories import make_run

from surefoot import Journal, RunOptions, UsageError
from surefoot.cli import main, track
from surefoot.errors import Problems, RunFailed
from surefoot.recipe import load_recipe
from surefoot.tracking import JournalFile, trackers
from surefoot.tracking.trackers import Feed, Feeds, follow, points_of


class Server:
    """A tracker that keeps what it is sent, and fails when it is told to."""

    def __init__(self):
        self.points: list[tuple[str, int]] = []
        self.status = ""
        self.fails_before = self.fails_after = False
        self.opened = 0

    def __call__(self, about, run):
        self.opened += 1
        return self

    def has(self, name, step):
        return (name, step) in self.points

    def send(self, points):
        if self.fails_before:
            raise ConnectionError("down")
        self.points += [(name, step) for name, _, step, _ in points]
        if self.fails_after:
            raise ConnectionError("it went down after it had taken them")

    def end(self, status):
        self.status = status


class Processes:
    """Feeds as processes make them: the one before has ended, unless it is to go on `beside` the next."""

    def __init__(self):
        self.feeds: list[Feed] = []

    def __call__(self, run, name, opened, beside=False) -> Feed:
        if not beside:
            self.end()
        self.feeds.append(Feed(run, name, opened))
        return self.feeds[-1]

    def end(self) -> None:
        for feed in self.feeds:
            feed.close()


@pytest.fixture(autouse=True)
def process():
    processes = Processes()
    yield processes
    processes.end()


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "run", [])


def append(run: Path, *steps: int) -> None:
    with JournalFile(run / "metrics.jsonl") as journal:
        for step in steps:
            at = {"epoch": 0, "step": step, "lr": [0.1, 0.2], "wall_s": 1.0 * step}
            journal.append({"kind": "step", "split": "train", "loss": 1 / step, **at})
            if step % 10 == 0:
                journal.append({"kind": "epoch", "split": "train", "loss": 2 / step, **at})
                journal.append({"kind": "epoch", "split": "val", "loss": 3 / step, "accuracy": float("nan"), **at})


def expected(*steps: int) -> list[tuple[str, int]]:
    points = []
    for step in steps:
        points += [(name, step) for name in ("loss/train_step", "lr/0", "lr/1")]
        if step % 10 == 0:
            points += [(name, step) for name in ("loss/train", "loss/val", "accuracy/val")]
    return points


def test_points_have_the_names_of_tensorboard():
    record = {"kind": "step", "split": "train", "epoch": 0, "step": 1, "loss": 2, "lr": [0.1], "note": "x"}
    assert list(points_of(record)) == [("loss/train_step", 2.0), ("lr/0", 0.1)]
    assert list(points_of(record | {"kind": "epoch", "split": "val"})) == [("loss/val", 2.0)]


def test_what_comes_is_sent_once_also_by_another_process(process, run):
    server = Server()
    feed = process(run, "mlflow", server)
    append(run, 5, 10)
    assert feed.catch_up() == 4 and feed.catch_up() == 0
    append(run, 15)
    assert feed.catch_up() == 1 and server.opened == 1
    append(run, 20)
    process(run, "mlflow", server).end()
    assert server.points == expected(5, 10, 15, 20) and server.status == "done"


def test_every_record_of_a_step_is_sent_in_whichever_order_a_loop_writes_them(process, run):
    server = Server()
    feed = process(run, "mlflow", server)
    with Journal(run, tensorboard=False) as journal:
        journal.step(5, {"discriminator/loss": 1.0})
        feed.catch_up()
        journal.step(5, {"generator/loss": 2.0})
        feed.catch_up()
        journal.epoch(0, {"val/loss": 1.0}, step=5)
        process(run, "mlflow", server).catch_up()
        journal.epoch(0, {"train/loss": 1.0}, step=5)
        process(run, "mlflow", server).end()
    names = ["loss/discriminator_step", "loss/generator_step", "loss/val", "loss/train"]
    assert server.points == [(name, 5) for name in names]


def test_two_processes_never_tell_one_tracker_at_a_time(process, run, capsys, monkeypatch):
    server = Server()
    append(run, 5)
    feed = process(run, "mlflow", server)
    feed.catch_up()
    append(run, 10)
    monkeypatch.setattr(trackers, "open_tracker", lambda name: server)
    assert main(["track", str(run), "--to", "mlflow"]) == 1
    assert "another process tells mlflow of this run; wait until it has ended" in capsys.readouterr().err
    process(run, "wandb", Server(), beside=True).catch_up()
    feed.catch_up()
    feed.close()
    assert main(["track", str(run), "--to", "mlflow"]) == 0
    assert server.points == expected(5, 10)


def test_one_that_waits_for_the_other_goes_on_where_that_ended(process, run):
    server, said, looks = Server(), [], []
    append(run, 5)
    first = process(run, "mlflow", server)
    first.catch_up()

    def ended(seconds):
        looks.append(seconds)
        if len(looks) == 1:
            append(run, 10)
            first.catch_up()
            first.close()
            append(run, 15)
        return len(looks) == 2

    follow(process(run, "mlflow", server, beside=True), said.append, ended)
    assert server.points == expected(5, 10, 15) and "another process tells mlflow" in said[0]


def test_what_a_killed_training_left_running_is_waited_for_at_the_end(process, run):
    server, sleeps = Server(), []
    append(run, 5)
    first = process(run, "mlflow", server)
    first.catch_up()
    append(run, 10)

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 3:
            first.close()

    follow(process(run, "mlflow", server, beside=True), lambda text: None, lambda seconds: True, sleep)
    assert server.points == expected(5, 10) and sleeps == [5.0] * 3
    second = process(run, "mlflow", server, beside=True)
    with pytest.raises(RunFailed, match="another process tells mlflow"):
        follow(second, lambda text: None, lambda seconds: True, lambda seconds: None)


def test_a_resume_that_makes_records_again_doubles_none(process, run):
    server = Server()
    feed = process(run, "mlflow", server)
    append(run, 5, 10, 15)
    feed.catch_up()
    data = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(data[: data.index(b"\n") + 1])  # cut back to the checkpoint
    assert feed.catch_up() == 0
    append(run, 10, 15, 20)
    feed.catch_up()
    assert server.points == expected(5, 10, 15, 20)


@pytest.mark.parametrize("moment", ["fails_before", "fails_after"])
def test_a_tracker_that_was_down_gets_each_point_once(process, run, moment):
    server = Server()
    append(run, 5, 10)
    setattr(server, moment, True)
    feed = process(run, "mlflow", server)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            feed.catch_up()
    setattr(server, moment, False)
    feed.catch_up()
    assert server.points == expected(5, 10)


def test_following_tries_again_and_ends_when_the_run_does(process, run):
    server, said, pauses = Server(), [], []
    append(run, 5)

    def ended(seconds):
        pauses.append(seconds)
        server.fails_before = len(pauses) < 3
        return len(pauses) == 5

    server.fails_before = True
    follow(process(run, "mlflow", server), said.append, ended)
    assert server.points == expected(5) and server.status == "done"
    assert pauses == [10.0, 20.0, 40.0, 5.0, 5.0] and "ConnectionError: down; tried again in 5 s" in said[0]


def test_what_is_left_at_the_end_is_told(process, run):
    server = Server()
    server.fails_before = True
    append(run, 5)
    with pytest.raises(RunFailed, match="did not take everything: ConnectionError"):
        follow(process(run, "mlflow", server), lambda text: None, lambda seconds: True)


@pytest.mark.parametrize("note", ["", "[]", '{"sent": 3}', '{"sent": ["a", "b"]}'])
def test_a_note_of_somebody_elses_making_sends_again_what_the_tracker_lacks(process, run, note):
    server = Server()
    append(run, 5)
    process(run, "mlflow", server).catch_up()
    (run / "trackers" / "mlflow.json").write_text(note)
    append(run, 10)
    process(run, "mlflow", server).catch_up()
    assert sorted(server.points) == sorted(expected(5, 10))


def test_the_command_tells_what_was_sent(run, capsys, monkeypatch):
    server = Server()
    append(run, 5, 10)
    monkeypatch.setattr(trackers, "open_tracker", lambda name: server)
    assert main(["track", str(run), "--to", "mlflow"]) == 0
    assert "4 records logged to mlflow" in capsys.readouterr().out
    server.fails_before = True
    append(run, 15)
    assert main(["track", str(run), "--to", "mlflow"]) == 1
    assert "did not take the records: ConnectionError: down" in capsys.readouterr().err


def test_mlflow_is_told_only_names_that_it_takes(run, monkeypatch):
    """One name with another character, and it refuses the whole batch (mlflow.utils.validation)."""
    sent: list[tuple[str, int]] = []

    class Client:
        def get_metric_history(self, run_id, name):
            return [types.SimpleNamespace(step=5)] if name == "hit_10/val" else []

        def log_batch(self, run_id, *, metrics=(), params=()):
            sent.extend((each[0], each[-1]) for each in (*metrics, *params))

    entities = types.ModuleType("mlflow.entities")
    entities.Metric = entities.Param = lambda *fields: fields
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    tracker = trackers._Mlflow.__new__(trackers._Mlflow)
    tracker._client, tracker._id, tracker._steps = Client(), "1", {}
    assert tracker.has("hit@10/val", 5) and not tracker.has("hit@10/val", 6)
    tracker.send([("hit@10/val", 0.5, 6, 0.0), ("f1 (%)/val", 0.5, 6, 0.0), ("genauigkeit-\u00e4/val", 0.5, 6, 0.0)])
    tracker._tell_settings({"conditions": {"recipe.model.of": 1, "recipe.model.a@b": 2}})
    assert sent == [
        *(("hit_10/val", 6), ("f1 ___/val", 6), ("genauigkeit-\u00e4/val", 6)),
        *(("model.of", "1"), ("model.a_b", "2")),
    ]


def test_a_trackers_files_are_never_written_through_a_link(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "open_tracker", lambda name: Server())
    (tmp_path / "elsewhere").mkdir()
    (run / "trackers").symlink_to(tmp_path / "elsewhere")
    assert "trackers: is a symbolic link" in refused(capsys, "track", str(run), "--to", "mlflow")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_bad_input(tmp_path, run, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'surefoot[mlflow]'" in refused(capsys, "track", str(run), "--to", "mlflow")
    assert "no such run" in refused(capsys, "track", str(tmp_path / "none"), "--to", "wandb")
    with pytest.raises(UsageError, match=r"pip install 'surefoot\[wandb\]'"):
        Feeds(run, ["wandb"], print)
    with pytest.raises(Problems, match="'mlflov' is not one of mlflow, wandb; did you mean 'mlflow'"):
        RunOptions(trackers=["mlflov"])
    with pytest.raises(Problems, match="trackers.0: "):
        load_recipe("quickstart", ["trackers=[mlflov]"])
    assert load_recipe("quickstart", ["trackers=[mlflow]"]).trackers == ("mlflow",)
    assert "pip install 'surefoot[mlflow]'" in refused(capsys, "check", "quickstart", "trackers=[mlflow]")


@pytest.mark.parametrize(("code", "told"), [(0, ""), (1, "surefoot track")])
def test_a_training_leaves_its_trackers_in_seconds_and_says_what_is_left(run, code, told, monkeypatch):
    """The process is a stand-in that reads its input to the end, as the real one does."""
    monkeypatch.setattr(trackers, "require_tracker", lambda name: None)
    script = f"import sys; sys.stdin.read(); open('ended', 'w').close(); sys.exit({code})"
    real = trackers.subprocess.Popen
    argv: list[list[str]] = []

    def popen(command, **more):
        argv.append(command)
        return real([command[0], "-S", "-c", script], cwd=run, **more)

    monkeypatch.setattr(trackers.subprocess, "Popen", popen)
    said: list[str] = []
    with Feeds(run, ["mlflow"], said.append) as feeds:
        feeds.start()
    assert (run / "ended").exists() and told in " ".join(said) and bool(said) == bool(code)
    assert argv[0][1:] == ["-m", "surefoot", "track", str(run), "--to", "mlflow", "--follow"]


def test_the_input_that_ends_is_seen(monkeypatch):
    monkeypatch.setattr(track.select, "select", lambda *args: ([0], [], []))
    monkeypatch.setattr(track.os, "read", lambda fd, n: b"")
    assert track._input_ends(1.0)
    monkeypatch.setattr(track.select, "select", lambda *args: ([], [], []))
    assert not track._input_ends(1.0)


def test_the_note_is_plain(process, run):
    append(run, 10)
    process(run, "wandb", Server()).catch_up()
    assert json.loads((run / "trackers" / "wandb.json").read_text()) == {"sent": [10, 2]}
