"""Progress: a live bar on a terminal, plain lines off it, and never in the way of the run."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import pty
import re
import shlex
import subprocess
import sys
import threading
import types

import pytest

from surefoot.errors import UsageError
from surefoot.text import duration, typed
from surefoot.tracking import Progress, RunInfo, RunRecords, Summary, make_progress
from surefoot.tracking import progress as module
from surefoot.tracking.progress import LiveProgress, PlainProgress, epoch_line

INFO = RunInfo("mine", epochs=2, steps_per_epoch=100, samples_per_step=4, details={"model": "LeNet5", "on": "cpu"})
SUMMARY = Summary(
    "done in 12.0 s",
    {"val accuracy": "96.00 %", "run": "runs/mine/1"},
    [("surefoot eval runs/mine/1", "evaluate it")],
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def step_record(step, **more):
    return {
        "kind": "step",
        "split": "train",
        "epoch": 0,
        "step": step,
        "loss": 0.5,
        "lr": [0.1],
        "wall_s": step / 100,
    } | more


def epoch_records(epoch=0):
    step = (epoch + 1) * 100
    for split, loss in (("train", 0.5), ("val", 0.25)):
        figures = {"loss": loss, "accuracy": 0.9, "lr": [0.1, 0.1], "wall_s": 3.0}
        yield {"kind": "epoch", "split": split, "epoch": epoch, "step": step} | figures


def drive(progress):
    progress.start(INFO)
    for step in range(10, 101, 10):
        progress.record(step_record(step))
    for record in epoch_records():
        progress.record(record)
    progress.epoch_done()
    progress.message("a finding [with brackets]")
    progress.finish(SUMMARY)
    progress.close()
    progress.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_off_a_terminal_there_are_only_plain_lines():
    stream = io.StringIO()
    progress = make_progress(stream)
    drive(progress)
    assert type(progress) is PlainProgress
    assert stream.getvalue() == (
        "mine: 2 epochs of 100 steps (model LeNet5, on cpu)\n"
        "epoch 1/2  train loss 0.5000 accuracy 90.00 %  val loss 0.2500 accuracy 90.00 %  lr 0.1  3.0 s\n"
        "a finding [with brackets]\n"
        "\ndone in 12.0 s\n"
        "  val accuracy  96.00 %\n"
        "  run           runs/mine/1\n"
        "next:\n"
        "  surefoot eval runs/mine/1  # evaluate it\n"
    )


def test_off_a_terminal_a_long_epoch_says_now_and_then_where_it_is(clock):
    stream = io.StringIO()
    progress = PlainProgress(stream)
    progress.start(INFO)
    for step in range(1, 51):
        clock[0] += 0.5
        progress.record(step_record(step))
    lines = stream.getvalue().splitlines()[1:]
    assert lines == [f"epoch 1/2  step {s}/200  loss 0.5000  lr 0.1  400 samples/s" for s in (20, 40)]


def test_on_a_terminal_the_bar_is_redrawn_at_most_ten_times_a_second(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    progress = make_progress(stream)
    assert type(progress) is LiveProgress
    progress.start(INFO)
    before = stream.getvalue().count("step ")
    for step in range(1, 1001):
        clock[0] += 0.01
        progress.record(step_record(step))
    progress.close()
    assert 90 <= stream.getvalue().count("step ") - before <= 100


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_bar_keeps_its_place_on_a_narrow_terminal(columns, clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    progress = make_progress(stream)
    progress.start(INFO)
    for step in (50, 120):
        clock[0] += 1
        progress.record(step_record(step))
    progress.close()
    drawn = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", stream.getvalue())]
    bars = [line for line in drawn if "step 120/200" in line]
    assert bars and all(len(re.findall("[━╴]", line)) >= 8 and len(line) <= columns for line in bars)


def test_on_a_terminal_no_thread_is_started_and_the_bar_goes(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    before = threading.active_count()
    progress = make_progress(stream)
    progress.start(INFO)
    assert threading.active_count() == before
    clock[0] += 1
    progress.record(step_record(50, loss=0.123))
    progress.close()
    text = stream.getvalue()
    assert text.endswith("\r\x1b[2K") and "\x1b[?" not in text  # nothing that a killed run would leave behind
    assert "epoch 1/2" in text and "step 50/200" in text and "0.1230" in text


@pytest.mark.parametrize(
    ("environment", "kind"),
    [({"TERM": "dumb"}, PlainProgress), ({"TERM": ""}, PlainProgress), ({"TERM": "xterm"}, LiveProgress)],
)
def test_a_terminal_that_cannot_draw_gets_plain_lines(monkeypatch, environment, kind):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert type(make_progress(Terminal())) is kind


def test_no_color_takes_the_colours_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = Terminal()
    drive(make_progress(coloured))
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", coloured.getvalue())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    drive(make_progress(plain))
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]", plain.getvalue())
    assert "a finding [with brackets]" in plain.getvalue()


def test_the_quiet_one_says_nothing(capfd):
    drive(Progress())
    assert capfd.readouterr() == ("", "")


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class GoneTerminal(Gone, Terminal):
    pass


@pytest.mark.parametrize("stream", [Gone, GoneTerminal])
def test_a_reader_that_leaves_silences_the_progress_and_not_the_run(stream, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(module, "_silence", lambda stream: None)  # pytest's own output is to stay
    drive(make_progress(stream()))
    closed = stream()
    closed.close()
    drive(make_progress(closed))


def test_the_interpreter_ends_well_after_its_reader_left():
    code = (
        "from surefoot.tracking import RunInfo, make_progress\n"
        "progress = make_progress()\n"
        "for index in range(20000): progress.message('x' * 50)\n"
        "import sys; print('the end', file=sys.stderr)\n"
    )
    shell = ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -1', sys.executable, code]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x" * 50 + "\n", "the end\n")


def test_on_a_real_terminal_the_last_screen_is_the_summary():
    """Through a pseudo-terminal, as a shell would run it."""
    main, side = pty.openpty()
    code = (
        "from test_tracking_progress import drive\n"
        "from surefoot.tracking import make_progress\n"
        "drive(make_progress())\n"
    )
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": os.path.dirname(__file__)}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=side, stderr=side, env=environment)
    os.close(side)
    data = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not piece:
            break
        data += piece
    os.close(main)
    assert child.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data.decode())
    assert "surefoot eval runs/mine/1" in text.splitlines()[-1]


def test_hints_are_shown_as_this_user_has_to_type_them(monkeypatch):
    monkeypatch.setenv("SUREFOOT_COMMAND", "python3 dev.py")
    stream = io.StringIO()
    make_progress(stream).finish(
        Summary("done", {}, [(typed("surefoot", "eval", "R"), "x"), (typed("tensorboard", "--logdir", "R"), "y")])
    )
    shown = stream.getvalue().splitlines()[-2:]
    assert [line.split("  # ")[0].strip() for line in shown] == [
        "python3 dev.py eval R",
        "python3 dev.py run tensorboard --logdir R",
    ]


def test_a_small_loss_is_no_row_of_zeros():
    record = {"kind": "epoch", "split": "val", "epoch": 0, "step": 1, "loss": 3.2171e-06, "mae": 0.00125, "r2": 0.0}
    assert epoch_line(RunInfo("mine", 2, 1), None, record) == "epoch 1/2  val loss 3.217e-06 mae 0.0013 r2 0.0000"


def test_an_epoch_without_validation_and_with_many_rates_is_one_line():
    (train, _) = epoch_records()
    line = epoch_line(INFO, train | {"lr": [0.1, 0.2, 0.3, 0.4]}, None)
    assert line == "epoch 1/2  train loss 0.5000 accuracy 90.00 %  lr 0.1 0.2 0.3 ...  3.0 s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.96, "60.0 s"), (60, "1 min 00 s"), (3599.7, "1 h 00 min"), (0, "0 s")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_a_program_that_the_shell_does_not_find_is_called_as_a_module_of_this_python(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for program, module_name in (("surefoot", "surefoot.__main__"), ("tensorboard", "tensorboard.main")):
        called = f"{shlex.quote(sys.executable)} -m {module_name.removesuffix('.__main__')}"
        assert typed(program, "--help") == f"{called} --help"
        assert importlib.util.find_spec(module_name)


def test_no_run_begins_that_could_not_write_its_events(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="TensorBoard is not installed"):
        RunRecords(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    RunRecords(tmp_path / "run", tensorboard=False).close()


@pytest.mark.parametrize(
    ("columns", "there", "not_there"),
    [
        (60, [], ["GB", "lr", "\u2588"]),
        (100, ["loss", "left"], ["GB"]),
        (200, ["loss", "\u2588", "lr", "left", "GB"], []),
    ],
)
def test_what_a_narrow_terminal_needs_least_goes_first(columns, there, not_there, clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(module, "memory_in_use", lambda: "1.2 GB")
    stream = Terminal()
    progress = make_progress(stream)
    progress.start(INFO)
    for step in range(1, 41):
        clock[0] += 1
        progress.record(step_record(step, loss=1 / step))
    bar = re.split(r"[\r\n]", stream.getvalue())[-1]
    assert len(bar.removeprefix("\x1b[2K")) <= columns and "step 40/200" in bar
    assert all(text in bar for text in there) and not any(text in bar for text in not_there)


def test_the_curve_of_the_losses_rises_and_falls_with_them():
    assert module.sparkline([0, 1, 2, 3]) == "\u2581\u2583\u2586\u2588"
    assert module.sparkline([1.0, float("inf"), 0.0]) == "\u2588 \u2581"
    assert module.sparkline([]) == module.sparkline([1.0]) == module.sparkline([2.0, 2.0]) == ""


def test_the_memory_is_that_of_the_machine_or_of_the_gpu_in_use(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert re.fullmatch(r"\d+\.\d GB|", module.memory_in_use())
    cuda = types.SimpleNamespace(is_initialized=lambda: True, memory_allocated=lambda: 2_500_000_000)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert module.memory_in_use() == "2.5 GB on the GPU"


def test_quiet_leaves_messages_on_standard_error_only(capfd):
    drive(make_progress(quiet=True))
    assert capfd.readouterr() == ("", "a finding [with brackets]\n")
