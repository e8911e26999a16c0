"""The first batch, run once: what the model gave, what the loss and its gradients were, what each layer saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ... import batches
from ..composite import WeightedSum
from ..conventions import LossValue, convention_of, value_of
from ..torch_losses import formula_of

# Operations that move numbers about without changing them.
# fmt: off
_MOVES = frozenset([
    "View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "MovedimInt",
    "Select", "Slice", "Split", "SplitWithSizes", "Unbind", "Index", "Unfold", "Expand", "Clone", "Alias", "ToCopy",
])
# fmt: on


@dataclass
class Layer:
    """One call of a module without children."""

    name: str
    module: nn.Module
    input: Tensor | None
    gave: Tensor | None

    @property
    def label(self) -> str:
        """``'fc1' (Linear)``"""
        return f"{self.name!r} ({type(self.module).__name__})" if self.name else type(self.module).__name__


@dataclass
class Evidence:
    """What the checks look at. The parts from `value` on are there only after the loss was computed."""

    model: nn.Module
    loss: Any
    batch: Any
    optimizer: Any
    classes: int | None
    outputs: Any = None
    targets: Any = None
    answer: LossValue | None = None  # an objective's
    layers: list[Layer] = field(default_factory=list)
    value: float | None = None
    part_values: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def parts(self) -> list[tuple[str | None, Any]]:
        """``(torch's name or None, loss)`` of each loss that is summed; usually one."""
        losses = self.loss.parts if isinstance(self.loss, WeightedSum) else (self.loss,)
        return [(formula_of(loss), loss) for loss in losses]

    def inputs(self) -> list[Tensor]:
        """The tensors of the batch that the model was given."""
        convention = convention_of(self.loss).name
        number = {"triplet": 3, "two inputs": 2}.get(convention, 1)
        if convention == "objective":
            return list(batches.tensors(self.batch))
        if convention == "pair" and (parts := batches.pair(self.batch)) is not None:
            return list(batches.tensors(parts[0]))
        return [t for part in self.batch[:number] for t in batches.tensors(part)]

    def targets_given(self) -> list[Tensor]:
        """All tensors among the targets."""
        return list(batches.tensors(self.targets))


def last_operation(tensor: Tensor) -> str | None:
    """The operation that computed a tensor, moves of numbers left out: ``"Softmax"``, ``"Addmm"``; None if unknown.

    >>> last_operation(torch.ones(2, 3, requires_grad=True).softmax(1).reshape(3, 2))
    'Softmax'
    """
    node = tensor.grad_fn
    while node is not None:
        name = node.name().partition("Backward")[0]
        if name not in _MOVES:
            return name
        node = node.next_functions[0][0] if node.next_functions else None
    return None


class Watch:
    """Notes each call of each module while it is on; knows where a crash happened."""

    def __init__(self, model: nn.Module):
        self.layers: list[Layer] = []
        self.stack: list[Layer] = []
        self._hooks: list[Any] = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            self._hooks.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._leave))

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            value = next(batches.tensors((args, kwargs)), None)
            self.stack.append(Layer(name, module, value, None))

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        layer = self.stack.pop()
        if next(module.children(), None) is None:
            layer.gave = next(batches.tensors(output), None)
            self.layers.append(layer)

    def off(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()


def run_loss(evidence: Evidence) -> None:
    """Compute the loss and all gradients, into `evidence`; whatever torch raises comes through."""
    values = _part_values(evidence, evidence.outputs)
    evidence.part_values = [float(value.detach()) for value in values]
    total = _total(evidence.loss, values)
    evidence.value = float(total.detach())
    trained = {n: p for n, p in evidence.parameters.items() if p.requires_grad}
    if not total.requires_grad or not trained:
        evidence.gradients = dict.fromkeys(trained)
        return
    try:
        # Not `backward`: it would add to `.grad` and set off hooks that step an optimizer during the backward pass.
        gradients: Sequence[Tensor | None] = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    except RuntimeError as error:
        # Reentrant activation checkpointing knows `backward` only.
        if "checkpoint" not in str(error).lower():
            raise
        gradients = _by_backward(evidence, list(trained.values()))
    # Of a sparse one (an embedding's) the rows that it has.
    dense = [g if g is None or g.layout is torch.strided else g.coalesce().values() for g in gradients]
    evidence.gradients = dict(zip(trained, dense, strict=True))


def _part_values(evidence: Evidence, outputs: Any) -> list[Tensor]:
    if evidence.answer is not None:
        return [outputs.loss if isinstance(outputs, LossValue) else evidence.answer.loss]
    return [value_of(loss, outputs, evidence.targets) for _, loss in evidence.parts]


def _total(loss: Any, values: list[Tensor]) -> Tensor:
    factors = loss.factors if isinstance(loss, WeightedSum) else (1.0,)
    total = values[0] * factors[0]
    for factor, value in zip(factors[1:], values[1:], strict=True):
        total = total + value * factor
    return total


def _by_backward(evidence: Evidence, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """The gradients by `backward`, on a second forward pass, with `.grad` put back."""
    held = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        outputs, _ = convention_of(evidence.loss).forward(evidence.model, evidence.batch)
        torch.autograd.backward(_total(evidence.loss, _part_values(evidence, outputs)))
        return [p.grad for p in parameters]
    finally:
        for parameter, gradient in zip(parameters, held, strict=True):
            parameter.grad = gradient
