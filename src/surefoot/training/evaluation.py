"""Evaluate and predict: one pass, large batches, no trace left in the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import batches
from ..arguments import Arguments
from ..data import DataSplits, Loader, Source, StreamSource, as_source
from ..data.arrays import is_array
from ..data.torch_loader import loader_of
from ..errors import Problems, UsageError
from ..limits import PRECISIONS
from ..losses import accuracy_kind, apply, metric_options
from ..losses.checks.lint import REFUSALS, target_problems
from ..losses.objectives import as_objective
from ..metrics import RunningMetrics
from ..metrics.hardest import Answers, Hardest
from ..metrics.reliability import Reliability
from ..modes import autocast, evaluating
from ..reduction import take_from_first
from ..step import Batch
from ..tracking import evaluation_html
from ..world import World
from ..wrapping import whole

# Enough samples a batch to fill two cores, few enough that LeNet-5's activations stay in the cache.
EVAL_BATCH = 512
DEFAULT_BATCH = 64


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a data set gave: means over its `samples`, and who was taken for whom.

    `metrics` holds ``loss`` and what is measured beside it, as ``accuracy`` (0 to 1). `confusion` is (C, C) counts with
    true classes as rows, or None; `reliability` is as `surefoot.metrics.reliability` has it, counted with it. `answers`
    are those that were most wrong and least sure, as `surefoot.metrics.hardest` has them, where they were asked for.
    """

    metrics: dict[str, float]
    samples: int
    confusion: Tensor | None = None
    reliability: dict[str, list[Any]] | None = None
    answers: Answers | None = None

    def _repr_html_(self) -> str:
        return evaluation_html(self.metrics, None if self.confusion is None else self.confusion.tolist())


def evaluate(
    model: nn.Module,
    loss: Callable[..., Tensor] | None,
    data: Any,
    *,
    batch_size: int = EVAL_BATCH,
    metrics: Any = "auto",
    precision: str = "float32",
    confusion: int | None = None,
    between: Callable[[], None] | None = None,
    world: World | None = None,
    hardest: int | None = None,
) -> Evaluation:
    """One pass over `data` without gradients, in evaluation mode; the model's mode is put back.

    `data` is a Loader, a Source, a torch Dataset, ``(inputs, targets)`` or a DataSplits, of which those that validate
    are taken; a Loader is read from the start of its epoch and left where it was, what is none yet in batches of
    `batch_size` samples. `loss` and `metrics` are those of
    `fit`, `precision` is ``"float32"``, ``"bf16"`` or ``"fp16"``. `confusion` is the number of classes to count a
    confusion matrix for, `hardest` how many of the answers that are most wrong and least sure to keep. `between` is
    called between two batches, and may raise to stop. The ranks of a `world` have whole batches by turns, with the
    buffers of rank 0's model: each gets the answer of one process, to the bit. Raises Problems for arguments that
    cannot be.
    """
    check = Arguments()
    check.instance("model", model, nn.Module, "the model itself")
    if loss is not None:
        check.function("loss", loss, "torch.nn.CrossEntropyLoss()")
    check.choice("precision", precision, PRECISIONS)
    confusion = check.whole("confusion", confusion, low=1, none=True)
    hardest = check.whole("hardest", hardest, low=1, none=True)
    check.instance("world", world, World, "surefoot.World.join()", none=True)
    if between is not None:
        check.function("between", between, "lambda: None")
    batch_size = check.whole("batch_size", batch_size, low=1)
    check.done()
    with contextlib.closing(evaluation_loader(data, batch_size, model)) as loader:
        loss = as_objective(loss)
        return evaluate_on(loader, model, loss, metrics, precision, confusion, between, world, hardest or 0)


def evaluate_on(
    loader: Loader,
    model: nn.Module,
    loss: Callable[..., Tensor],
    metrics: Any = "auto",
    precision: str = "float32",
    confusion: int | None = None,
    between: Callable[[], None] | None = None,
    world: World | None = None,
    hardest: int = 0,
) -> Evaluation:
    """As `evaluate`, on a loader of the caller's own from `evaluation_loader`, whose workers stay for the next time."""
    options = metric_options(loss, metrics)
    if confusion is not None and accuracy_kind(loss) == "classes" and (callable(options["own"]) or options["own"]):
        options["confusion"] = confusion
    world = World.alone() if world is None else world
    running = RunningMetrics(**options, world=world)
    reliability = Reliability(options["ignore_index"]) if "confusion" in options else None
    kept = Hardest(accuracy_kind(loss), options["ignore_index"], size=loader.batch_size, most=hardest)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    take_from_first(world, model.buffers())
    # not inference_mode: a module may cache a tensor here that training needs later
    # The ranks have batches by turns, and not all of them as many: none may wait for another in a forward pass.
    with whole(model), evaluating(model), torch.no_grad(), autocast(device, precision):
        for turn, (batch, own) in enumerate(_batches_of(loader, world)):
            try:
                value = apply(loss, model, batch)
            except REFUSALS as refusal:
                if problems := target_problems(model, loss, batch):
                    raise Problems([f"data: batch {turn}: {problem}" for problem in problems]) from refusal
                raise
            running.add(*value[:3], batches.size(batch) if own else 0, value.weight, value.numbers)
            if own and reliability is not None:
                reliability.add(value[1], value[2])
            if own and hardest:
                number = turn * world.size + world.rank
                kept.add(value[1], value[2], number, loader.samples_at(number))
            if between is not None:
                between()
    matrix = running.matrix() if "confusion" in options else None
    sure = None if reliability is None else reliability.result(world)
    answers = kept.result(world) if hardest else None
    return Evaluation(running.result(), running.samples, matrix, sure, answers)


