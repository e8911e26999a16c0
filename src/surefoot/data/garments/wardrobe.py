"""How each kind of garment is drawn: one function a class."""

from __future__ import annotations

from collections.abc import Callable

import numpy

from .drawing import Pixels, box, choose, clip, curve, ellipse, limb, ring, stroke, union
from .sheet import Sheet


def _torso(s: Sheet, top: Pixels, bottom: Pixels, shoulder: Pixels, waist: Pixels, hem: Pixels) -> Pixels:
    """From sloping shoulders down to a straight hem."""
    across = numpy.abs(s.u)
    width = curve(s.v, (top, shoulder * 0.96), (top + 0.35, shoulder * 0.9), (0.05, waist), (bottom, hem))
    slope = (top + across * s.dice(0.2, 0.4) - s.v) * 0.95
    return numpy.maximum(numpy.maximum(across - width, slope), s.v - bottom)


def _sleeves(
    s: Sheet, shoulder: Pixels, top: Pixels, reach: Pixels, drop: Pixels, radius: Pixels, cuff: Pixels
) -> Pixels:
    """Both sleeves, from the shoulders outwards by `reach` and down by `drop`."""
    start = shoulder - 0.12, top + 0.2
    return limb(numpy.abs(s.u), s.v, start, (start[0] + reach, start[1] + drop), radius, cuff)


def t_shirt(s: Sheet) -> None:
    """A T-shirt, one on each picture of the sheet."""
    d = s.dice
    top, bottom, shoulder = -0.72, d(0.6, 0.85), d(0.4, 0.52)
    torso = _torso(s, top, bottom, shoulder, shoulder * d(0.82, 0.98), shoulder * d(0.86, 1.06))
    reach = d(0.3, 0.46)
    s.paint(_sleeves(s, shoulder, top, reach, d(0.2, 0.42), d(0.17, 0.21), d(0.14, 0.2)))
    s.paint(torso)
    neck_width, neck_depth = d(0.16, 0.24), d(0.16, 0.34)
    s.mark(ellipse(s.u, s.v, 0, top, neck_width + 0.08, neck_depth + 0.08), d(-0.7, 0.5))
    s.carve(ellipse(s.u, s.v, 0, top, neck_width, neck_depth))
    # A print on the chest, now and then.
    chest = box(s.u, s.v, 0, -0.1, d(0.1, 0.24), d(0.08, 0.2), 0.05)
    s.mark(chest, choose(d.chance(0.35), d(-0.8, 0.8), 0))


def trouser(s: Sheet) -> None:
    """A pair of trousers, one on each picture of the sheet."""
    d = s.dice
    top, bottom, waist = -0.88, d(0.75, 0.92), d(0.26, 0.36)
    crotch = d(-0.42, -0.2)
    across = numpy.abs(s.u)
    spread, ankle = d(0.14, 0.32), d(0.09, 0.17)
    middle = curve(s.v, (top, waist * 0.5), (crotch, waist * 0.55), (bottom, spread))
    half = curve(s.v, (top, waist * 0.5), (crotch, waist * 0.53), (bottom, ankle))
    legs = numpy.maximum(numpy.abs(across - middle) - half, numpy.maximum(crotch - 0.05 - s.v, s.v - bottom))
    hips = numpy.maximum(
        across - curve(s.v, (top, waist), (crotch, waist * 1.1)), numpy.maximum(top - s.v, s.v - crotch)
    )
    s.paint(union(legs, hips))
    s.mark(numpy.maximum(numpy.abs(s.v - top - 0.06) - 0.05, across - waist), d(-0.8, 0.3))
    s.mark(stroke(s.u, s.v, (0, top + 0.1), (0, crotch), 0.025), d(-0.8, -0.2))
    s.mark(stroke(across, s.v, (waist * 0.6, crotch), (spread, bottom), 0.02), d(-0.4, 0.4))


