"""`surefoot verify --ranks`: each number of processes, killed in each way; torchrun has a stand-in."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from pathlib import Path

import pytest

from surefoot.cli import main
from surefoot.proof import Job, compare, culprits, drive, job

# As torchrun: so many processes of a program; where one of them ends otherwise than well, the others do too.
LAUNCHER = """
import os, subprocess, sys
words = sys.argv[1:]
size, logs = int(words[words.index("--nproc-per-node") + 1]), words[words.index("--log-dir") + 1]
os.makedirs(logs, exist_ok=True)
program = words[words.index("--log-dir") + 2:]
program = program[1:] if program[0] == "--no-python" else [sys.executable, *program]
ranks = [subprocess.Popen(program, env=os.environ | {"RANK": str(r), "WORLD_SIZE": str(size)}) for r in range(size)]
while ranks:
    pid, status = os.wait()
    if status:
        for rank in ranks:
            rank.kill()
        sys.exit(1)
    ranks = [rank for rank in ranks if rank.pid != pid]
"""
# A run of ten steps that goes on where it was. Each life but the first three and the last stops after its step.
PROGRAM = """
import json, os, pathlib, time
rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
run = pathlib.Path("run")
run.mkdir(exist_ok=True)
def write(path, text):
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)
if rank == 0:
    told = pathlib.Path(os.environ["TOLD"])
    life = len(told.read_text().split()) if told.exists() else 0
    if not (run / "run.json").exists():
        write(run / "run.json", json.dumps({"conditions": {}}))
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    for step in range(len(lines) + 1, 11):
        lines.append(json.dumps({"kind": "step", "step": step, "loss": LOSS, "wall_s": 0}))
        write(run / "metrics.jsonl", "".join(line + "\\n" for line in lines))
        if 3 <= life < int(os.environ.get("LIVES", "0")):
            break
    with open(told, "a") as file:
        print(size, file=file)
    time.sleep(1000 if 3 <= life < int(os.environ.get("LIVES", "0")) else 0)
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A directory with `launcher.py` in place of torchrun and a `train.py` that tells its sizes to `told`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    monkeypatch.setattr(job, "TORCHRUN", (str(tmp_path / "launcher.py"),))
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    (tmp_path / "train.py").write_text(PROGRAM.replace("LOSS", "0.5"))
    return tmp_path


def test_each_number_is_run_untouched_and_then_killed_in_each_way_by_turns(here, monkeypatch, capsys):
    lives = iter(range(4, 10))

    def after_its_step(*_):
        life = next(lives)
        while len((here / "told").read_text().split()) < life:
            os.sched_yield()
        return 0.0

    monkeypatch.setattr(drive, "_instant", after_its_step)
    monkeypatch.setenv("LIVES", "9")
    words = ["--ranks", "1,2,3", "--kills", "6", "--keep", "runs", "--", "python", "train.py"]
    assert main(["verify", *words]) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    assert "identical: untouched in 1, 2, 3 processes, and killed 6 times (at step 1, 2, 3, 4, 5, 6) and gone on" in out
    kills = [
        re.sub("rank .", "a rank", line.partition(": ")[2]) for line in out.splitlines() if line.startswith("kill ")
    ]
    assert kills == [
        "at step 1",
        "a rank, at step 2",
        "torchrun, at step 3",
        "at step 4",
        "all processes, at step 5",
        "a rank, at step 6",
    ]
    assert (here / "told").read_text().split() == [*"1231231231"]
    kept = sorted(path.name for path in (here / "runs").iterdir())
    assert kept == ["killed", "untouched", "untouched-2", "untouched-3"]


