"""What becomes of a batch once it is read: put on the device, augmented, preprocessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import batches
from ..errors import UsageError
from ..preprocessing import Preprocessing
from ..rng import fold
from ..text import counted
from .arrays import as_float32
from .draws import Draws
from .workers import apply_to_each

IN_THE_DATA = "leave it out, and do it in the data set"


class Finishing:
    """Called with a batch, the epoch and the keys (n,) of its samples' random numbers; see `Loader`'s arguments."""

    def __init__(
        self,
        seed: int,
        augment: Sequence[Callable[..., Any]],
        preprocessing: Preprocessing | None,
        device: torch.device,
    ):
        self.seed, self.augment, self.preprocessing, self.device = seed, augment, preprocessing, device
        self.narrow = False  # whether float64 becomes float32

    def __call__(self, batch: tuple[Any, ...], epoch: int, keys: Tensor) -> tuple[Any, ...]:
        if self.narrow:  # before it is moved: some devices have no float64
            batch = batches.mapped(as_float32, batch)
        inputs, *rest = batch = batches.moved(batch, self.device)
        if not isinstance(inputs, Tensor):
            if self.augment or self.preprocessing is not None:
                name = "augment" if self.augment else "preprocessing"
                raise UsageError(
                    f"data: {name}: the inputs of a batch are {batches.form(inputs)} and not one tensor; {IN_THE_DATA}"
                )
            return batch
        for number, transform in enumerate(self.augment):
            # Each transform has numbers of its own, so that what one draws does not shift the next.
            seed = fold(self.seed, number)
            if getattr(transform, "batched", False):
                inputs = transform(inputs, Draws(seed, epoch, keys))
                if not isinstance(inputs, Tensor) or inputs.shape[:1] != keys.shape:
                    raise UsageError(
                        f"data: augment: {type(transform).__name__} makes {batches.form(inputs)} of "
                        f"{counted(len(keys), 'input')}; give one tensor (N, ...) of as many"
                    )
            else:
                inputs = apply_to_each(transform, inputs, keys.tolist(), seed, epoch)
        if self.preprocessing is not None:
            inputs = self.preprocessing(inputs)
        return (inputs, *rest)