def pullover(s: Sheet) -> None:
    """A pullover, one on each picture of the sheet."""
    d = s.dice
    top, bottom, shoulder = -0.7, d(0.55, 0.78), d(0.4, 0.5)
    hem = shoulder * d(0.82, 1.0)
    torso = _torso(s, top, bottom, shoulder, shoulder * d(0.92, 1.05), hem)
    drop, cuff = d(0.9, 1.22), d(0.09, 0.13)
    sleeves = _sleeves(s, shoulder, top, d(0.16, 0.4), drop, d(0.16, 0.2), cuff)
    s.paint(sleeves)
    s.mark(numpy.maximum(sleeves, top + 0.1 + drop - s.v), d(-0.8, -0.3))
    s.paint(torso)
    band = d(0.08, 0.14)
    s.mark(numpy.maximum(torso, bottom - band - s.v), d(-0.8, -0.3))
    # A turtleneck, or a round neck with a ribbed band.
    turtle = d.chance(0.35)
    collar = box(s.u, s.v, 0, top + 0.02, d(0.16, 0.2), d(0.13, 0.18), 0.05)
    s.paint(choose(turtle, collar, 1.0), d(0.85, 1.15))
    s.mark(choose(turtle, numpy.abs(collar) - 0.025, 1.0), -0.5)
    neck, depth = d(0.15, 0.2), d(0.14, 0.2)
    band = ellipse(s.u, s.v, 0, top, neck + 0.09, depth + 0.09)
    s.mark(choose(turtle, 1.0, band), d(-0.7, -0.3))
    s.carve(choose(turtle, 1.0, ellipse(s.u, s.v, 0, top, neck, depth)))


def dress(s: Sheet) -> None:
    """A dress, one on each picture of the sheet."""
    d = s.dice
    top, bottom = -0.6, d(0.72, 0.95)
    bust, waist, hem = d(0.2, 0.28), d(0.14, 0.2), d(0.3, 0.62)
    waistline = d(-0.25, 0.05)
    across = numpy.abs(s.u)
    width = curve(s.v, (top, bust * 0.85), (top + 0.2, bust), (waistline, waist), (bottom + d(-0.25, 0.1), hem))
    body = numpy.maximum((across - width) * 0.85, numpy.maximum(top + across * 0.1 - s.v, s.v - bottom))
    short = d.chance(0.35)
    sleeves = limb(
        across, s.v, (bust - 0.05, top + 0.02), (bust + d(0.1, 0.22), top + d(0.2, 0.35)), 0.09, d(0.06, 0.1)
    )
    s.paint(choose(short, sleeves, 1.0))
    strap = limb(across, s.v, (d(0.1, 0.16), top - 0.25), (bust * 0.75, top + 0.1), d(0.03, 0.06), 0.05)
    s.paint(strap)
    s.paint(body)
    s.carve(ellipse(s.u, s.v, 0, top, d(0.08, 0.14), d(0.06, 0.3)))
    belt = numpy.maximum(body, numpy.abs(s.v - waistline) - d(0.02, 0.05))
    s.mark(belt, choose(d.chance(0.6), d(-0.9, 0.6), 0))
    pleat = stroke(across, s.v, (waist * 0.4, waistline + 0.1), (hem * 0.5, bottom), 0.02)
    s.mark(pleat, d(-0.7, 0.1))


