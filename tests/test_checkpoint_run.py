"""A run around its checkpoints: when it saves, what it keeps, what it refuses, and what it tells."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from saving import model, saver_for, steps_of

from surefoot import files, safe_tensors
from surefoot.checkpoint import Checkpointer, RunDirectory, scan, store
from surefoot.checkpoint.run import Lock
from surefoot.errors import RunFailed, Stopped, UsageError
from surefoot.tracking import JournalFile

ROOT = Path(__file__).resolve().parents[1]


def test_one_run_at_a_time_even_in_one_process(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
        with pytest.raises(UsageError, match="already open in this process"):
            RunDirectory.open(run_dir)
        code = f"from surefoot.checkpoint import RunDirectory; RunDirectory.open({str(run_dir)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"in use by process {os.getpid()} on" in other.stderr
    RunDirectory.open(run_dir).close()


def test_a_file_left_by_a_killed_owner_is_no_lock(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
    (run_dir / "LOCK").write_text('{"pid": 1, "host": "elsewhere", "since": "2020-01-01"}')
    with saver_for(run_dir) as saver:
        assert saver.resume().step == 1


def test_a_directory_that_holds_a_run_is_not_made_again(run_dir):
    RunDirectory.create(run_dir).close()
    with pytest.raises(UsageError, match="already holds a run"):
        RunDirectory.create(run_dir)
    assert (run_dir / "run.json").exists()


@pytest.mark.parametrize("name", ["file/run", "file"])
def test_a_path_through_a_file_is_told(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used for a run"):
        RunDirectory.create(tmp_path / name)


def test_nothing_half_made_is_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.System, "write", full)
    with pytest.raises(UsageError, match="No space left"):
        RunDirectory.create(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_another_process_that_was_faster_keeps_its_name(tmp_path, monkeypatch):
    def taken(_):
        (tmp_path / "run" / "LOCK").touch()
        raise UsageError("this run is in use by another process")

    monkeypatch.setattr(Lock, "take", taken)
    with pytest.raises(UsageError, match="in use"):
        RunDirectory.create(tmp_path / "run")
    assert (tmp_path / "run" / "LOCK").exists()


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"id": "other", "sha256": "0"}'])
def test_a_damaged_run_json_is_written_again_from_the_checkpoint(run_dir, content):
    with saver_for(run_dir) as saver:
        saver.step()
        name = saver.run.id
    (run_dir / "run.json").unlink() if content is None else (run_dir / "run.json").write_bytes(content)
    lines: list[str] = []
    with saver_for(run_dir, say=lines.append) as saver:
        assert saver.resume().step == 1 and saver.run.id == name
    assert "was lost or damaged" in lines[0]


def test_a_checkpoint_of_another_run_does_not_count(tmp_path):
    for name in ("a", "b"):
        with saver_for(tmp_path / name) as saver:
            saver.step()
            if name == "b":
                saver.step()
    os.rename(tmp_path / "b/checkpoints/step-000000002", tmp_path / "a/checkpoints/step-000000002")
    lines: list[str] = []
    with saver_for(tmp_path / "a", say=lines.append, keep_last=1) as saver:
        assert saver.resume().step == 1
        for _ in range(4):
            saver.step()
    assert "belongs to run" in lines[0]
    assert (tmp_path / "a/checkpoints/step-000000002").exists()  # not ours to delete


def test_a_damaged_checkpoint_is_named_stepped_over_and_kept_aside(run_dir):
    with saver_for(run_dir) as saver:
        for _ in range(3):
            saver.step()
    target = run_dir / "checkpoints/step-000000003/model.safetensors"
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    lines: list[str] = []
    with saver_for(run_dir, say=lines.append) as saver:
        restored = saver.resume()
        assert restored.step == 2 and len(restored.skipped) == 1
        saver.step()
    assert str(target) in lines[0] and "SHA-256" in lines[0]
    names = sorted(os.listdir(run_dir / "checkpoints"))
    assert names[0].startswith("damaged-step-000000003") and names[-1] == "step-000000003"


def test_none_valid_stops(run_dir):
    with saver_for(run_dir) as saver:
        for _ in range(3):
            saver.step()
    for status in scan(run_dir):
        (status.path / "state.json").write_bytes(b"")
    with saver_for(run_dir, say=lambda _: None) as saver, pytest.raises(UsageError, match="none of 3 checkpoints"):
        saver.resume()
    assert len(os.listdir(run_dir / "checkpoints")) == 3


def test_leftovers_go_and_strangers_stay(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
    folder = run_dir / "checkpoints"
    leftovers = [".tmp-step-000000002-0123abcd", ".old-step-000000001-1-0123abcd"]
    strangers = ["notes", ".tmp-step-2-0123abcd", "step-000000009.bak", ".tmp-mine"]
    for name in leftovers + strangers:
        (folder / name).mkdir()
        (folder / name / "file").write_text("x")
    (folder / ".tmp-step-000000003-0123abcd").symlink_to(folder / "notes")
    with saver_for(run_dir) as saver:
        saver.resume()
    left = set(os.listdir(folder))
    assert not left & set(leftovers) and left >= set(strangers)
    assert (folder / "notes/file").exists()


def failing(operation: str, code: int):
    def fail(*_):
        raise OSError(code, os.strerror(code), "somewhere")

    return lambda monkeypatch: monkeypatch.setattr(files.System, operation, fail)


def test_a_failed_save_is_raised_at_the_next_step_and_the_older_one_stays(run_dir, monkeypatch):
    saver = saver_for(run_dir)
    saver.step()
    saver.wait()
    with monkeypatch.context() as patch:
        failing("fsync", errno.ENOSPC)(patch)
        saver.step()
        saver._writer._idle.wait()
    with pytest.raises(RunFailed, match="checkpoint of step 2 could not be written: No space left .* up to step 1"):
        saver.step()
    saver.close()
    assert steps_of(run_dir) == [1]
    assert os.listdir(run_dir / "checkpoints") == ["step-000000001"]


def test_the_last_save_is_awaited(run_dir, monkeypatch):
    gate = threading.Event()
    fsync = files.System.fsync
    monkeypatch.setattr(files.System, "fsync", lambda self, fd: (gate.wait(), fsync(fd))[1])
    gate.set()
    saver = saver_for(run_dir, every=None)
    saver.step()
    gate.clear()
    saver.save(wait=False)
    assert saver._writer.in_flight
    gate.set()
    saver.close()
    assert steps_of(run_dir) == [1]


def test_training_goes_on_while_a_copy_is_written(run_dir, monkeypatch):
    """What a checkpoint holds is the moment of the save, though parameters changed before a byte was written."""
    gate = threading.Event()
    mkdir = files.System.mkdir
    net = model()
    saver = saver_for(run_dir, net, every=None)
    monkeypatch.setattr(files.System, "mkdir", lambda self, path: (gate.wait(), mkdir(path))[1])
    saver.step()
    moment = net.weight.detach().clone()
    saver.save(wait=False)
    with torch.no_grad():
        net.weight.zero_()
    gate.set()
    saver.close()
    with saver_for(run_dir, net) as again:
        again.resume()
    assert torch.equal(net.weight, moment)


def test_the_journal_is_cut_back_to_the_checkpoint(run_dir, tmp_path):
    with JournalFile(tmp_path / "metrics.jsonl") as journal:
        with saver_for(run_dir, every=None, journal=journal) as saver:
            for i in range(3):
                journal.append({"step": i})
                saver.step()
            saver.save()
            journal.append({"step": "never happened"})
            saver._saved_at = (saver.steps, saver.epochs)
        with saver_for(run_dir, journal=journal) as saver:
            saver.resume()
    assert [json.loads(line)["step"] for line in journal.path.read_text().splitlines()] == [0, 1, 2]


def test_the_journal_is_on_the_disk_before_the_manifest(run_dir, monkeypatch):
    events: list[str] = []

    class Notes:
        offset = 0

        def sync(self) -> None:
            events.append("journal")

        def truncate(self, offset: int) -> None: ...

    write_new = files.write_new

    def noted(path, data):
        events.append(Path(path).name)
        return write_new(path, data)

    monkeypatch.setattr(files, "write_new", noted)
    with saver_for(run_dir, every=None, journal=Notes()) as saver:
        saver.step()
    names = [name for name in events if not name.startswith(".")]
    assert names == ["model.safetensors", "optimizer.safetensors", "state.json", "journal", "MANIFEST.json"]


def test_a_cut_journal_makes_the_newer_checkpoint_unusable(run_dir, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JournalFile(path) as journal, saver_for(run_dir, journal=journal) as saver:
        for i in range(2):
            journal.append({"step": i})
            saver.step()
    os.truncate(path, path.stat().st_size - 1)
    lines: list[str] = []
    with JournalFile(path) as journal, saver_for(run_dir, journal=journal, say=lines.append) as saver:
        assert saver.resume().step == 1
    assert "it was cut" in lines[0]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_boundary_and_stops(run_dir, signum):
    handler = signal.getsignal(signum)
    with pytest.raises(Stopped) as caught, saver_for(run_dir, every=None) as saver:
        saver.step()
        signal.raise_signal(signum)
        saver.step()
        pytest.fail("went on after the signal")
    assert caught.value.exit_code == 128 + signum and "after step 2; saved in" in str(caught.value)
    assert steps_of(run_dir) == [2]
    assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"
    assert signal.getsignal(signum) == handler


def test_sigusr1_saves_and_goes_on(run_dir):
    lines: list[str] = []
    with saver_for(run_dir, every=None, keep_last=None, say=lines.append) as saver:
        signal.raise_signal(signal.SIGUSR1)
        saver.step()
        saver.step()
    assert steps_of(run_dir) == [1, 2] and lines == ["saved at step 1"]


def test_a_second_signal_stops_at_once_and_what_was_saved_stays(run_dir):
    with pytest.raises(Stopped, match="at once"), saver_for(run_dir) as saver:
        saver.step()
        saver.wait()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("went on after the second signal")
    assert steps_of(run_dir) == [1]


def test_a_save_that_a_second_signal_leaves_ends_at_its_next_piece(run_dir, monkeypatch):
    """Its thread is waited for at exit: it would abort the process while the interpreter shuts down."""
    begun, released, at_exit = threading.Event(), threading.Event(), []
    monkeypatch.setattr("atexit.register", lambda *words: at_exit.append(words))

    class Stuck(files.System):
        def fsync(self, descriptor):
            if threading.current_thread().name == "surefoot-save":
                begun.set()
                released.wait()
            super().fsync(descriptor)

    monkeypatch.setattr(files, "system", Stuck())
    with pytest.raises(Stopped, match="at once"), saver_for(run_dir) as saver:
        saver.step()
        begun.wait()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    released.set()
    (join, seconds) = at_exit[-1]
    assert seconds > 0
    join()
    assert not [path.name for path in (run_dir / "checkpoints").iterdir() if path.is_dir()]


def test_no_thread_outlives_a_closed_run(run_dir):
    """One that frees tensors while the interpreter shuts down would abort the process after all was done."""
    before = set(threading.enumerate())  # others' runs in this process may never have been closed
    with saver_for(run_dir) as saver:
        saver.step()
    assert not [t for t in set(threading.enumerate()) - before if t.name == "surefoot-save"]


def test_outside_the_main_thread_no_handler_is_touched(run_dir):
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with saver_for(run_dir) as saver:
            saver.step()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before and steps_of(run_dir) == [1]


def test_an_error_in_the_loop_marks_the_run_failed_and_is_the_one_raised(run_dir):
    with pytest.raises(ZeroDivisionError), saver_for(run_dir) as saver:
        saver.step()
        _ = 1 / 0
    assert json.loads((run_dir / "run.json").read_text())["status"] == "failed"


def test_a_run_whose_last_save_fails_has_failed(run_dir, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunFailed, match="could not be written"), saver_for(run_dir, every=None) as saver:
        saver.step()
        monkeypatch.setattr(store, "begin", full)
    assert json.loads((run_dir / "run.json").read_text())["status"] == "failed"


def test_the_tutorials_loop_needs_at_most_five_lines():
    text = (ROOT / "examples/hand_loop.py").read_text()
    assert sum(line.rstrip().endswith("# (+)") for line in text.splitlines()) <= 5


def test_the_tutorials_loop_resumes_exactly(tmp_path, monkeypatch):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import hand_loop
    finally:
        sys.path.pop(0)
    whole = hand_loop.main(str(tmp_path / "whole"), 2, images=64).state_dict()
    step = Checkpointer.step

    def step_and_stop(self: Checkpointer) -> None:
        if self.steps == 21:  # in the middle of the second epoch
            signal.raise_signal(signal.SIGTERM)
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "step", step_and_stop)
        with pytest.raises(Stopped):
            hand_loop.main(str(tmp_path / "run"), 2, images=64)
    resumed = hand_loop.main(str(tmp_path / "run"), 2, images=64).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_more_tensors_than_can_be_read_back_are_refused_before_the_first_step(run_dir, monkeypatch):
    monkeypatch.setattr(safe_tensors, "MAX_TENSORS", 10)
    with pytest.raises(UsageError, match="at most 10 tensors"):
        saver_for(run_dir, losses={"values": [torch.zeros(()) for _ in range(20)]})
    assert not run_dir.exists()


def test_a_state_of_more_brackets_than_can_be_read_back_is_refused_before_the_first_step(run_dir, monkeypatch):
    monkeypatch.setattr(store, "MAX_STATE_CONTAINERS", 2_000)

    class History:
        def __init__(self, count):
            self.count = count

        def state_dict(self):
            return {"values": [(1,)] * self.count}

        def load_state_dict(self, state):
            self.count = len(state["values"])

    with pytest.raises(UsageError, match=r"takes \d+ lists and objects .* largest part is objects/history"):
        saver_for(run_dir, history=History(1_050))
    history = History(2)
    with saver_for(run_dir, history=history) as saver:
        saver.resume()
        saver.save()
        history.count = 1_050  # grown while it trained
        with pytest.raises(RunFailed, match="can be read back"):
            saver.save()
        history.count = 2
    with saver_for(run_dir, history=History(0)) as again:
        assert again.resume() is not None
