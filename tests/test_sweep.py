"""`surefoot sweep`: every setting once, however often it is killed; what is found; every mistake with its place."""

from __future__ import annotations

import json
import random
import re
import sqlite3
import sys
from pathlib import Path

import pytest
from command_runs import refused
from run_directories import make_run
from sweep_trainings import GRID, RANDOM, Killed, Training, Trainings, lives

from surefoot.cli import main
from surefoot.errors import Problems, RunFailed, UsageError
from surefoot.recipe import load_recipe
from surefoot.runs.listing import list_runs
from surefoot.runs.sweep import trainings
from surefoot.runs.sweep.result import Result, parallel_coordinates
from surefoot.runs.sweep.settings import Between, parse_plan
from surefoot.runs.sweep.study import Study
from surefoot.runs.sweep.trainings import run_trials

pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def swept(text: str = GRID, launch=None, directory: str = "runs/s", jobs: int = 1) -> tuple[Study, list[str]]:
    study, lines = Study(parse_plan(text), Path(directory)), []
    run_trials(study, jobs, launch or Trainings(), lines.append, wait=lambda: None)
    return study, lines


def test_a_grid_tries_every_setting_once_and_tells_the_best():
    launch = Trainings()
    study, lines = swept(launch=launch)
    tried = [tuple(arguments[1:]) for _, arguments in launch.begun]
    assert tried == [
        ("epochs=2", "optimizer.lr=0.01", "data.batch_size=16"),
        ("epochs=2", "optimizer.lr=0.01", "data.batch_size=32"),
        ("epochs=2", "optimizer.lr=0.1", "data.batch_size=16"),
        ("epochs=2", "optimizer.lr=0.1", "data.batch_size=32"),
    ]
    assert [path.name for path in launch.ended] == [f"trial-{number:05d}" for number in range(4)]
    result = Result(study)
    assert result.best.values == {"optimizer.lr": 0.1, "data.batch_size": 16} and result.best.value == 0.1
    assert "trial 0 (1/4)  optimizer.lr=0.01 data.batch_size=16  val/accuracy 1.00 %" in lines[0]
    result.write()
    assert load_recipe("runs/s/best.yaml").optimizer.part.arguments()["lr"] == 0.1
    listing = list_runs("runs/s")
    assert len(listing.runs) == 4 and not listing.passed_over


def test_jobs_train_beside_one_another_and_none_twice():
    launch = Trainings()
    study, _ = swept(launch=launch, jobs=3)
    assert len({path for path, _ in launch.begun}) == len(launch.begun) == 4
    assert all(trial.state.name == "COMPLETE" for trial in study.trials())


@pytest.mark.parametrize("text", [GRID, RANDOM], ids=["grid", "random"])
def test_killed_before_any_write_no_trial_is_lost_or_done_twice(text, monkeypatch):
    draw, launch, died = random.Random(0), Trainings(), 0
    for _ in lives(monkeypatch, [*(draw.choice((1, 1, 2)) for _ in range(60)), 10**6]):
        try:
            study, _ = swept(text, launch)
            break
        except Killed:
            died += 1
    trials = study.trials()
    assert died > 7 and len(trials) == study.plan.trials
    assert all(trial.state.name == "COMPLETE" for trial in trials)
    assert sorted(launch.ended) == sorted({path for path, _ in launch.begun}), "each was trained to its end once"
    for path, arguments in launch.begun:
        number = int(path.name.removeprefix("trial-"))
        assert arguments[-1].split("=")[1] in str(list(study.values_of(trials[number]).values()))
    if text == GRID:
        assert len({tuple(trial.params.items()) for trial in trials}) == 4


