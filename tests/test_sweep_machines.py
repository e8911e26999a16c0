"""One sweep on several machines: directories of their own, one storage; none lost, none twice, whoever is killed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from run_directories import make_run
from sweep_trainings import GRID, RANDOM, Killed, Trainings, lives

from surefoot.cli import main
from surefoot.runs.sweep import study as study_module
from surefoot.runs.sweep import trainings
from surefoot.runs.sweep.settings import parse_plan
from surefoot.runs.sweep.study import Study
from surefoot.runs.sweep.trainings import run_trials

pytest.importorskip("optuna")
STORAGES = {"sqlite": "sqlite:///shared.db", "journal": "shared.log"}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def machine(name: str, text: str, storage: str = STORAGES["sqlite"]) -> Study:
    return Study(parse_plan(f"{text}storage: {storage}\n"), Path(name, "sweep"))


def train(study: Study, launch: Trainings) -> None:
    run_trials(study, 1, launch, lambda line: None, wait=lambda: None)


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES)
@pytest.mark.parametrize("text", [GRID, RANDOM], ids=["grid", "random"])
def test_two_machines_share_the_trials_of_one_storage(storage, text):
    one, other = machine("one", text, storage), machine("other", text, storage)
    claims = []
    while (claim := (one, other)[len(claims) % 2].claim()) is not None:
        claims.append(claim)
    assert [claim.number for claim in claims] == list(range(one.plan.trials))
    assert one.claim() is other.claim() is None
    if text == GRID:
        values = [tuple(claim.values.values()) for claim in claims]
        assert values == [(0.01, 16), (0.01, 32), (0.1, 16), (0.1, 32)]
    assert [number for number, _ in other.elsewhere()] == [claim.number for claim in claims[::2]]
    assert str(Path("one", "sweep").resolve()) in other.elsewhere()[0][1]


def test_two_that_begin_the_last_trial_at_once_do_not_both(monkeypatch):
    one, other = machine("one", RANDOM), machine("other", RANDOM)
    for _ in range(4):
        one.claim()
    before = other.trials()
    last = one.claim()
    with monkeypatch.context() as patched:
        patched.setattr(other, "trials", lambda: before)  # read before the other machine wrote
        assert last.number == 4 and other.claim() is None
    assert len(other.trials()) == 5 and other.claim() is None
    raised = machine("other", RANDOM.replace("trials: 5", "trials: 7"))
    assert [raised.claim().number for _ in range(2)] == [5, 6], "what was begun too much is used once it is not"


@pytest.mark.parametrize("text", [GRID, RANDOM], ids=["grid", "random"])
def test_killed_before_any_write_and_begun_again_none_is_lost_or_done_twice(text, monkeypatch):
    draw, launches, died = random.Random(1), (Trainings(), Trainings()), 0
    for turn, _ in enumerate(lives(monkeypatch, [draw.choice((1, 1, 2)) for _ in range(60)])):
        name, launch = (("one", launches[0]), ("other", launches[1]))[turn % 2]
        try:
            study = machine(name, text)
            if study.finished():
                break
            with monkeypatch.context() as patched:
                patched.setattr(study, "finished", lambda: True)  # not waiting for the other one
                train(study, launch)
        except Killed:
            died += 1
    trials = study.trials()
    assert died > 7 and len(trials) == study.plan.trials and all(trial.state.name == "COMPLETE" for trial in trials)
    ended = [int(path.name.removeprefix("trial-")) for launch in launches for path in launch.ended]
    assert sorted(ended) == list(range(len(trials))), "each was trained to its end once, by one of them"
    assert min(len(launch.ended) for launch in launches) > 0


def test_a_machine_that_will_not_come_back_is_named_and_its_trials_taken_over_on_request(monkeypatch, capsys):
    lost = machine("lost", GRID)
    left = lost.claim()
    study, launch, said = machine("here", GRID), Trainings(), []

    def wait():
        if said and "being trained by others" in said[-1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(study, 1, launch, said.append, wait=wait)
    assert f"trial 0 in {study.elsewhere()[0][1]}" in said[-1] and "--take-over" in said[-1]
    assert len(launch.ended) == 3
    Path("sweep.yaml").write_text(f"{GRID}storage: {STORAGES['sqlite']}\n")
    monkeypatch.setattr(trainings, "launch", lambda *args, threads: launch(*args))
    monkeypatch.setattr(trainings, "_POLL_S", 0.0)
    assert main(["sweep", "sweep.yaml", "--dir", "here/sweep", "--take-over"]) == 0
    assert launch.ended[-1] == Path("here/sweep/trial-00000") and study.trials()[0].value == 0.01
    left.tell(0.9, "complete")
    assert study.trials()[0].value == 0.01, "the machine was there after all: it is not its trial any more"


def test_a_home_that_a_kill_left_half_made_is_made_anew():
    machine("one", GRID)
    home = Path("one/sweep/.sweep/locks/home")
    kept = home.read_text()
    assert machine("one", GRID)._home == kept
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study_module.files.system, "rename", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            machine("new", GRID)
    assert machine("new", GRID)._home not in ("", kept)


def test_two_that_make_the_storage_s_tables_at_once_both_begin(monkeypatch):
    import optuna

    errors = ["UNIQUE constraint failed: alembic_version.version_num", "table study_directions already exists"]
    begin = optuna.create_study

    def create_study(**how):
        if errors:
            raise RuntimeError(errors.pop())
        return begin(**how)

    monkeypatch.setattr(optuna, "create_study", create_study)
    monkeypatch.setattr(study_module, "_PAUSE_S", 0.0)
    assert machine("one", GRID).claim().number == 0 and not errors


def test_two_sweeps_of_one_name_on_one_storage_are_not_mixed():
    machine("one", GRID)
    with pytest.raises(Exception, match="begun with another"):
        machine("other", RANDOM)


def test_a_run_directory_of_before_is_gone_on_with_by_the_machine_that_has_it():
    study, launch = machine("one", GRID), Trainings()
    study.claim().release()
    make_run(Path("one/sweep/trial-00000"), [0.01], status="interrupted", settings={"optimizer.lr": 0.01})
    train(machine("one", GRID), launch)
    assert [path.name for path in launch.ended] == [f"trial-{number:05d}" for number in range(4)]
