"""The journal: whole lines, exact numbers, a size that can be gone back to."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import RunFailed, UsageError
from surefoot.tracking import Journal, read_records
from surefoot.tracking.journal import encode


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def filled(path, count):
    journal = Journal(path)
    offsets = [journal.offset]
    for step in range(count):
        journal.append({"kind": "step", "step": step, "loss": 1 / (step + 3)})
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
    journal = Journal(path)
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
    with Journal(path) as again:
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
    with Journal(path) as again:
        assert again.offset == offsets[-1] == path.stat().st_size


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
        Journal(tmp_path / "gone" / "metrics.jsonl")
    with pytest.raises(UsageError, match="cannot be opened: Is a directory"):
        Journal(tmp_path)
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


WRITER = """
import os, sys
from surefoot.tracking.journal import Journal
journal = Journal(sys.argv[1])
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
    with Journal(path) as journal:
        assert journal.offset == path.stat().st_size