def test_a_training_that_outlived_its_sweep_is_waited_for(monkeypatch):
    study, launch = Study(parse_plan(GRID), Path("runs/s")), Trainings()
    claimed = study.claim()
    claimed.release()  # the sweep was killed, its training was not
    make_run(Path("runs/s/trial-00000"), [0.3], status="running", settings={"optimizer.lr": 0.01})
    monkeypatch.setattr(trainings, "holder", lambda path: "process 1" if path.name == "trial-00000" and looks else None)
    looks = [1, 1, 1]

    def wait():
        if looks:
            looks.pop()
            if not looks:
                make_run(Path("runs/s/trial-00000"), [0.3, 0.4], settings={"optimizer.lr": 0.01})

    run_trials(study, 1, launch, lambda line: None, wait=wait)
    assert [path.name for path, _ in launch.begun] == ["trial-00001", "trial-00002", "trial-00003"]
    assert study.trials()[0].value == 0.4


def test_what_was_raised_goes_on_and_what_was_changed_is_refused():
    swept(RANDOM)
    launch = Trainings()
    study, _ = swept(RANDOM.replace("trials: 5", "trials: 6"), launch)
    assert len(study.trials()) == 6 and len(launch.begun) == 1
    with pytest.raises(UsageError, match="begun with another search"):
        swept(RANDOM.replace("0.001", "0.002"))


def test_a_recipe_that_was_changed_is_refused_since_its_trials_could_not_be_compared():
    text = RANDOM.replace("quickstart", "mine.yaml")
    Path("mine.yaml").write_text(load_recipe("quickstart", ["epochs=2"]).to_yaml())
    swept(text)
    Path("mine.yaml").write_text(load_recipe("quickstart", ["epochs=2", "name=another"]).to_yaml())
    swept(text)
    Path("mine.yaml").write_text(load_recipe("quickstart", ["epochs=5"]).to_yaml())
    with pytest.raises(UsageError, match=r"begun with another epochs in mine.yaml: trials of both"):
        swept(text.replace("trials: 5", "trials: 6"))


def test_a_directory_that_is_renamed_holds_the_same_sweep():
    study, _ = swept(RANDOM)
    study.directory.rename("runs/moved")
    moved = Study(parse_plan(RANDOM), Path("runs/moved"))
    assert moved.finished() and [t.params for t in moved.trials()] == [t.params for t in study.trials()]


@pytest.mark.parametrize("values", [1, 2])
def test_runs_of_another_sweep_are_never_taken_for_a_trials_own(values):
    study, launch = Study(parse_plan(GRID), Path("runs/s")), Trainings()
    make_run(Path("runs/s/trial-00001"), [0.3, 0.4][:values], settings={"optimizer.lr": 0.02})
    with pytest.raises(UsageError, match=r"trial-00001: was trained with optimizer.lr 0.02, and this trial has 0.01"):
        run_trials(study, 1, launch, lambda line: None, wait=lambda: None)
    assert [path.name for path, _ in launch.begun] == ["trial-00000"]


def kept_as_trial(search: str, overrides: list[str], directory: str) -> Study:
    """A sweep in whose first trial's place lies a run of these overrides."""
    begin = """recipe: quickstart\noverrides: [epochs=2, 'model={"import": "net:Net"}']\nsampler: grid\n"""
    study = Study(parse_plan(begin + "search: " + search), Path(directory))
    run = make_run(Path(directory, "trial-00000"), [0.3, 0.4])
    whole = load_recipe("quickstart", ["epochs=2", 'model={"import": "net:Net"}', *overrides])
    (run / "recipe.yaml").write_text(whole.to_yaml())
    return study


@pytest.mark.parametrize(
    ("search", "override", "told"),
    [
        ("{model.width: [true]}", "model.width=1", "model.width 1, and this trial has true"),
        ("{model.width: [[1]]}", "model.width=[true]", r"model.width \[true\], and this trial has \[1\]"),
        ("{scheduler: [null]}", "scheduler={name: StepLR, step_size: 1}", "scheduler.name StepLR, and .* has null"),
        ("{scheduler: [{name: StepLR, step_size: 1}]}", "scheduler=null", "scheduler.name null, and .* has StepLR"),
        ("{model.width: [1]}", "model.width=1.0", ""),
        ("{scheduler: [{name: StepLR, step_size: 1}]}", "scheduler={step_size: 1, name: StepLR}", ""),
    ],
)
def test_a_kept_run_is_a_trials_own_where_its_settings_are_those_that_it_tries(search, override, told):
    study, launch = kept_as_trial(search, [override], "runs/s"), Trainings()
    if told:
        with pytest.raises(UsageError, match=told):
            run_trials(study, 1, launch, lambda line: None, wait=lambda: None)
    else:
        run_trials(study, 1, launch, lambda line: None, wait=lambda: None)
        assert study.trials()[0].value == 0.4
    assert not launch.begun


