"""Whether a backend makes the update that the plain step makes: two updates of each, compared in everything."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..batches import mapped
from ..errors import first_line
from ..micro_batches import MicroBatches
from ..modes import float32_products, set_mode
from ..nonfinite import NonFinite
from ..step import Batch, TrainStep
from ..step_result import StepResult
from ..untouched import is_lazy, untouched
from ..wrapping import local

# How far a gradient may be off, as a part of its 2-norm: some thousand roundings of the arithmetic it is made in.
# Summing in another order costs tens; a unit of a ReLU or a pool that lands on its other side costs more.
TOLERANCE = {"float32": 2e-3, "bf16": 0.1, "fp16": 0.05, "tf32": 0.05}
# A gradient that is nothing but rounding (a bias before a BatchNorm) is measured against all gradients together.
FLOOR = {"float32": 2e-5, "bf16": 1e-2, "fp16": 5e-3, "tf32": 5e-3}
# An update may turn a rounding into a whole step (Adam's first divides each element by its own size).
OF_UPDATES = 25

UPDATES = 2

NOT_COMPARED = "cannot be compared with eager: loss or gradients of the first batches are not finite"


@dataclass
class Observed:
    """What updates did: for each its loss, outputs and gradients; then parameters, buffers and optimizer state."""

    losses: list[Tensor] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    gradients: list[dict[str, Tensor | None]] = field(default_factory=list)
    begin: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    refused: str | None = None

    @property
    def sound(self) -> bool:
        """Whether all was finite: nothing says of NaN that it is the same."""
        return self.refused is None and all(map(math.isfinite, self.losses))


def verify(
    step: TrainStep,
    backend: Callable[[Sequence[Batch]], StepResult],
    batches: Iterable[Any],
    *,
    exact: bool | None = None,
) -> str | None:
    """What of two updates by `backend` differs from two by the plain step, in words; None where nothing does.

    They use the first of `batches` whose updates are finite; where there is none, the answer is `NOT_COMPARED`.
    Both begin from the same weights, state and random numbers and leave no trace. With `exact` every bit is compared,
    else up to rounding; by default every bit where the backend is an eager one.
    """
    if exact is None:
        exact = not getattr(backend, "writes_unseen", False)
    for batch in batches:
        if (expected := record(step, step.plain, [batch])).sound:
            break
    else:
        return NOT_COMPARED
    try:
        observed = record(step, backend, [batch])
    except Exception as error:  # the user's forward runs here, as a graph that may not stand it
        return f"fails: {first_line(error, kind=True)}"
    return compared(step, expected, observed, exact=exact)


def compared(step: TrainStep, expected: Observed, observed: Observed, *, exact: bool) -> str | None:
    """What is `observed` of a backend and differs from what the plain step did, which is sound; see `verify`."""
    if difference := first_difference(expected, observed, arithmetic(step), exact):
        return f"differs from eager{'' if exact else ' by more than rounding'}: {difference}"
    return None


def arithmetic(step: TrainStep) -> str:
    """What products are made in: the step's precision, or ``tf32`` (fp16's mantissa) for float32 on a GPU."""
    rounds = any(value == "tf32" for name, value in float32_products() if name.startswith("cud"))
    precision: str = step.options.precision
    return "tf32" if rounds and precision == "float32" and step.device.type == "cuda" else precision


def record(
    step: TrainStep, run: Callable[[Sequence[Batch]], StepResult], batches: Sequence[Any], updates: int = UPDATES
) -> Observed:
    """So many updates by `run` on the live objects of `step`, which are put back."""
    observed, seeded = Observed(), step.divided.updates
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, step.divided, "updates", seeded)
        stack.enter_context(untouched(step.model, step.loss, step.optimizer))
        set_mode(step.optimizer, training=True)
        observed.begin = dict(_tensors(step))
        for number in range(updates):
            try:
                # A forward pass may write into its inputs.
                batch = batches[number % len(batches)]
                result = run([cloned(batch)])
            except NonFinite as error:
                observed.refused = str(error)
                return observed
            observed.losses.append(result.loss.detach().clone())
            leaves = pytree.tree_leaves([part[1] for part in result.parts] or result.outputs)
            observed.outputs.append([leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor)])
            observed.gradients.append(dict(_gradients(step)))
        observed.tensors = dict(_tensors(step))
    return observed


def cloned(batch: Any) -> Any:
    """A batch, or MicroBatches, in memory of its own."""
    if isinstance(batch, MicroBatches):
        return MicroBatches(map(cloned, batch), batch.rows, batch.numbers, batch.samples, batch.parts, batch.whole)
    return mapped(lambda part: part.clone() if callable(getattr(part, "clone", None)) else part, batch)


def of_no_optimizer(step: TrainStep) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of model and loss that ask for a gradient and are in no group of the optimizer, by name."""
    trained = set(map(id, step.trained()))
    for prefix, part in _named(step):
        for name, parameter in part.named_parameters():
            if parameter.requires_grad and id(parameter) not in trained:
                yield prefix + name, parameter


def _named(step: TrainStep) -> Iterator[tuple[str, nn.Module]]:
    for name, part in (("", step.model), ("loss.", step.loss)):
        if isinstance(part, nn.Module):
            yield name, part


def _parameters(step: TrainStep) -> Iterator[tuple[str, Tensor]]:
    """Those of model and loss by name, then what else the optimizer has."""
    named = {prefix + name: p for prefix, part in _named(step) for name, p in part.named_parameters()}
    yield from named.items()
    held = set(map(id, named.values()))
    for number, parameter in enumerate(step.trained()):
        if id(parameter) not in held:
            yield f"parameter {number} of the optimizer", parameter


