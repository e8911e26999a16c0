"""Augmentations: torchvision's meaning, every sample its own, and nothing but the allowed outcomes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from surefoot.data import AUGMENTATIONS, Loader
from surefoot.data.augment import RandomAffine, RandomCrop, RandomErasing, RandomHorizontalFlip, RandomVerticalFlip
from surefoot.data.draws import Draws, mix
from surefoot.errors import UsageError
from surefoot.rng import fold

_WORD = (1 << 64) - 1


def images(count: int = 200, height: int = 6, width: int = 5, channels: int = 2) -> torch.Tensor:
    """Every pixel another number, never 0."""
    numbers = torch.arange(1, count * channels * height * width + 1, dtype=torch.int32)
    return numbers.view(count, channels, height, width)


class Batched:
    """A transform of whole batches that does what a function of images says."""

    batched = True

    def __init__(self, function):
        self.function = function

    def __call__(self, images, draws):
        return self.function(images)


def draws(count: int = 200, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws(seed, epoch, torch.arange(count))


ALL = [
    RandomHorizontalFlip(),
    RandomVerticalFlip(0.3),
    RandomCrop(padding=2),
    RandomCrop(size=4, padding=1, padding_mode="reflect"),
    RandomErasing(value=7),
    RandomAffine(20, translate=(0.1, 0.2), scale=(0.8, 1.2), shear=10),
    RandomAffine(20, interpolation="bilinear"),
]


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_sample_is_changed_alike_alone_and_among_others_and_the_input_stays(transform, dtype):
    raw = torch.randint(1, 256, (50, 3, 8, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = raw.clone()
    together = transform(raw, draws(50))
    assert torch.equal(raw, kept)
    assert together.dtype == dtype
    assert not torch.equal(together[:, :, :4, :4], raw[:, :, :4, :4])
    for k in (0, 17, 49):
        alone = transform(raw[k : k + 1], Draws(0, 0, torch.tensor([k])))
        assert torch.equal(alone[0], together[k])
    # In another epoch the same samples get something else.
    assert not torch.equal(transform(raw, draws(50, epoch=1)), together)


@pytest.mark.parametrize(("kind", "axis"), [(RandomHorizontalFlip, -1), (RandomVerticalFlip, -2)])
def test_a_flip_mirrors_about_its_share_of_samples(kind, axis):
    raw = images(2000)
    out = kind(p=0.3)(raw, draws(2000))
    flipped = (out == raw.flip(axis)).all(dim=(1, 2, 3))
    assert ((out == raw).all(dim=(1, 2, 3)) ^ flipped).all()
    # Five deviations about the mean.
    assert abs(int(flipped.sum()) - 600) < 5 * math.sqrt(2000 * 0.3 * 0.7)
    assert torch.equal(kind(p=0)(raw, draws(2000)), raw)
    assert torch.equal(kind(p=1)(raw, draws(2000)), raw.flip(axis))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize(("size", "padding"), [(None, 2), (4, 0), ((3, 5), (1, 2)), (9, 2)])
def test_a_crop_is_a_window_of_the_padded_image_and_every_window_occurs(mode, size, padding):
    raw = images(2000)
    crop = RandomCrop(size=size, padding=padding, fill=-1, padding_mode=mode)
    out = crop(raw, draws(2000))
    aside, above = (padding, padding) if isinstance(padding, int) else padding
    around = (aside, aside, above, above)
    if mode == "constant":
        padded = F.pad(raw, around, value=-1)
    else:
        padded = F.pad(raw.double(), around, mode="replicate" if mode == "edge" else mode).to(raw.dtype)
    height, width = (6, 5) if size is None else (size, size) if isinstance(size, int) else size
    assert out.shape == (2000, 2, height, width)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    hits = (windows == out[:, :, None, None]).all(dim=(1, 4, 5))
    places = hits.flatten(1)
    assert places.any(dim=1).all()
    assert places.any(dim=0).all()


def test_a_window_that_does_not_fit_is_told():
    with pytest.raises(UsageError, match="a window of 9 does not fit in 6 pixels padded by 1"):
        RandomCrop(size=9, padding=1)(images(3), draws(3))
    with pytest.raises(UsageError, match="reflecting 6 pixels"):
        RandomCrop(padding=6, padding_mode="reflect")(images(3), draws(3))


def test_erasing_paints_one_rectangle_within_its_scale_and_ratio():
    raw = images(3000, 20, 20)
    out = RandomErasing(p=0.6, scale=(0.1, 0.3), ratio=(0.5, 2), value=0)(raw, draws(3000))
    painted = out == 0
    assert torch.equal(out[~painted], raw[~painted])
    assert torch.equal(painted[:, 0], painted[:, 1])
    rows, columns = painted[:, 0].any(dim=2), painted[:, 0].any(dim=1)
    # A full rectangle: the painted pixels are all those of its rows and columns.
    assert torch.equal(painted[:, 0], rows[:, :, None] & columns[:, None, :])
    tall, wide = rows.sum(1), columns.sum(1)
    some = tall > 0
    assert abs(int(some.sum()) - 1800) < 5 * math.sqrt(3000 * 0.24)
    area = (tall * wide)[some] / 400
    ratio = (tall / wide)[some]
    # Rounding to whole pixels moves the edges of the ranges a little.
    assert 0.08 < area.min() < 0.12
    assert 0.27 < area.max() < 0.33
    assert 0.42 < ratio.min() < 0.6
    assert 1.7 < ratio.max() < 2.4
    assert rows.any(dim=0).all()
    assert columns.any(dim=0).all()


def test_affine_turns_about_the_centre_and_shifts_by_whole_pixels():
    raw = images(50, 9, 9)
    assert torch.equal(RandomAffine(0)(raw, draws(50)), raw)
    assert torch.equal(RandomAffine(0, interpolation="bilinear")(raw, draws(50)), raw)
    # torchvision turns clockwise by a positive angle.
    quarter = RandomAffine((90, 90))(raw, draws(50))
    assert torch.equal(quarter, raw.rot90(-1, (2, 3)))
    smooth = RandomAffine((90, 90), interpolation="bilinear")(raw, draws(50))
    assert torch.equal(smooth, quarter)
    shifted = RandomAffine(0, translate=(0.3, 0), fill=-1)(raw, draws(50))
    found = set()
    for before, after in zip(raw, shifted, strict=True):
        for shift in range(-3, 4):
            padded = F.pad(before, (3, 3), value=-1)[..., 3 - shift : 12 - shift]
            if torch.equal(padded, after):
                found.add(shift)
    assert found == set(range(-3, 4))


def test_affine_scales_about_the_centre():
    raw = torch.zeros(1, 1, 9, 9)
    raw[0, 0, 3:6, 3:6] = 1
    twice = RandomAffine(0, scale=(2, 2))(raw, draws(1))
    assert twice.sum() >= 25
    assert torch.equal(twice, twice.flip(-1))
    assert torch.equal(twice, twice.flip(-2))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_affine_is_torchvisions_matrix(interpolation):
    """Against torchvision's documented inverse matrix, written out here, through torch's own grid_sample."""
    angle, scale, shear_x, shear_y = math.radians(25), 1.3, math.radians(12), math.radians(-7)
    raw = torch.rand(1, 1, 15, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    degrees = [math.degrees(v) for v in (shear_x, shear_x, shear_y, shear_y)]
    transform = RandomAffine((25, 25), scale=(1.3, 1.3), shear=degrees, interpolation=interpolation)
    out = transform(raw, draws(1))
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shears = torch.tensor([[1, 0], [-math.tan(shear_y), 1.0]]) @ torch.tensor([[1, -math.tan(shear_x)], [0, 1.0]])
    inverse = torch.linalg.inv((scale * rotation @ shears).double())
    theta = torch.cat([inverse, torch.zeros(2, 1)], dim=1)[None]
    grid = F.affine_grid(theta, [1, 1, 15, 15], align_corners=False)
    expected = F.grid_sample(raw, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    near = (out - expected).abs() < 1e-5
    # Halfway between two pixels, rounding may choose the other one.
    assert near.float().mean() > (0.97 if interpolation == "nearest" else 0.999)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("RandomHorizontalFlip", {"p": 1.5}, "p: 1.5 is above 1"),
        ("RandomCrop", {"padding": -1}, "padding: -1 is not"),
        ("RandomCrop", {"size": 0}, "size: 0 is not"),
        ("RandomCrop", {"size": [1, 2, 3]}, "size"),
        ("RandomCrop", {"padding_mode": "mirror"}, "padding_mode"),
        ("RandomCrop", {"pading": 1}, "did you mean 'padding'"),
        ("RandomErasing", {"scale": [0.5, 0.1]}, "scale"),
        ("RandomErasing", {"ratio": [0, 1]}, "ratio"),
        ("RandomAffine", {"degrees": -1}, "degrees"),
        ("RandomAffine", {"degrees": 1, "translate": [2, 0]}, "translate"),
        ("RandomAffine", {"degrees": 1, "scale": [0, 1]}, "scale"),
        ("RandomAffine", {"degrees": 1, "interpolation": "cubic"}, "interpolation"),
        ("RandomAffine", {}, "needs the argument 'degrees'"),
    ],
)
def test_arguments_that_cannot_be_are_told(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        AUGMENTATIONS.build(name, arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomErasing(scale=0.5), "scale: 0.5 is no pair of rising numbers"),
        (lambda: RandomErasing(ratio="ab"), "ratio: 'ab' is no pair of rising numbers"),
        (lambda: RandomAffine(5, translate=1), "translate: 1 is no pair of shares"),
        (lambda: RandomAffine(None), "degrees: None is no pair of rising numbers"),
        (lambda: RandomHorizontalFlip("x"), "p: 'x' is not a probability between 0 and 1"),
        (lambda: RandomCrop(size=2.5), "size: 2.5 is not one or two whole numbers"),
    ],
)
def test_arguments_given_in_python_are_checked_too(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_the_registry_builds_transforms_that_the_loader_takes():
    augment = [AUGMENTATIONS.build("RandomCrop", {"padding": 2}), AUGMENTATIONS.build("RandomHorizontalFlip")]
    raw = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
    loader = Loader((raw, torch.arange(20)), 7, augment=augment)
    assert [inputs.shape for inputs, _ in loader] == [(7, 1, 8, 8), (7, 1, 8, 8), (6, 1, 8, 8)]


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_what_is_no_image_is_told(transform):
    with pytest.raises(UsageError, match=r"takes images \(N, C, H, W\), the inputs have the shape \(4, 784\)"):
        next(iter(Loader((torch.zeros(4, 784), torch.arange(4)), 4, augment=[transform])))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (RandomCrop(padding=2, fill=-1), "RandomCrop: fill: -1 is no pixel of torch.uint8 images"),
        (RandomAffine(10, fill=300), "RandomAffine: fill: 300 is no pixel"),
        (RandomErasing(value=0.5), "RandomErasing: value: 0.5 is no pixel"),
        (RandomErasing(value="random"), "RandomErasing: value: 'random' is no pixel"),
        (RandomCrop(padding=2, fill=(1, 2, 3)), r"RandomCrop: fill: \(1, 2, 3\) is no pixel"),
        (lambda image: None, "<lambda> makes NoneType of inputs; give a tensor of each, all of one shape"),
        (lambda image: image[:, : int(image.max())], r"<lambda> makes \(1, ., 4\) uint8 and \(1, ., 4\) uint8"),
        (Batched(lambda images: None), "Batched makes NoneType of 3 inputs; give one tensor"),
        (Batched(lambda images: images[1:]), r"Batched makes \(2, 1, 4, 4\) uint8 of 3 inputs"),
    ],
)
def test_what_no_picture_can_be_made_with_is_told(transform, message):
    raw = torch.arange(1, 4, dtype=torch.uint8)[:, None, None, None].expand(3, 1, 4, 4)
    with pytest.raises(UsageError, match=f"data: augment: {message}"):
        next(iter(Loader((raw, torch.arange(3)), 3, augment=[transform])))


def python_mix(value: int) -> int:
    """SplitMix64's output function in Python's whole numbers."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


