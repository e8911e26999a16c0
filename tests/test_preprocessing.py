"""The mapping from raw data to a model's input: torchvision's arithmetic, written down and read back exactly."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import UsageError
from surefoot.preprocessing import Preprocessing

ALL_PIXELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
positive = st.floats(1e-3, 1e3)


@given(st.lists(st.tuples(st.floats(-10, 10), positive), min_size=1, max_size=3))
def test_the_arithmetic_is_that_of_torchvisions_to_tensor_and_normalize(constants):
    """ToTensor is ``x.to(float32).div(255)``, Normalize ``x.sub_(mean).div_(std)`` with float32 tensors (C, 1, 1)."""
    mean, std = zip(*constants, strict=True)
    raw = ALL_PIXELS.expand(2, len(mean), 16, 16)
    expected = raw.to(torch.float32).div(255)
    expected = expected.sub_(torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1))
    expected = expected.div_(torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1))
    assert torch.equal(Preprocessing(mean=mean, std=std)(raw), expected)


@pytest.mark.parametrize("std", [0.5, 0.353, (0.25, 0.5, 2.0), (0.25, 0.3, 2.0)])
@pytest.mark.parametrize("scale", [1 / 255, 1 / 256, 1.0, None, 0.3, 3.0])
def test_each_way_to_compute_it_is_the_formula(scale, std):
    mean = 0.5 if isinstance(std, float) else (0.1, 0.0, 0.5)
    raw = ALL_PIXELS.expand(1, 1 if isinstance(std, float) else 3, 16, 16)
    x = raw.numpy().astype(numpy.float32)
    if scale is not None:
        divisor = round(1 / scale) if scale < 1 and 1 / round(1 / scale) == scale else None
        x = x / numpy.float32(divisor) if divisor else x * numpy.float32(scale)
    shape = (1,) if isinstance(std, float) else (3, 1, 1)
    x = (x - numpy.reshape(mean, shape).astype(numpy.float32)) / numpy.reshape(std, shape).astype(numpy.float32)
    got = Preprocessing(scale=scale, mean=mean, std=std)(raw)
    assert got.dtype == torch.float32
    assert numpy.array_equal(got.numpy(), x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.int64])
def test_the_type_of_the_raw_data_does_not_matter_and_they_stay_as_they_are(dtype):
    raw = ALL_PIXELS.to(dtype)
    kept = raw.clone()
    assert torch.equal(Preprocessing()(raw), Preprocessing()(ALL_PIXELS))
    assert torch.equal(raw, kept)


def test_any_shape_goes_where_there_is_one_mean():
    table = torch.tensor([[1.0, 2.0, 3.0]])
    assert Preprocessing(scale=None, mean=1, std=2)(table).tolist() == [[0.0, 0.5, 1.0]]
    assert Preprocessing()(ALL_PIXELS[0]).shape == (1, 16, 16)


def test_another_count_of_channels_is_told():
    rgb = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    for raw in (ALL_PIXELS, torch.zeros(3, 4)):
        with pytest.raises(UsageError, match="for 3 channels"):
            rgb(raw)


@given(
    st.one_of(st.none(), st.just(1 / 255), positive),
    st.lists(st.tuples(st.floats(-1e3, 1e3), positive), min_size=1, max_size=4),
)
def test_it_comes_back_from_json_exactly(scale, constants):
    mean, std = zip(*constants, strict=True)
    one = Preprocessing(scale=scale, mean=mean, std=std)
    other = Preprocessing.from_json(json.loads(json.dumps(one.to_json())))
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"scale": 1, "mean": [0.5]},
        {"scale": 1, "mean": [0.5], "std": [0.5], "more": 1},
        {"scale": "1", "mean": [0.5], "std": [0.5]},
        {"scale": True, "mean": [0.5], "std": [0.5]},
        {"scale": 1, "mean": ["a"], "std": [0.5]},
        {"scale": 1, "mean": [0.5], "std": [0]},
        {"scale": 1, "mean": [0.5], "std": [1e-60]},
        {"scale": 1, "mean": [1e60], "std": [0.5]},
        {"scale": 1, "mean": [0.5, 1], "std": [0.5]},
        {"scale": 1, "mean": [], "std": []},
        {"scale": 0, "mean": [0.5], "std": [0.5]},
        {"scale": 1e-320, "mean": [0.5], "std": [0.5]},
        {"scale": 1e300, "mean": [0.5], "std": [0.5]},
        {"scale": float("inf"), "mean": [0.5], "std": [0.5]},
        {"scale": 1, "mean": [float("nan")], "std": [0.5]},
        {"scale": 1, "mean": None, "std": [0.5]},
    ],
)
def test_what_is_no_preprocessing_is_refused(data):
    with pytest.raises(UsageError, match="preprocessing: "):
        Preprocessing.from_json(data)


@pytest.mark.parametrize("mean", [(0.5,), (0.1, 0.2, 0.3)])
def test_the_module_gives_the_same_bits_and_exports(mean):
    preprocessing = Preprocessing(mean=mean, std=tuple(m + 0.1 for m in mean))
    module = preprocessing.module()
    assert not list(module.parameters())
    assert not module.state_dict()
    raw = ALL_PIXELS.expand(2, len(mean), 16, 16).contiguous()
    expected = preprocessing(raw)
    assert torch.equal(module(raw), expected)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (raw,), dynamic_shapes={"raw": {0: batch}})
    assert torch.equal(program.module()(raw[:1]), expected[:1])


def test_one_that_was_first_used_for_inference_lets_gradients_through():
    """Its constants are kept, and a tensor made in inference mode can be no part of a training."""
    preprocessing = Preprocessing(scale=None, mean=0.25, std=0.7)
    with torch.inference_mode():
        preprocessing(torch.zeros(1, 1, 2, 2))
    raw = torch.zeros(1, 1, 2, 2, requires_grad=True)
    preprocessing(raw).sum().backward()
    assert torch.allclose(raw.grad, torch.full_like(raw, 1 / 0.7))
