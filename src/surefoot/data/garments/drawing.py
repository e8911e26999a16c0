"""Shapes on small grey images, many images at a time: distances, fills and random numbers, the same bits anywhere.

Only operations that IEEE 754 rounds exactly (no sines, no sums in an order of the machine's choosing) and integer
hashes are used, on float32, so that every machine draws the same picture.
"""

from __future__ import annotations

from typing import Any

import numpy

from ..draws import bits_of, mix, shift

# float32 (N, height, width), or what broadcasts to it. numpy's functions are typed to give anything, so that a
# narrower type would hold nothing.
Pixels = Any
Point = tuple[Pixels, Pixels]


class Dice:
    """Random numbers of N images, shape (N, 1, 1); those of an image depend on `seed` and its index only."""

    def __init__(self, seed: int, indices: Pixels):
        self._keys = mix(mix(indices.astype(numpy.int64)) ^ seed)
        self._calls = 0

    def __call__(self, low: float = 0.0, high: float = 1.0) -> Pixels:
        """Float32 numbers, evenly between `low` and `high`."""
        self._calls += 1
        unit = shift(bits_of(self._keys, self._calls), 40).astype(numpy.float32) * numpy.float32(2.0**-24)
        return (unit * numpy.float32(high - low) + numpy.float32(low))[:, None, None]

    def bell(self, low: float, high: float) -> Pixels:
        """Float32 numbers between `low` and `high`, most of them near the middle."""
        return (self(low, high) + self(low, high)) * numpy.float32(0.5)

    def chance(self, p: float) -> Pixels:
        """True with probability `p`."""
        return self() < numpy.float32(p)

    def grain(self, height: int, width: int) -> Pixels:
        """Noise for every pixel, (N, height, width), float32 from -1 to 1."""
        self._calls += 1
        words = -(-height * width // 8)
        counters = numpy.arange(1, words + 1) * (0xD1342543DE82EF95 - (1 << 64))
        bits = mix(bits_of(self._keys, self._calls)[:, None] + counters)
        # The bytes in the same order on a big-endian machine.
        octets = bits.astype("<i8").view(numpy.uint8)[:, : height * width]
        unit = octets.astype(numpy.float32) * numpy.float32(2 / 255) - numpy.float32(1)
        return unit.reshape(-1, height, width)


def clip(x: Pixels, low: float = 0.0, high: float = 1.0) -> Pixels:
    """`x` kept between `low` and `high`."""
    return numpy.minimum(numpy.maximum(x, numpy.float32(low)), numpy.float32(high))


def choose(condition: Pixels, then: Pixels, otherwise: Pixels) -> Pixels:
    """`then` where the condition holds, else `otherwise`, in float32."""
    return numpy.where(condition, numpy.asarray(then, numpy.float32), numpy.asarray(otherwise, numpy.float32))


def smooth(x: Pixels) -> Pixels:
    """From 0 at 0 to 1 at 1 without corners."""
    x = clip(x)
    return x * x * (3 - 2 * x)


def wave(x: Pixels) -> Pixels:
    """A periodic curve like a sine: period 1, from -1 to 1."""
    x = x - numpy.floor(x) - numpy.float32(0.5)
    return 16 * x * (numpy.abs(x) - numpy.float32(0.5))


def curve(x: Pixels, *knots: Point) -> Pixels:
    """A smooth curve through ``(position, value)`` knots in rising order, level outside them."""
    position, value = knots[0]
    y = numpy.zeros_like(x) + value
    for next_position, next_value in knots[1:]:
        y = y + (next_value - value) * smooth((x - position) / (next_position - position))
        position, value = next_position, next_value
    return y


# Distances to a shape, in the units of the coordinates u and v: below 0 inside, and about right near the edge.


def union(*shapes: Pixels) -> Pixels:
    """Inside any of the shapes."""
    out = shapes[0]
    for shape in shapes[1:]:
        out = numpy.minimum(out, shape)
    return out


def without(shape: Pixels, hole: Pixels) -> Pixels:
    """Inside `shape` and outside `hole`."""
    return numpy.maximum(shape, -hole)


def box(
    u: Pixels, v: Pixels, x: Pixels, y: Pixels, half_width: Pixels, half_height: Pixels, corner: Pixels = 0.0
) -> Pixels:
    """A rectangle about (x, y) with rounded corners."""
    across = numpy.abs(u - x) - half_width + corner
    along = numpy.abs(v - y) - half_height + corner
    outside_x, outside_y = numpy.maximum(across, 0), numpy.maximum(along, 0)
    outside = numpy.sqrt(outside_x * outside_x + outside_y * outside_y)
    return outside + numpy.minimum(numpy.maximum(across, along), 0) - corner


def ellipse(u: Pixels, v: Pixels, x: Pixels, y: Pixels, half_width: Pixels, half_height: Pixels) -> Pixels:
    """An ellipse about (x, y)."""
    across, along = (u - x) / half_width, (v - y) / half_height
    smaller = numpy.minimum(half_width, half_height, dtype=numpy.float32)
    return (numpy.sqrt(across * across + along * along) - 1) * smaller


def limb(u: Pixels, v: Pixels, start: Point, end: Point, start_radius: Pixels, end_radius: Pixels) -> Pixels:
    """A straight sleeve or strap from `start` to `end`, cut square at both ends."""
    run_x, run_y = end[0] - start[0], end[1] - start[1]
    length = numpy.sqrt(run_x * run_x + run_y * run_y)
    run_x, run_y = run_x / length, run_y / length
    from_x, from_y = u - start[0], v - start[1]
    along = from_x * run_x + from_y * run_y
    aside = numpy.abs(from_y * run_x - from_x * run_y)
    radius = start_radius + (end_radius - start_radius) * clip(along / length)
    return numpy.maximum(aside - radius, numpy.maximum(along - length, -along))


def stroke(u: Pixels, v: Pixels, start: Point, end: Point, radius: Pixels) -> Pixels:
    """A line with round ends."""
    run_x, run_y = end[0] - start[0], end[1] - start[1]
    from_x, from_y = u - start[0], v - start[1]
    share = clip((from_x * run_x + from_y * run_y) / (run_x * run_x + run_y * run_y))
    from_x, from_y = from_x - run_x * share, from_y - run_y * share
    return numpy.sqrt(from_x * from_x + from_y * from_y) - radius


def ring(u: Pixels, v: Pixels, x: Pixels, y: Pixels, half_width: Pixels, half_height: Pixels, radius: Pixels) -> Pixels:
    """The outline of an ellipse, drawn `radius` thick to both sides."""
    return numpy.abs(ellipse(u, v, x, y, half_width, half_height)) - radius
