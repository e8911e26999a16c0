"""Fashion-MNIST: found in any usual place, verified, downloaded whole or not at all, each fault told."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import socket
import threading
import urllib.request
from pathlib import Path

import numpy
import pytest
import torch

from surefoot.data import DATA
from surefoot.data import fashion_mnist as module
from surefoot.data.fashion_mnist import FILES, DataFile, data_directory, fashion_mnist, load_arrays
from surefoot.errors import UsageError

SHAPES = {"train_images": (30, 28, 28), "train_labels": (30,), "val_images": (20, 28, 28), "val_labels": (20,)}


def idx(array: numpy.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def small() -> tuple[dict[str, DataFile], dict[str, bytes], dict[str, numpy.ndarray]]:
    """A small data set of the same form: its files' descriptions, packed bytes and contents."""
    descriptions, packed, arrays = {}, {}, {}
    generator = numpy.random.default_rng(0)
    for key, shape in SHAPES.items():
        array = generator.integers(0, 10 if len(shape) == 1 else 256, shape, dtype=numpy.uint8)
        raw = idx(array)
        data = gzip.compress(raw, mtime=0)
        descriptions[key] = DataFile(
            FILES[key].name,
            shape,
            len(data),
            hashlib.md5(data).hexdigest(),
            len(raw),
            hashlib.md5(raw).hexdigest(),
        )
        packed[key], arrays[key] = data, array
    return descriptions, packed, arrays


SMALL, PACKED, ARRAYS = small()


