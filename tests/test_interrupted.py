"""Ended early: signals before the loop, endless waits, what the machine will not give, leftovers of `verify`."""

from __future__ import annotations

import errno
import os
import pkgutil
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch

from surefoot import proof
from surefoot.checkpoint import Checkpointer, scan
from surefoot.cli import main, train
from surefoot.cli.tracebacks import print_error
from surefoot.errors import Stopped
from surefoot.proof import Job, drive
from surefoot.proof.job import Running
from surefoot.signals import Interrupted, SignalWatch, raised

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _usual_handlers():
    """As a shell starts a program, whatever this one was started with."""
    before = {s: signal.signal(s, signal.SIG_DFL) for s in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


# ------------------------------------------------------------------------------------------ before the loop


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("place", ["build.build", "recipe.load_recipe", "data.Loader.peek"])
def test_a_signal_before_the_loop_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, signum, place):
    monkeypatch.setattr(f"surefoot.{place}", lambda *_, **__: signal.raise_signal(signum))
    words = ["quickstart", "data.train_size=64", "data.val_size=32", "execution.threads=1"]
    assert main(["train", *words]) == 128 + signum
    assert capsys.readouterr().err == f"surefoot: stopped by {signal.Signals(signum).name}\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_python_would_lose_in_a_destructor_is_raised_again():
    class Late:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted), raised():
        Late()
        signal.pause()  # ends with the alarm that raises it again


