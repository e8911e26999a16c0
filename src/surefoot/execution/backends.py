"""From execution settings to the object that runs a step, compared with the plain step before it does."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ..step import Batch, TrainStep
from ..step_result import StepResult
from .captured import capture_step
from .compiled import compile_step, why_not
from .eager import EagerStep
from .graph_step import CannotCompile, GraphStep
from .settings import Execution, compile_options
from .verify import verify

Backend = Callable[[Sequence[Batch]], StepResult]


def make_backend(
    execution: Execution, step: TrainStep, example: Sequence[Any], say: Callable[[str], None] = print
) -> Backend | None:
    """What runs `step` as `execution` says, or None where the plain step is all there is.

    Call it inside of `prepare(execution, step.model, step.optimizer)`, after whatever state there is has been loaded:
    a captured graph holds addresses. `example` is a batch of the full size: a compiled step is one for batches of
    its shape, and others (an epoch's short last one) run eagerly, whichever comes first.

    Nothing is compared here; see `verified_backend`. Raises CannotCompile for settings that say compiled or captured
    where it cannot be.
    """
    options = step.options
    if execution.plain or options.precision == "fp16" or isinstance(step.optimizer, torch.optim.LBFGS):
        return None
    if execution.cuda_graph or execution.compile != "none":
        reason = why_not(step.model)
        if reason is None and not options.set_to_none and execution.compile != "module":
            reason = "set_to_none: false keeps gradients in place, which a graph does not"
        if reason is not None:
            raise CannotCompile(reason)
    if execution.cuda_graph:
        return GraphStep(step, functools.partial(capture_step, step, example), say)
    if execution.compile == "module":
        return EagerStep(step, torch.compile(step.model, options=compile_options(step.model)))
    if execution.compile == "none":
        return EagerStep(step)

    return GraphStep(step, functools.partial(compile_step, step, example), say)


def verified_backend(
    execution: Execution, step: TrainStep, examples: Iterable[Batch], say: Callable[[str], None] = print
) -> Backend | None:
    """`make_backend`, after two updates with it were compared with two of the plain step; they leave no trace.

    It is made for the first of `examples`, and compared on the first whose updates are finite.

    Loss, outputs, gradients, parameters, buffers and optimizer state are compared: to the bit for an eager backend, up
    to rounding for a compiled one. Raises CannotCompile, naming what differs first, for the latter; an eager
    backend that differs is not used; `say` receives a message.
    """
    examples = iter(examples)
    first = next(examples)
    backend = make_backend(execution, step, first, say)
    if backend is None:
        return None
    graph = getattr(backend, "graph", None)  # a batch of another shape would go round it
    alike = (batch for batch in itertools.chain([first], examples) if graph is None or graph.fits(batch))
    eager = execution.compile == "none" and not execution.cuda_graph
    difference = verify(step, backend, alike, exact=eager)
    if difference is None:
        return backend
    if execution.cuda_graph or execution.compile != "none":
        raise CannotCompile(difference)
    say(f"the plain step is run: the leaner one {difference}")
    return None