def test_seeds_train_each_setting_so_often_and_their_mean_counts():
    launch = Trainings(curve=lambda settings: [settings["optimizer.lr"] + settings["seed"]])
    study, _ = swept(GRID + "seeds: 3\n", launch)
    assert len(launch.begun) == 12
    assert [arguments[-1] for _, arguments in launch.begun[:3]] == ["seed=0", "seed=1", "seed=2"]
    assert launch.ended[1] == Path("runs/s/trial-00000/seed-1")
    assert study.trials()[0].value == pytest.approx(1.01)


def test_a_trial_behind_the_others_is_pruned_and_saved():
    text = RANDOM.replace("trials: 5", "trials: 8\npruner: median\noverrides: [epochs=4]")
    rates = iter([0.5, 0.6, 0.7, 0.8, 0.1, 0.1, 0.9, 0.1])
    curves: dict[float, float] = {}

    def curve(settings):
        level = curves.setdefault(settings["optimizer.lr"], 0) or curves.update({settings["optimizer.lr"]: next(rates)})
        level = curves[settings["optimizer.lr"]]
        return [level] * 4

    class Slow(Trainings):
        def __call__(self, arguments, log, directory):
            training = super().__call__(arguments, log, directory)
            make_run(directory, curve(training.settings)[:3], status="running")
            return training

    study, lines = swept(text, Slow(curve=curve))
    states = [trial.state.name for trial in study.trials()]
    assert states[:4] == ["COMPLETE"] * 4 and states[6] == "COMPLETE"
    assert states[4] == states[5] == states[7] == "PRUNED" and "pruned" in lines[4]


def test_a_trial_is_compared_by_all_its_epochs_also_those_that_came_with_its_end():
    study, _ = swept()
    epochs = [trial.intermediate_values for trial in study.trials()]
    assert epochs == [{0: lr / 2, 1: lr} for lr in (0.01, 0.01, 0.1, 0.1)]


def test_a_training_that_fails_is_a_failed_trial_and_three_at_first_end_the_sweep():
    codes = iter([0, 1, 0, 0])

    class Some(Trainings):
        def __call__(self, arguments, log, directory):
            self.code = next(codes)
            return super().__call__(arguments, log, directory)

    study, lines = swept(launch=Some())
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    with pytest.raises(RunFailed, match="first 3 trials all failed: it said nothing"):
        swept(launch=Trainings(code=1), directory="runs/other")


@pytest.mark.parametrize("code", [-9, 129, 143])
def test_a_training_that_is_killed_is_resumed_twice_then_given_up(code):
    launch = Trainings(code=code)
    with pytest.raises(RunFailed, match="was killed 3 times"):
        swept(launch=launch)
    assert [path.name for path, _ in launch.begun[:4]] == ["trial-00000"] * 3 + ["trial-00001"]


def test_a_metric_that_no_training_has_is_told():
    with pytest.raises(RunFailed, match="has no value of val/nothing; it measured train/loss, val/loss, val/accuracy"):
        swept(GRID + "metric: val/nothing\nmode: max\n")


def test_what_is_stopped_asks_its_trainings_to_save(monkeypatch):
    launch, waits = Trainings(), []

    def wait():
        waits.append(1)
        if len(waits) == 2:
            raise KeyboardInterrupt

    study, stopped = Study(parse_plan(GRID), Path("runs/s")), []
    monkeypatch.setattr(Training, "terminate", lambda self: stopped.append(self.directory))
    monkeypatch.setattr(Training, "poll", lambda self: None)
    with pytest.raises(KeyboardInterrupt):
        run_trials(study, 2, launch, lambda line: None, wait=wait)
    assert len(stopped) == 2 and all(trial.state.name != "COMPLETE" for trial in study.trials())
    assert study.claim() is not None, "let go of, so that the next one goes on with it"