@given(st.integers(-(2**63), 2**63 - 1))
def test_the_tensors_hash_is_the_published_one(value):
    assert mix(torch.tensor([value])).item() == signed(python_mix(value & _WORD))


@given(st.integers(0, 2**64), st.integers(0, 1000), st.integers(0, 10**9))
def test_a_draw_is_the_hash_of_seed_epoch_index_and_call(seed, epoch, index):
    own = Draws(seed, epoch, torch.tensor([index]))
    key = python_mix(python_mix(index) ^ fold(seed, epoch))
    for call in (1, 2):
        bits = python_mix((key + call * 0x9E3779B97F4A7C15) & _WORD)
        if call == 1:
            assert own.uniform(2.0, 4.0).item() == (bits >> 11) * 2.0**-52 + 2.0
        else:
            assert own.integers(-3, 7).item() == ((bits >> 33) * 10 >> 31) - 3


def test_draws_are_even_and_unrelated():
    source = Draws(1, 2, torch.arange(100_000))
    one, two = source.uniform(), source.uniform()
    for numbers in (one, two):
        counts = torch.histc(numbers, 20, 0, 1)
        # Chi-square with 19 degrees of freedom: above 43.8 once in a thousand seeds.
        assert ((counts - 5000) ** 2 / 5000).sum() < 43.8
    for other in (two, one.roll(1), Draws(1, 3, torch.arange(100_000)).uniform()):
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.015
    assert Draws(0, 0, torch.arange(5000)).integers(0, 5).bincount().min() > 880
