"""Objectives: what is minimised as a function of model and batch, a user's own or the loss that a model returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .. import batches
from ..arguments import as_number
from ..errors import UsageError
from ..metrics.registry import can_be_called
from .conventions import Convention, LossValue, describe, scalar

_KEYS = ("loss", "outputs", "targets", "weight")


class Objective:
    """A function of model and batch that gives the loss; made by `objective`, so that it is never taken for a loss.

    ``function(model, batch)`` returns the loss, a tensor of one number (or of one value a sample, which is averaged),
    or a mapping with ``loss`` and, as wanted, ``outputs`` and ``targets`` (for metrics), ``weight`` (what the mean is
    over, by default the batch's samples: a count of tokens, say) and further numbers by name, which are recorded as
    metrics are. `batch` is what the data set or its collate function gives. Compute with the `model` that is handed
    in: it may be a compiled form, or a moving average.
    """

    def __init__(self, function: Callable[[Any, Any], Any]):
        if isinstance(function, type) or not callable(function):
            raise UsageError(
                f"objective: {function!r} is no function; give one of (model, batch) that returns the loss"
            )
        self.function = function
        functools.update_wrapper(self, getattr(function, "func", function), updated=())

    @property
    def convention(self) -> Convention:
        """How it is called in the place of a loss."""
        return Convention("objective", "whatever the objective takes", self._forward, _value)

    def __call__(self, model: Any, batch: Any, **arguments: Any) -> Any:
        return self.function(model, batch, **arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> Objective:
        import copy

        return Objective(copy.deepcopy(self.function, memo))

    def _forward(self, model: Any, batch: Any) -> tuple[LossValue, None]:
        returned = self.function(model, batches.whole(batch))
        if isinstance(returned, Mapping):
            if "loss" not in returned:
                raise UsageError(
                    f"the objective {describe(self)} returned a mapping with "
                    f"{', '.join(map(repr, returned)) or 'nothing'}; it must hold 'loss'"
                )
            numbers = {name: self._number(name, value) for name, value in returned.items() if name not in _KEYS}
            if wrong := [name for name in numbers if not can_be_called(name)]:
                raise UsageError(
                    f"the objective {describe(self)} returned {wrong[0]!r}: a number in a record is called by letters, "
                    f"digits, - and _, and by no name of a record's own; call it something else, such as my_{wrong[0]}"
                )
            loss, weight = returned["loss"], returned.get("weight")
            outputs, targets = returned.get("outputs"), returned.get("targets")
            if weight is not None:
                weight = self._number("weight", weight)
        else:
            loss, weight, numbers, outputs, targets = returned, None, {}, None, None
        return LossValue(scalar(loss, self), outputs, targets, weight, numbers), None

    def _number(self, name: Any, value: Any) -> Any:
        """A number or a tensor of one, without its graph."""
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            return value.detach().reshape(())
        if not isinstance(value, Tensor) and (number := as_number(value)) is not None:
            return number
        if name == "weight":
            raise UsageError(f"the objective {describe(self)} returned weight {value!r}; it must be one number")
        raise UsageError(
            f"the objective {describe(self)} returned {name!r} as {type(value).__name__}; what is recorded is a number "
            f"or a tensor of one number; beside these there may be {', '.join(_KEYS)}"
        )


def objective(function: Callable[[Any, Any], Any]) -> Objective:
    """Make an Objective of ``function(model, batch)``; usable as a decorator.

    >>> import torch
    >>> @objective
    ... def reconstruction(model, batch):
    ...     return (model(batch) - batch).square().mean()
    >>> reconstruction(torch.nn.Identity(), torch.ones(4, 3))
    tensor(0.)
    """
    return function if isinstance(function, Objective) else Objective(function)


def models_own(model: Any, batch: Any) -> dict[str, Any]:
    """The loss that a model computes itself, as those of transformers do: of a batch of keywords, or of a pair.

    The targets of a pair, and a batch's `label` or the like, are the keyword `labels` where forward has that one alone.
    The mean of a model of tokens is over the labels that are not -100 (for a causal one, those after the first).
    """
    parts = None if isinstance(batch, Mapping) and "labels" in batch else batches.pair(batch)
    target = next((name for name in batches.TARGET_NAMES if name in batch), "") if isinstance(batch, Mapping) else ""
    if parts is not None and not batches.takes(model, target) and batches.takes(model, "labels"):
        labels = parts[1]
        output = batches.call(model, parts[0], labels=labels)
    elif isinstance(batch, Mapping):
        labels, output = batch.get(target), model(**batch)
    else:
        raise UsageError(
            "loss: without one the model gives its own, called with a batch's keywords or with a pair's inputs and "
            f"labels; a batch is {batches.form(batch)} and the model's {batches.signature(model)}; give a loss"
        )
    if (loss := batches.member(output, "loss")) is None:
        raise UsageError(
            f"loss: the model returned {type(output).__name__} without a loss for a batch of {batches.form(batch)}; "
            "give it labels in the batch, or name a loss"
        )
    logits = batches.member(output, "logits")
    values: dict[str, Any] = {"loss": loss, "outputs": logits, "targets": labels}
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() > 1:
        counted = labels != -100
        values["weight"] = (counted[..., 1:] if _is_causal(model) else counted).sum()
        if _is_causal(model) and logits is not None:
            values["outputs"], values["targets"] = logits[..., :-1, :], labels[..., 1:]
        outputs = values["outputs"]
        if isinstance(outputs, Tensor) and outputs.dim() > 2 and outputs.shape[:-1] == values["targets"].shape:
            values["outputs"] = outputs.movedim(-1, 1)  # classes second, as torch's losses have them
    return values


def as_objective(loss: Any) -> Any:
    """`loss` as it is, or for None the loss that the model itself returns."""
    return Objective(models_own) if loss is None else loss


def _is_causal(model: Any) -> bool:
    name = str(getattr(model, "loss_type", None) or type(model).__name__)
    return any(word in name for word in ("CausalLM", "LMHead", "DoubleHeads"))


def _value(loss: Any, outputs: LossValue, targets: Any) -> Tensor:
    return outputs.loss