def test_the_seconds_are_of_the_untouched_run_also_where_a_later_one_reached_its_end_sooner(here, monkeypatch):
    timed, instants = drive._timed, iter([600.0, 0.0])  # the first life ends by itself, the second is killed at once
    monkeypatch.setattr(drive, "_timed", lambda *which: (5000.0, 1.0, timed(*which)[2]))
    monkeypatch.setattr(drive, "_instant", lambda *_: next(instants))
    verdict = drive.prove(Job.of_command(["python", "train.py"]), kills=1, seed=0, say=lambda _: None)
    assert verdict.same and verdict.seconds == 5000.0


def test_a_number_that_ends_otherwise_is_named_with_the_first_difference(here, monkeypatch, capsys):
    monkeypatch.setattr(culprits, "_watched", lambda job, *_: job)
    (here / "train.py").write_text(PROGRAM.replace("LOSS", "0.5 if step < 4 else 0.5 / size"))
    assert main(["verify", "--ranks", "1,2", "--kills", "1", "--", "python", "train.py"]) == 1
    verdict = capsys.readouterr().out.partition("DIFFERENT")[2]
    assert verdict.startswith(
        ", and not by any kill: 2 processes against 1: run: metrics.jsonl, entry 4: 1 process has {'kind'"
    )
    assert "'loss': '0.5'}, 2 processes have {" in verdict and "'loss': '0.25'}" in verdict
    assert "\n  two untouched runs in as many processes are equal, so their number decides" in verdict


SLEEPS = "import time; time.sleep(1000)"


def started(folder: Path, harm: str) -> tuple[str, list[int]]:
    """What was killed of three processes, and those that were left once all had ended."""
    three = Job((sys.executable, str(folder / "sleep.py"))).on(3)
    (folder / "sleep.py").write_text(SLEEPS)
    with three.start(folder / "home") as running:
        while len(ranks := [pair for agent in children(running) for pair in job._ranks_of(agent)]) < 3:
            assert running.code is None
            os.sched_yield()
        what = running.harm(harm, random.Random(0))
        assert running.wait(60)
    return what, [pid for _, pid in ranks if Path(f"/proc/{pid}").exists()]


def children(running) -> list[int]:
    return job.supervisor.children_of(running.process.pid)


@pytest.mark.parametrize(("harm", "what"), [("one", "rank 1"), ("agent", "torchrun"), ("all", "all processes")])
def test_whatever_is_killed_all_have_ended(here, harm, what):
    assert started(here, harm) == (what, [])


def test_children_of_a_parent_that_goes_while_they_are_looked_at_are_ended(monkeypatch):
    """9 is torchrun, found alive, waited for at once; 12, its child, is the supervisor's from then on."""
    looks = iter([[9], [], [12], [12], [], []])
    alive, killed = {12}, []
    monkeypatch.setattr(job.supervisor, "children_of", lambda process: next(looks))
    monkeypatch.setattr(job.supervisor, "_reaped", lambda child: child not in alive)
    monkeypatch.setattr(os, "kill", lambda child, sent: killed.append((child, sent)) or alive.discard(child))
    job.supervisor.end_descendants()
    assert killed == [(12, signal.SIGKILL)] and not alive and next(looks, None) is None


def test_of_torchruns_processes_none_outlives_verify(here):
    """Not even where verify gets SIGKILL: its supervisor ends what has lost its parent."""
    (here / "sleep.py").write_text(SLEEPS)
    child = os.fork()
    if child == 0:
        running = Job((sys.executable, str(here / "sleep.py"))).on(2).start(here / "home")
        while len(ranks := [pair for agent in children(running) for pair in job._ranks_of(agent)]) < 2:
            os.sched_yield()
        (here / "pids").write_text(json.dumps([running.process.pid, *(pid for _, pid in ranks)]))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    supervisor, *ranks = json.loads((here / "pids").read_text())
    while Path(f"/proc/{supervisor}/stat").exists() and state(supervisor) != "Z":  # at once; a fault hangs here
        os.sched_yield()
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists() and state(pid) != "Z"]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_script_is_given_to_torchrun_and_another_program_as_one(tmp_path):
    home = tmp_path / "logs"
    front = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--log-dir", str(home)]
    for words, expected in (
        (("/usr/bin/python3", "train.py", "--lr", "1"), ["/usr/bin/python3", *front, "train.py", "--lr", "1"]),
        (("/usr/bin/python3", "-m", "mine"), ["/usr/bin/python3", *front, "-m", "mine"]),
        (("/usr/bin/python3", "-c", "pass"), [sys.executable, *front, "--no-python", "/usr/bin/python3", "-c", "pass"]),
        (("/bin/sh", "train.sh"), [sys.executable, *front, "--no-python", "/bin/sh", "train.sh"]),
    ):
        assert Job(words).on(2)._under_torchrun(home) == expected
        assert Job(words)._under_torchrun(home) == list(words)


