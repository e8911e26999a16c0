"""Random transforms of whole batches of raw images; names and arguments as torchvision.transforms has them.

Each takes images (N, C, H, W) of any number type and the draws of their samples, and gives new images of the same
type. What a sample gets does not depend on the others in the batch, nor on the device: what is drawn for each sample
is worked out on the CPU, by operations that round the same for one number as for many.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .. import batches
from ..arguments import as_number
from ..errors import UsageError
from .draws import Draws


class ImageTransform:
    """What the transforms here share: they take images (N, C, H, W) and tell it when given something else."""

    batched = True

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        if images.dim() != 4:
            raise UsageError(
                f"data: augment: {type(self).__name__} takes images (N, C, H, W), the inputs have the shape "
                f"{tuple(images.shape)}"
            )
        return self.apply(images, draws)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """The changed images, in memory of their own."""
        raise NotImplementedError

    def painted(self, name: str, images: Tensor) -> Tensor:
        """The number of that name as a pixel of the images. Raises UsageError for one that no pixel can be."""
        number = getattr(self, name)
        with contextlib.suppress(RuntimeError, TypeError, ValueError):
            pixel = torch.tensor(number, dtype=images.dtype, device="cpu")
            if not pixel.dim() and (pixel.is_floating_point() or pixel.item() == number):
                return pixel.to(images.device)
        raise UsageError(
            f"data: augment: {type(self).__name__}: {name}: {number!r} is no pixel of {images.dtype} images; give one "
            "of raw values, before normalisation"
        )


class RandomHorizontalFlip(ImageTransform):
    """Mirrors left and right with probability `p`.

    >>> RandomHorizontalFlip(p=1)(torch.arange(3).view(1, 1, 1, 3), Draws(0, 0, torch.tensor([0]))).flatten()
    tensor([2, 1, 0])
    """

    _axis = -1

    def __init__(self, p: float = 0.5):
        self.p = _probability(p)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        return torch.where(_a_sample(draws.happens(self.p), images), images.flip(self._axis), images)


class RandomVerticalFlip(RandomHorizontalFlip):
    """Mirrors top and bottom with probability `p`."""

    _axis = -2


class RandomCrop(ImageTransform):
    """A window of `size` (height and width, or one number; the image's own size by default) at a random place.

    The image is first padded on all sides by `padding` pixels (one number, or left-right and top-bottom), with
    `fill` or, by `padding_mode`, with its ``edge`` or its reflection. Raises UsageError where the window is larger
    than the padded image.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        padding: int | Sequence[int] | None = None,
        fill: float = 0,
        padding_mode: Literal["constant", "edge", "reflect"] = "constant",
    ):
        self.size = whole_pair("size", size, least=1) if size is not None else None
        self.padding = whole_pair("padding", padding if padding is not None else 0, least=0)
        self.fill = fill
        if padding_mode not in ("constant", "edge", "reflect"):
            raise UsageError(f"padding_mode: {padding_mode!r} is not constant, edge or reflect")
        self.padding_mode = padding_mode

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[-2:]
        size = self.size or (height, width)
        # torchvision gives padding as (left and right, top and bottom), sizes as (height, width).
        rows = batches.moved(self._lines(height, size[0], self.padding[1], draws), images.device)
        columns = batches.moved(self._lines(width, size[1], self.padding[0], draws), images.device)
        out = _pixels(images, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :])
        if self.padding_mode != "constant" or self.padding == (0, 0):
            return out
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        return torch.where(inside[:, None], out, self.painted("fill", images))

    def _lines(self, whole: int, size: int, padding: int, draws: Draws) -> Tensor:
        """The rows (or columns) that each sample's window shows, (N, size); outside 0 .. whole - 1 lies the fill."""
        room = whole + 2 * padding - size
        if room < 0:
            raise UsageError(
                f"RandomCrop: a window of {size} does not fit in {whole} pixels padded by {padding}; "
                "give a smaller size or more padding"
            )
        if self.padding_mode == "reflect" and padding >= whole:
            raise UsageError(f"RandomCrop: reflecting {padding} pixels needs more than the image's {whole}")
        first = draws.integers(0, room + 1) - padding
        lines = first[:, None] + torch.arange(size, device="cpu")
        if self.padding_mode == "reflect":
            lines = lines.abs()
            lines = (whole - 1) - ((whole - 1) - lines).abs()
        return lines


