"""Plain state survives JSON and safetensors bit for bit; what needs pickle is refused by name."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter, OrderedDict, deque

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot import safe_tensors
from surefoot.checkpoint.codec import Corrupt, Decoder, Encoder, storable
from surefoot.errors import UsageError


def through_files(tmp_path, value):
    """`value` written as a checkpoint writes it, and read back."""
    encoder = Encoder()
    tree = encoder.encode(value, "root")
    encoder.share_memory()
    text = json.dumps(tree, allow_nan=False)
    path = tmp_path / "t.safetensors"
    safe_tensors.save(path, {name: storable(tensor) for name, tensor in encoder.tensors.items()})
    decoder = Decoder(safe_tensors.load(path).tensors)
    found = decoder.decode(json.loads(text))
    assert not decoder.unused
    return found


def same(one, other) -> bool:
    """Equal in type, order and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*raw)
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, numpy.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


VALUES = {
    "none": None,
    "bools are not ints": [True, 1, False, 0],
    "floats": [0.1, -0.0, 0.0, 1e-320, 1.7976931348623157e308, math.inf, -math.inf, math.nan],
    "large ints": [2**63 - 1, -(2**63), 2**63, 10**5000],
    "strings": ["", "Größe", "\ud800", "\0", "$"],
    "key $": {"$": "tensor", "at": "x"},
    "int keys": {0: "a", -1: "b", True: "c"},
    "tuple keys": {(1, "a"): 2, None: 3, 0.5: 4},
    "mixed keys": {"a": 1, 2: 3},
    "order of keys": {"b": 1, "a": 2},
    "tuples in lists": [(1, (2,)), ()],
    "bytes": [b"\0\xff", bytearray(b"ab")],
    "sets": [{1, 2}, frozenset({"a", "b"})],
    "counter": Counter({3: 1, 5: 2}),
    "ordered": OrderedDict([("z", 1), ("a", 2)]),
    "deque": deque([1, 2], maxlen=3),
    "complex": complex(0.1, -0.0),
    "torch's": [torch.float32, torch.device("cpu"), torch.Size([2, 3])],
    "numpy scalars": [numpy.float64(0.1), numpy.int32(-3), numpy.bool_(True), numpy.float16(1.5)],
    "numpy arrays": [numpy.arange(6, dtype=">i4").reshape(2, 3).T, numpy.zeros(0)],
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_in_type_order_and_bits(tmp_path, name):
    assert same(through_files(tmp_path, VALUES[name]), VALUES[name])


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_tensors_of_any_dtype(tmp_path, dtype, shape):
    tensor = torch.ones(shape).to(dtype)
    assert same(through_files(tmp_path, {"t": tensor}), {"t": tensor})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 1, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(1, 3, 1, 1).to(memory_format=torch.channels_last),
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
    ],
    ids=lambda t: str(tuple(t.stride())),
)
def test_the_order_in_memory_comes_back(tmp_path, tensor):
    found = through_files(tmp_path, tensor)
    assert same(found, tensor) and found.stride() == tensor.stride()


@pytest.mark.parametrize("tensor", [torch.arange(10.0)[::3]], ids=["sliced"])
def test_strides_with_holes_or_overlap_become_plain(tmp_path, tensor):
    found = through_files(tmp_path, tensor)
    assert same(found, tensor) and found.is_contiguous()


def test_a_tensor_that_occurs_twice_is_stored_once_and_stays_one(tmp_path):
    tensor = torch.ones(3)
    encoder = Encoder()
    encoder.encode({"a": tensor, "b": [tensor]}, "root")
    assert len(encoder.tensors) == 1
    found = through_files(tmp_path, {"a": tensor, "b": [tensor], "view": tensor[:2]})
    assert found["a"] is found["b"][0] and found["view"] is not found["a"]


def test_tensors_that_overlap_in_memory_come_back_as_views_of_one_another(tmp_path):
    block = torch.arange(40.0)
    value = {
        "whole": block, "part": block[3:9], "square": block[4:20].view(4, 4).t(), "row": block[2:3].expand(5),
        "every third": block[30::3], "bits": block[5:7].view(torch.int32), "again": block[3:9], "apart": torch.ones(4),
    }  # fmt: skip
    back = through_files(tmp_path, value)
    assert all(same(value[name], back[name]) for name in value)
    assert back["again"] is back["part"]
    for table in (value, back):
        table["whole"].mul_(-1.5)
        table["square"][1, 2] = 100.0
        table["apart"].zero_()
    assert all(same(value[name], back[name]) for name in value)


def test_parts_of_one_block_that_do_not_overlap_stay_apart():
    block = torch.zeros(1000)
    encoder = Encoder()
    encoder.encode({"a": block[:4], "b": block[4:8], "c": block[996:]}, "root")
    encoder.share_memory()
    assert {name: tensor.numel() for name, tensor in encoder.tensors.items()} == {"root/a": 4, "root/b": 4, "root/c": 4}


def test_an_overlap_that_cannot_be_kept_is_named():
    number = torch.ones(3, dtype=torch.complex64)
    encoder = Encoder()
    encoder.encode({"a": number, "b": number.conj()}, "root")
    with pytest.raises(UsageError, match="root/b: shares its memory with root/a, conjugated or negated; save a clone"):
        encoder.share_memory()


