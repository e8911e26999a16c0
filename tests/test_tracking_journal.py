"""The journal: whole lines, exact numbers, a size that can be gone back to."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot import files
from surefoot.errors import RunFailed, UsageError
from surefoot.tracking import JournalFile, read_records
from surefoot.tracking.journal import encode, run_records


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def filled(path, count):
    journal = JournalFile(path)
    offsets = [journal.offset]
    for step in range(count):
        journal.append({"kind": "step", "split": "train", "epoch": 0, "step": step, "loss": 1 / (step + 3)})
        offsets.append(journal.offset)
    return journal, offsets


def bits(value):
    return struct.pack("<d", value)


@given(st.floats(), st.lists(st.floats(), max_size=4))
def test_every_float_is_read_back_bit_for_bit_and_each_line_is_json(loss, rates):
    line = encode({"kind": "step", "loss": loss, "lr": rates})
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(line)
        file.flush()
        (record,) = read_records(file.name)
    for found, given_value in zip([record["loss"], *record["lr"]], [loss, *rates], strict=True):
        assert math.isnan(found) if math.isnan(given_value) else bits(found) == bits(given_value)


def test_a_value_that_json_cannot_hold_is_refused_and_leaves_nothing(path):
    journal = JournalFile(path)
    with pytest.raises(TypeError):
        journal.append({"loss": object()})
    assert journal.offset == 0 and path.read_bytes() == b""


def test_going_back_to_an_offset_leaves_exactly_the_records_before_it(path):
    journal, offsets = filled(path, 5)
    journal.truncate(offsets[3])
    assert [record["step"] for record in read_records(path)] == [0, 1, 2]
    journal.append({"kind": "step", "step": 3})
    assert [record["step"] for record in read_records(path)] == [0, 1, 2, 3]
    assert journal.offset == path.stat().st_size
    journal.truncate(0)
    assert path.read_bytes() == b""


def test_reopened_it_goes_on_where_it_was(path):
    journal, offsets = filled(path, 2)
    journal.close()
    journal.close()
    with JournalFile(path) as again:
        assert again.offset == offsets[-1]
        again.append({"step": 2})
    assert [record["step"] for record in read_records(path)] == [0, 1, 2]


@pytest.mark.parametrize("torn", [b'{"kind": "st', b"\x00" * 70000, b"{}"])
def test_an_unfinished_last_line_does_not_count_and_is_cut_off(path, torn):
    journal, offsets = filled(path, 3)
    journal.close()
    with path.open("ab") as file:
        file.write(torn)
    assert [record["step"] for record in read_records(path)] == [0, 1, 2]
    with JournalFile(path) as again:
        assert again.offset == offsets[-1]
        again.append({"step": 3})
        assert again.offset == path.stat().st_size
    assert [record["step"] for record in read_records(path)] == [0, 1, 2, 3]


def test_a_file_shorter_than_the_checkpoint_knew_is_refused_untouched(path):
    journal, offsets = filled(path, 3)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=rf"holds {offsets[3]} bytes, but .* held {offsets[3] + 1}"):
        journal.truncate(offsets[3] + 1)
    assert path.read_bytes() == before and journal.offset == offsets[3]


def test_an_offset_inside_a_line_is_refused_untouched(path):
    journal, offsets = filled(path, 3)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=f"no line ends at byte {offsets[2] - 1}"):
        journal.truncate(offsets[2] - 1)
    with pytest.raises(UsageError):
        journal.truncate(-1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b"{'loss': 1}\n", b"[1]\n", b"\xff\n", b"[" * 100000 + b"\n", b"\n"])
def test_a_damaged_line_is_named_by_its_number(path, line):
    path.write_bytes(b'{"step": 1}\n' + line + b'{"step": 2}\n')
    with pytest.raises(UsageError, match=r"metrics\.jsonl:2: "):
        list(read_records(path))


def test_places_that_cannot_be_opened_are_said(tmp_path):
    with pytest.raises(UsageError, match="cannot be opened: No such file"):
        JournalFile(tmp_path / "gone" / "metrics.jsonl")
    with pytest.raises(UsageError, match="cannot be opened: Is a directory"):
        JournalFile(tmp_path)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        list(read_records(tmp_path / "none"))


def test_a_full_disk_fails_the_run_and_leaves_whole_lines_only(path, monkeypatch):
    journal, offsets = filled(path, 2)
    real, room = os.write, [7]

    def write(fd, data):
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(fd, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(RunFailed, match="No space left on device; free some space, then resume"):
        journal.append({"kind": "step", "step": 2})
    assert path.stat().st_size == journal.offset == offsets[2]


def test_a_failed_sync_fails_the_run(path, monkeypatch):
    journal, _ = filled(path, 1)

    def fsync(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunFailed, match="Input/output error; check the disk"):
        journal.sync()


def test_what_is_appended_while_a_removed_file_is_made_again_is_not_lost(path, monkeypatch):
    """A save in the background makes it again; training goes on meanwhile."""
    journal, _ = filled(path, 3)
    path.unlink()
    training = threading.Thread(target=lambda: journal.append({"step": 3}))
    replace = files.replace_durably

    def replaced(*arguments):
        replace(*arguments)
        training.start()
        training.join(0.1)  # it waits, or has written to the file without a name

    monkeypatch.setattr(files, "replace_durably", replaced)
    journal.sync()
    training.join()
    assert [record["step"] for record in read_records(path)] == [0, 1, 2, 3]
    journal.close()


WRITER = """
import os, sys
from surefoot.tracking.journal import JournalFile
journal = JournalFile(sys.argv[1])
print("go", flush=True)
step = 0
while True:
    journal.append({"kind": "step", "step": step, "loss": 1 / (step + 1), "pad": "x" * (step % 9000)})
    step += 1
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_records(path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"go\n"
    while path.stat().st_size < 3_000_000:
        assert child.poll() is None
    child.kill()
    child.wait()
    child.stdout.close()
    steps = [record["step"] for record in read_records(path)]
    assert steps == list(range(len(steps))) and len(steps) > 300
    with JournalFile(path) as journal:
        journal.append({"step": len(steps)})
        assert journal.offset == path.stat().st_size


def damaged(path, place, byte=None):
    data = bytearray(path.read_bytes())
    data[place] = data[place] ^ 1 if byte is None else byte
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0, 17, 60, -1], ids=["first", "a letter", "a digit", "the last newline"])
def test_one_bad_byte_is_mended_by_the_checkpoints_sums(path, place):
    journal, offsets = filled(path, 40)
    marks, before = journal.marks(), path.read_bytes()
    journal.append({"kind": "step", "step": 99})
    journal.close()
    damaged(path, place if place >= 0 else offsets[-1] - 1)
    with JournalFile(path) as again:
        mended, lasting = again.truncate(offsets[-1], marks)
        assert path.read_bytes() == before and again.marks() == marks
    assert len(mended) == 1 and "damaged" in mended[0] and lasting == []


