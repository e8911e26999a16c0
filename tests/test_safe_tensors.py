"""Safetensors files: the bytes are the library's own; what is not exactly right is refused."""

from __future__ import annotations

import json
import os
import resource
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot import safe_tensors
from surefoot.errors import UsageError
from surefoot.safe_tensors import BadFile

DTYPES = [getattr(torch, name) for name, _ in safe_tensors.DTYPES.values()]


def sample(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    raw = torch.arange(count * dtype.itemsize, dtype=torch.int64)
    raw = (raw % 2 if dtype is torch.bool else raw * 37 % 251).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (1, 0, 2), (2, 1, 3, 2)])
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path, dtype, shape):
    tensor = sample(dtype, shape)
    safe_tensors.save(tmp_path / "a", {"t": tensor})
    found = safe_tensors.load(tmp_path / "a").tensors["t"]
    assert found.dtype == dtype and found.shape == tensor.shape
    assert bits(found) == bits(tensor)


def test_the_library_reads_what_is_written_and_writes_the_same_bytes():
    tensors = {
        "b.weight": torch.randn(3, 4),
        "a": torch.arange(5, dtype=torch.uint8),
        "c": torch.randn(2, dtype=torch.float64),
        "zero": torch.tensor(1.0),
        "empty": torch.empty(0, 3),
        "half": torch.randn(3).bfloat16(),
    }
    mine = safe_tensors.dumps(tensors, metadata={"format": "pt"})
    assert mine == safetensors.torch.save(tensors, metadata={"format": "pt"})
    for name, tensor in safetensors.torch.load(mine).items():
        assert bits(tensor) == bits(tensors[name])


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {"x": torch.randn(4, 2), "y": torch.tensor([True, False])}
    safetensors.torch.save_file(tensors, tmp_path / "a", metadata={"one": "1", "two": "2"})
    found = safe_tensors.load(tmp_path / "a")
    assert found.metadata == {"one": "1", "two": "2"} and found.info is None
    assert all(bits(found.tensors[name]) == bits(tensor) for name, tensor in tensors.items())


def test_any_strides_are_written_in_logical_order(tmp_path):
    tensors = {
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "expanded": torch.arange(3.0).expand(2, 3),
        "sliced": torch.arange(10.0)[::3],
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "conjugated": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "gradient": torch.ones(2, requires_grad=True),
    }
    safe_tensors.save(tmp_path / "a", tensors)
    found = safe_tensors.load(tmp_path / "a").tensors
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


def test_the_same_state_gives_the_same_bytes():
    tensors = {"b": torch.ones(2), "a": torch.zeros(3)}
    info = {"z": 1, "a": {"k": [1, 2]}}
    first = safe_tensors.dumps(tensors, info, {"y": "1", "x": "2"})
    other_order = dict(reversed(tensors.items()))
    assert first == safe_tensors.dumps(other_order, dict(reversed(info.items())), {"x": "2", "y": "1"})


def test_info_is_one_string_under_one_key(tmp_path):
    info = {"classes": ["T-shirt", "Größe"], "scale": 0.1}
    safe_tensors.save(tmp_path / "a", {"t": torch.ones(1)}, info=info)
    found = safe_tensors.load(tmp_path / "a")
    assert found.info == info and list(found.metadata) == [safe_tensors.INFO_KEY]


def test_a_header_is_read_without_its_tensors(tmp_path):
    safe_tensors.save(tmp_path / "a", {"t": torch.ones(2, 3, dtype=torch.float16)})
    (entry,) = safe_tensors.read_header(tmp_path / "a").entries
    assert entry.torch_dtype is torch.float16 and entry.shape == (2, 3) and entry.end - entry.begin == 12


@pytest.mark.parametrize("name", ["", "__metadata__"])
def test_names_that_the_format_has_not_are_refused(name):
    with pytest.raises(UsageError, match="not allowed"):
        safe_tensors.dumps({name: torch.ones(1)})


def test_a_dtype_that_the_format_has_not_is_refused():
    with pytest.raises(UsageError, match="complex128"):
        safe_tensors.dumps({"t": torch.ones(1, dtype=torch.complex128)})


# ------------------------------------------------------------------------------------------ hostile files


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: object = None, dtype: object = "U8") -> dict:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