class RandomErasing(ImageTransform):
    """Paints `value` over a rectangle, with probability `p`.

    The rectangle covers a share of the image within `scale`, its height over width lies within `ratio`; of ten
    tries the first that fits is used (Zhong et al. 2017, "Random erasing data augmentation"). Unlike torchvision's
    on normalised images, `value` is a raw one.
    """

    _TRIES = 10

    def __init__(
        self,
        p: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: float = 0,
    ):
        self.p = _probability(p)
        self.scale = _range("scale", scale, low=0, high=1)
        self.ratio = _range("ratio", ratio, low=1e-6, high=math.inf)
        self.value = value

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[-2:]
        chosen = draws.happens(self.p)
        tall = torch.zeros(len(images), dtype=torch.int64, device="cpu")
        wide = tall.clone()
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(self._TRIES):
            area = draws.uniform(*self.scale) * (height * width)
            ratio = _each(math.exp, draws.uniform(low, high))
            rows, columns = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
            fits = (rows < height) & (columns < width) & (tall == 0)
            tall, wide = torch.where(fits, rows, tall), torch.where(fits, columns, wide)
        top = (draws.uniform() * (height - tall + 1)).long()
        left = (draws.uniform() * (width - wide + 1)).long()
        row = torch.arange(height, device="cpu")
        column = torch.arange(width, device="cpu")
        in_rows = (row >= top[:, None]) & (row < (top + tall)[:, None])
        in_columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
        erased = (in_rows[:, :, None] & in_columns[:, None, :] & chosen[:, None, None])[:, None]
        return torch.where(batches.moved(erased, images.device), self.painted("value", images), images)


class RandomAffine(ImageTransform):
    """Turns by an angle within `degrees`, shifts, scales and shears about the centre.

    `degrees` and `shear` are ranges in degrees, or one number for -n to n (a shear of four numbers is two ranges,
    along x and along y); `translate` holds the largest shifts as shares of width and height; `scale` is a range of
    factors. What comes from outside is `fill`.
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        translate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        shear: float | Sequence[float] | None = None,
        interpolation: Literal["nearest", "bilinear"] = "nearest",
        fill: float = 0,
    ):
        self.degrees = _symmetric("degrees", degrees)
        self.translate = _numbers(translate if translate is not None else (0.0, 0.0))
        if len(self.translate) != 2 or not all(0 <= t <= 1 for t in self.translate):
            raise UsageError(f"translate: {translate!r} is no pair of shares between 0 and 1")
        self.scale = _range("scale", scale if scale is not None else (1.0, 1.0), low=1e-6, high=math.inf)
        self.shear_y = (0.0, 0.0)
        if isinstance(shear, Sequence) and len(shear) == 4:
            self.shear_y = _symmetric("shear", shear[2:])
            shear = shear[:2]
        self.shear_x = _symmetric("shear", shear if shear is not None else 0.0)
        if interpolation not in ("nearest", "bilinear"):
            raise UsageError(f"interpolation: {interpolation!r} is not nearest or bilinear")
        self.interpolation = interpolation
        self.fill = fill

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[-2:]
        turn = draws.uniform(*self.degrees)
        shift_x = (draws.uniform(-1, 1) * (self.translate[0] * width)).round()
        shift_y = (draws.uniform(-1, 1) * (self.translate[1] * height)).round()
        scale = draws.uniform(*self.scale)
        slant_x, slant_y = draws.uniform(*self.shear_x), draws.uniform(*self.shear_y)
        numbers = torch.stack([turn, scale, slant_x, slant_y], dim=1).tolist()
        inverses = torch.tensor([_inverse(*sample) for sample in numbers], dtype=torch.float64, device="cpu")
        a, b, c, d = (_a_sample(number, images)[:, 0] for number in inverses.unbind(1))
        # Where does each pixel come from?
        y = torch.arange(height, dtype=torch.float64, device=images.device) - (height - 1) / 2
        x = torch.arange(width, dtype=torch.float64, device=images.device) - (width - 1) / 2
        out_x = x[None, None, :] - _a_sample(shift_x, images)[:, 0]
        out_y = y[None, :, None] - _a_sample(shift_y, images)[:, 0]
        from_x = a * out_x + b * out_y + (width - 1) / 2
        from_y = c * out_x + d * out_y + (height - 1) / 2
        if self.interpolation == "nearest":
            return self._at(images, from_y.round().long(), from_x.round().long())
        return self._between(images, from_y, from_x)

    def _at(self, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        out = _pixels(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
        return torch.where(inside[:, None], out, self.painted("fill", images))

    def _between(self, images: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """The weighted mean of the four nearest pixels, rounded again where pixels are whole numbers."""
        top, left = y.floor(), x.floor()
        down, right = (y - top)[:, None], (x - left)[:, None]
        rows, columns = top.long(), left.long()
        out = torch.zeros((), dtype=torch.float64, device=images.device)
        for row, weight_y in ((rows, 1 - down), (rows + 1, down)):
            for column, weight_x in ((columns, 1 - right), (columns + 1, right)):
                out = out + self._at(images, row, column) * (weight_y * weight_x)
        return (out if images.is_floating_point() else out.round()).to(images.dtype)


def _pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``images[n, :, rows[n], columns[n]]`` for all n: (N, C, h, w)."""
    samples, channels, height, width = images.shape
    places = rows * width + columns
    flat = places.reshape(samples, 1, -1).expand(-1, channels, -1)
    return images.reshape(samples, channels, height * width).gather(2, flat).view(samples, channels, *places.shape[1:])