def test_more_damage_names_the_line_and_the_rest_goes_on(path):
    journal, offsets = filled(path, 10)
    marks = journal.marks()
    journal.close()
    for place in (offsets[4] + 1, offsets[4] + 9):
        damaged(path, place, 0)
    with JournalFile(path) as again:
        mended, lasting = again.truncate(offsets[-1], marks)
        assert mended == [] and len(lasting) == 1 and ":5: not a JSON record" in lasting[0]
        again.append({"kind": "step", "step": 10})
        ever_after = again.marks()
    with JournalFile(path) as third:
        assert third.marks() == ever_after
    skipped = []
    assert [r["step"] for r in read_records(path, damaged=skipped.append)] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert skipped == lasting


def test_two_changed_digits_are_never_believed(path):
    journal, offsets = filled(path, 10)
    marks, text = journal.marks(), path.read_bytes()
    journal.close()
    path.write_bytes(text.replace(b'"step": 3', b'"step": 4').replace(b'"step": 7', b'"step": 8'))
    with JournalFile(path) as again:
        _, lasting = again.truncate(offsets[-1], marks)
    assert lasting == [f"{path}: its checksum does not hold: a number in it may be wrong"]


def test_a_journal_removed_meanwhile_is_made_again(path):
    journal, _ = filled(path, 3)
    before = path.read_bytes()
    path.unlink()
    journal.append({"kind": "step", "step": 3})
    journal.sync()
    assert path.read_bytes().startswith(before) and journal.offset == path.stat().st_size
    journal.append({"kind": "step", "step": 4})
    assert [record["step"] for record in read_records(path)] == [0, 1, 2, 3, 4]
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(RunFailed, match="No such file or directory"):
        journal.sync()


WHOLE = {"kind": "step", "split": "train", "epoch": 0, "step": 1, "loss": 0.5, "lr": [0.1], "wall_s": 1.0}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({k: v for k, v in WHOLE.items() if k != "kind"}, "lacks 'kind'"),
        ({k: v for k, v in WHOLE.items() if k != "split"}, "lacks 'split'"),
        ({**WHOLE, "epoch": "0"}, "lacks 'epoch'"),
        ({**WHOLE, "step": -1}, "lacks 'step'"),
        ({**WHOLE, "lr": 0.1}, "'lr' is no list"),
        ({**WHOLE, "wall_s": "NaN"}, "'wall_s' is no number"),
        ([1], "expected a JSON object, found list"),
    ],
)
def test_a_line_that_is_no_record_of_a_run_is_named_and_left_out(path, record, reason):
    lines = [WHOLE, record, {**WHOLE, "step": 2, "unknown": {"deep": [1]}}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = []
    assert [found["step"] for found in run_records(path, told.append)] == [1, 2]
    (message,) = told
    assert message.startswith(f"{path}:2: ") and reason in message
