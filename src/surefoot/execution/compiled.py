"""One update whose gradients a compiled graph makes; what the graph is not for runs eagerly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .. import batches
from ..gradients import refuse_gradients
from ..nonfinite import NonFinite
from ..step import Batch, TrainStep
from ..step_result import StepResult
from .direct import DirectUpdate
from .eager import EagerStep
from .graph import CannotCompile, CompiledGraph
from .verify import verify


class CompiledStep:
    """One update with the graph that `make` makes; batches of another shape, several ones and evaluation
    mode run eagerly.

    When other parameters are trained than before (some were unfrozen), the graph is made anew; where that cannot be,
    `say` receives a message and the rest of the run is eager.
    """

    writes_unseen = True

    def __init__(self, step: TrainStep, make: Callable[[], CompiledGraph], say: Callable[[str], None]):
        self.step, self._make, self._say = step, make, say
        self.eager = EagerStep(step)
        self._trained = self._trainable()
        self.graph: CompiledGraph | None = make()
        self._update = DirectUpdate(step.optimizer)

    def __call__(self, micro_batches: Sequence[Batch]) -> StepResult:
        if len(micro_batches) != 1 or self.graph is None:
            return self.eager(micro_batches)
        batch = micro_batches[0]
        if not self.graph.fits(batch):
            if self._trainable() != self._trained:
                self._trained = self._trainable()
                self._make_anew(batch)
            if self.graph is None or not self.graph.fits(batch):
                return self.eager(micro_batches)
        step, graph = self.step, self.graph
        result = graph(batch)
        sound = not step.checks or math.isfinite(result.sound.item())
        if not sound and not math.isfinite(number := result.loss.item()):
            raise NonFinite.loss(number)
        for parameter, grad in zip(graph.parameters, result.grads, strict=True):
            parameter.grad = grad
        if not sound:
            refuse_gradients(step.model, step.trained())
        norm = step.limit() if step.options.clips else None
        self._update()
        return StepResult(result.loss, result.outputs, graph.targets_of(batch), batches.size(batch), norm, True)

    def _make_anew(self, batch: Batch) -> None:
        self.graph = None
        try:
            self.graph = self._make()
            if difference := verify(self.step, self, [batch]):
                raise CannotCompile(difference)
        except CannotCompile as error:
            self.graph = None
            self._say(f"the step is not compiled any more: {error}")

    def _trainable(self) -> tuple[int, ...]:
        groups = self.step.optimizer.param_groups
        return tuple(id(p) for group in groups for p in group["params"] if p.requires_grad)