def _gradients(step: TrainStep) -> Iterator[tuple[str, Tensor | None]]:
    for name, parameter in _parameters(step):
        if parameter.requires_grad:
            yield name, None if parameter.grad is None else _own(parameter.grad)


def _tensors(step: TrainStep) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and optimizer state by name, copied."""
    names = {parameter: name for name, parameter in _parameters(step)}
    for parameter, name in names.items():
        if not is_lazy(parameter):
            yield name, _own(parameter)
    for prefix, part in _named(step):
        for name, buffer in part.named_buffers():
            if not is_lazy(buffer):
                yield f"buffer {prefix}{name}", buffer.detach().clone()
    for owner, state in step.optimizer.state.items():
        for key, value in state.items() if isinstance(state, Mapping) else ():
            if isinstance(value, Tensor):
                yield f"{key} of {names.get(owner, 'the optimizer')}", _own(value)


def _own(tensor: Tensor) -> Tensor:
    """A copy, of a tensor in pieces of this rank's."""
    return local(tensor.detach()).clone()


def first_difference(
    expected: Observed, observed: Observed, precision: str = "float32", exact: bool = False
) -> str | None:
    """What of `observed` is off, in words that name it; None where nothing is.

    >>> a = Observed([torch.tensor(1.0)], [[]], [{"w": torch.ones(3)}])
    >>> first_difference(a, a)
    >>> first_difference(a, Observed([torch.tensor(1.0)], [[]], [{"w": torch.zeros(3)}]))
    'the gradient of w is all zeros where eager has a 2-norm of 1.73'
    """
    if observed.refused != expected.refused:
        says, eager_says = observed.refused or "all is finite", expected.refused or "all is finite"
        return f"it says: {says}, where eager says: {eager_says}"
    tolerance = 0.0 if exact else TOLERANCE[precision]
    floor = 0.0 if exact else FLOOR[precision]
    noise: set[str] = set()
    for number, (loss, other) in enumerate(zip(expected.losses, observed.losses, strict=True)):
        if not _close(float(other), float(loss), tolerance if number == 0 else OF_UPDATES * tolerance):
            return f"the loss is {float(other):.9g} where eager has {float(loss):.9g}"
    # After the first update roundings have gone through the whole model; from there on bits or nothing.
    for grads, others in list(zip(expected.gradients, observed.gradients, strict=True))[: None if exact else 1]:
        norms = {n: _norm(g) for n, g in grads.items() if g is not None}
        whole = math.sqrt(sum(v * v for v in norms.values()))
        noise |= set() if exact else {n for n, norm in norms.items() if norm <= 10 * floor * whole}
        for name, grad in grads.items():
            if difference := _gradient_off(
                grad, others.get(name), max(tolerance * norms.get(name, 0.0), floor * whole)
            ):
                return f"the gradient of {name} {difference}"
    for outputs, theirs in list(zip(expected.outputs, observed.outputs, strict=True))[: None if exact else 1]:
        if len(outputs) != len(theirs) or any(a.shape != b.shape for a, b in zip(outputs, theirs, strict=True)):
            return "its outputs have other shapes than eager's"
        if not all(_off(b, a) <= tolerance * max(_norm(a), 1e-30) for a, b in zip(outputs, theirs, strict=True)):
            return "its outputs are off"
    for name, after in expected.tensors.items():
        its, before = observed.tensors.get(name), expected.begin.get(name)
        if its is None or its.shape != after.shape:
            return f"{name} is missing after two updates" if its is None else f"{name} has another shape"
        if any(name == n or name.endswith(f" of {n}") for n in noise):
            continue
        moved = _off(after, before) if before is not None and before.shape == after.shape else _norm(after)
        scale = max(moved, floor * _norm(after))
        if not _off(its, after) <= OF_UPDATES * tolerance * scale:
            share = _off(its, after) / scale if scale else math.inf
            return f"{name} is off by {share:.2%} of its change after two updates"
    return None


def _gradient_off(grad: Tensor | None, other: Tensor | None, allowed: float) -> str | None:
    if grad is None:
        return "is there where eager has none" if other is not None and bool(other.any()) else None
    norm = _norm(grad)
    if other is None:
        return f"is missing where eager has a 2-norm of {norm:.3g}" if norm > 0 else None
    if other.shape != grad.shape:
        return f"has shape {tuple(other.shape)} where eager has {tuple(grad.shape)}"
    off = _off(other, grad)
    if off <= allowed:  # NaN is off, too
        return None
    if norm > 0 and not bool((_dense(other) != 0).any()):
        return f"is all zeros where eager has a 2-norm of {norm:.3g}"
    return f"is off by {off / norm if norm else math.inf:.2%} of its 2-norm"


def _dense(tensor: Tensor) -> Tensor:
    tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return tensor if tensor.is_complex() else tensor.double()


def _norm(tensor: Tensor) -> float:
    return float(_dense(tensor).norm()) if tensor.numel() else 0.0


def _off(a: Tensor, b: Tensor) -> float:
    """The 2-norm of the difference; values that are the same count as none, infinite ones and NaN included."""
    a, b = _dense(a), _dense(b)
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, torch.zeros_like(a), a - b).norm()) if a.numel() else 0.0


def _close(value: float, expected: float, tolerance: float) -> bool:
    if math.isnan(value) or math.isnan(expected):
        return math.isnan(value) and math.isnan(expected)
    return value == expected or math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance * 1e-2)