def coat(s: Sheet) -> None:
    """A coat, one on each picture of the sheet."""
    d = s.dice
    top, bottom, shoulder = -0.82, d(0.78, 0.98), d(0.42, 0.5)
    torso = _torso(s, top, bottom, shoulder, shoulder * d(0.84, 1.0), shoulder * d(1.0, 1.3))
    across = numpy.abs(s.u)
    s.paint(_sleeves(s, shoulder, top, d(0.16, 0.36), d(0.95, 1.2), d(0.16, 0.2), d(0.11, 0.15)), d(0.8, 1.0))
    s.paint(torso)
    # The fronts meet in a dark line that opens towards the hem; above it the lapels frame a deep V.
    meet = d(-0.3, 0.05)
    front = numpy.maximum(across - curve(s.v, (meet, 0.03), (bottom, d(0.03, 0.09))), meet - s.v)
    s.mark(front, d(-1.0, -0.75))
    deep = numpy.maximum(across - d(0.15, 0.2) * clip((meet - s.v) / (meet - top)), top - s.v)
    lapel = numpy.maximum(deep - d(0.08, 0.14), s.v - meet - 0.06)
    s.mark(lapel, d(0.2, 0.6))
    s.mark(numpy.abs(lapel) - 0.02, -0.5)
    s.mark(deep, -0.85)
    s.carve(ellipse(s.u, s.v, 0, top, 0.14, d(0.06, 0.12)))
    pocket_x, pocket_y = shoulder * 0.62, d(0.3, 0.45)
    pocket = stroke(across, s.v, (pocket_x - 0.1, pocket_y), (pocket_x + 0.08, pocket_y - d(-0.05, 0.12)), 0.035)
    s.mark(pocket, d(-0.8, -0.4))
    belt = numpy.maximum(torso, numpy.abs(s.v - 0.08) - 0.05)
    s.mark(belt, choose(d.chance(0.3), d(-0.6, -0.3), 0))
    tone = choose(d.chance(0.7), -0.8, 0.8)
    for k in range(3):
        s.mark(ellipse(across, s.v, 0.13, meet + 0.12 + 0.2 * k, 0.04, 0.04), tone)


def sandal(s: Sheet) -> None:
    """A sandal, one on each picture of the sheet."""
    d = s.dice
    u, v = s.u, s.v
    high = d.chance(0.5)
    lift = choose(high, d(0.25, 0.55), d(0.0, 0.08))
    ground = d(0.42, 0.52)
    thick = d(0.035, 0.06) + choose(high, 0, d(0.0, 0.03))
    foot = ground - curve(u, (-0.4, 0.0), (0.6, 1.0)) * lift
    sole = numpy.maximum(numpy.abs(v - foot) - thick, numpy.abs(u) - 0.85)
    s.paint(sole, d(0.8, 1.2), plain=True, rim=0.1)
    heel = limb(u, v, (0.74, ground - lift), (d(0.66, 0.8), ground + 0.05), d(0.06, 0.13), d(0.03, 0.1))
    s.paint(choose(high, heel, 1.0), rim=0.1)
    strap = d(0.035, 0.065)
    for middle, height in ((-0.55, d(0.22, 0.34)), (-0.2, d(0.28, 0.45))):
        wide = d(0.13, 0.22)
        base = ground - curve(middle + u * 0, (-0.4, 0.0), (0.6, 1.0)) * lift
        arch = numpy.maximum(ring(u, v, middle, base, wide, height, strap), v - base)
        s.paint(arch, rim=0.1)
    back = ground - lift
    ankle = back - d(0.4, 0.55)
    s.paint(stroke(u, v, (0.78, back), (0.72, ankle), strap), rim=0.1)
    s.paint(ring(u, v, 0.5, ankle, d(0.2, 0.26), d(0.07, 0.11), strap * 0.85), rim=0.1)
    cross = stroke(u, v, (-0.1, ground - 0.3), (0.3, ankle), strap)
    s.paint(choose(d.chance(0.5), cross, 1.0), rim=0.1)


