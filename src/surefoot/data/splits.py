"""What a data set gives to a run: samples to train with, samples to validate, classes and preprocessing."""

from __future__ import annotations

from dataclasses import dataclass

from ..preprocessing import Preprocessing
from .sources import DatasetSource, Source, check_labels


@dataclass(frozen=True)
class DataSplits:
    """A data set ready for loaders.

    `classes` names the values of the targets, or is None where they are no class labels; then all targets of
    data in memory have been checked to be one of them. `preprocessing` is the one that fits the raw data.
    """

    train: Source
    val: Source | None
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None

    def __post_init__(self):
        if self.classes is None:
            return
        for source in (self.train, self.val):
            # A Dataset's targets may have to be read one by one from disk: the loss meets them soon enough.
            if source is not None and not isinstance(source, DatasetSource):
                check_labels(source.targets(), len(self.classes))


def image_preprocessing() -> Preprocessing:
    """Pixels of 0 to 255 to -1 to 1, as the tutorial has it."""
    return Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.5,))
