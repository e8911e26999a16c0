"""Evaluate and predict: one pass, large batches, no trace left in the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Loader, as_source
from ..losses import apply, metric_options
from ..losses import batch_size as samples_in
from ..metrics import RunningMetrics
from ..step import AUTOCAST

# Enough samples a batch to fill two cores, few enough that LeNet-5's activations stay in the cache.
EVAL_BATCH = 512


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a data set gave: means over its `samples`, and who was taken for whom.

    `metrics` holds ``loss`` and, for a classifier, ``accuracy`` (0 to 1). `confusion` is (C, C) counts with true
    classes as rows, or None.
    """

    metrics: dict[str, float]
    samples: int
    confusion: Tensor | None = None


def evaluate(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: Any,
    *,
    batch_size: int = EVAL_BATCH,
    metrics: tuple[str, ...] | str = "auto",
    precision: str = "float32",
    confusion: int | None = None,
    between: Callable[[], None] | None = None,
) -> Evaluation:
    """One pass over `data` without gradients, in evaluation mode; the model's mode is put back.

    `data` is a Loader, a Source, a torch Dataset or ``(inputs, targets)``. `confusion` is the number of classes
    to count a confusion matrix for. `between` is called between two batches, and may raise to stop.
    """
    loader = evaluation_loader(data, batch_size)
    options = metric_options(loss, metrics)
    if confusion is not None and options.get("accuracy") == "classes":
        options["confusion"] = confusion
    running = RunningMetrics(**options)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with _evaluating(model), autocast(device, precision):
        for batch in _from_start(loader):
            value = apply(loss, model, batch)
            running.add(value.loss, value.outputs, value.targets, samples_in(batch))
            if between is not None:
                between()
    matrix = running.matrix() if "confusion" in options else None
    return Evaluation(running.result(), loader.samples, matrix)


def evaluation_loader(data: Any, batch_size: int = EVAL_BATCH) -> Loader:
    """A loader that reads `data` in its own order; a Loader is taken as it is."""
    if isinstance(data, Loader):
        return data
    source = as_source(data)
    return Loader(source, min(batch_size, len(source)), shuffle=False)


def predict(
    model: nn.Module, inputs: Tensor, *, batch_size: int = EVAL_BATCH, precision: str = "float32"
) -> Tensor:
    """The model's outputs (N, ...) for `inputs` (N, ...), in evaluation mode and without gradients."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with _evaluating(model), autocast(device, precision):
        return torch.cat([model(part.to(device)) for part in inputs.split(batch_size)])


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    # Each module's own flag is put back: a user may have frozen a BatchNorm in evaluation mode.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: a module may cache a tensor here that training needs later
            yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """torch's autocast for bf16 and fp16; nothing for float32."""
    dtype = AUTOCAST.get(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _from_start(loader: Loader) -> Iterator[tuple]:
    loader.position = 0
    yield from loader
