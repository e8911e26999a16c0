"""The embedded data set: ten kinds of garments, drawn by this package, 28x28 grey; nothing is downloaded.

The classes are those of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017). Pictures of a class vary in place, size,
turn, slant, mirror image, cut, fabric, light, background, noise and what lies in front of them.
"""

from __future__ import annotations

import numpy

from ..sources import TensorSource
from ..splits import DataSplits, image_preprocessing
from .drawing import Dice
from .sheet import SIZE, Sheet
from .wardrobe import WARDROBE

CLASSES = tuple(WARDROBE)

# So many images are drawn at a time that their pixels stay in the processor's cache.
_BLOCK = 128


def draw(label: int, numbers: numpy.ndarray, seed: int) -> numpy.ndarray:
    """Pictures of one class: uint8 (N, 28, 28), each a function of `seed`, `label` and its number."""
    pictures = numpy.empty((len(numbers), SIZE, SIZE), dtype=numpy.uint8)
    paint = WARDROBE[CLASSES[label]]
    for first in range(0, len(numbers), _BLOCK):
        part = numbers[first : first + _BLOCK]
        sheet = Sheet(Dice(seed * len(CLASSES) + label, part), len(part))
        paint(sheet)
        pictures[first : first + _BLOCK] = sheet.finish()
    return pictures


def source(size: int, seed: int) -> TensorSource:
    """`size` pictures, uint8 (size, 1, 28, 28), and labels int64 (size,), the classes in turn.

    The first n pictures are the same whatever the size.
    """
    images = numpy.empty((size, SIZE, SIZE), dtype=numpy.uint8)
    for label in range(len(CLASSES)):
        mine = numpy.arange(label, size, len(CLASSES))
        images[mine] = draw(label, mine, seed)
    labels = numpy.arange(size, dtype=numpy.int64) % len(CLASSES)
    return TensorSource(images[:, None], labels, classes=CLASSES)


def garments(train_size: int = 12_000, val_size: int = 2_000) -> DataSplits:
    """The data set: `train_size` pictures to train with and `val_size` others to validate, of ten classes.

    Drawn anew at each call, in a second or so; the same bits on every machine.

    >>> splits = garments(train_size=20, val_size=10)
    >>> splits.train.tensors[0].shape, splits.classes[1]
    (torch.Size([20, 1, 28, 28]), 'Trouser')
    """
    return DataSplits(
        train=source(train_size, seed=0),
        val=source(val_size, seed=1),
        classes=CLASSES,
        preprocessing=image_preprocessing(),
    )
