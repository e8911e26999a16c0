"""Checks after the loss: is it finite, is it where chance would put it, does it reach what is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ...batches import tensors
from ...finding import Finding
from ..conventions import convention_of, value_of
from .evidence import Evidence, last_operation
from .findings import error, warning


def check_learning(evidence: Evidence) -> Iterator[Finding]:
    """Findings about the loss and its gradients."""
    yield from _finite(evidence)
    yield from _gradients(evidence)
    yield from _dead(evidence)
    yield from _chance(evidence)


def check_optimizer(evidence: Evidence) -> Iterator[Finding]:
    """Whether the optimizer holds what is to be trained."""
    if evidence.optimizer is None:
        return
    held = {id(p) for group in evidence.optimizer.param_groups for p in group["params"]}
    trained = {n: p for n, p in evidence.parameters.items() if p.requires_grad}
    missing = [n for n, p in trained.items() if id(p) not in held]
    if not missing:
        return
    if not held & {id(p) for p in evidence.parameters.values()}:
        yield error(
            "not-in-optimizer",
            "the optimizer holds none of the model's parameters: it would train another model, "
            "or an older copy of this one",
            "make the optimizer from this model's parameters, after the model is complete",
        )
        return
    of_loss = all(n.startswith("loss.") for n in missing)
    yield warning(
        "not-in-optimizer",
        f"no parameter group holds {names(missing)}: training leaves {'them' if len(missing) > 1 else 'it'} as is",
        "give the loss's parameters to the optimizer as well"
        if of_loss
        else "give them to the optimizer, or set requires_grad=False where they are meant to stay",
    )


def names(of: list[str]) -> str:
    """``'a', 'b' and 7 more parameters``"""
    shown = ", ".join(map(repr, of[:3]))
    if len(of) > 3:
        return f"{shown} and {len(of) - 3} more parameters"
    return f"the parameter{'s' if len(of) > 1 else ''} {shown}"


def _finite(evidence: Evidence) -> Iterator[Finding]:
    if evidence.value is None or not math.isfinite(evidence.value):
        given = ((layer, layer.gave) for layer in evidence.layers if layer.gave is not None)
        where = next((layer for layer, t in given if t.is_floating_point() and not bool(t.isfinite().all())), None)
        begins = f"; the first layer whose output is not finite is {where.label}" if where else ""
        outputs = [t for t in tensors(evidence.outputs) if t.is_floating_point()]
        if where is None and all(bool(t.isfinite().all()) for t in outputs):
            begins = "; the model's outputs are finite, so that the loss itself makes it"
        yield error(
            "nan-at-start",
            f"the loss is {evidence.value} before the first update{begins}",
            "look there for a division by zero, a log or root of a number that is not positive, or an overflow",
        )
        return
    bad = [n for n, g in evidence.gradients.items() if g is not None and not bool(g.isfinite().all())]
    if bad:
        yield error(
            "nan-at-start",
            f"the loss is finite and the gradient of {names(bad)} is not",
            "look for a root, norm or log at zero, whose slope is infinite; add a small number before it",
        )


def _gradients(evidence: Evidence) -> Iterator[Finding]:
    if not evidence.gradients:
        if evidence.parameters:
            yield error(
                "no-gradient",
                "no parameter requires a gradient: there is nothing to train",
                "set requires_grad=True for what is to be trained",
            )
        return
    # An adaptive softmax uses the clusters of the classes that a batch holds, and only those.
    spared = "loss.tail." if isinstance(evidence.loss, nn.AdaptiveLogSoftmaxWithLoss) else "\0"
    without = [n for n, g in evidence.gradients.items() if g is None and not n.startswith(spared)]
    if len(without) == len(evidence.gradients):
        yield error(
            "no-gradient",
            "the loss does not reach any parameter: the graph is cut between the model and the loss",
            "look for detach(), item(), no_grad(), argmax or a new tensor made from numbers in the model or the loss",
        )
    elif without:
        yield warning(
            "no-gradient",
            f"the loss does not reach {names(without)}: unused in this forward pass, or cut off by detach()",
            "use them, remove them, or set requires_grad=False",
        )
    reached = [g for g in evidence.gradients.values() if g is not None]
    if reached and evidence.value and math.isfinite(evidence.value) and not any(bool((g != 0).any()) for g in reached):
        yield warning(
            "zero-gradient",
            f"the loss is {evidence.value:.3g} and its gradient is exactly zero everywhere: nothing will be learnt",
            "look for saturated activations, dead ReLUs, rounding, or a loss that does not depend on the outputs",
        )


def _dead(evidence: Evidence) -> Iterator[Finding]:
    for layer in evidence.layers:
        value = layer.input
        if (
            isinstance(layer.module, nn.Linear | nn.modules.conv._ConvNd)
            and value is not None
            and len(value) >= 4
            and value[0].numel() >= 8
            and last_operation(value) in ("Relu", "Threshold")
            and not bool(value.any())
        ):
            yield warning(
                "dead-outputs",
                f"layer {layer.label} is given only zeros: the ReLU before it lets nothing through, "
                f"for any of {len(value)} samples",
                "check the initialisation and the scale of the inputs; LeakyReLU keeps units alive",
            )
            return
    outputs = next(tensors(evidence.outputs), None)
    inputs = evidence.inputs()
    if outputs is None or outputs.dim() < 2 or not inputs or convention_of(evidence.loss).name == "ctc":
        return
    batch = inputs[0]
    paired = len(outputs) >= 4 and batch.shape[:1] == outputs.shape[:1]
    if not paired or not outputs.is_floating_point() or outputs.grad_fn is None:
        return
    # A weight that is all zeros is a usual way to begin (a last layer, a residual branch), and no fault.
    zeros = any(p.dim() > 1 and not bool(p.detach().any()) for p in evidence.parameters.values())
    if zeros or not bool((batch != batch[:1]).any()):
        return
    values = outputs.detach()
    if not bool(((values - values[:1]).abs() > 1e-7 * values.abs().amax()).any()):
        yield warning(
            "dead-outputs",
            f"all {len(values)} samples give the same output: it does not depend on the input",
            "check the initialisation, the scale of the inputs, and that the model uses its input",
        )


# Losses whose value at chance is that of equal scores for everything.
_NEUTRAL: dict[str | None, Callable[[Tensor], Tensor]] = {
    "CrossEntropyLoss": torch.zeros_like,
    "BCEWithLogitsLoss": torch.zeros_like,
    "MultiLabelSoftMarginLoss": torch.zeros_like,
    "BCELoss": lambda outputs: torch.full_like(outputs, 0.5),
    "NLLLoss": lambda outputs: torch.zeros_like(outputs).log_softmax(1 if outputs.dim() > 1 else 0),
}
# A first loss may be this many times the one at chance. Freshly initialised networks of torch stay below 1.5 times
# (they begin near equal scores); a wrong scale of inputs or of the last layer goes far beyond.
_FAR = 2.5


def _chance(evidence: Evidence) -> Iterator[Finding]:
    for (name, loss), value in zip(evidence.parts, evidence.part_values, strict=True):
        if name not in _NEUTRAL or not math.isfinite(value) or not isinstance(evidence.outputs, Tensor):
            continue
        outputs = evidence.outputs.detach()
        with torch.no_grad():
            chance, kinds = float(value_of(loss, _NEUTRAL[name](outputs), evidence.targets)), 2
        if name in ("CrossEntropyLoss", "NLLLoss"):
            kinds = outputs.shape[1 if outputs.dim() > 1 else 0]
        if chance > 0 and value > _FAR * chance + chance / math.log(max(kinds, 2)):
            known_as = (
                f"ln {kinds} = {math.log(kinds):.3g}"
                if math.isclose(chance, math.log(kinds), rel_tol=1e-3)
                else f"{chance:.3g}"
            )
            yield warning(
                "loss-far-from-chance",
                f"the first loss is {value:.3g}; equal scores for everything would give {known_as}",
                "check the scale of the inputs and the initialisation of the last layer, "
                "and that each target belongs to its input",
            )
