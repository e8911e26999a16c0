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
from torch import nn

from surefoot import files
from surefoot.checkpoint import Checkpointer, ConditionsChanged, RunDirectory, code_of, scan, store
from surefoot.checkpoint.conditions import compare, environment, require_same
from surefoot.checkpoint.policy import Every, Keep
from surefoot.errors import RunFailed, Stopped, UsageError
from surefoot.tracking import JournalFile

ROOT = Path(__file__).resolve().parents[1]


def model() -> nn.Module:
    return nn.Linear(3, 2)


def steps_of(run: Path) -> list[int]:
    return [status.step for status in scan(run)]


def saver_for(run: Path, net: nn.Module | None = None, **options) -> Checkpointer:
    net = model() if net is None else net
    options.setdefault("every", "1 step")
    return Checkpointer(run, model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), **options)


# ------------------------------------------------------------------------------------------ when, and what stays


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


# ------------------------------------------------------------------------------------------ what is refused


def test_a_finished_run_resumes_to_its_end(run_dir):
    with saver_for(run_dir) as saver:
        assert saver.resume() is None
        saver.step()
    assert json.loads((run_dir / "run.json").read_text())["status"] == "done"
    with saver_for(run_dir) as saver:
        assert saver.resume().step == 1


def test_starting_over_is_never_silent(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
    with saver_for(run_dir) as saver, pytest.raises(UsageError, match="call resume"):
        saver.step()
    for status in scan(run_dir):
        for path in status.path.iterdir():
            path.unlink()
        status.path.rmdir()
    with saver_for(run_dir) as saver, pytest.raises(UsageError, match="its checkpoints are gone"):
        saver.resume()


def test_all_differences_are_told_at_once_and_nothing_changes(run_dir):
    old = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with saver_for(run_dir, old) as saver:
        saver.step()
    new = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False), nn.BatchNorm1d(2))
    before = [tensor.clone() for tensor in new.state_dict().values()]
    with saver_for(run_dir, new) as saver, pytest.raises(UsageError) as caught:
        saver.resume()
    text = str(caught.value)
    for told in (
        "'0.weight' is float32 (4, 3) in the checkpoint and float32 (5, 3) in the model",
        "'1.bias' is in the checkpoint and not in the model",
        "'2.running_mean' is in the model and not in the checkpoint",
        "optimizer: group 0 holds other parameters",
    ):
        assert told in text
    assert all(map(torch.equal, before, new.state_dict().values()))


