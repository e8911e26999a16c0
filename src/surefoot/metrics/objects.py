"""Metrics of others beside loss and accuracy: torchmetrics' objects, and functions of outputs and targets."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import as_metric, as_number
from ..batches import form, tensors
from ..errors import UsageError, first_line

_NEEDED = ("update", "compute", "reset", "state_dict", "load_state_dict")
# torchmetrics' F1Score(task="multiclass") makes a MulticlassF1Score; it is known by the name that one wrote.
_REFUSALS = (ValueError, RuntimeError, TypeError, IndexError, OverflowError)
_TASKS = ("Binary", "Multiclass", "Multilabel")


def name_of(metric: Any) -> str:
    """What a metric is called where nobody names it."""
    metric = getattr(metric, "func", metric)  # of a functools.partial
    name = getattr(metric, "__name__", None) or type(metric).__name__
    return next((name.removeprefix(task) for task in _TASKS if name.startswith(task) and name != task), name)


def is_metric(value: Any) -> bool:
    """Whether `value` is an object with update, compute, reset and state, or a function of outputs and targets."""
    return not isinstance(value, type | str) and (
        all(callable(getattr(value, name, None)) for name in _NEEDED) or callable(value)
    )


class MetricObjects:
    """Metrics by name, fed batch after batch with outputs and targets.

    `given` holds objects with ``update(outputs, targets)``, ``compute()``, ``reset()``, ``state_dict()`` and
    ``load_state_dict()`` as torchmetrics has them (copies of them are used), or functions ``(outputs, targets)`` of a
    batch that return a number, whose mean over the samples is taken. With `binary` (outputs are logits or
    probabilities of yes and no) float targets become whole numbers for torchmetrics' classification metrics.

    Each batch is an update of its own, in order, so that a resumed run ends in the same bits wherever it was stopped.
    """

    def __init__(self, given: Mapping[str, Any], binary: bool = False):
        self.given = dict(given)
        self._metrics = {name: _as_object(name, metric) for name, metric in given.items()}
        self._binary = binary
        self._updates = 0
        self.reset()

    def better(self, name: str) -> str | None:
        """``"max"`` or ``"min"`` where the metric of that name says which of its values is better, else None."""
        higher = getattr(self._metrics.get(name.partition(".")[0]), "higher_is_better", None)
        return None if higher is None else "max" if higher else "min"

    def reset(self) -> None:
        """Forget everything: a new epoch begins."""
        for metric in self._metrics.values():
            metric.reset()
        self._updates = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """One batch. Raises UsageError where a metric refuses it."""
        self._updates += 1
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            if outputs.dim() == targets.dim() + 1 and outputs.shape[-1] == 1:
                outputs = outputs.squeeze(-1)
            if outputs.dtype in (torch.bfloat16, torch.float16):
                outputs = outputs.float()
        for name, metric in self._metrics.items():
            given, wanted = outputs, targets
            if type(metric).__name__.endswith("Perplexity") and isinstance(outputs, Tensor) and outputs.dim() == 3:
                given = outputs.movedim(1, -1)  # it has classes last, torch's losses have them second
            theirs = type(metric).__module__.startswith("torchmetrics.classification")
            if self._binary and theirs and isinstance(targets, Tensor) and targets.is_floating_point():
                wanted = (targets > 0.5).long()
            if isinstance(outputs, Tensor) and isinstance(metric, torch.nn.Module):
                metric.to(outputs.device)
            try:
                metric.update(given, wanted)
            except _REFUSALS as error:
                raise UsageError(
                    f"metrics: {name} cannot be computed from outputs {form(given)} and targets {form(wanted)}: "
                    f"{first_line(error)}"
                ) from error

    def result(self) -> dict[str, float]:
        """The values since `reset`, by name; one that gives several has a name for each (``NAME.0``, ``NAME.key``).

        Raises UsageError where a metric cannot be computed, or gives no number.
        """
        if not self._updates:
            return dict.fromkeys(self._metrics, math.nan)
        values: dict[str, float] = {}
        for name, metric in self._metrics.items():
            try:
                values |= _flat(name, metric.compute())
            except _REFUSALS as error:
                batches = "one batch" if self._updates == 1 else f"{self._updates} batches"
                raise UsageError(f"metrics: {name} cannot be computed from {batches}: {first_line(error)}") from error
        return values

    def state_dict(self) -> dict[str, Any]:
        """Everything that has been counted."""
        return {"updates": self._updates, "metrics": {n: dict(m.state_dict()) for n, m in self._metrics.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises UsageError for other metrics than it was taken from."""
        saved = state.get("metrics", {})
        if set(saved) != set(self._metrics):
            raise UsageError(
                f"metrics: the saved run measures {', '.join(saved) or 'none'} and this one "
                f"{', '.join(self._metrics) or 'none'}; give the saved ones",
                code="resume-state",
            )
        self.reset()
        self._updates = int(state["updates"])
        for name, metric in self._metrics.items():
            metric.load_state_dict(saved[name])
            if hasattr(metric, "_update_count"):  # without it torchmetrics warns that nothing was added yet
                metric._update_count = self._updates


class _Mean:
    """The mean over samples of a function of a batch's outputs and targets."""

    def __init__(self, name: str, function: Callable[[Any, Any], Any]):
        self.name, self.function = name, function
        self.reset()

    def reset(self) -> None:
        self.total, self.samples = 0.0, 0

    def update(self, outputs: Any, targets: Any) -> None:
        value = self.function(outputs, targets)
        if isinstance(value, Tensor):
            value = value.double().mean().item() if value.numel() else math.nan
        if (number := as_number(value)) is None:
            raise TypeError(f"it returned {type(value).__name__}, which is no number")
        first = next(tensors((targets, outputs)), None)
        samples = len(first) if first is not None and first.dim() else 1
        self.total += float(number) * samples
        self.samples += samples

    def compute(self) -> float:
        return self.total / self.samples if self.samples else math.nan

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "samples": self.samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.samples = float(state["total"]), int(state["samples"])


def _as_object(name: str, metric: Any) -> Any:
    if all(callable(getattr(metric, part, None)) for part in _NEEDED):
        try:
            metric = copy.deepcopy(metric)
        except Exception as error:  # whatever an object of the user's raises: a lock, an open file
            raise UsageError(f"metrics: {name} cannot be copied: {first_line(error)}; give it __deepcopy__") from error
        if callable(getattr(metric, "persistent", None)):
            metric.persistent(True)  # else torchmetrics leaves its counts out of the state
        for part in metric.modules() if isinstance(metric, torch.nn.Module) else ():
            if hasattr(part, "distributed_available_fn"):  # each rank is given the answers of all
                setattr(part, "distributed_available_fn", _not_distributed)  # noqa: B010
        return metric
    return _Mean(name, metric)


def _not_distributed() -> bool:
    return False


def _flat(name: str, value: Any) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(f"{name}.{key}", item).items()}
    if hasattr(value, "reshape") and hasattr(value, "tolist"):  # a tensor, or an array of NumPy's
        value = value.reshape(-1).tolist()
        value = value[0] if len(value) == 1 else value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {k: v for i, item in enumerate(value) for k, v in _flat(f"{name}.{i}", item).items()}
    if (number := as_metric(value)) is None:
        raise TypeError(f"it gave {type(value).__name__}, which is no number")
    return {name: float(number)}