def place(folder: Path, *, packed: bool = True, keys=tuple(SMALL)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for key in keys:
        data = PACKED[key] if packed else gzip.decompress(PACKED[key])
        (folder / (SMALL[key].name + (".gz" if packed else ""))).write_bytes(data)


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("folder", ["FashionMNIST/raw", "FashionMNIST", "raw", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_the_files_are_found_packed_or_not_in_every_usual_folder(tmp_path, folder, packed):
    place(tmp_path / folder, packed=packed)
    arrays = load_arrays(tmp_path, may_download=False, files=SMALL)
    for key, array in arrays.items():
        assert array.dtype == numpy.uint8
        assert numpy.array_equal(array, ARRAYS[key])
        assert array.flags.writeable


def test_files_may_be_packed_here_and_unpacked_there(tmp_path):
    place(tmp_path / "raw", keys=["train_images", "val_labels"])
    place(tmp_path, packed=False, keys=["train_labels", "val_images"])
    arrays = load_arrays(tmp_path, may_download=False, files=SMALL)
    assert all(numpy.array_equal(arrays[key], ARRAYS[key]) for key in SMALL)


def test_missing_files_are_told_with_what_to_do(tmp_path):
    place(tmp_path, keys=["train_images", "train_labels"])
    before = everything_in(tmp_path)
    with pytest.raises(UsageError) as told:
        load_arrays(tmp_path, may_download=False, files=SMALL)
    text = str(told.value)
    assert "t10k-images-idx3-ubyte[.gz], t10k-labels-idx1-ubyte[.gz] not found in " + str(tmp_path) in text
    assert "train-images" not in text
    for hint in ("data.dir", "SUREFOOT_DATA", "garments", SMALL["val_images"].packed_md5):
        assert hint in text
    assert everything_in(tmp_path) == before


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


IMAGES = gzip.decompress(PACKED["train_images"])
FAULTS = [
    (True, b"", "the file is empty"),
    (True, cut(PACKED["train_images"]), "the file is cut short"),
    (True, PACKED["train_images"][:-1], "the file is cut short"),
    (True, PACKED["train_images"] + b"x", "the file is longer than it should be"),
    (True, flipped(PACKED["train_images"]), "the file is damaged"),
    (True, b"<!DOCTYPE html><html>" * 20, "this is no gzip file: it begins with b'<!DOCTYP'"),
    (True, PACKED["train_labels"], "wrong magic number 0x00000801, expected 0x00000803"),
    (True, PACKED["val_images"], "its header says 20x28x28, expected 30x28x28"),
    (True, b"\x1f\x8b garbage" * 9, "the file is cut short"),
    (False, b"", "the file is empty"),
    (False, cut(IMAGES), "the file is cut short"),
    (False, IMAGES[:7], "the file is cut short"),
    (False, flipped(IMAGES), "the file is damaged"),
    (False, IMAGES + b"x", "the file is longer than it should be"),
    (False, b"\0\0\x08\x01" + IMAGES[4:], "wrong magic number 0x00000801, expected 0x00000803"),
]


@pytest.mark.parametrize(("packed", "data", "message"), FAULTS)
def test_a_damaged_file_is_named_with_what_was_found_and_expected(tmp_path, packed, data, message):
    place(tmp_path, packed=packed)
    file = SMALL["train_images"]
    path = tmp_path / (file.name + (".gz" if packed else ""))
    path.write_bytes(data)
    with pytest.raises(UsageError) as told:
        load_arrays(tmp_path, files=SMALL, mirrors=[])
    text = str(told.value)
    assert text.startswith(f"{path}: {message}; found {len(data):,} bytes")
    assert (file.packed_md5 if packed else file.md5) in text
    assert "delete the file" in text
    assert "\n" not in text


def test_a_file_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    place(tmp_path)

    def refuse(path, limit, *, follow):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "read_bounded", refuse)
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte.gz: cannot be read: Permission denied"):
        load_arrays(tmp_path, files=SMALL)


class Mirror(http.server.ThreadingHTTPServer):
    """A server on this machine that gives the small data set, or misbehaves by `fault`."""

    def __init__(self, fault: str = ""):
        super().__init__(("127.0.0.1", 0), Answer)
        self.fault = fault
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data/"

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        data = next(PACKED[key] for key, file in SMALL.items() if f"{file.name}.gz" == name)
        fault = self.server.fault
        if fault == "404":
            self.send_error(404)
            return
        if fault == "silence":
            # Until the client gives up and hangs up.
            self.rfile.read(1)
            return
        if fault == "wrong":
            data = flipped(data)
        if fault == "long":
            data += b"x"
        self.send_response(200)
        if fault != "no length":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(cut(data) if fault in ("drop", "reset", "no length") else data)
        if fault == "reset":
            linger = b"\1\0\0\0\0\0\0\0"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.shutdown(socket.SHUT_WR)

    def log_message(self, *arguments):
        """Quiet."""


def test_absent_files_are_downloaded_whole_with_progress(tmp_path):
    told = []
    with Mirror() as mirror:
        arrays = load_arrays(
            tmp_path / "new", files=SMALL, mirrors=[mirror.url], progress=lambda *state: told.append(state)
        )
        assert len(mirror.asked) == 4
        again = load_arrays(tmp_path / "new", files=SMALL, mirrors=[mirror.url])
        assert len(mirror.asked) == 4
    for key in SMALL:
        assert numpy.array_equal(arrays[key], ARRAYS[key])
        assert numpy.array_equal(again[key], ARRAYS[key])
        name, size = f"{SMALL[key].name}.gz", SMALL[key].packed_size
        assert (name, size, size) in told
    names = sorted(f"FashionMNIST/raw/{file.name}.gz" for file in SMALL.values())
    assert everything_in(tmp_path / "new") == ["FashionMNIST", "FashionMNIST/raw", *names]


def test_only_what_is_missing_is_downloaded_and_goes_to_the_others(tmp_path):
    place(tmp_path / "raw", keys=["train_images", "val_images"])
    with Mirror() as mirror:
        load_arrays(tmp_path, files=SMALL, mirrors=[mirror.url])
        assert mirror.asked == ["train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    assert len(everything_in(tmp_path / "raw")) == 4


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "the server answered 404 Not Found"),
        ("wrong", "another file came: its MD5 is"),
        ("long", "bytes came"),
        ("drop", "bytes"),
        ("reset", ""),
        ("no length", "bytes came"),
        ("silence", "no answer in time"),
    ],
)
def test_a_mirror_that_fails_is_told_and_the_next_one_used(tmp_path, monkeypatch, fault, message):
    real = urllib.request.urlopen

    def urlopen(request, timeout):
        """Only the silent mirror is not waited for: the others may take what the machine's load makes of it."""
        assert timeout == 0.05
        return real(request, timeout=timeout if fault == "silence" and request.full_url.startswith(bad.url) else None)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with Mirror(fault) as bad, Mirror() as good:
        with pytest.raises(UsageError) as told:
            load_arrays(tmp_path / "a", files=SMALL, mirrors=[bad.url], timeout_s=0.05)
        assert f"{bad.url}train-images-idx3-ubyte.gz: " in str(told.value)
        assert message in str(told.value)
        assert everything_in(tmp_path) == []
        arrays = load_arrays(tmp_path / "b", files=SMALL, mirrors=[bad.url, good.url], timeout_s=0.05)
        assert len(bad.asked) == 5 or fault == "silence"  # it may not have looked yet
    assert all(numpy.array_equal(arrays[key], ARRAYS[key]) for key in SMALL)
    assert len(everything_in(tmp_path / "b")) == 6