def shirt(s: Sheet) -> None:
    """A shirt, one on each picture of the sheet."""
    d = s.dice
    top, bottom, shoulder = -0.72, d(0.62, 0.85), d(0.4, 0.5)
    torso = _torso(s, top, bottom, shoulder, shoulder * d(0.84, 0.98), shoulder * d(0.9, 1.05))
    across = numpy.abs(s.u)
    # The tails hang lower than the sides.
    torso = numpy.maximum(torso, (s.v - bottom + across * across * d(0.5, 1.3)) * 0.85)
    long = d.chance(0.6)
    reach = choose(long, d(0.16, 0.38), d(0.28, 0.42))
    drop = choose(long, d(0.7, 1.15), d(0.25, 0.45))
    s.paint(_sleeves(s, shoulder, top, reach, drop, d(0.14, 0.18), choose(long, d(0.08, 0.11), d(0.14, 0.17))))
    s.paint(torso)
    # The placket with its buttons down the front.
    tone = choose(d.chance(0.5), 1, -1)
    s.mark(numpy.maximum(torso, across - 0.06), tone * d(0.55, 0.8))
    for k in range(5):
        s.mark(ellipse(s.u, s.v, 0, -0.4 + 0.24 * k, 0.055, 0.055), -tone)
    # Two pointed collar flaps about the neck.
    flap = limb(across, s.v, (0.17, top - 0.02), (d(0.03, 0.1), top + d(0.22, 0.3)), 0.1, 0.03)
    s.paint(flap, d(1.2, 1.5), plain=True, rim=0.75)
    s.carve(ellipse(s.u, s.v, 0, top - 0.06, 0.1, d(0.14, 0.2)))
    pocket = box(s.u, s.v, shoulder * 0.5, -0.22, 0.09, 0.1)
    s.mark(numpy.abs(pocket) - 0.02, choose(d.chance(0.6), d(-0.8, -0.4), 0))


def sneaker(s: Sheet) -> None:
    """A sneaker, one on each picture of the sheet."""
    d = s.dice
    u, v = s.u, s.v
    ground = d(0.38, 0.46)
    sole_height = d(0.06, 0.1)
    rise = d(0.36, 0.5)
    length = d(0.82, 0.92)
    toe, tongue = d(0.2, 0.28), d(0.0, 0.16)
    top = curve(
        u,
        (-length, ground - 0.12),
        (-0.6, ground - toe),
        (-0.25, ground - toe - 0.04),
        (tongue, ground - rise - 0.2),
        (0.85, ground - rise - 0.26),
    )
    body = numpy.maximum(
        (top - v) * 0.85, numpy.maximum(v - ground, numpy.abs(u + (v - ground) * 0.06) - length + 0.05)
    )
    s.paint(body)
    mouth = ellipse(u, v, d(0.42, 0.5), ground - rise - 0.36, d(0.24, 0.3), d(0.16, 0.24))
    s.mark(mouth - 0.06, -0.5)
    s.carve(mouth)
    for k in range(3):
        x = -0.28 + 0.16 * k
        y = ground - 0.46 - 0.07 * k
        s.mark(stroke(u, v, (x - 0.03, y - 0.03), (x + 0.1, y + 0.14), 0.025), choose(d() < 0.5, 0.9, -0.9))
    side = d(-0.9, 0.9)
    s.mark(stroke(u, v, (-0.15, ground - 0.12), (d(0.2, 0.4), ground - d(0.3, 0.45)), d(0.03, 0.07)), side)
    s.mark(stroke(u, v, (0.1, ground - 0.1), (d(0.4, 0.6), ground - d(0.25, 0.4)), d(0.02, 0.05)), side)
    s.mark(ellipse(u, v, -length + 0.1, ground - 0.05, 0.22, 0.2), choose(d.chance(0.4), d(-0.7, 0.7), 0))
    s.paint(box(u, v, 0, ground, length, sole_height, 0.06), d(0.6, 1.6), plain=True, rim=0.1)


