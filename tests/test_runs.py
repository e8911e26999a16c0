"""`surefoot runs`: every run once, as its files say; what is none is named; nothing is removed by mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import files_in, refused
from run_directories import make_run

from surefoot import files
from surefoot.checkpoint import RunDirectory, holder
from surefoot.checkpoint.run import Lock
from surefoot.cli import main
from surefoot.errors import UsageError
from surefoot.runs import labels, listing, record
from surefoot.runs.listing import list_runs
from surefoot.runs.record import open_run
from surefoot.runs.removing import remove
from surefoot.runs.search import Condition
from surefoot.runs.table import Column, rendered


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def shown(capsys, *argv: str, code: int = 0) -> str:
    assert main(["runs", *argv]) == code
    return capsys.readouterr().out


def names(capsys, *argv: str) -> list[str]:
    return [Path(run["path"]).name for run in json.loads(shown(capsys, *argv, "--json"))]


def three(folder: str = "runs") -> None:
    for name, lr, accuracies in (("low", 0.001, [0.5, 0.6]), ("mid", 0.01, [0.6, 0.9, 0.8]), ("high", 0.1, [0.7])):
        make_run(Path(folder, name), accuracies, settings={"optimizer.lr": lr}, created=f"2026-01-0{len(accuracies)}")


def test_the_table_tells_what_a_run_reached(capsys):
    make_run(Path("runs/a"), [0.5, 0.91, 0.8], planned=5, status="interrupted")
    line = shown(capsys).splitlines()[1].split()
    assert line[:2] == ["runs/a", "2026-01-02"] and "interrupted" in line and "3/5" in line
    assert " ".join(line).count("val/accuracy 91.00 % in epoch 2") == 1


def test_a_run_is_found_at_any_depth_and_the_newest_stands_first(capsys):
    three()
    make_run(Path("runs/deep/er/x"), [0.1], created="2025-01-01")
    assert names(capsys) == ["mid", "low", "high", "x"]
    assert names(capsys, "runs/deep") == ["x"] and names(capsys, "runs/low") == ["low"]


def test_sorted_by_the_best_value_of_a_metric_or_by_any_key(capsys):
    three()
    assert names(capsys, "--best", "val/accuracy") == ["mid", "high", "low"]
    assert names(capsys, "--best", "val/loss") == ["mid", "high", "low"], "lower losses are better"
    assert names(capsys, "--sort", "optimizer.lr") == ["low", "mid", "high"]
    assert names(capsys, "--sort", "epochs", "--reverse") == ["mid", "low", "high"]


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("optimizer.lr>0.001", {"mid", "high"}),
        ("recipe.optimizer.lr <= 1e-2", {"low", "mid"}),
        ("optimizer.lr=0.1", {"high"}),
        ("optimizer.lr!=0.1", {"low", "mid"}),
        ("val/accuracy>=0.7", {"mid", "high"}),
        ("status=done", {"low", "mid", "high"}),
        ("epochs==2", {"low"}),
        ("created<2026-01-02", {"high"}),
        ("created>2026", {"low", "mid", "high"}),
        ("model.name=LeNet5", {"low", "mid", "high"}),
        ("optimizer.lr>text", set()),
    ],
)
def test_conditions(condition, found, capsys):
    three()
    assert set(names(capsys, "--where", condition)) == found


@pytest.mark.parametrize("tag", ["1e-3", "true", "null", "0010", "2026"])
def test_a_tag_that_looks_like_a_number_is_found_as_it_is_written(tag, capsys):
    three()
    labels.tagged("runs/low", [tag])
    assert names(capsys, "--where", f"tags={tag}") == ["low"]
    assert set(names(capsys, "--where", f"tags!={tag}")) == {"mid", "high"}


def test_conditions_are_joined_and_read_the_recipe_where_run_json_is_silent(capsys):
    three()
    Path("runs/mid/recipe.yaml").write_text("device: cuda\nexecution: {threads: 3}\n")
    assert names(capsys, "--where", "execution.threads=3") == ["mid"]
    assert names(capsys, "--where", "device=cuda", "--where", "optimizer.lr>1") == []


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--where", "optimiser.lr>1"), "no run has this key; did you mean 'optimizer.lr'?"),
        (("--where", "optimizer.lr"), "in quotes"),
        (("--best", ""), "no run has this metric; there are train/loss"),
        (("--best", "val/acuracy"), "no run has this metric; did you mean 'val/accuracy'?"),
        (("nowhere",), "no such directory"),
        (("a", "b"), "one directory is listed at a time"),
        (("--best", "val/loss", "--sort", "epochs"), "leave --sort out"),
        (("--keep-best", "3"), "belongs to `surefoot runs prune`"),
        (("tag", "runs/low"), "give a run and its tags"),
        (("tag", "runs/low", "two words"), "a tag is a word"),
        (("tag", "runs/low", "x", "--remove"), "has no tag 'x'"),
        (("note", "runs/low", "a", "b"), "one text in quotes"),
        (("rm",), "name the runs"),
        (("rm", "runs/none"), "no such run directory"),
        (("rm", "runs"), "holds no run"),
        (("rm", "runs/low/run.json"), "is a file"),
        (("rm", "runs/low"), "give --yes"),
        (("prune",), "give --keep-best N"),
        (("prune", "--keep-best", "0"), "1 or more"),
        (("prune", "--keep-best", "1"), "give --yes"),
        (("rm", "runs/low", "--where", "status=failed", "--yes"), "--where belongs to `surefoot runs [DIR]` and `sure"),
        (("rm", "runs/low", "--keep-best", "1", "--yes"), "--keep-best belongs to `surefoot runs prune`"),
        (("prune", "--keep-best", "1", "--sort", "epochs", "--yes"), "--sort belongs to `surefoot runs [DIR]`"),
        (("tag", "runs/low", "x", "--yes"), "--yes belongs to `surefoot runs rm` and `surefoot runs prune`"),
        (("--remove",), "--remove belongs to `surefoot runs tag`"),
    ],
)
def test_bad_input_is_answered_with_what_to_give(argv, told, capsys, monkeypatch):
    three()
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    before = files_in(Path("runs"))
    assert told in refused(capsys, "runs", *argv)
    assert files_in(Path("runs")) == before


def test_what_is_no_run_is_named_and_passed_over(capsys):
    three()
    Path("runs/notes.txt").write_text("x")
    Path("runs/empty/below").mkdir(parents=True)
    Path("runs/link").symlink_to("low")
    Path("runs/lost").mkdir()
    Path("runs/lost/run.json").write_text('{"id": ')
    Path("runs/.hidden").mkdir()
    assert main(["runs"]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 4
    for text in (
        "notes.txt: is a file",
        "runs/empty: holds no run",
        "link: is a symbolic",
        "lost: run.json is damaged",
    ):
        assert text in told.err
    assert "hidden" not in told.err


def test_a_run_half_written_damaged_or_newer_is_shown_as_far_as_it_can_be(capsys):
    make_run(Path("runs/half"), [0.5], torn=b'{"kind": "epoch", "spl')
    make_run(Path("runs/wrong"), [0.5], torn=b'{"kind": "epoch", "split": 3}\n')
    make_run(Path("runs/newer"), [0.5], version="99.0.1", status="paused")
    make_run(Path("runs/lost"), [0.5])
    Path("runs/lost/run.json").write_text("{}")
    found = {Path(run["path"]).name: run for run in json.loads(shown(capsys, "--json"))}
    assert found["half"]["epochs"] == 1 and not found["half"]["problems"]
    assert "metrics.jsonl" in found["wrong"]["problems"][0]
    assert "99.0.1, newer than this" in " ".join(found["newer"]["problems"])
    assert found["lost"]["status"] == "damaged" and found["lost"]["best"]["value"] == 0.5


def test_a_journal_that_is_no_file_is_named(capsys):
    make_run(Path("runs/a"), [0.5])
    Path("runs/a/metrics.jsonl").unlink()
    os.mkfifo("runs/a/metrics.jsonl")
    (run,) = json.loads(shown(capsys, "--json"))
    assert run["problems"] == ["runs/a/metrics.jsonl: is a pipe, not a regular file"]


@pytest.mark.parametrize("text", ["[1]", "{", '{"tags": "x"}', '{"tags": [1]}', '{"note": 3}'])
def test_labels_of_somebody_elses_making_are_named(text, capsys):
    make_run(Path("runs/a"), [0.5])
    Path("runs/a/labels.json").write_text(text)
    (run,) = json.loads(shown(capsys, "--json"))
    assert "labels.json" in run["problems"][0] and run["tags"] == []


def test_names_reach_a_terminal_without_their_control_characters(capsys):
    make_run(Path("runs/a\x1b[2J\n"), [0.5], name="x\x1b]0;owned\x07", metric="val/\x1b[31mred")
    out = shown(capsys)
    assert "\x1b" not in out and "\x07" not in out and r"a\x1b[2J\n" in out and len(out.splitlines()) == 2


def test_a_run_in_use_is_told_with_its_holder_and_a_killed_one_is_not_running(capsys):
    make_run(Path("runs/a"), [0.5], status="running")
    assert json.loads(shown(capsys, "--json"))[0]["status"] == "killed"
    lock = Lock.take(Path("runs/a"))
    try:
        code = "from surefoot.cli import main; raise SystemExit(main(['runs', '--json']))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        (run,) = json.loads(done.stdout)
        assert run["status"] == "running" and f"process {os.getpid()} on" in run["held_by"]
        assert holder("runs/a") == "this process"
    finally:
        lock.release()
    assert holder("runs/a") is None


def test_tags_and_notes_come_and_go(capsys):
    three()
    assert shown(capsys, "tag", "runs/low", "good", "paper") == "runs/low: good paper\n"
    shown(capsys, "tag", "runs/mid", "good")
    assert shown(capsys, "tag", "runs/low", "good", "--remove") == "runs/low: paper\n"
    assert names(capsys, "--where", "tags=good") == ["mid"] and names(capsys, "--where", "tags=paper") == ["low"]
    assert shown(capsys, "note", "runs/low", "the one") == "runs/low: the one\n"
    assert "the one" in shown(capsys) and shown(capsys, "note", "runs/low") == "runs/low: the one\n"
    assert shown(capsys, "note", "runs/low", "") == "runs/low: no note\n"


def test_no_other_process_changes_the_labels_while_one_does(monkeypatch):
    make_run(Path("run"), [0.5])
    written, free = labels._written, []

    def looks(run, changed):
        directory = os.open(run, os.O_RDONLY)
        free.append(files.lock(directory))  # what another process would do
        os.close(directory)
        return written(run, changed)

    monkeypatch.setattr(labels, "_written", looks)
    labels.tagged("run", ["a", "b"])
    labels.tagged("run", ["a"], remove=True)
    assert labels.noted("run", "c") == labels.Labels(("b",), "c") and free == [False] * 3


def test_removed_is_what_was_named_once_the_user_says_yes(capsys, monkeypatch):
    three()
    terminal = io.StringIO("no\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert "nothing was removed" in shown(capsys, "rm", "runs/low", code=1)
    assert shown(capsys, "rm", "runs/low", "runs/mid", "--yes") == "removed 2 runs\n"
    assert sorted(os.listdir("runs")) == ["high"]


def test_a_command_whose_input_is_closed_asks_nobody(capsys, monkeypatch):
    three()
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it under <&-
    assert "give --yes, and nothing was removed" in refused(capsys, "runs", "rm", "runs/low")
    assert sys.stdin is None and len(os.listdir("runs")) == 3


def test_a_run_that_is_named_twice_is_removed_once_and_the_others_too(capsys):
    three()
    said = shown(capsys, "rm", "runs/low", "runs/low/", str(Path("runs/low").resolve()), "runs/high", "--yes")
    assert "removed 2 runs" in said and not {"low", "high"} & set(os.listdir("runs"))


def test_a_run_in_use_linked_or_with_foreign_files_is_never_removed(capsys):
    three()
    with RunDirectory.create("runs/busy"):
        assert "in use by this process" in refused(capsys, "runs", "rm", "runs/low", "runs/busy", "--yes")
    Path("runs/mid/thesis.tex").write_text("years of work")
    assert "no part of a run: thesis.tex" in refused(capsys, "runs", "rm", "runs/mid", "--yes")
    Path("link").symlink_to("runs/low")
    assert "is a symbolic link" in refused(capsys, "runs", "rm", "link", "--yes")
    assert {"low", "mid", "busy"} <= set(os.listdir("runs"))


def test_what_a_kill_left_of_a_removal_goes_with_the_next(tmp_path):
    three()
    (tmp_path / "runs/.old.0123abcd.removed").mkdir()
    remove(Path("runs/low"))
    assert sorted(os.listdir("runs")) == ["high", "mid"]
    with pytest.raises(UsageError, match="no such run"):
        remove(Path("runs/low"))


def test_prune_keeps_the_best_and_what_it_cannot_judge(capsys):
    three()
    make_run(Path("runs/young"), [])
    with RunDirectory.create("runs/busy"):
        assert "removed 2 runs" in shown(capsys, "prune", "--keep-best", "1", "--best", "val/accuracy", "--yes")
    assert sorted(os.listdir("runs")) == ["busy", "mid", "young"]
    make_run(Path("runs/other"), [3.0], metric="val/other", monitor="val/other")
    assert "different metrics" in refused(capsys, "runs", "prune", "--keep-best", "1", "--yes")


def test_a_metric_has_one_direction_in_all_runs_whichever_of_them_says_it(capsys):
    """`val/spread` has no direction by its name: the one recipe that keeps its best model by it says max."""
    make_run(Path("runs/says"), [1.0, 3.0], metric="val/spread", monitor="val/spread")
    make_run(Path("runs/silent"), [9.0, 0.5], metric="val/spread")
    assert names(capsys, "--best", "val/spread") == ["silent", "says"]
    assert names(capsys, "--where", "val/spread>8") == ["silent"]
    shown(capsys, "prune", "--keep-best", "1", "--best", "val/spread", "--yes")
    assert os.listdir("runs") == ["silent"]


def test_the_metric_that_a_run_from_python_keeps_its_best_model_by_is_the_one_it_is_judged_by(capsys):
    """fit(..., run=RunOptions(checkpoints=Checkpoints(keep_best="val/reward", mode="max")))."""
    for name, rewards in (("a", [1.0, 9.0]), ("b", [2.0, 3.0])):
        run = make_run(Path(f"runs/{name}"), rewards, metric="val/reward")
        about = json.loads((run / "run.json").read_text())
        kept = {"checkpoint.keep_best": "val/reward", "checkpoint.mode": "max", "fit.seed": 0}
        with RunDirectory.open(run) as opened:
            opened.record(conditions=kept if name == "a" else {"fit.seed": 0})
        assert about["conditions"] != kept
        (run / "recipe.yaml").unlink()
    assert "val/reward 9.0000 in epoch 2" in shown(capsys)
    assert names(capsys, "--best", "val/reward") == ["a", "b"]
    assert "removed 1 run\n" in shown(capsys, "prune", "--keep-best", "1", "--best", "val/reward", "--yes")
    assert os.listdir("runs") == ["a"]


def test_where_nobody_says_which_values_are_better_none_is_removed_and_a_guess_is_told(capsys):
    for name, reward in (("a", 1.0), ("b", 9.0)):
        make_run(Path(f"runs/{name}"), [reward], metric="val/reward")
    told = refused(capsys, "runs", "prune", "--keep-best", "1", "--best", "val/reward", "--yes")
    assert "neither a run nor the name of val/reward says which values are better" in told
    assert sorted(os.listdir("runs")) == ["a", "b"]
    for argv in (["runs", "--best", "val/reward"], ["compare", "runs", "--best", "val/reward"]):
        assert main(argv) == 0
        captured = capsys.readouterr()
        assert "the lower are taken for it" in " ".join((captured.out + captured.err).split())
    assert main(["compare", "runs", "--best", "val/loss"]) == 0
    assert "neither" not in capsys.readouterr().out


def test_the_index_is_used_and_never_believed(capsys, monkeypatch):
    for number in range(25):
        make_run(Path(f"runs/r{number:02d}"), [0.5])
    for path in Path("runs").rglob("*"):
        os.utime(path, (1.7e9, 1.7e9))
    first = shown(capsys, "--json")
    (index,) = Path("cache/surefoot/runs").iterdir()

    def unread(path):
        raise AssertionError(f"{path} was read although nothing changed")

    with monkeypatch.context() as patched:
        patched.setattr(listing, "read_content", unread)
        assert shown(capsys, "--json") == first
    make_run(Path("runs/r03"), [0.75])
    assert open_run("runs/r03").best() == ("val/accuracy", 0.75, 0)
    changed = {Path(run["path"]).name: run for run in json.loads(shown(capsys, "--json"))}
    assert changed["r03"]["best"]["value"] == 0.75 and changed["r04"]["best"]["value"] == 0.5
    for wrong in ("", "[]", '{"version": 1}', index.read_text().replace('"tags"', '"sgat"')):
        index.write_text(wrong)
        assert len(list_runs("runs").runs) == 25


def test_many_runs_are_read_by_several_processes_in_the_same_order():
    for number in range(25):
        make_run(Path(f"runs/r{number:02d}"), [0.5, number / 25], torn=b'{"half' if number % 2 else b"nothing\n")
    code = (
        "import os, sys\n"
        "from surefoot.runs import listing\n"
        "os.cpu_count = lambda: 3\n"
        "listing._A_PROCESS_READS = int(sys.argv[1])\n"
        "from surefoot.cli import main\n"
        "raise SystemExit(main(['runs', '--json']))\n"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code, most], capture_output=True, text=True, check=True)
        for most in ("1000", "8")
    ]
    assert outputs[0].stdout == outputs[1].stdout and len(json.loads(outputs[0].stdout)) == 25
    assert outputs[1].stderr == "", "no process says anything of its own"


VALUES = [0.5, float("nan"), 0.25, 0.75, float("inf"), 0.75, -1.0]
ODD = [b"", b'{"kind": "epoch", "split": "val", "epoch": 9, "step": 99, "loss": 0.1', b'{"kind": "epoch"}\n', b"\xff\n"]


@pytest.mark.parametrize("torn", ODD)
@pytest.mark.parametrize("values", [VALUES, [0.5, 0.25, 0.75, 0.25], [], [float("nan")]], ids=len)
def test_a_short_journal_read_at_once_says_what_a_long_one_says_line_by_line(values, torn, monkeypatch):
    make_run(Path("runs/a"), values, torn=torn)
    short = open_run("runs/a").content
    monkeypatch.setattr(record, "_SHORT", 0)
    monkeypatch.setattr(record, "_RECORDS_AT_ONCE", 2)
    assert repr(open_run("runs/a").content) == repr(short)
    if values == VALUES:
        reached = short.metrics["val/accuracy"]
        assert (reached.low, reached.low_epoch, reached.high, reached.high_epoch) == (-1.0, 6, float("inf"), 4)
        assert reached.last == -1.0 and short.epochs == 7 and short.step_s == pytest.approx(0.05)


def test_a_narrow_terminal_loses_the_least_important_columns_first():
    columns = [Column("run"), Column("note", rank=2), Column("epochs", right=True, rank=1)]
    rows = [["runs/quickstart/20260101-101010", "a note of some length", "12"]]
    assert "note" in rendered(columns, rows, 80)[1]
    assert [len(line) <= 45 for line in rendered(columns, rows, 45)] == [True, True]
    assert "note" not in rendered(columns, rows, 45)[0] and "12" in rendered(columns, rows, 45)[1]
    assert all(len(line) <= 20 for line in rendered(columns, rows, 20))


@pytest.mark.parametrize("text", ["", "=", ">3", "a"])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        Condition.parse(text)
