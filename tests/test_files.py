"""Durable files: whole or not at all, whatever the disk answers; only plain files are read."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from surefoot import files


class Faulty(files.System):
    """Fails the `nth` call (from 0) of one operation with an errno, or cuts writes short."""

    def __init__(self, operation: str, code: int, nth: int = 0, short: int | None = None):
        self.operation, self.code, self.left, self.short = operation, code, nth, short
        self.calls: list[str] = []

    def _maybe(self, operation: str) -> None:
        self.calls.append(operation)
        if operation == self.operation:
            if self.left == 0:
                raise OSError(self.code, os.strerror(self.code))
            self.left -= 1

    def write(self, descriptor, data):
        self._maybe("write")
        return os.write(descriptor, data if self.short is None else data[: self.short])

    def fsync(self, descriptor):
        self._maybe("fsync")
        super().fsync(descriptor)

    def close(self, descriptor):
        os.close(descriptor)
        self._maybe("close")

    def rename(self, source, target):
        self._maybe("rename")
        super().rename(source, target)


@pytest.fixture
def faulty(monkeypatch):
    def install(*args, **kwargs):
        system = Faulty(*args, **kwargs)
        monkeypatch.setattr(files, "system", system)
        return system

    return install


@pytest.mark.parametrize(
    ("answer", "plain"), [(None, 0), (errno.ENOTSUP, 1), (errno.ENOTTY, 1), (errno.EINVAL, 1), (errno.EIO, None)]
)
def test_where_fsync_does_not_reach_the_medium_the_full_one_is_used(tmp_path, monkeypatch, answer, plain):
    """As on macOS; a file system without it gets the plain one, and a disk that fails is an error."""
    synced = []

    def full_fsync(descriptor, command):
        assert command == 51
        if answer is not None:
            raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(files.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(files.fcntl, "fcntl", full_fsync)
    monkeypatch.setattr(os, "fsync", synced.append)
    with open(tmp_path / "a", "wb") as file:
        if plain is None:
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                files.durable_fsync(file.fileno())
        else:
            files.durable_fsync(file.fileno())
    assert len(synced) == (plain or 0)


def test_no_file_is_executable(tmp_path):
    files.write_durably(tmp_path / "a", b"data")
    assert not (tmp_path / "a").stat().st_mode & 0o111


@pytest.mark.parametrize("operation", ["write", "fsync", "close", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, faulty, operation, code):
    path = tmp_path / "a.json"
    files.write_durably(path, b"old")
    faulty(operation, code)
    with pytest.raises(OSError) as caught:
        files.write_durably(path, b"new")
    assert caught.value.errno == code
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_fsync_is_never_tried_again(tmp_path, faulty):
    system = faulty("fsync", errno.EIO)
    with pytest.raises(OSError):
        files.write_durably(tmp_path / "a", b"data")
    assert system.calls.count("fsync") == 1


@pytest.mark.parametrize(("answer", "written"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_where_directories_cannot_be_synced_a_file_is_written_all_the_same(tmp_path, faulty, answer, written):
    """As on some network drives; but a disk that fails is an error there too."""
    faulty("fsync", answer, nth=1)
    with contextlib.nullcontext() if written else pytest.raises(OSError):
        files.write_durably(tmp_path / "a", b"data")
    assert (tmp_path / "a").read_bytes() == b"data"


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_that_cannot_be_synced_is_an_error_everywhere(tmp_path, faulty, answer):
    faulty("fsync", answer)
    with pytest.raises(OSError):
        files.write_durably(tmp_path / "a", b"data")
    assert os.listdir(tmp_path) == []


def test_short_writes_are_gone_on_with(tmp_path, faulty):
    faulty("none", 0, short=3)
    written = files.write_durably(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert written.bytes == 10


def test_a_disk_that_takes_nothing_is_an_error_and_not_a_loop(tmp_path, faulty):
    faulty("none", 0, short=0)
    with pytest.raises(OSError, match="took no bytes"):
        files.write_durably(tmp_path / "a", b"data")


def test_everything_is_on_the_disk_before_its_name_is(tmp_path, faulty):
    system = faulty("none", 0)
    files.write_durably(tmp_path / "a", b"data")
    assert system.calls == ["write", "fsync", "close", "rename", "fsync", "close"]


def test_atomic_without_waiting_for_the_name(tmp_path, faulty):
    system = faulty("none", 0)
    files.write_atomically(tmp_path / "a", b"data")
    assert system.calls == ["write", "fsync", "close", "rename"]


def test_a_file_that_another_process_clears_away_before_it_is_marked_is_written_again(tmp_path, monkeypatch):
    class Cleared(files.System):
        left = 2

        def open(self, path, flags, mode=0o777):
            descriptor = os.open(path, flags, mode)
            if flags & os.O_CREAT and self.left:
                self.left -= 1
                files.remove_unfinished(tmp_path)
            return descriptor

    monkeypatch.setattr(files, "system", Cleared())
    files.write_durably(tmp_path / "a", b"whole")
    assert files.system.left == 0
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"whole"


def test_a_new_file_never_replaces_or_follows_what_is_there(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep")
    (tmp_path / "link").symlink_to(victim)
    for name in ("victim", "link"):
        with pytest.raises(FileExistsError):
            files.write_new(tmp_path / name, [b"x"])
    assert victim.read_bytes() == b"keep"


@pytest.mark.parametrize("write", [files.write_durably, files.write_atomically])
def test_a_device_or_a_pipe_is_never_replaced(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="is a pipe, not a regular file"):
            write(tmp_path / name, b"x")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"] and (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()


def test_size_and_hash_are_told(tmp_path):
    written = files.write_new(tmp_path / "a", [b"ab", memoryview(bytearray(b"c"))])
    assert written.bytes == 3
    assert written.sha256 == files.sha256_of(tmp_path / "a")
    assert written.sha256.startswith("ba7816bf")  # FIPS 180-2, appendix B.1: "abc"


def _link(path: Path) -> None:
    (path.parent / "target").write_bytes(b"x")
    path.symlink_to(path.parent / "target")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.mkdir(), "a directory"),
        (_link, "a symbolic link"),
        (lambda path: os.mkfifo(path), "a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a symbolic link"),
    ],
    ids=["directory", "link", "pipe", "device behind a link"],
)
def test_only_plain_files_are_read_and_a_pipe_does_not_block(tmp_path, make, told):
    path = tmp_path / "a"
    make(path)
    for read in (files.sha256_of, lambda p: files.read_bounded(p, 10)):
        with pytest.raises(files.NotRegular, match=told):
            read(path)


def test_reading_is_bounded(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 11)
    with pytest.raises(files.TooLarge, match="11 bytes; at most 10"):
        files.read_bounded(tmp_path / "a", 10)
    assert len(files.read_bounded(tmp_path / "a", 11)) == 11