def test_an_ignored_signal_stays_ignored():
    """`nohup surefoot train` outlives its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with raised():
        signal.raise_signal(signal.SIGHUP)
        with SignalWatch() as watch:
            signal.raise_signal(signal.SIGHUP)
            assert watch.stop_requested is None


def test_sighup_is_sigterm():
    with SignalWatch() as watch:
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(Stopped) as stopped:
            watch.check()
    assert stopped.value.exit_code == 129


def test_under_torchrun_only_a_second_sigint_stops_at_once(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    with SignalWatch() as watch:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert watch.stop_requested == signal.SIGTERM and not watch.at_once
        with pytest.raises(Stopped, match="at once"):
            signal.raise_signal(signal.SIGINT)


# ------------------------------------------------------------------------------------------ waits and removals


def checkpointer(path: Path, **settings) -> Checkpointer:
    return Checkpointer(path, model=torch.nn.Linear(2, 1), every="1 step", keep_last=2, signals=False, **settings)


def test_where_no_thread_can_start_a_checkpoint_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    told: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with checkpointer(tmp_path / "run", say=told.append) as saver:
        saver.resume()
        saver.step()
        saver.step()
    assert [status.valid for status in scan(tmp_path / "run")] == [True, True]
    assert told == ["checkpoints are written while the training waits: can't start new thread"]


@pytest.mark.parametrize("at", ["os.lstat", "os.listdir", "surefoot.files.read_bounded", "surefoot.files.sha256_of"])
def test_a_checkpoint_that_goes_away_while_it_is_read_is_no_damage(tmp_path, monkeypatch, at):
    """Before each kind of call that looks at it."""
    with checkpointer(tmp_path / "run") as saver:
        saver.resume()
        saver.step()
        saver.step()
    oldest = tmp_path / "run" / "checkpoints" / "step-000000001"
    for call in range(6):
        calls = iter(range(100))
        shutil.copytree(tmp_path / "run", tmp_path / f"copy{call}")

        inner = pkgutil.resolve_name(at)

        def gone(path, *rest, inner=inner, calls=calls, call=call, **named):
            folder = tmp_path / f"copy{call}" / "checkpoints" / oldest.name
            if str(path).startswith(str(folder)) and next(calls) == call and folder.exists():
                folder.rename(tmp_path / f"removed{call}")
            return inner(path, *rest, **named)

        with monkeypatch.context() as patch:
            patch.setattr(at, gone)
            found = [(status.step, status.valid) for status in scan(tmp_path / f"copy{call}")]
        assert found[-1] == (2, True)
        still_there = (tmp_path / f"copy{call}" / "checkpoints" / oldest.name).exists()
        assert found[:-1] == ([(1, True)] if still_there else [])


def test_runs_of_one_second_have_directories_of_their_own(monkeypatch):
    class Now:
        @staticmethod
        def now():
            import datetime

            return datetime.datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(train, "datetime", Now)
    names = [train.new_run_directory("mine").name for _ in range(3)]
    assert names == ["20260102-030405", "20260102-030405-2", "20260102-030405-3"]


def test_a_place_that_cannot_be_written_is_told(capsys):
    Path("runs").write_text("a file")
    assert main(["train", "quickstart"]) == 2
    assert "no run can be kept here: Not a directory; name a directory with --run DIR" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ what is told of an error

LACKING = [
    (MemoryError(), "no memory is left"),
    (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "/tmp/x: No space left on device; free some"),
    (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "set TMPDIR"),
    (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
    (RuntimeError("can't start new thread"), "ulimit -u"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "ulimit -v"),
    (ImportError("libtorch.so: failed to map segment from shared object"), "ulimit -v"),
]


def raised_from(source: str, filename: str, error: BaseException | None = None) -> BaseException:
    """An error as if it came from a file of that name."""
    try:
        exec(compile(source, filename, "exec"), {"error": error})
    except BaseException as caught:
        return caught.with_traceback(caught.__traceback__.tb_next)
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(("error", "told"), LACKING, ids=lambda value: str(value)[:30])
def test_what_the_machine_lacks_is_one_line_and_no_bug(capsys, error, told):
    ours = str(Path(proof.__file__).with_name("somewhere.py"))
    assert print_error(raised_from("raise error", ours, error)) == 1
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and "bug" not in said


def test_a_users_data_set_that_raises_in_a_worker_is_theirs(capsys):
    inner = "Traceback (most recent call last):\n  File \"/home/me/mine.py\", line 7, in __getitem__\nKeyError: 'x'"
    error = KeyError(f"Caught KeyError in DataLoader worker process 0.\nOriginal {inner}\n")
    assert print_error(raised_from("raise error", traceback.__file__, error)) == 1
    said = capsys.readouterr().err
    assert "your own code raised an error" in said and "see /home/me/mine.py:7" in said and "bug" not in said


def test_our_own_mistake_is_still_called_a_bug(capsys):
    assert print_error(raised_from("raise KeyError('ours')", proof.__file__)) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "this is a bug in surefoot" in said


def test_a_broken_package_beside_torch_is_not_the_users_own_code(capsys):
    import sysconfig

    package = Path(sysconfig.get_path("purelib")) / "torchvision" / "_meta.py"
    inner = compile("raise RuntimeError('operator torchvision::nms does not exist')", str(package), "exec")
    bootstrap = compile("exec(inner)", "<frozen importlib._bootstrap>", "exec")
    try:
        exec(compile("exec(bootstrap)", "/home/me/mine.py", "exec"), {"bootstrap": bootstrap, "inner": inner})
    except RuntimeError as caught:
        print_error(caught.with_traceback(caught.__traceback__.tb_next))
    said = capsys.readouterr().err
    assert "the installed package torchvision cannot be imported here" in said and "nms does not exist" in said
    assert "your own code" not in said and "bug" not in said


def test_too_little_address_space_for_torch_is_told_before_torch_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (400_000 * 1024, -1))
    assert main(["check", "quickstart"]) == 1
    assert "the address space is limited to 410 MB" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ verify


def test_verify_cleans_up_after_a_killed_one_and_leaves_a_living_one_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    long_ago = time.time() - 3600
    for name in ("surefoot-verify-left", "surefoot-verify-living", "surefoot-verify-new", "other"):
        (tmp_path / name).mkdir()
        if not name.endswith("new"):
            os.utime(tmp_path / name, (long_ago, long_ago))
    # A lock of another open file, as another process would hold it.
    with drive._locked(tmp_path / "surefoot-verify-living"), drive._temporary_home() as home:
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
            ["other", "surefoot-verify-living", "surefoot-verify-new", home.name]
        )
    assert not home.exists()


@pytest.mark.parametrize("signum", SIGNALS)
def test_verify_ended_by_a_signal_ends_its_runs_and_leaves_nothing(tmp_path, monkeypatch, capsys, signum):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = []

    def start(self, home):
        program = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
        started.append(Running([sys.executable, "-c", program], None, os.environ))
        return started[-1]

    def wait(self, seconds=None):
        self.process.stdout.readline()
        signal.raise_signal(signum)

    monkeypatch.setattr(Job, "start", start)
    monkeypatch.setattr(Running, "wait", wait)
    assert main(["verify", "quickstart"]) == 128 + signum
    assert capsys.readouterr().err == f"surefoot: stopped by {signal.Signals(signum).name}\n"
    assert started[0].code == 128 + signal.SIGKILL and not list(tmp_path.iterdir())