HOSTILE = {
    "empty": (b"", "0 bytes"),
    "seven bytes": (b"1234567", "7 bytes"),
    "header longer than the file": (raw({}, length=1000), "it was cut"),
    "header of 2**63 bytes": (raw({}, length=2**63), "claims a header"),
    "header of 100 MB": (raw({}, length=100_000_000), "claims a header"),
    "not JSON": (raw(b"pickle"), "not the JSON"),
    "not UTF-8": (raw(b'{"\xff":1}'), "not UTF-8"),
    "a list": (raw([]), "not a JSON object"),
    "a pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix", "claims a header"),
    "a zip": (b"PK\x03\x04" + b"\0" * 60, "claims a header"),
    "deep JSON": (raw(b"[" * 200_000 + b"]" * 200_000), "nested too deeply"),
    "a million objects": (raw(b'{"a":[' + b"{}," * 1_000_000 + b"{}]}"), "more than"),
    "key twice": (raw(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 1)).encode(),) * 2), b"x"), "twice"),
    "NaN in the header": (raw(b'{"a":NaN}'), "not the JSON"),
    "entry is a number": (raw({"a": 1}), "its entry is not"),
    "entry with more keys": (raw({"a": {**entry(0, 1), "x": 1}}, b"x"), "its entry is not"),
    "unknown dtype": (raw({"a": entry(0, 1, dtype="OBJECT")}, b"x"), "unknown dtype"),
    "dtype is a list": (raw({"a": entry(0, 1, dtype=["U8"])}, b"x"), "unknown dtype"),
    "negative size": (raw({"a": entry(0, 1, shape=[-1])}, b"x"), "its shape"),
    "size is a float": (raw({"a": entry(0, 1, shape=[1.0])}, b"x"), "its shape"),
    "size is true": (raw({"a": entry(0, 1, shape=[True])}, b"x"), "its shape"),
    "size of 2**70": (raw({"a": entry(0, 1, shape=[2**70])}, b"x"), "its shape"),
    "65 dimensions": (raw({"a": entry(0, 1, shape=[1] * 65)}, b"x"), "its shape"),
    "sizes that multiply to 2**80": (raw({"a": entry(0, 1, shape=[2**40, 2**40])}, b"x"), "takes"),
    "zero times too much": (raw({"a": entry(0, 0, shape=[0, 2**62, 2**62])}), "cannot be made"),
    "shape and bytes disagree": (raw({"a": entry(0, 4, shape=[2], dtype="F32")}, b"1234"), "takes 8 bytes"),
    "negative offset": (raw({"a": entry(-1, 0, shape=[1])}, b"x"), "data_offsets"),
    "offsets swapped": (raw({"a": entry(1, 0, shape=[1])}, b"x"), "data_offsets"),
    "three offsets": (raw({"a": {**entry(0, 1), "data_offsets": [0, 1, 1]}}, b"x"), "data_offsets"),
    "offset beyond the file": (raw({"a": entry(0, 10)}, b"x"), "it was cut"),
    "overlap": (raw({"a": entry(0, 2), "b": entry(1, 3)}, b"xyz"), "overlaps"),
    "same bytes twice": (raw({"a": entry(0, 2), "b": entry(0, 2)}, b"xy"), "overlaps"),
    "gap": (raw({"a": entry(0, 1), "b": entry(2, 3)}, b"xyz"), "leaves a gap"),
    "gap at the start": (raw({"a": entry(1, 2)}, b"xy"), "leaves a gap"),
    "trailing bytes": (raw({"a": entry(0, 1)}, b"xy"), "1 bytes after"),
    "boolean of 2": (raw({"a": entry(0, 1, dtype="BOOL")}, b"\x02"), "other than 0 and 1"),
    "metadata is a list": (raw({"__metadata__": []}), "table of strings"),
    "metadata holds a number": (raw({"__metadata__": {"a": 1}}), "table of strings"),
    "info is not JSON": (raw({"__metadata__": {"surefoot": "{"}}), "metadata is not"),
    "info is deep": (raw({"__metadata__": {"surefoot": "[" * 50_000}}), "nested too deeply"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_within_bounded_memory(tmp_path, name):
    content, told = HOSTILE[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadFile, match=told) as caught:
        safe_tensors.load(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert caught.value.path == path and str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert grown < 200 * 1024, f"{grown} KiB more"


def test_a_header_too_large_to_read_back_is_not_written(monkeypatch):
    monkeypatch.setattr(safe_tensors, "MAX_TENSORS", 3)
    with pytest.raises(UsageError, match="at most 3 tensors"):
        safe_tensors.dumps({str(i): torch.ones(1) for i in range(4)})


@pytest.mark.parametrize("kind", ["missing", "link", "pipe", "directory"])
def test_only_a_regular_file_is_opened(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "link":
        safe_tensors.save(tmp_path / "b", {"t": torch.ones(1)})
        path.symlink_to(tmp_path / "b")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(BadFile, match="missing" if kind == "missing" else "not a regular file"):
        safe_tensors.load(path)


@pytest.fixture(scope="module")
def small_file() -> bytes:
    return safe_tensors.dumps({"w": torch.arange(6.0), "b": torch.tensor([True])}, info={"step": 1})


def test_every_cut_is_noticed(tmp_path, small_file):
    path = tmp_path / "a"
    for length in range(len(small_file)):
        path.write_bytes(small_file[:length])
        with pytest.raises(BadFile):
            safe_tensors.load(path)


@settings(max_examples=300)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_the_hash(tmp_path, small_file, position, value):
    data = bytearray(small_file)
    data[position % len(data)] = value
    path = tmp_path / "a"
    path.write_bytes(data)
    try:
        found = safe_tensors.load(path)
    except BadFile:
        return
    path.write_bytes(small_file)
    assert (found.sha256 == safe_tensors.load(path).sha256) == (bytes(data) == small_file)


@settings(max_examples=200)
@given(data=st.binary(max_size=200), header=st.binary(max_size=100))
def test_noise_never_gives_anything_but_a_refusal(tmp_path, data, header):
    path = tmp_path / "a"
    for content in (data, raw(header, data)):
        path.write_bytes(content)
        try:
            assert safe_tensors.load(path).tensors == {}
        except BadFile:
            continue