def test_a_dtype_that_differs_is_refused(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
    with saver_for(run_dir, model().double()) as saver, pytest.raises(UsageError, match=r"float32 .* float64"):
        saver.resume()


def test_missing_and_surplus_objects_are_refused(run_dir):
    net = model()
    with Checkpointer(run_dir, model=net, scaler=torch.amp.GradScaler("cpu"), box={}, every="1 step") as saver:
        saver.step()
    with Checkpointer(run_dir, model=net, other={}) as saver, pytest.raises(UsageError) as caught:
        saver.resume()
    assert "other: its state is missing" in str(caught.value) and "scaler: the checkpoint holds" in str(caught.value)


def test_another_optimizer_is_refused(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
    net = model()
    with (
        Checkpointer(run_dir, model=net, optimizer=torch.optim.AdamW(net.parameters())) as saver,
        pytest.raises(UsageError, match="is SGD in the checkpoint and AdamW here"),
    ):
        saver.resume()


def test_another_scheduler_is_refused(run_dir):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step, cosine = torch.optim.lr_scheduler.StepLR, torch.optim.lr_scheduler.CosineAnnealingLR
    with Checkpointer(run_dir, model=net, scheduler=step(optimizer, 2), every="1 step") as saver:
        saver.step()
    with (
        Checkpointer(run_dir, model=net, scheduler=cosine(optimizer, 2)) as saver,
        pytest.raises(UsageError, match="scheduler state differs"),
    ):
        saver.resume()


def test_untied_weights_are_refused(run_dir):
    def tied(same: bool) -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        if same:
            net[1].weight = net[0].weight
        return net

    with Checkpointer(run_dir, model=tied(True), every="1 step") as saver:
        saver.step()
    with Checkpointer(run_dir, model=tied(False)) as saver, pytest.raises(UsageError, match="tied names"):
        saver.resume()


@pytest.mark.parametrize(
    ("objects", "told"),
    [
        ({}, "nothing to save"),
        ({"thing": object()}, "has no state_dict"),
        ({"box": {"f": len}}, "objects/box/f: a builtins.builtin_function"),
        ({"model": nn.LazyLinear(2)}, "run one batch"),
    ],
)
def test_what_cannot_be_saved_is_told_before_anything_is_written(run_dir, objects, told):
    with pytest.raises(UsageError, match=told):
        Checkpointer(run_dir, **objects)
    assert not run_dir.exists()


# ------------------------------------------------------------------------------------------ the conditions


def test_changed_conditions_are_refused_field_by_field_and_allowed_by_name(run_dir):
    with saver_for(run_dir, conditions={"recipe.seed": 0, "data": "abc"}) as saver:
        saver.step()
    now = {"recipe.seed": 1, "data": "abd"}
    with saver_for(run_dir, conditions=now) as saver, pytest.raises(ConditionsChanged) as caught:
        saver.resume()
    assert "recipe.seed: was 0, is 1" in str(caught.value) and "data: was abc, is abd" in str(caught.value)
    assert "--allow data" in str(caught.value)
    lines: list[str] = []
    with saver_for(run_dir, conditions=now, allow=["recipe", "data"], say=lines.append) as saver:
        restored = saver.resume()
        saver.step()
    assert len(restored.changes) == 2 and "no longer exact" in lines[0]
    about = json.loads((run_dir / "run.json").read_text())
    assert about["inexact"] == ["data: was abc, is abd", "recipe.seed: was 0, is 1"]
    with saver_for(run_dir, conditions=now) as saver:  # once allowed, these are the run's conditions
        saver.resume()


def test_threads_are_a_condition(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with saver_for(run_dir) as saver, pytest.raises(ConditionsChanged, match=f"threads: was {threads}"):
            saver.resume()
    finally:
        torch.set_num_threads(threads)


def test_conditions_compare_types_and_absence():
    changes = compare({"a": 1, "b": True, "c": [1, 2]}, {"a": 1.0, "b": True, "c": (1, 2), "d": None})
    assert [change.name for change in changes] == ["a", "d"]
    assert require_same({"x.y": 1, "z": 1}, {"x.y": 2, "z": 1}, ["x"])[0].now == 2
    assert len(require_same({"a.seed": 1, "b.seed": 1}, {"a.seed": 2, "b.seed": 2}, ["seed"])) == 2
    for near in ("x", "y", "xy."):
        with pytest.raises(ConditionsChanged):
            require_same({"xy": 1}, {"xy": 2}, [near])


def test_what_changes_bits_is_recorded():
    assert {"versions.torch", "threads", "flags.mkldnn", "flags.fp32_precision.mkldnn.matmul", "device.cpu"} <= set(
        environment()
    )


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)


def test_the_code_of_user_parts_is_recorded_and_torchs_is_not():
    found = code_of([Mine(), model, len])
    assert f"code.{__name__}.py" in found
    assert not any(name.startswith(("code.torch", "code.surefoot")) for name in found)
    assert all(len(digest) == 64 for digest in found.values())


# ------------------------------------------------------------------------------------------ the directory


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


# ------------------------------------------------------------------------------------------ saving in the background


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


# ------------------------------------------------------------------------------------------ the journal


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


# ------------------------------------------------------------------------------------------ signals


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


# ------------------------------------------------------------------------------------------ the example


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


def test_a_state_of_more_brackets_than_can_be_read_back_is_refused_before_the_first_step(run_dir):
    class History:
        def __init__(self, count):
            self.count = count

        def state_dict(self):
            return {"values": [(1,)] * self.count}

        def load_state_dict(self, state):
            self.count = len(state["values"])

    with pytest.raises(UsageError, match=r"takes \d+ lists and objects .* largest part is objects/history"):
        saver_for(run_dir, history=History(1_050_000))
    history = History(2)
    with saver_for(run_dir, history=history) as saver:
        saver.resume()
        saver.save()
        history.count = 1_050_000  # grown while it trained
        with pytest.raises(RunFailed, match="can be read back"):
            saver.save()
        history.count = 2
    with saver_for(run_dir, history=History(0)) as again:
        assert again.resume() is not None


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