def evaluation_loader(
    data: Any, batch_size: int = EVAL_BATCH, model: nn.Module | None = None, say: Callable[[str], None] | None = None
) -> Loader:
    """A loader of the caller's own that reads `data` in their order; of a Loader, its order and batches.

    Of a DataSplits those that validate, prepared.
    """
    if isinstance(data, DataSplits):
        if data.val is None:
            raise UsageError(
                "data: this DataSplits has no samples to validate on; give it a val, or data=splits.train",
                code="data-split",
            )
        source, prepared = data.val, data.preprocessing
    elif isinstance(data, Loader):
        return data.apart()
    elif isinstance(data, DataLoader):
        return narrowed(loader_of(data, 0), model, say)
    else:
        source, prepared = as_source(data), None
    loader = Loader(source, _at_most(batch_size, source), shuffle=False, preprocessing=prepared)
    return narrowed(loader, model, say)


def training_loader(
    data: Any, batch_size: int | None, seed: int, model: nn.Module, say: Callable[[str], None]
) -> Loader:
    """What fit reads: a Loader as it is, anything else in batches of `batch_size` (None: 64, or all of fewer)."""
    if not isinstance(data, Loader | DataLoader):
        prepared = data.preprocessing if isinstance(data, DataSplits) else None
        source = as_source(data.train if isinstance(data, DataSplits) else data)
        size = _at_most(DEFAULT_BATCH, source) if batch_size is None else batch_size
        return narrowed(Loader(source, size, seed=seed, preprocessing=prepared), model, say)
    if batch_size not in (None, data.batch_size):
        raise UsageError(
            f"batch_size: {batch_size} was given beside a {type(data).__name__} with batches of {data.batch_size}; "
            "leave it out",
            code="argument",
        )
    return data if isinstance(data, Loader) else narrowed(loader_of(data, seed, say), model, say)


def _at_most(batch_size: int, source: Source) -> int:
    return batch_size if isinstance(source, StreamSource) else min(batch_size, len(source))


def narrowed(loader: Loader, model: nn.Module | None, say: Callable[[str], None] | None = None) -> Loader:
    """`loader`, which gives float64 as float32 from now on where that is what the model computes in.

    NumPy and pandas make float64 of every number. `say` receives a message meant for the user.
    """
    kinds = set() if model is None else {p.dtype for p in model.parameters() if p.is_floating_point()}
    # A user's function may need more samples than one to make a batch.
    most = None if getattr(loader.source, "collate", None) else 1
    if kinds == {torch.float32} and any(t.dtype == torch.float64 for t in batches.tensors(loader.peek(most))):
        loader.narrow()
        if say is not None:
            say("data: float64 is read as float32, which the model computes in")
    return loader


def predict(model: nn.Module, data: Any, *, batch_size: int = EVAL_BATCH, precision: str = "float32") -> Any:
    """The model's outputs (N, ...) for each sample of `data` in order, in evaluation mode and without gradients.

    `data` is inputs (N, ...), a tensor or array; a dictionary of such, the keywords that the model takes; or what
    `evaluate` takes, whose targets are left out. Outputs are what the model returns, a tensor, or a tuple, dictionary
    or object of tensors (N, ...), joined over all batches of `batch_size` samples; what is no tensor in a dictionary
    (a cache of transformers) is left out. `precision` is ``"float32"``, ``"bf16"`` or ``"fp16"``. Raises
    UsageError for a loader that reads in another order.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    check = Arguments()
    check.instance("model", model, nn.Module, "the model itself")
    check.choice("precision", precision, PRECISIONS)
    batch_size = check.whole("batch_size", batch_size, low=1)
    check.done()
    if isinstance(data, tuple) or (isinstance(data, Mapping) and not data):
        raise UsageError(
            f"data: a {type(data).__name__} was given; predict takes the inputs alone, (N, ...), or a Dataset"
        )
    keywords = isinstance(data, Mapping)
    samples = isinstance(data, list) and data and isinstance(data[0], tuple | dict)
    inputs = is_array(data) or (isinstance(data, list) and not samples)
    with (
        contextlib.closing(evaluation_loader((data,) if inputs else data, batch_size, model)) as loader,
        evaluating(model),
        torch.no_grad(),
        autocast(device, precision),
    ):
        if not isinstance(loader.source, StreamSource):
            places = torch.arange(len(loader.source), device="cpu")
            if not torch.equal(loader.order(loader.epoch), places):
                raise UsageError(
                    "data: this loader reads its samples shuffled, drawn or in part, so the outputs would not be those "
                    "of the samples in order; give the data set itself"
                )
        parts = []
        for batch in loader:
            pair = None if keywords else batches.pair(batch)
            part = batches.whole(batch) if pair is None else pair[0]
            parts.append(batches.unopaque(batches.call(model, batches.moved(part, device))))
    if (outputs := batches.joined(parts)) is None:
        shapes = ", ".join(sorted({str(tuple(p.shape)) if isinstance(p, Tensor) else batches.form(p) for p in parts}))
        raise UsageError(
            f"predict: the model's outputs for batches of up to {batch_size} cannot be joined to (N, ...): {shapes}; "
            "call the model yourself, a batch at a time"
        )
    return outputs


def _batches_of(loader: Loader, world: World) -> Iterator[tuple[Batch, bool]]:
    """The batches of the loader's epoch that this rank goes through, and whether they are its own.

    It is afterwards its epoch still: each evaluation reads the same.
    """
    if world.size > 1:
        yield from loader.turns(world.rank, world.size)
        return
    epoch = loader.epoch
    loader.seek(epoch)
    for batch in loader:
        yield batch, True
    loader.seek(epoch)