def test_views_that_no_encoder_wrote_are_refused():
    block = torch.zeros(64, dtype=torch.uint8)
    good = {"$": "view", "at": "b", "dtype": "float32", "offset": 4, "shape": [3], "stride": [2]}
    assert Decoder({"b": block}).decode(good).shape == (3,)
    wrong = [
        {"offset": 3}, {"offset": 60}, {"offset": -4}, {"offset": None}, {"shape": [17]}, {"shape": [2**62]},
        {"stride": [-1]}, {"stride": [99]}, {"stride": []}, {"dtype": "nn"}, {"dtype": None}, {"at": "c"}, {"at": []},
    ]  # fmt: skip
    for change in wrong:
        with pytest.raises(Corrupt):
            Decoder({"b": block}).decode(good | change)
    with pytest.raises(Corrupt, match="not a block of bytes"):
        Decoder({"b": torch.zeros(4)}).decode(good)


def test_names_that_meet_do_not_mix(tmp_path):
    value = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    assert same(through_files(tmp_path, value), value)


class Custom:
    pass


def _cycle() -> list:
    value: list = []
    value.append(value)
    return value


REFUSED = {
    "an object": (Custom(), "Custom cannot be saved without pickle"),
    "a function": (lambda: 0, "function cannot be saved"),
    "a subclass of int": (type("Level", (int,), {})(1), "Level cannot be saved"),
    "numpy objects": (numpy.array([Custom()], dtype=object), "ndarray cannot be saved"),
    "a meta tensor": (torch.empty(2, device="meta"), "meta device"),
    "itself": (_cycle(), "refers to itself"),
    "a tensor as key": ({torch.ones(1): 1}, "as a key"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_pickle_is_refused_where_it_stands(name):
    value, told = REFUSED[name]
    with pytest.raises(UsageError, match=told) as caught:
        Encoder().encode({"deep": [value]}, "loader")
    assert str(caught.value).startswith("loader/deep/0")


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans(), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200)
@given(_PLAIN)
def test_any_plain_value_comes_back(value):
    text = json.dumps(Encoder().encode(value, "root"), allow_nan=False)
    found = Decoder({}).decode(json.loads(text))
    # NaN may change its payload; Python's own repr is what is compared for the rest.
    assert repr(found) == repr(value)


HOSTILE = {
    "unknown tag": {"$": "os.system", "v": "true"},
    "tag is a list": {"$": ["tuple"], "v": []},
    "missing tensor": {"$": "tensor", "at": "nowhere"},
    "tensor without a name": {"$": "tensor"},
    "impossible strides": {"$": "tensor", "at": "t", "stride": [2**40]},
    "strides of another rank": {"$": "tensor", "at": "t", "stride": [1, 1]},
    "dtype that is a function": {"$": "tensor", "at": "t", "dtype": "load", "shape": [4]},
    "shape that does not fit": {"$": "tensor", "at": "u", "dtype": "complex128", "shape": [1000]},
    "dtype by another name": {"$": "dtype", "v": "save"},
    "numpy objects": {"$": "numpy", "dtype": "|O", "v": "AAAAAAAAAAA="},
    "unhashable key": {"$": "dict", "v": [[[1], 2]]},
    "dict without pairs": {"$": "dict", "v": [1]},
    "tuple without a list": {"$": "tuple", "v": 3},
    "float of a word": {"$": "float", "v": "__import__"},
    "bytes of nonsense": {"$": "bytes", "v": "!!"},
    "array of a huge shape": {"$": "ndarray", "dtype": "<f8", "shape": [2**40], "v": ""},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_trees_that_no_encoder_wrote_are_refused(name):
    tensors = {"t": torch.ones(4), "u": torch.ones(4, dtype=torch.uint8)}
    with pytest.raises(Corrupt):
        Decoder(tensors).decode([HOSTILE[name]])


def test_deep_trees_are_refused_and_not_recursed():
    tree: list = []
    for _ in range(500):
        tree = [tree]
    with pytest.raises(Corrupt, match="deeply"):
        Decoder({}).decode(tree)


LAZY = {
    "conj": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "neg": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "conj of a view": lambda: torch.tensor([[1 + 2j, 3 - 1j]]).t().conj(),
    "expanded": lambda: torch.tensor([[1.0], [2.0]]).expand(2, 3),
    "not contiguous": lambda: torch.arange(6.0).reshape(2, 3)[:, ::2],
    "no dimension": lambda: torch.tensor(3.0),
    "empty": lambda: torch.empty(0, 3),
    "bool": lambda: torch.tensor([True, False]),
    "complex128": lambda: torch.tensor([1 + 2j], dtype=torch.complex128),
    "fp8": lambda: torch.tensor([1.0, 0.5]).to(torch.float8_e4m3fn),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "not coalesced": lambda: torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,), check_invariants=True),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("kind", LAZY)
def test_every_kind_of_tensor_comes_back_as_it_was_beside_what_it_is_a_view_of(kind):
    tensor = LAZY[kind]()
    base = tensor.conj() if tensor.is_complex() else tensor
    encoder = Encoder()
    tree = json.loads(json.dumps(encoder.encode([base, tensor], "x")))
    files = {name: storable(held).detach().clone().contiguous() for name, held in encoder.tensors.items()}
    _, back = Decoder(files).decode(tree)
    assert back.dtype == tensor.dtype and back.shape == tensor.shape and back.layout == tensor.layout
    one, other = ((t.to_dense() if t.layout is not torch.strided else t).detach() for t in (tensor, back))
    assert torch.equal(one.to(torch.complex128), other.to(torch.complex128))
    if kind == "expanded":
        assert back.stride() == tensor.stride()
    if kind in ("sparse", "not coalesced"):
        assert back.is_coalesced() == tensor.is_coalesced()


class Subclass(torch.Tensor):
    """A class of somebody's own."""


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2).as_subclass(Subclass),
        torch.empty(2, device="meta"),
    ],
)
def test_what_cannot_be_kept_is_named_before_the_first_step(tensor):
    with pytest.raises(UsageError, match="x: .* cannot be saved; convert it"):
        Encoder().encode(tensor, "x")
