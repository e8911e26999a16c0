"""One update whose gradients a graph makes, compiled or captured; what the graph is not for runs eagerly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .. import batches
from ..errors import SurefootError
from ..gradients import refuse_gradients
from ..losses import conventions
from ..nonfinite import NonFinite
from ..step import Batch, TrainStep
from ..step_result import StepResult
from .constants import Constants
from .direct import DirectUpdate, drops_gradients
from .eager import EagerStep
from .verify import of_no_optimizer, record, verify

# Where a batch holds its targets, by the convention that the loss is called in.
_TARGETS_AT = {"pair": 1, "gaussian": 1, "adaptive": 1, "two inputs": 2, "triplet": None}


class CannotCompile(SurefootError):
    """The step cannot be compiled or captured here, and why; eager execution can run it."""


class GraphResult(NamedTuple):
    """What one run of a graph gave; `sound` is a finite number where loss and gradients are all finite."""

    loss: Tensor
    sound: Tensor
    outputs: Any
    grads: list[Tensor | None]


class Graph(Protocol):
    """Forward, loss and backward of a step, for batches of one shape."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """What the gradients are of."""
        ...

    @property
    def constants(self) -> Constants:
        """What must not change as long as the graph is used."""
        ...

    @property
    def signature(self) -> Sequence[tuple[Any, ...]]:
        """Shapes, strides and types of the batches that it is for."""
        ...

    def fits(self, batch: Batch) -> bool:
        """Whether the graph is one for this batch and for what is trained now."""
        ...

    def __call__(self, batch: Batch) -> GraphResult:
        """Loss, outputs and gradients of a batch; buffers move on."""
        ...


class GraphStep:
    """One update with the graph that `make` makes; other shapes, several batches and evaluation mode run eagerly.

    When other parameters are trained than before (some were unfrozen), the graph is made anew. Where that cannot be, or
    a constant of the graph was changed (see `Constants`), `say` receives a message and the rest of the run is eager.
    """

    writes_unseen = True

    def __init__(self, step: TrainStep, make: Callable[[], Graph], say: Callable[[str], None]):
        self.step, self._make, self._say = step, make, say
        self.eager = EagerStep(step)
        self._trained = self._trainable()
        self._targets_at = target_place(step.loss)
        self.graph: Graph | None = make()
        self._update = DirectUpdate(step.optimizer)

    def __call__(self, micro_batches: Sequence[Batch]) -> StepResult:
        if len(micro_batches) != 1 or self.graph is None:
            return self.eager(micro_batches)
        batch = micro_batches[0]
        if (changed := self.graph.constants.changed()) is not None:
            self._give_up(changed)
            return self.eager(micro_batches)
        if not self.graph.fits(batch):
            # What is made anew is compared on this batch, which must be one for it.
            if self._trainable() != self._trained and fits(batch, self.graph.signature):
                self._make_anew(batch)
            if self.graph is None or not self.graph.fits(batch):
                return self.eager(micro_batches)
        step, graph = self.step, self.graph
        if not drops_gradients(step.optimizer):
            step.optimizer.zero_grad(set_to_none=True)
        result = graph(batch)
        sound = not step.checks or math.isfinite(result.sound.item())
        if not sound and not math.isfinite(number := result.loss.item()):
            raise NonFinite.loss(number)
        for parameter, grad in zip(graph.parameters, result.grads, strict=True):
            parameter.grad = grad
        if not sound:
            refuse_gradients(step.model, step.trained())
        norm = step.limit() if step.options.clips else None
        targets = None if self._targets_at is None else batch[self._targets_at]
        self._update()
        return StepResult(result.loss, result.outputs, targets, batches.size(batch), norm, True)

    def _make_anew(self, batch: Batch) -> None:
        if not record(self.step, self.step.plain, [batch]).sound:
            return  # nothing to compare with: at the next batch
        self._trained, self.graph = self._trainable(), None
        try:
            self.graph = self._make()
            if difference := verify(self.step, self, [batch]):
                raise CannotCompile(difference)
        except CannotCompile as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        self.graph = None
        self._say(f"the step is not compiled any more: {reason}")

    def _trainable(self) -> tuple[int, ...]:
        groups = self.step.optimizer.param_groups
        return tuple(id(p) for group in groups for p in group["params"] if p.requires_grad)


def signature(batch: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """What a graph is specialised to: each tensor's (shape, strides, dtype)."""
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in batch]


def fits(batch: Sequence[Any], wanted: Sequence[tuple[Any, ...]]) -> bool:
    """Whether a batch has this signature."""
    if len(batch) != len(wanted):
        return False
    for part, (shape, stride, dtype) in zip(batch, wanted, strict=True):
        if part.shape != shape or part.dtype != dtype or part.stride() != stride:
            return False
    return True


def refuse_gradients_of_others(step: TrainStep) -> None:
    """Raise CannotCompile where a parameter of no optimizer asks for a gradient, which a graph would not make."""
    if (name := next((name for name, _ in of_no_optimizer(step)), None)) is not None:
        raise CannotCompile(
            f"{name} asks for a gradient and is in no parameter group of the optimizer: put it in one, or freeze it "
            "by requires_grad_(False)"
        )


def target_place(loss: Callable[..., Tensor]) -> int | None:
    """Which part of a batch `loss` is given as targets; None where it has none.

    Raises CannotCompile for a loss that looks at the values of its batch.
    """
    convention = conventions.convention_of(loss).name
    if convention == "objective":
        raise CannotCompile(
            "an objective is a function of one's own; its model alone can be compiled (compile: module)"
        )
    if convention not in _TARGETS_AT:
        raise CannotCompile(f"the {convention} loss looks at the values of its batch")
    return _TARGETS_AT[convention]


def soundness(loss: Tensor, grads: Iterable[Tensor]) -> Tensor:
    """A number that is finite where the loss and all gradients are: nothing times zero is zero, but for NaN and inf."""
    return loss + sum((grad * 0).sum().to(loss.dtype) for grad in grads)