def _a_sample(values: Tensor, images: Tensor) -> Tensor:
    """One value a sample, (N,), to be combined with its images: (N, 1, 1, 1) on their device."""
    there: Tensor = batches.moved(values, images.device)
    return there[:, None, None, None]


def _each(function: Callable[[float], float], values: Tensor) -> Tensor:
    """`function` of each number. Vectorised exponentials may differ in the last bit with a number's place."""
    return torch.tensor([function(value) for value in values.tolist()], dtype=torch.float64, device="cpu")


def _inverse(turn: float, scale: float, slant_x: float, slant_y: float) -> tuple[float, float, float, float]:
    """The inverse of torchvision's matrix, rotation times shear times scale; angles in degrees."""
    turn, slant_x, slant_y = math.radians(turn), math.radians(slant_x), math.radians(slant_y)
    a = math.cos(turn - slant_y) / math.cos(slant_y)
    b = -a * math.tan(slant_x) - math.sin(turn)
    c = math.sin(turn - slant_y) / math.cos(slant_y)
    d = -c * math.tan(slant_x) + math.cos(turn)
    return d / scale, -b / scale, -c / scale, a / scale


def _numbers(value: Any) -> tuple[float, ...]:
    """One number or several as plain ones; none where something among them is no number."""
    items = value if isinstance(value, Iterable) else [value]
    numbers = [as_number(item) for item in items]
    return tuple(number for number in numbers if number is not None and None not in numbers)


def _probability(p: float) -> float:
    if (number := as_number(p)) is None or not 0 <= number <= 1:
        raise UsageError(f"p: {p!r} is not a probability between 0 and 1")
    return number


def whole_pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """`value` as two whole numbers of at least `least`; one number stands for both."""
    pair = tuple(value) if isinstance(value, Iterable) else (value, value)
    if len(pair) == 1:
        pair *= 2
    if len(pair) != 2 or not all(isinstance(n, int) and n >= least for n in pair):
        raise UsageError(f"{name}: {value!r} is not one or two whole numbers of {least} or more")
    return pair


def picture_shape(size: int | Sequence[int], channels: int) -> tuple[int, int, int]:
    """(channels, height, width) of what a folder of pictures gives. Raises UsageError for what cannot be."""
    if channels not in (1, 3):
        raise UsageError(f"data.channels: {channels} is not 3 (colours) or 1 (grey)")
    return channels, *whole_pair("data.size", size, least=1)


def _range(name: str, value: Sequence[float], low: float, high: float) -> tuple[float, float]:
    pair = _numbers(value)
    if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
        raise UsageError(f"{name}: {value!r} is no pair of rising numbers between {low:g} and {high:g}")
    return pair[0], pair[1]


def _symmetric(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    if isinstance(value, int | float):
        if value < 0:
            raise UsageError(f"{name}: {value!r} is below 0; give a positive number or a pair")
        return -value, value
    return _range(name, value, low=-360, high=360)
