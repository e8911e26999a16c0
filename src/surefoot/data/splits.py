"""What a data set gives to a run: samples to train with, samples to validate, classes and preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..arguments import Arguments
from ..errors import UsageError
from ..preprocessing import Preprocessing
from ..registry import parameters_of
from .conversion import as_source
from .loader import Loader
from .sources import Source, TensorSource, check_labels, class_names
from .streams import StreamSource


@dataclass(frozen=True)
class DataSplits:
    """A data set ready for loaders; `train` and `val` are whatever `as_source` takes.

    `classes` names the values of the targets, or is None where they are no class labels; then all targets of
    data in memory have been checked to be one of them. `preprocessing` is the one that fits the raw data. `sizes` are
    arguments of a packaged model that the data decide where a recipe does not, beside its `classes`; of one input in
    memory they are found where they are left out.
    """

    train: Source
    val: Source | None
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", as_source(self.train))
        object.__setattr__(self, "val", None if self.val is None else as_source(self.val))
        if not self.sizes and isinstance(self.train, TensorSource) and not self.train.names:
            object.__setattr__(self, "sizes", sizes_of(self.train))
        check = Arguments("data: ")
        check.instance("preprocessing", self.preprocessing, Preprocessing, "Preprocessing()", none=True)
        check.done()
        if (names := class_names(self.classes)) is None:
            return
        object.__setattr__(self, "classes", names)
        for source in (self.train, self.val):
            # A Dataset's targets may have to be read one by one from disk: the loss meets them soon enough.
            if isinstance(source, TensorSource):
                check_labels(source.targets(), len(names))

    def sizes_for(self, model: Callable[..., Any]) -> dict[str, Any]:
        """Those arguments of a model's class that these data decide, as a recipe fills them in.

        >>> from surefoot.models import MLP
        >>> rows = DataSplits(TensorSource(torch.zeros(4, 3), torch.zeros(4, 1)), None, None, None)
        >>> rows.sizes_for(MLP), MLP(**rows.sizes_for(MLP), hidden=[8])(torch.zeros(2, 3)).shape
        ({'in_features': 3, 'classes': 1}, torch.Size([2, 1]))
        """
        sizes = {"classes": len(self.classes), **self.sizes} if self.classes else self.sizes
        taken = parameters_of(model)
        return {name: size for name, size in sizes.items() if name in taken}


def sizes_of(source: TensorSource) -> dict[str, Any]:
    """What inputs and targets in memory decide of a packaged model: the `sizes` of a DataSplits.

    >>> sizes_of(TensorSource(torch.zeros(4, 3), torch.zeros(4, 1)))
    {'in_features': 3, 'classes': 1, 'outputs': 1}
    """
    inputs, *rest = source.tensors
    sizes: dict[str, Any] = {"in_features": inputs[0].numel()}
    if inputs.dim() == 4:
        sizes |= {"channels": inputs.shape[1], "size": list(inputs.shape[2:])}
    outputs = len(source.classes or ())
    if rest and source.classes is None and rest[-1].dim() == 2:
        outputs = rest[-1].shape[1]
    return sizes | ({"classes": outputs, "outputs": outputs} if outputs else {})


def pixel_scale(source: Source) -> float | None:
    """What brings the inputs of `source` to 0..1: 1/255 or, for 16-bit pixels, 1/65535; None for floats and booleans.

    Of a Dataset, up to 16 samples spread over it are read. Raises UsageError for integers that are no pixels, and for
    inputs that are no single tensor.
    """
    if isinstance(source, TensorSource) and not source.names:
        inputs = source.tensors[0]
    else:
        each = Loader(source, 1, shuffle=False)
        count = 16 if isinstance(source, StreamSource) else len(source)
        places = sorted({(count - 1) * k // 15 for k in range(16)})
        batches = [each.batch_at(0, place)[0] for place in places]
        other = next((type(b).__name__ for b in batches if not isinstance(b, Tensor)), None)
        if other is not None:
            raise UsageError(
                f"the inputs are a {other} and not one tensor; normalise them in the data set, or give null"
            )
        inputs = torch.cat([batch.reshape(-1) for batch in batches])
    if inputs.is_floating_point() or inputs.is_complex() or inputs.dtype == torch.bool:
        return None
    if inputs.dtype == torch.uint8:
        return 1 / 255
    low, high = (int(v) for v in torch.aminmax(inputs))
    if low < 0 or high > 65535:
        raise UsageError(f"the inputs are {inputs.dtype} of {low} to {high}, which are no pixels; give floats, or null")
    return 1 / 255 if high <= 255 else 1 / 65535


def image_preprocessing() -> Preprocessing:
    """Pixels of 0 to 255 to -1 to 1, as the tutorial has it."""
    return Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.5,))