PRINTED = """r: 3 epochs of 10 steps
surefoot: epoch 1, step 2: the loss is nan
W1128 18:06:57.873000 16577 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 16714 closing SIGTERM
mine: a line of the other process
E1128 18:06:57.940000 16577 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) local_rank: 0
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
====
"""


def test_of_a_run_that_fails_what_torchrun_says_of_itself_is_left_out():
    kept = job._without_torchrun(PRINTED)
    assert kept.splitlines() == [*PRINTED.splitlines()[:2], "mine: a line of the other process"]
    assert job._without_torchrun("as it is\nE1 mine\n") == "as it is\nE1 mine\n"


RECIPE = """
model: {name: MLP, hidden: [4]}
data: {name: garments, train_size: 20, val_size: 10, batch_size: 10}
loss: CrossEntropyLoss
optimizer: {name: SGD, lr: 0.1}
epochs: 1
"""
MISTAKES = [
    (
        ["--ranks", "1,2,3"],
        "--ranks: with 3 micro-batches runs in 1, 3 processes end with the same bits, and in 2 with",
    ),
    (
        ["--ranks", "2,4", "micro_batches=6"],
        "--ranks: with 6 micro-batches runs in 1, 3, 6 processes end with the same",
    ),
    (["--ranks", "1,2", "parallel=none"], "--ranks: the recipe says parallel: none"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda value: " ".join(value)[:30])
def test_what_cannot_be_equal_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert main(["verify", "r.yaml", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"surefoot: {message}") and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("text", ["", "two", "0", "2,2", "1,,2", "1 2", "-1", "2.5"])
def test_numbers_that_are_none_are_refused(capsys, text):
    with pytest.raises(SystemExit) as caught:
        main(["verify", "quickstart", f"--ranks={text}"])
    assert caught.value.code == 2 and "give numbers of processes, each once, such as 1,2,4" in capsys.readouterr().err


def test_a_difference_is_told_by_the_names_of_its_sides(tmp_path):
    for name, step in (("one", 3), ("two", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"conditions": {"world.ranks": step}}))
    difference, _ = compare(tmp_path / "one", tmp_path / "two", sides=("1 process has", "2 processes have"))
    assert difference == "run.json, conditions: world.ranks: 1 process has 3, 2 processes have 4"


def test_the_summary_says_which_numbers_were_compared():
    verdict = drive.Verdict(2, 13, None, (3, 9), processes=(1, 2, 4))
    assert verdict.summary() == (
        "identical: untouched in 1, 2, 4 processes, and killed 2 times (at step 3, 9) and gone on with in 1, 2, 4, the "
        "run ended with the same bits, 13 items compared as bytes"
    )


def test_the_page_prints_what_is_said():
    page = (Path(__file__).resolve().parents[1] / "docs/distributed.md").read_text("utf-8")
    block = page.partition("$ surefoot verify r.yaml --ranks 1,2,4 --kills 6\n")[2].partition("```")[0]
    *lines, last = block.splitlines()
    steps = tuple(int(line.rpartition(" ")[2]) for line in lines if line.startswith("kill "))
    assert last == drive.Verdict(6, int(last.split()[-5]), None, steps, processes=(1, 2, 4)).summary()
