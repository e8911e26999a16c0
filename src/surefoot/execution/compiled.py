"""One update by a compiled graph; what the graph is not for runs eagerly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .. import batches, torch_compat
from ..step import Batch, NonFinite, StepResult, TrainStep
from .direct import DirectUpdate, after_step, before_step
from .eager import EagerStep
from .verify import verify
from .whole_step import CannotCompile, CompiledGraph, GraphResult


class CompiledStep:
    """One update by a graph that `make` makes; batches of another shape, several ones and evaluation mode run eagerly.

    When other parameters are trained than before (some were unfrozen), the graph is made anew; where that cannot be,
    `say` receives a message and the rest of the run is eager.
    """

    writes_unseen = True

    def __init__(self, step: TrainStep, make: Callable[[], CompiledGraph], say: Callable[[str], None]):
        self.step, self._make, self._say = step, make, say
        self.eager = EagerStep(step)
        self._trained = self._trainable()
        self.graph: CompiledGraph | None = make()
        self._last: GraphResult | None = None
        self._update = None if self.graph.kind == "step" else DirectUpdate(step.optimizer)

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
        if self._update is not None:
            found = graph(batch)
            self._require_finite(found)
            self._give_gradients(found)
            norm = found.norm
            if step.options.clips:
                norm = step.limit()
            self._update()
        else:
            hooks = torch_compat.step_hooks(step.optimizer)
            assert hooks is not None, "a graph with the update in it is made only where hooks can be seen"
            arguments = before_step(step.optimizer, hooks[0], ((step.optimizer,), {}))
            found = self._last = graph(batch)
            self._require_finite(found)
            norm = found.norm
            after_step(step.optimizer, hooks[1], arguments)
        return StepResult(found.loss, found.outputs, graph.targets_of(batch), batches.size(batch), norm, True)

    def _require_finite(self, found: GraphResult) -> None:
        """Raise NonFinite as the plain step does; a graph with the update in it has then left everything alone."""
        if not self.step.checks or math.isfinite(found.sound.item()):
            return
        if not math.isfinite(number := found.loss.item()):
            raise NonFinite.loss(number)
        self._give_gradients(found)
        self.step.refuse_gradients()

    def show_gradients(self) -> None:
        """Put the last update's gradients where the plain step leaves them, limited as there."""
        if self._update is None and self._last is not None:
            self._give_gradients(self._last)
            self.step.limit()

    def _give_gradients(self, found: GraphResult) -> None:
        assert self.graph is not None
        for parameter, grad in zip(self.graph.parameters, found.grads, strict=True):
            parameter.grad = grad

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
