"""`surefoot verify -- COMMAND`: any script is killed and compared, nothing outlives verify, culprits are named."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from surefoot.cli import main
from surefoot.proof import Job, culprits, drive, watch
from surefoot.proof.job import Running

SCRIPT = """
import {imports}
import torch
from torch import nn
from surefoot.checkpoint import Checkpointer
from surefoot.data import Loader

def main():
    torch.manual_seed(0)
    {before}
    loader = Loader((torch.randn(32, 4), torch.randint(3, (32,))), batch_size=8, seed=0)
    model, history = nn.Linear(4, 3), {{"losses": []}}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saved = {{"model": model, "optimizer": optimizer, "loader": loader, "history": history}}
    with Checkpointer("runs/mine", every="2 steps", keep_last=None, **saved) as saver:
        saver.resume()
        while loader.epoch < 2:
            for x, y in loader:
                {step}
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y) * factor
                loss.backward()
                optimizer.step()
                history["losses"].append(loss.item())
                saver.step()
            saver.epoch()
    with open("out.txt", "w") as file:
        file.write(str(history))

main()
"""


def script(path: Path, step: str, before: str = "pass", imports: str = "os") -> Path:
    path.write_text(SCRIPT.format(step=step, before=before, imports=imports))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quiet(text: str) -> None:
    pass


# ------------------------------------------------------------------------------------------ processes


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


LIVES_ON = "setsid sleep 1000 & echo $!; sleep 1000"


def test_all_that_a_command_started_ends_with_it():
    """Also what left its process group, as worker processes of some launchers do."""
    with Running(["sh", "-c", LIVES_ON], None, os.environ) as running:
        grandchild = int(running.process.stdout.readline())
        assert alive(grandchild)
    assert not alive(grandchild) and running.code == 128 + signal.SIGKILL


def test_a_command_that_was_killed_never_seems_to_have_ended_well():
    """The command is waited for in two threads: here the one that kills it is always the first, and the last to end."""
    program = (
        "import os, threading; from surefoot.proof import supervisor\n"
        "wait, killpg = supervisor.subprocess.Popen.wait, os.killpg\n"
        "def late(process):\n"
        "    while os.path.exists(f'/proc/{process.pid}'):\n"
        "        os.sched_yield()\n"
        "    return wait(process)\n"
        "supervisor.subprocess.Popen.wait = late\n"
        "os.killpg = lambda *words: (threading.main_thread().join(0.3), killpg(*words))\n"
        "supervisor.main()\n"
    )
    lifeline, held = os.pipe()
    command = [sys.executable, "-c", program, str(lifeline), "sleep", "1000"]
    with subprocess.Popen(command, pass_fds=[lifeline], start_new_session=True) as process:
        os.close(lifeline)
        os.close(held)
    assert process.returncode == -signal.SIGKILL


def test_what_a_command_leaves_behind_when_it_ends_is_ended():
    with Running(["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & echo $!"], None, os.environ) as running:
        grandchild = int(running.process.stdout.readline())
        assert running.wait()
    assert not alive(grandchild) and running.code == 0


def test_a_command_ends_with_the_process_that_started_it():
    program = (
        "import os, sys; from surefoot.proof.job import Running\n"
        f"running = Running(['sh', '-c', {LIVES_ON!r}], None, os.environ)\n"
        "print(running.process.pid, running.process.stdout.readline().strip(), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    supervisor, grandchild = map(int, ended.stdout.split())
    while alive(supervisor):  # it ends by itself, at once; a test that hangs here has found a fault
        os.sched_yield()
    assert not alive(grandchild)


# ------------------------------------------------------------------------------------------ what is compared


def test_a_script_killed_at_any_instant_ends_as_the_untouched_one(here, capsys):
    """Nobody seeds numpy here: each process has another state of it. No result hangs on it, so it does not count."""
    script(here / "train.py", "factor = 1 + loader.epoch")
    assert main(["verify", "--kills", "1", "--compare", "out.txt", "--keep", "both", "--", "python", "train.py"]) == 0
    said = capsys.readouterr().out
    assert "identical: killed 1 time (at step " in said
    assert (here / "both" / "killed" / "out.txt").exists() and not (here / "runs").exists()


def test_a_file_that_differs_is_named(here):
    for name, text in (("untouched", "1"), ("killed", "2")):
        folder = here / name / "runs" / "mine"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"conditions": {}}')
        (here / name / "out.txt").write_text(text)
    (here / "train.py").write_text("")
    job = Job.of_command(["python", "train.py"], compared=["*.txt"])
    assert drive._compare(job, here / "untouched", here / "killed")[0] == "out.txt: first different byte is 0 of 1"
    (here / "killed" / "runs" / "mine").rename(here / "killed" / "runs" / "other")
    difference, _ = drive._compare(job, here / "untouched", here / "killed")
    assert difference == "untouched has the runs runs/mine, killed has runs/other"


# ------------------------------------------------------------------------------------------ culprits


def difference(one: Path, other: Path, job: Job) -> str | None:
    return drive._compare(job, one, other)[0]


def test_a_counter_that_no_checkpoint_has_is_named(here):
    path = script(here / "train.py", "count += 1; factor = 1 + count / 10", before="count = 0")
    job = Job.of_command(["python", str(path)])
    found = culprits.find_culprits(job, here, lambda one, other: difference(one, other, job), quiet)
    assert len(found) == 1 and found[0].startswith(
        "count in main() of train.py: 2 at step 2, 0 after a resume there: it is in no checkpoint"
    )


def test_a_generator_without_a_seed_is_named_by_its_line(here, monkeypatch):
    monkeypatch.setattr(culprits, "_PROBES", ())
    path = script(
        here / "train.py", "factor = 1 + noise.random()", before="noise = numpy.random.default_rng()", imports="numpy"
    )
    job = Job.of_command(["python", str(path)])
    found = culprits.find_culprits(job, here, lambda one, other: difference(one, other, job), quiet)
    assert found[0] == "it gives another result each time, without any kill"
    assert found[1] == f"{path}:10: numpy.random.default_rng() without a seed"


WATCHED = {
    "sparse": lambda n: torch.tensor([0.0, n]).to_sparse(),
    "conjugated": lambda n: torch.tensor([n + 1j]).conj(),
    "a RandomState": numpy.random.RandomState,
    "without data": lambda n: torch.empty(n, device="meta"),
}


@pytest.mark.parametrize("name", WATCHED)
def test_variables_of_each_kind_are_told_apart(name):
    make = WATCHED[name]
    assert watch._state(make(1)) == watch._state(make(1)) != watch._state(make(2))


def test_libraries_wherever_they_are_installed_are_not_the_users_code(here):
    users = watch.Watch(here / "log", 0)._is_users
    assert users("/home/me/train.py") and not users(torch.__file__) and not users(os.__file__)
    assert not users("/home/me/.local/lib/python3.11/site-packages/numpy/__init__.py")
    assert not users("/usr/lib/python3/dist-packages/numpy/__init__.py")


# ------------------------------------------------------------------------------------------ mistakes

MISTAKES = [
    (["verify"], "give a recipe, or a command after --"),
    (["verify", "quickstart", "--", "python", "x.py"], "give a recipe, or a command after --"),
    (["verify", "quickstart", "--compare", "x"], "--with and --compare are for a command"),
    (["verify", "--", "no-such-program"], "no-such-program: no such program; after -- comes a command"),
    (["verify", "--", "python", "trian.py"], "trian.py: there is no such script; name it by its path"),
    (["verify", "--with", "nothing", "--", "true"], "--with nothing: there is no such file or directory"),
    (["verify", "--compare", "../x.png", "--", "true"], "--compare ../x.png: each run has a directory of its own"),
    (["verify", "--compare", "", "--", "true"], "--compare: a name or a pattern is missing"),
    (["verify", "--with", "/", "--with", "//", "--", "true"], "--with / --with //: each is linked where"),
    (["verify", "--", "true"], "the command ended well and left no run directory where it ran"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_one_message(here, capsys, words, message):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"surefoot: {message}") and said.count("\n") == 1
    assert not list(here.iterdir())


def test_a_command_that_fails_is_shown_with_what_it_printed(here, capsys):
    assert main(["verify", "--", "sh", "-c", "echo on the way; echo broken >&2; exit 3"]) == 1
    message = "surefoot: the run failed (exit code 3):\non the way\nbroken\n(`surefoot explain verify` tells more)\n"
    assert capsys.readouterr().err == message


def test_a_file_to_compare_that_is_not_there_is_named(here, capsys):
    program = "mkdir run; echo '{\"conditions\": {}}' > run/run.json"
    assert main(["verify", "--kills", "1", "--compare", "*.png", "--", "sh", "-c", program]) == 2
    said = capsys.readouterr()
    assert "--compare *.png: the command left no such file where it ran" in said.err
    assert "now the same" not in said.out  # before any kill


def test_files_of_a_command_are_found_from_where_it_runs(here):
    (here / "train.py").write_text("")
    (here / "data").mkdir()
    job = Job.of_command(["python", "train.py", "--lr", "0.1"], links=["data"])
    assert job.command == (sys.executable, str(here / "train.py"), "--lr", "0.1")
    with job.start(here / "home") as running:
        running.wait()
    assert (here / "home" / "data").resolve() == here / "data"


def test_a_program_and_a_module_are_no_directories_of_their_names(here):
    for name in ("python", "sh", "package"):
        (here / name).mkdir()
    (here / "train.py").write_text("")
    assert Job.of_command(["python", "train.py"]).command == (sys.executable, str(here / "train.py"))
    assert Job.of_command(["sh", "train.py"]).command == (shutil.which("sh"), str(here / "train.py"))
    assert Job.of_command(["python", "-u", "-m", "package"]).command == (sys.executable, "-u", "-m", "package")
    assert Job.of_command(["python", "train.py", "-m", "package"]).command[-1] == str(here / "package")


def test_the_summary_has_the_culprits_below_it():
    verdict = drive.Verdict(1, 3, "metrics.jsonl, entry 3", (7,), ("count in main()",))
    assert verdict.summary() == "DIFFERENT after 1 kill (at step 7): metrics.jsonl, entry 3\n  count in main()"