def bag(s: Sheet) -> None:
    """A bag, one on each picture of the sheet."""
    d = s.dice
    u, v = s.u, s.v
    width, height, low = d(0.5, 0.82), d(0.28, 0.5), d(0.3, 0.42)
    flare = d(-0.18, 0.18)
    body = box(u / (1 + flare * v), v, 0, low, width, height, d(0.04, 0.16))
    top = low - height
    kind = d()
    handle_width = width * d(0.4, 0.85)
    arc = ring(u, v, 0, top + 0.02, handle_width, d(0.3, 0.55), d(0.03, 0.06))
    two = union(arc, ring(u, v, 0.05, top + 0.1, handle_width * 0.8, d(0.2, 0.4), 0.035))
    handle = numpy.maximum(choose(kind < 0.4, two, arc), v - top - 0.1)
    s.paint(choose(kind < 0.88, handle, 1.0), d(0.7, 1.15), rim=0.1)
    s.paint(body)
    flap_depth = d(0.3, 0.65) * height * 2
    pointed = d(0.0, 0.5)
    flap = numpy.maximum(body, v - top - flap_depth + numpy.abs(u) * pointed)
    flapped = d.chance(0.6)
    s.mark(choose(flapped, numpy.abs(flap) - 0.03, 1.0), d(-1.0, -0.5))
    s.mark(choose(flapped, flap, 1.0), d(-0.35, 0.35))
    clasp = box(u, v, 0, top + choose(flapped, flap_depth, height * 0.5), d(0.05, 0.09), d(0.04, 0.07))
    s.mark(clasp, choose(d() < 0.5, 1.0, -1.0))
    seam = numpy.maximum(body, numpy.abs(v - top - 0.08) - 0.025)
    s.mark(choose(flapped, 1.0, seam), d(-0.8, 0.2))


def ankle_boot(s: Sheet) -> None:
    """An ankle boot, one on each picture of the sheet."""
    d = s.dice
    u, v = s.u, s.v
    ground = d(0.5, 0.6)
    heel = d(0.06, 0.28)
    toe, back = d(0.78, 0.9), d(0.66, 0.78)
    upper = d(-0.85, -0.65)
    front = d(-0.12, 0.1)
    instep = ground - d(0.42, 0.52)
    # The foot below the instep, the shaft above it.
    top = curve(u, (-toe, ground - 0.12), (-0.45, ground - 0.3), (front + 0.12, instep - 0.1))
    bottom = ground - curve(u, (-0.25, 0.0), (0.35, 1.0)) * heel
    foot = numpy.maximum((top - v) * 0.8, numpy.maximum(v - bottom, numpy.abs(u + (toe - back) / 2) - (toe + back) / 2))
    lean = front + (v - instep) * d(-0.1, 0.1)
    shaft = numpy.maximum(
        numpy.maximum(lean - u, u - back + (v - upper) * d(-0.03, 0.06)), numpy.maximum(upper - v, v - bottom)
    )
    s.paint(union(foot, shaft))
    block = limb(u, v, (back - 0.17, ground - heel - 0.02), (back - d(0.1, 0.2), ground + 0.04), 0.16, d(0.08, 0.16))
    s.paint(block, d(0.5, 0.9), plain=True, rim=0.1)
    edge = numpy.maximum(numpy.abs(v - bottom) - 0.04, numpy.abs(u + (toe - back) / 2) - (toe + back) / 2)
    s.paint(edge, d(0.5, 1.3), plain=True, rim=0.1)
    s.mark(numpy.maximum(shaft, numpy.abs(v - upper - 0.05) - 0.04), d(-0.9, 0.4))
    panel = limb(u, v, ((front + back) / 2, upper + 0.12), ((front + back) / 2, instep), d(0.06, 0.12), 0.05)
    zipper = stroke(u, v, ((front + back) / 2, upper), ((front + back) / 2 - 0.05, ground - heel - 0.1), 0.025)
    s.mark(choose(d.chance(0.5), panel, zipper), d(-0.9, -0.3))
    s.mark(stroke(u, v, (front - 0.1, instep + 0.1), (0.3, ground - heel), 0.02), choose(d.chance(0.5), -0.6, 0))


# In the order of the classes' numbers.
WARDROBE: dict[str, Callable[[Sheet], None]] = {
    "T-shirt/top": t_shirt,
    "Trouser": trouser,
    "Pullover": pullover,
    "Dress": dress,
    "Coat": coat,
    "Sandal": sandal,
    "Shirt": shirt,
    "Sneaker": sneaker,
    "Bag": bag,
    "Ankle boot": ankle_boot,
}
