"""The sheet on which garments are drawn: a block of images, their coordinates, fabric, light and background."""

from __future__ import annotations

import numpy

from .drawing import Dice, Pixels, choose, clip, smooth, stroke, wave

SIZE = 28


class Sheet:
    """A block of N images of one class on the easel.

    `u` to the right and `v` downwards are coordinates in which the garment fills about -0.9 to 0.9; `dice` gives
    its random numbers; `paint` lays one part over what is there.
    """

    def __init__(self, dice: Dice, count: int):
        self.dice = dice
        centre = (numpy.arange(SIZE, dtype=numpy.float32) + numpy.float32(0.5)) * numpy.float32(2 / SIZE) - 1
        x = numpy.broadcast_to(centre[None, None, :], (count, SIZE, SIZE))
        y = numpy.broadcast_to(centre[None, :, None], (count, SIZE, SIZE))
        self.ink = numpy.zeros((count, SIZE, SIZE), dtype=numpy.float32)
        self.cover = numpy.zeros((count, SIZE, SIZE), dtype=numpy.float32)
        x, y = x - dice.bell(-0.25, 0.25), y - dice.bell(-0.22, 0.22)
        # A turn by an angle whose half has the tangent t; without sine and cosine, which differ between machines.
        t = dice.bell(-0.16, 0.16)
        cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        x, y = x * cosine + y * sine, y * cosine - x * sine
        x = x + y * dice.bell(-0.2, 0.2)
        scale = dice(0.8, 1.08)
        across, along = scale * dice(0.85, 1.12), scale * dice(0.9, 1.06)
        mirror = choose(dice.chance(0.5), -1, 1)
        self.u, self.v = x * mirror / across, y / along
        # A pixel's size in the garment's units: edges are soft over one pixel.
        self.pixel = numpy.float32(2 / SIZE) / scale
        self.plain = dice(0.45, 0.95)
        self.fabric = self._fabric()

    def _fabric(self) -> Pixels:
        """The brightness of the cloth at each pixel: plain, striped, checked, dotted or mottled, with folds."""
        dice, u, v = self.dice, self.u, self.v
        kind, period, depth = dice(), dice(0.18, 0.5), dice(0.15, 0.5)
        offset = dice()
        stripes_across = wave(v / period + offset)
        stripes_along = wave(u / period + offset)
        pattern = choose(kind < 0.16, smooth(stripes_across * 2 + 0.5), 0)
        pattern = choose((kind >= 0.16) & (kind < 0.27), smooth(stripes_along * 2 + 0.5), pattern)
        check = smooth(stripes_across + 0.5) * numpy.float32(0.5) + smooth(stripes_along + 0.5) * numpy.float32(0.5)
        pattern = choose((kind >= 0.27) & (kind < 0.37), check, pattern)
        # Dots stay small: large ones would look like buttons.
        spacing = 0.13 + 0.2 * period
        dots = smooth(wave(v / spacing) * 2 - 0.6) * smooth(wave(u / spacing) * 2 - 0.6)
        pattern = choose((kind >= 0.37) & (kind < 0.45), dots, pattern)
        folds = wave(u * dice(0.6, 1.6) + v * dice(-0.4, 0.4) + dice())
        light = 1 + u * dice(-0.18, 0.18) + v * dice(-0.15, 0.1) + folds * dice(0.0, 0.1)
        return self.plain * (1 - depth * pattern) * light

    def edge(self, shape: Pixels) -> Pixels:
        """How much of each pixel the shape covers, 0 to 1."""
        assert shape.dtype == numpy.float32, "numbers of two widths would round differently here and there"
        return clip(numpy.float32(0.5) - shape / self.pixel)

    def paint(self, shape: Pixels, tone: Pixels = 1.0, *, plain: bool = False, rim: float = 0.35) -> None:
        """Lay `shape` in the garment's fabric, `tone` times as bright; `plain` for its mean brightness.

        Towards its edge a part is darker by the share `rim`, as cloth is that turns away.
        """
        alpha = self.edge(shape)
        cloth = self.plain if plain else self.fabric
        shading = 1 - rim * (1 - clip(shape * numpy.float32(-7)))
        self.ink = self.ink + alpha * (cloth * tone * shading - self.ink)
        self.cover = numpy.maximum(self.cover, alpha)

    def mark(self, shape: Pixels, strength: Pixels) -> None:
        """Darken (down to black at -1) or lighten (up to white at 1) what is painted where `shape` lies."""
        change = self.edge(shape) * strength
        lighter = numpy.maximum(change, 0) * (self.cover - self.ink)
        self.ink = self.ink * (1 + numpy.minimum(change, 0)) + lighter
        assert self.ink.dtype == numpy.float32

    def carve(self, shape: Pixels) -> None:
        """Take away what is painted where `shape` lies."""
        alpha = 1 - self.edge(shape)
        self.ink = self.ink * alpha
        self.cover = self.cover * alpha

    def finish(self) -> Pixels:
        """The pictures, uint8 (N, 28, 28): the garment before its background, behind what hides it, with noise."""
        dice, u, v = self.dice, self.u, self.v
        behind = dice(0.0, 0.12) * (1 + u * dice(-0.5, 0.5) + v * dice(-0.5, 0.5))
        for _ in range(2):
            self._bar(behind, chance=0.25, reach=1.3, thickness=(0.02, 0.2), tone=dice(0.05, 0.35))
        ink = behind + self.cover * (self.ink / numpy.maximum(self.cover, numpy.float32(1e-3)) - behind)
        self._bar(ink, chance=0.1, reach=1.2, thickness=(0.03, 0.1), tone=dice(0.0, 0.7))
        ink = ink + dice.grain(SIZE, SIZE) * dice(0.01, 0.07)
        assert ink.dtype == numpy.float32
        return (clip(ink) * 255 + numpy.float32(0.5)).astype(numpy.uint8)

    def _bar(self, ink: Pixels, *, chance: float, reach: float, thickness: tuple[float, float], tone: Pixels) -> None:
        """Draw a straight bar over some of the images of `ink`, in place."""
        dice = self.dice
        ends = [dice(-reach, reach) for _ in range(4)]
        radius = dice(*thickness)
        # Most images have none: only the others are worth the arithmetic.
        some = numpy.flatnonzero(dice.chance(chance))
        x1, y1, x2, y2 = (end[some] for end in ends)
        bar = stroke(self.u[some], self.v[some], (x1, y1), (x2, y2), radius[some])
        alpha = clip(numpy.float32(0.5) - bar / self.pixel[some])
        ink[some] += alpha * (tone[some] - ink[some])
