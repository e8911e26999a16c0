"""What reaches a terminal: no escape sequence of a hostile name, any encoding, no listener, commands to paste."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from surefoot.artifacts import read_info, save_model
from surefoot.checkpoint import Checkpointer
from surefoot.cli import main
from surefoot.cli.streams import Patient
from surefoot.text import printable, say, typed
from surefoot.tracking import write_report

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e\u2028\udc80\n"
NAMES = ["a b", "it's", 'say "hi"', "$HOME", "`id`", "-rf", "--to", "a\nb", "\udcff\udcfe", "中文", "a;b", "*", "~"]
NAMES += ["a\\b", "!x", "\x1b[2J", "'\n\\"]


def test_what_comes_from_a_file_is_made_harmless():
    shown = printable(HOSTILE)
    assert shown.isprintable() and "owned" in shown and r"\x1b[2J" in shown
    assert printable("a\nb\x07", lines=True) == "a\nb\\x07"
    assert printable("中文 é　x") == "中文 é　x"


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_the_same_after_a_shell(name):
    command = typed(sys.executable, "-c", "import os,sys; print(os.fsencode(sys.argv[1]))", Path(name))
    assert command.isprintable()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    expected = name if not name.startswith("-") else f"./{name}"
    assert done.stdout == f"{os.fsencode(expected)}\n"


def test_an_error_message_with_a_hostile_name_is_plain_text(capsys):
    assert main(["check", f"{HOSTILE}.yaml"]) == 2
    told = capsys.readouterr().err
    assert told.removesuffix("\n").replace("\n", "").isprintable() and "owned" in told


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16", "shift_jis"])
def test_every_encoding_of_a_terminal_takes_every_text(encoding):
    code = (
        "from surefoot.cli import streams\nfrom surefoot.text import say\nwith streams.patient():\n"
        "    say('caf\\u00e9 \\u4e2d \\U0001f600 \\udc80')\n    say('e \\u4e2d', error=True)\n"
    )
    environment = {"PYTHONIOENCODING": encoding, "PATH": os.environ["PATH"], "LANG": "C"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert "caf" in done.stdout.decode(encoding) and r"\udc80" in done.stdout.decode(encoding)
    assert done.stderr.decode(encoding).startswith("e ")


def test_a_stream_that_nobody_reads_is_noted_and_never_raises():
    reader, writer = os.pipe()
    os.close(reader)
    stream = Patient(writer, "w")
    assert stream.write(b"abc") == 3 and isinstance(stream.lost, BrokenPipeError)
    assert stream.write(b"more") == 4
    stream.close()


LOST = "surefoot: standard output cannot be written: {}; what was printed is lost\n"
ENDS = {
    ">&-": (1, LOST.format("Bad file descriptor")),
    ">/dev/full": (1, LOST.format("No space left on device")),
    ">&- 2>&-": (1, ""),
    ">/dev/full 2>/dev/full": (1, ""),
    "2>&-": (0, ""),
    "<&- >/dev/null": (0, ""),
}


# The second imports torch and prints much.
@pytest.mark.parametrize(
    ("arguments", "streams"), [*(("--help", s) for s in ENDS), ("schema", ">&-"), ("schema", "2>&-")]
)
def test_a_verb_that_nobody_hears_says_one_line_and_ends_with_1(streams, arguments):
    command = f"exec {typed(sys.executable, '-m', 'surefoot', arguments)} {streams}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == ENDS[streams]


def test_a_closed_descriptor_is_never_a_file_of_the_run(tmp_path):
    """With standard output closed, the next file that is opened would get number 1 and every print."""
    code = (
        "import os\nfrom surefoot.cli import streams\n"
        "with streams.patient():\n"
        "    file = os.open('found', os.O_CREAT | os.O_WRONLY)\n    print('to nobody', flush=True)\n"
        "assert file > 2\n"
    )
    subprocess.run(["bash", "-c", typed(sys.executable, "-c", code) + " <&- >&- 2>&-"], cwd=tmp_path, check=True)
    assert (tmp_path / "found").read_bytes() == b""


def test_say_on_standard_error_never_raises(monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def flush(self):
            """Nothing was taken."""

    monkeypatch.setattr(sys, "stderr", Full())
    say("x", error=True)


# ------------------------------------------------------------------------------------------ names in files


def test_hostile_names_in_a_run_are_listed_as_plain_text(tmp_path, capsys):
    """A stray file's name, a metric's name, and a date, all of them free to hold anything."""
    with Checkpointer(tmp_path / "run", model=torch.nn.Linear(2, 1), every="1 epoch", signals=False) as saver:
        saver.resume()
        saver.step()
        saver.epoch({HOSTILE: 1.0})
    newest = next((tmp_path / "run" / "checkpoints").iterdir())
    assert main(["checkpoints", str(tmp_path / "run")]) == 0
    whole = capsys.readouterr().out
    (newest / "a\x1b]0;owned\x07").write_text("")
    assert main(["checkpoints", str(tmp_path / "run")]) == 1
    damaged = capsys.readouterr().out
    for told in (whole, damaged):
        assert told.replace("\n", "").isprintable() and "owned" in told, ascii(told)
    assert len(whole.splitlines()) == 1 and main(["checkpoints", str(tmp_path / "run"), "--json"]) == 1


def test_hostile_names_in_a_model_are_text_in_its_card_and_come_back(tmp_path):
    classes = [HOSTILE, "<script>alert(1)</script>", "](javascript:x)", "a|b", "# head"]
    model = torch.nn.Linear(2, 5)
    save_model(model, tmp_path / "m", classes=classes, title=HOSTILE + "<img src=x>", metrics={"<b>|x": 1.0})
    assert list(read_info(tmp_path / "m").classes) == classes
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.replace("\n", "").isprintable()
    body = card.split("---\n")[2]
    for piece in ("<script>", "<img", "](java", "| <b>|x", "<b>"):
        assert piece not in body.replace("\\<", "").replace("\\]", ""), piece


def test_a_report_with_hostile_names_is_plain_html(tmp_path):
    record = {"kind": "epoch", "split": "train", "epoch": 0, "step": 1, "loss": 1.0, "lr": [0.1], "wall_s": 1.0}
    run = tmp_path / "<script>me\udcff"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps(record | {"<script>me": 1.0}) + "\n")
    (run / "run.json").write_text(json.dumps({"<script>me": "<script>me"}))
    (run / "recipe.yaml").write_text("<script>me")
    page = write_report(run, validation={"confusion": [[1, 0], [0, 1]], "classes": ["<script>me", "\x1b"]}).read_text()
    assert "<script>me" not in page


# ------------------------------------------------------------------------------------------ commands to paste


@pytest.mark.parametrize("words", [["report", "nothere"], ["train", "--nothere"], ["trian"]])
def test_the_commands_in_a_message_are_typed_as_this_user_types_them(monkeypatch, capsys, words):
    monkeypatch.setenv("SUREFOOT_COMMAND", "python3 dev.py")
    with contextlib.suppress(SystemExit):
        assert main(words) == 2
    shown = capsys.readouterr().err
    assert "`python3 dev.py explain " in shown and "`surefoot" not in shown


@pytest.mark.parametrize("name", ["a b", "it's $HOME", "-rf", "new\nline", 'q"`id`'])
def test_the_commands_printed_at_the_end_name_the_run_when_pasted(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    settings = ["data.train_size=64", "data.val_size=32", "epochs=1", "execution.threads=1", "warmup=null"]
    assert main(["train", "quickstart", f"--run={name}", *settings]) == 0
    out = capsys.readouterr().out
    commands = [line.split("  # ")[0] for line in out.partition("\nnext:\n")[2].splitlines()]
    assert len(commands) >= 4
    show = 'surefoot() { printf \'%s\\0\' "$@"; echo; }; tensorboard() { surefoot "$@"; }\n'
    for command in commands:
        done = subprocess.run(["bash", "-c", show + command], capture_output=True, text=True, check=True)
        named = [word for word in done.stdout.split("\0") if name in word]
        assert len(named) == 1 and Path(named[0]).exists(), (command, done.stdout)