def test_no_network_is_one_message_that_lists_what_was_tried(tmp_path):
    with socket.socket() as closed:
        # A port that nobody listens at, and a name that stands for no machine.
        closed.bind(("127.0.0.1", 0))
        mirrors = [f"http://127.0.0.1:{closed.getsockname()[1]}/", "http://mirror.invalid/"]
        with pytest.raises(UsageError) as told:
            load_arrays(tmp_path / "data", files=SMALL, mirrors=mirrors)
    text = str(told.value)
    assert "Connection refused" in text
    assert "http://mirror.invalid/train-images-idx3-ubyte.gz: " in text
    assert "put these files into" in text
    assert all(f"{file.name}.gz (MD5 {file.packed_md5})" in text for file in SMALL.values())
    assert everything_in(tmp_path) == []


def test_a_place_that_cannot_be_written_is_told_before_anything_is_fetched(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with Mirror() as mirror:
        with pytest.raises(UsageError, match="file is no directory"):
            load_arrays(tmp_path / "file" / "data", files=SMALL, mirrors=[mirror.url])
        # Root may write anywhere, so the answer of the operating system is played.
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(UsageError, match="is read-only"):
            load_arrays(tmp_path / "data", files=SMALL, mirrors=[mirror.url])
        assert mirror.asked == []
    assert everything_in(tmp_path) == ["file"]


def test_a_full_disk_leaves_nothing_half_made(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("surefoot.files.write_atomically", full)
    with Mirror() as mirror, pytest.raises(UsageError, match="cannot be written: No space left on device"):
        load_arrays(tmp_path / "new", files=SMALL, mirrors=[mirror.url])
    assert everything_in(tmp_path) == []


def test_the_directory_is_the_argument_or_the_environment_or_the_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SUREFOOT_DATA", raising=False)
    assert data_directory() == Path("/home/somebody/.cache/surefoot")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert data_directory() == Path("/caches/surefoot")
    monkeypatch.setenv("SUREFOOT_DATA", "~/data")
    assert data_directory() == Path("/home/somebody/data")
    assert data_directory("here") == Path("here")


def test_the_registry_builds_it(tmp_path, monkeypatch):
    place(tmp_path)
    monkeypatch.setattr(module, "load_arrays", lambda directory, **rest: load_arrays(directory, files=SMALL, **rest))
    splits = DATA.build("fashion_mnist", {"dir": str(tmp_path), "train_size": 12}, progress=None)
    images, labels = splits.train.tensors
    assert images.shape == (12, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(labels, torch.from_numpy(ARRAYS["train_labels"][:12]).long())
    assert len(splits.val) == 20
    assert splits.classes[9] == "Ankle boot"
    with pytest.raises(UsageError, match="train_size: 31 is not between 1 and the 30"):
        DATA.build("fashion_mnist", {"dir": str(tmp_path), "train_size": 31}, progress=None)
    with pytest.raises(UsageError, match="train_size: 60001 is above 60000"):
        DATA.build("fashion_mnist", {"train_size": 60_001}, progress=None)


def test_sizes_come_first_as_those_of_garments_and_what_is_none_is_refused():
    with pytest.raises(UsageError) as refused:
        fashion_mnist("data", 0, dir=3)
    assert str(refused.value).splitlines() == [
        "train_size: 'data' is not a whole number of 1 or more (or None)",
        "val_size: 0 is not a whole number of 1 or more (or None)",
        "dir: 3 is not a path (a text or a pathlib.Path)",
    ]


@pytest.mark.real_data
def test_the_real_files_are_read(fashion_mnist_dir):
    splits = fashion_mnist(dir=str(fashion_mnist_dir), download=False)
    images, labels = splits.train.tensors
    assert images.shape == (60_000, 1, 28, 28)
    assert splits.train.targets().bincount().tolist() == [6000] * 10
    assert splits.val.targets().bincount().tolist() == [1000] * 10
    # The first labels as every tutorial prints them, and the well-known mean and deviation of the pixels.
    assert labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert (images.float() / 255).mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert (images.float() / 255).std().item() == pytest.approx(0.3530, abs=1e-4)
    again = fashion_mnist(dir=str(fashion_mnist_dir), download=False, val_size=10)
    assert splits.train.fingerprint() == again.train.fingerprint()
    assert splits.val.fingerprint() != again.val.fingerprint()
