"""Compiled forms of one micro-batch: forward and backward of those of one shape, the same on all ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import sharding
from ..errors import first_line
from ..losses.conventions import LossValue
from ..step import Batch, TrainStep
from ..torch_compat import compile_for_one_shape
from ..untouched import untouched
from ..wrapping import shared_out, unwrap
from .compiled import CompiledGraph, compile_step, why_no_code, why_not
from .graph_step import CannotCompile, fits, signature, target_place
from .settings import Execution, compile_options
from .verify import NOT_COMPARED, Observed, cloned, compared, record, verify


class Part(Protocol):
    """What `Divided.form` is: see `TrainStep.one`."""

    def fits(self, batch: Batch) -> bool:
        """Whether the form is one for this micro-batch; others, on whichever rank, go through the plain step."""
        ...

    def __call__(self, step: Any, batch: Batch, share: Any, index: int, model: nn.Module) -> LossValue:
        """Forward and backward, as `TrainStep.one`; leaves gradients in the parameters, which have none."""
        ...


class GraphPart:
    """Forward, loss and backward of a micro-batch as one compiled graph; its share is a tensor that the graph reads."""

    def __init__(self, graph: CompiledGraph, targets_at: int | None):
        self.graph, self._targets_at = graph, targets_at

    def fits(self, batch: Batch) -> bool:
        """Whether the graph is one for this micro-batch, and for what is trained and set now."""
        return self.graph.constants.changed() is None and self.graph.fits(batch)

    def __call__(self, step: TrainStep, batch: Batch, share: Any, index: int, model: nn.Module) -> LossValue:
        result = self.graph(batch, shares_of(share))
        if step.checks and not math.isfinite(result.sound.item()) and not math.isfinite(number := result.loss.item()):
            step.divided.refuse(number, index)
        for parameter, grad in zip(self.graph.parameters, result.grads, strict=True):
            parameter.grad = grad
        targets = None if self._targets_at is None else batch[self._targets_at]
        return LossValue(result.loss, result.outputs, targets)


class ModulePart:
    """A micro-batch through a model whose blocks are compiled (all of it, where it has none), for one shape only.

    Blocks are those that FSDP2 gathers one at a time: it has done so when the code of one begins, which is therefore
    the same with the model whole or in pieces. A batch of another shape would change the code.
    """

    def __init__(self, model: nn.Module, batch: Batch):
        inner = unwrap(model)
        blocks = sharding.blocks(inner) or [inner]
        self._forwards = [
            (block, compile_for_one_shape(block.forward, 2 * len(blocks), compile_options(block))) for block in blocks
        ]
        self._signature = signature(batch)

    def fits(self, batch: Batch) -> bool:
        """Whether the micro-batch has the shape that was compiled."""
        return all(isinstance(part, Tensor) for part in batch) and fits(batch, self._signature)

    def __call__(self, step: TrainStep, batch: Batch, share: Any, index: int, model: nn.Module) -> LossValue:
        own = [vars(block).get("forward") for block, _ in self._forwards]
        try:
            for block, forward in self._forwards:
                block.forward = forward
            return step.one(batch, share, index, model)
        finally:
            for (block, _), before in zip(self._forwards, own, strict=True):
                if before is None:
                    del block.forward
                else:
                    block.forward = before


def shares_of(share: Any) -> tuple[Tensor, ...]:
    """A share, or one of each part of a sum of losses, as tensors of one number (float64)."""
    each = share if isinstance(share, tuple) else (share,)
    known = [one() if callable(one) else 1.0 if one is None else one for one in each]
    return tuple(torch.as_tensor(one, dtype=torch.float64, device="cpu") for one in known)


def make_part(execution: Execution, step: TrainStep, example: Batch) -> Part | None:
    """The form of a micro-batch like `example` that `execution` says; None where that is the plain one.

    Call it within `prepare`. Raises CannotCompile for what cannot be made here.
    """
    options = step.options
    if execution.cuda_graph:
        raise CannotCompile("a captured step is one of whole batches, and this run has micro-batches")
    if execution.compile == "none":
        return None
    if options.precision == "fp16" or isinstance(step.optimizer, torch.optim.LBFGS):
        raise CannotCompile("fp16 and L-BFGS have the plain step only")
    in_pieces = bool(shared_out(step.model))
    if in_pieces and execution.compile == "gradients":
        raise CannotCompile("a model under FSDP2 has no graph of its gradients; compile: module compiles its blocks")
    if (reason := why_no_code(step.device.type) if in_pieces else why_not(step.model)) is not None:
        raise CannotCompile(reason)
    if not all(isinstance(part, Tensor) for part in example):
        raise CannotCompile("its batches hold more than plain tensors")
    if execution.compile == "module":
        return ModulePart(step.model, example)
    targets_at = target_place(step.loss)
    return GraphPart(compile_step(step, example, len(getattr(step.loss, "parts", (None,)))), targets_at)


def with_part(step: TrainStep, part: Part | None) -> TrainStep:
    """A step over the same objects that runs in this process alone, with `part` as the form of its micro-batches."""
    alone = TrainStep(step.model, step.loss, step.optimizer, replace(step.options, ema_decay=None))
    alone.divided.use(part)
    return alone


def verified_part(execution: Execution, step: TrainStep, examples: Iterable[Sequence[Any]]) -> Part | None:
    """`make_part`, after two updates of MicroBatches were compared with two of the plain step.

    It is made for the first of `examples`, and compared on the first whose updates are finite. They leave no trace, and
    no other rank has a part in them but where the model is in pieces. What one rank cannot make, or what differs there,
    is refused by all: raises CannotCompile, with its rank.
    """
    part: Part | None = None
    reason = ""
    in_pieces = bool(shared_out(step.model))
    examples = iter(examples)
    first = next(examples)
    alike: Iterable[Sequence[Any]] = itertools.chain([first], examples)
    try:
        if (part := make_part(execution, step, first[0])) is not None:
            alike = (each for each in alike if any(map(part.fits, each)))
            reason = (_tried_in_pieces(step, part, first) if in_pieces else _verified_alone(step, part, alike)) or ""
    except CannotCompile as error:
        reason = str(error)
    _refuse_on_all(step, reason)
    if in_pieces and part is not None:
        _refuse_on_all(step, _verified_in_pieces(step, part, alike) or "")
    return part


def _refuse_on_all(step: TrainStep, reason: str) -> None:
    refused = [(rank, text) for rank, text in enumerate(step.world.gather(reason)) if text]
    if refused:
        rank, text = refused[0]
        raise CannotCompile(text if step.world.size == 1 else f"rank {rank}: {text}")


def _verified_alone(step: TrainStep, part: Part, examples: Iterable[Any]) -> str | None:
    return verify(with_part(step, None), with_part(step, part).plain, examples, exact=False)


def _tried_in_pieces(step: TrainStep, part: Part, example: Sequence[Any]) -> str | None:
    """Compile: what fails on one rank must not leave the others waiting for it within an update."""
    reduction = step.divided.reduction
    assert isinstance(reduction, sharding.ShardedReduction)
    with untouched(step.model, step.loss, step.optimizer), reduction.forgotten():
        try:
            part(step, cloned(example[0]), None, 0, reduction.model)
        except Exception as error:  # the user's forward runs here, as code that may not stand it
            return f"fails: {first_line(error, kind=True)}"
    return None


def _verified_in_pieces(step: TrainStep, part: Part, examples: Iterable[Any]) -> str | None:
    """Updates by all ranks together, of which each compares its pieces."""

    def recorded(form: Part | None, example: Any) -> Observed:
        step.divided.form = form
        try:
            return record(step, step.plain, [example])
        finally:
            step.divided.form = None

    for example in examples:
        expected = recorded(None, example)
        if all(step.world.gather(expected.sound)):
            return compared(step, expected, recorded(part, example), exact=False)
    return NOT_COMPARED