def test_all_trainings_are_asked_to_save_before_a_second_ctrl_c_ends_the_waiting(monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    stopped = []
    monkeypatch.setattr(Training, "terminate", lambda self: stopped.append(self.directory.name))
    monkeypatch.setattr(Training, "poll", lambda self: None)
    monkeypatch.setattr(Training, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_trials(Study(parse_plan(GRID), Path("runs/s")), 2, Trainings(), lambda line: None, wait=interrupted)
    assert stopped == ["trial-00000", "trial-00001"]


def test_what_is_stopped_says_how_to_go_on(capsys, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    Path("lr.yaml").write_text(GRID)
    monkeypatch.setattr(trainings, "run_trials", stopped)
    assert main(["sweep", "lr.yaml", "--dir", "my runs"]) == 130
    assert "go on with `surefoot sweep lr.yaml --dir 'my runs'`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("grid", "gird"), "sampler: the text 'gird' is not one of tpe, random, grid; did you mean 'grid'"),
        (("recipe: quickstart", "recipe: none.yaml"), "no such file"),
        (("optimizer.lr: [0.01, 0.1]", "optimizer.rl: [0.01]"), "search.optimizer.rl: "),
        (("[0.01, 0.1]", "[-1, 0.1]"), "search.optimizer.lr: "),
        (("[0.01, 0.1]", "[]"), "an empty list"),
        (("[0.01, 0.1]", "0.1"), "is no choice"),
        (("[0.01, 0.1]", "{low: 1, high: 0.1}"), "low 1 is not below high 0.1"),
        (("[0.01, 0.1]", "{low: 0, high: 0.1, log: true}"), "log needs a low above 0"),
        (("[0.01, 0.1]", "{low: 0.01, high: 0.1, setp: 1}"), "unknown key 'setp'"),
        (("[0.01, 0.1]", "{low: 0.01, high: 0.1, step: -1}"), "step -1 is not above 0"),
        (("[0.01, 0.1]", "{low: 0.01}"), "high: None is no finite number"),
        (("[0.01, 0.1]", f"{{low: 1, high: 1{'0' * 400}}}"), f"high: 1{'0' * 29}...{'0' * 27} is no finite number"),
        (("[0.01, 0.1]", "{low: -1.7e+308, high: 1.7e+308}"), "from low -1.7e+308 to high 1.7e+308 is more than"),
        (("[0.01, 0.1]", "{low: 1e-320, high: 1.7e+308, step: 1e-320}"), "100,000 are the most"),
        (("[0.01, 0.1]", "{low: 1, high: 10, log: 1}"), "log: 1 is not true or false"),
        (("[0.01, 0.1]", "[1, 0.1, 1.0]"), "search.optimizer.lr: 1 and 1.0 are one setting; give it once"),
        (("optimizer.lr: [0.01, 0.1]", "data: [{name: garments}, {name: garments}]"), "are one setting; give it once"),
        (("[0.01, 0.1]", "{low: 0.01, high: 0.1}"), "a grid needs values"),
        (("optimizer.lr: [0.01, 0.1]", "seed: [1, 2]"), "`seeds` trains each setting"),
        (("16}", "16}\n  optimizer: [{name: Adam, lr: 1}]"), "takes the place of optimizer.lr, which stands before it"),
        (("sampler: grid", "sampler: tpe"), "trials: missing; tpe needs to know"),
        (("sampler: grid", "sampler: grid\nseeds: 0"), "seeds: 0 is below 1"),
        (("sampler: grid", "sampler: grid\nmetric: val/spread"), "metric: "),
        (("sampler: grid", "sampler: grid\nmode: min"), "would take the worst val/accuracy for the best"),
    ],
)
def test_mistakes_are_told_with_their_place(change, told):
    with pytest.raises((Problems, UsageError)) as caught:
        parse_plan(GRID.replace(*change), "s.yaml")
    assert told in str(caught.value)
    assert "s.yaml:" in str(caught.value) or "none.yaml" in str(caught.value)


def test_values_that_are_equal_in_python_are_tried_as_themselves():
    text = GRID.replace("[epochs=2]", """['model={"import": "net:Net"}']""")
    text = text.partition("search:")[0] + "search: {model.width: LIST}"
    plan = parse_plan(text.replace("LIST", "[true, 1, [1], [true], 0]"))
    claims = [Study(plan, Path("runs/s")).claim() for _ in range(5)]
    assert str([claim.values["model.width"] for claim in claims]) == "[True, 1, [1], [True], 0]"
    with pytest.raises(UsageError, match="begun with another search"):
        Study(parse_plan(text.replace("LIST", "[1, true, [1], [true], 0]")), Path("runs/s"))


def test_values_of_any_characters_reach_the_recipe():
    text = GRID.replace("[epochs=2]", """['model={"import": "net:Net"}']""").partition("search:")[0]
    plan = parse_plan(text + 'search: {model.names: [["\U0001f600", "\u00e9"], [b]]}')
    arguments = plan.arguments({"model.names": ["\U0001f600", "\u00e9"]}, 0)
    assert load_recipe("quickstart", arguments).model.part.arguments()["names"] == ["\U0001f600", "\u00e9"]


def test_a_range_whose_last_step_ends_below_its_end_is_tried_without_a_word_of_optunas(recwarn):
    text = "recipe: quickstart\nsampler: random\ntrials: 3\nsearch: {data.batch_size: {low: 16, high: 40, step: 16}}\n"
    study, _ = swept(text, Trainings(curve=lambda settings: [0.1]))
    assert {study.values_of(trial)["data.batch_size"] for trial in study.trials()} == {16, 32}
    assert not [warning for warning in recwarn if "divisible" in str(warning.message)]


def test_a_range_of_whole_numbers_or_steps():
    assert Between(1, 7, 3).grid() == (1, 4, 7) and Between(0.1, 0.3, 0.1).grid() == (0.1, 0.2, 0.3)
    assert Between(123456789012.5, 123456789013.5, 0.5).grid() == (123456789012.5, 123456789013.0, 123456789013.5)
    assert Between(-0.3, 0.0, 0.1).grid()[-1] == 0.0 and Between(10**30, 10**30 + 1, 1).grid()[-1] == 10**30 + 1
    assert Between(1, 10).whole and not Between(1.0, 10).whole and Between(1, 10).grid() == ()


def test_the_page_escapes_and_draws_every_trial():
    text = GRID.replace("optimizer.lr: [0.01, 0.1]", "scheduler: [null, {name: StepLR, step_size: 1}, ConstantLR]")
    text += "metric: val/<b>\nmode: max\n"
    rates = {"optimizer.lr": 0.5}

    class Named(Trainings):
        def __call__(self, arguments, log, directory):
            training = Training(self, [arguments[0]], directory)
            training.settings = rates
            self.begun.append((directory, arguments))
            training.poll = lambda: make_run(directory, [0.5], metric="val/<b>", settings=rates) and 0
            return training

    study, _ = swept(text, Named())
    result = Result(study)
    page = result.as_page()
    assert "val/<b>" not in page and "val/&lt;b&gt;" in page and page.count("<polyline") == 6
    assert not re.search(r"<script|https?://|src=|url\(", page)
    assert result.to_json()["best"]["values"]["scheduler"] in (None, "ConstantLR", {"name": "StepLR", "step_size": 1})
    assert parallel_coordinates(result).count("<title>") == 6


def test_the_importance_of_a_key_that_decides_is_the_larger():
    launch = Trainings(curve=lambda settings: [settings["optimizer.lr"]])
    study, _ = swept(GRID.replace("[0.01, 0.1]", "[0.01, 0.02, 0.05, 0.1]").replace("high: 32", "high: 64"), launch)
    importance = Result(study).importance()
    assert importance["optimizer.lr"] > importance["data.batch_size"]
    assert any("importance" in line for line in Result(study).as_text(80))


def test_the_command_from_file_to_best_recipe(capsys, monkeypatch):
    Path("lr.yaml").write_text(GRID)
    launch = Trainings()
    monkeypatch.setattr(trainings, "launch", lambda *args, threads: launch(*args))
    monkeypatch.setattr(trainings, "_POLL_S", 0.0)
    assert main(["sweep", "lr.yaml", "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "written: runs/lr/best.yaml, runs/lr/sweep.html" in out and out.count("trial ") >= 4
    assert main(["sweep", "lr.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"]["value"] == 0.1 and len(found["trials"]) == 4 and len(launch.begun) == 4


def test_bad_input_of_the_command(capsys, monkeypatch):
    assert "no such file" in refused(capsys, "sweep", "none.yaml")
    Path("s.yaml").write_text(GRID)
    assert "--jobs 0: give 1 or more" in refused(capsys, "sweep", "s.yaml", "--jobs", "0")
    Path("file").write_text("x")
    assert "cannot be used for a sweep" in refused(capsys, "sweep", "s.yaml", "--dir", "file")
    Path("s.yaml").write_text(GRID + "storage: nosuch://x\n")
    assert "storage nosuch://x: cannot be used" in refused(capsys, "sweep", "s.yaml")
    Path("s.yaml").write_text(GRID + "storage: nosuch://me:secret@x\n")
    assert "secret" not in refused(capsys, "sweep", "s.yaml")
    Path("s.yaml").write_text(GRID)
    Path("broken/.sweep").mkdir(parents=True)
    Path("broken/.sweep/sweep.db").write_text("this is no database at all" * 100)
    assert "cannot be used" in refused(capsys, "sweep", "s.yaml", "--dir", "broken")
    Path("best.yaml").write_text("# by hand")
    assert "best.yaml: is there already, and a sweep writes its own" in refused(capsys, "sweep", "s.yaml", "--dir", ".")
    assert Path("best.yaml").read_text() == "# by hand" and not Path(".sweep").exists()
    assert "has a '?' in its path" in refused(capsys, "sweep", "s.yaml", "--dir", "why?")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'surefoot[sweep]'" in refused(capsys, "sweep", "s.yaml", "--dir", "new")


def test_a_storage_that_fails_in_the_midst_is_one_message(capsys, monkeypatch):
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import OperationalError

    def full(*args, **kwargs):
        raise OperationalError("UPDATE", {}, sqlite3.OperationalError("database or disk is full"))

    Path("lr.yaml").write_text(GRID)
    launch = Trainings()
    monkeypatch.setattr(trainings, "launch", lambda *args, threads: launch(*args))
    monkeypatch.setattr(trainings, "_POLL_S", 0.0)
    monkeypatch.setattr(RDBStorage, "set_trial_intermediate_value", full)
    assert main(["sweep", "lr.yaml"]) == 1
    told = capsys.readouterr().err
    assert "runs/lr: the storage of the trials fails: " in told and "database or disk is full; mend it" in told
    assert "Traceback" not in told


def test_a_sweep_trains_for_real(capsys):
    """One process each, by the command that is printed nowhere but run."""
    small = (
        "data.train_size=64, data.val_size=32, data.batch_size=32, epochs=1, warmup.warmup_period=1, execution=plain"
    )
    Path("one.yaml").write_text(
        f"recipe: quickstart\noverrides: [{small}]\nsearch: {{optimizer.lr: [0.01]}}\nsampler: grid"
    )
    assert main(["sweep", "one.yaml"]) == 0
    assert "trial 0 (1/1)" in capsys.readouterr().out
    assert Path("runs/one/trial-00000/model/model.safetensors").is_file()
    with sqlite3.connect("runs/one/.sweep/sweep.db") as database:
        assert database.execute("select count(*) from trials").fetchone() == (1,)
