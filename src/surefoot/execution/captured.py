"""The gradients of a step captured once on a GPU and replayed: no Python and no launches between its kernels.

Everything that a replay reads lies where it lay at the capture; inputs are copied in. Where the capture itself happens
is one small class, so that the rest runs (and is tested) without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import first_line
from ..losses import conventions
from ..modes import AUTOCAST
from ..step import Batch, TrainStep
from ..untouched import Snapshot
from .constants import Constants
from .graph_step import CannotCompile, GraphResult, fits, refuse_gradients_of_others, signature, soundness
from .settings import laid_out_like

WARM_UPS = 3


class Graphs(Protocol):
    """Something that can capture work and replay it."""

    def capture(self, work: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
        """Returns a function that replays `work`, and the tensors that each replay fills. `work` need not run."""
        ...


class CudaGraphs:
    """torch.cuda's graphs. `work` runs a few times before, so that libraries have made their plans."""

    def capture(self, work: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
        """See `Graphs`."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # where it is captured: libraries keep workspaces by stream
            for _ in range(WARM_UPS):
                work()
        # Other threads (a save, pinned memory) may call CUDA meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            filled = work()
        return graph.replay, filled


class CapturedGraph:
    """The captured gradients of a step for batches shaped like `example`; made by `capture_step`.

    Making it leaves parameters, buffers and random numbers as they were. It fits as long as parameters and buffers of
    model and loss, frozen ones too, lie where they lay at the capture: a state that puts others there retires it.
    """

    def __init__(self, step: TrainStep, example: Batch, graphs: Graphs):
        self.step, self.signature = step, signature(example)
        refuse_gradients_of_others(step)
        self.parameters = self._trained()
        self.inputs = [part.clone() for part in example]
        parts = [part for part in (step.model, step.loss) if isinstance(part, nn.Module)]
        tables = [t for part in parts for m in part.modules() for t in (m._parameters, m._buffers)]
        # Another tensor may be put in the place of one.
        self._places = [(table, name) for table in tables for name in table]
        self._output_spec: Any = None
        self._present: list[bool] = []
        before = Snapshot(step.model, step.loss)
        try:
            self.replay, self.filled = graphs.capture(self._work)
        finally:
            changed = before.put_back()
        if changed is not None:
            raise CannotCompile(f"{changed}, which a graph would not")
        self._held = self._addresses()
        self.constants = Constants(model=step.model, loss=step.loss)

    def fits(self, batch: Batch) -> bool:
        """Whether the graph is one for this batch, and for the tensors that are there now."""
        return fits(batch, self.signature) and self.constants.modes_hold() and self._addresses() == self._held

    def __call__(self, batch: Batch) -> GraphResult:
        """Loss and outputs are copies: the next replay writes over what this one filled, the gradients too."""
        for place, part in zip(self.inputs, batch, strict=True):
            place.copy_(part, non_blocking=True)
        self.replay()
        loss, sound, *rest = self.filled
        count = self._output_spec.num_leaves
        outputs = pytree.tree_unflatten([output.clone() for output in rest[:count]], self._output_spec)
        grads = iter(rest[count:])
        return GraphResult(
            loss.clone(), sound, outputs, [next(grads) if present else None for present in self._present]
        )

    def _work(self) -> list[Tensor]:
        """Forward, loss and backward on the tensors that stay where they are."""
        dtype = AUTOCAST.get(self.step.options.precision)
        with (
            torch.enable_grad(),
            torch.autocast(self.step.device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False),
        ):
            value = conventions.apply(self.step.loss, self.step.model, tuple(self.inputs))
            made = torch.autograd.grad(value.loss, self.parameters, allow_unused=True)
        self._present = [grad is not None for grad in made]
        pairs, loss = zip(made, self.parameters, strict=True), value.loss.detach()
        present = [laid_out_like(grad, parameter) for grad, parameter in pairs if grad is not None]
        outputs, self._output_spec = pytree.tree_flatten(value.outputs)
        sound = soundness(loss, present) if self.step.checks else loss
        return [loss, sound, *(output.detach() for output in outputs), *present]

    def _trained(self) -> list[Tensor]:
        return [p for p in self.step.trained() if p.requires_grad]

    def _addresses(self) -> list[Any]:
        """What is trained, and where everything lies that the graph reads or writes."""
        held = [table.get(name) for table, name in self._places]
        where = [None if tensor is None else tensor.data_ptr() for tensor in held]
        return [*(parameter.requires_grad for parameter in self.step.trained()), *where]


def capture_step(step: TrainStep, example: Sequence[Any], graphs: Graphs | None = None) -> CapturedGraph:
    """Capture the step's gradients. Raises CannotCompile, with torch's reason, for what cannot be."""
    try:
        return CapturedGraph(step, tuple(example), graphs or CudaGraphs())
    except CannotCompile:
        raise
    except Exception as error:  # the user's forward runs here, under a capture that it may not stand
        raise CannotCompile(first_line(error, kind=True)) from error
