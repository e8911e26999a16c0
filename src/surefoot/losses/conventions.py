"""How each loss is called: what a batch holds, what of it the model sees, and what the loss is given."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import batches
from ..errors import UsageError
from . import registry
from .torch_losses import family, formula_of


class LossValue(NamedTuple):
    """The loss of one batch (a tensor of one number, with its graph), and the `outputs` and `targets` it is of.

    An objective may tell its `weight`, what its mean is over (None: the samples), and further `numbers` by name.
    """

    loss: Tensor
    outputs: Any
    targets: Any
    weight: Any = None
    numbers: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Convention:
    """One way of calling a loss, by `name`: `forward` runs the model on a batch, `value` gives the loss of its
    outputs."""

    name: str
    batch: str
    forward: Callable[[Any, Sequence[Any]], tuple[Any, Any]]
    value: Callable[[Any, Any, Any], Any]


def _forward_pair(model: Any, batch: Any) -> tuple[Any, Any]:
    if (parts := batches.pair(batch)) is None:
        if isinstance(sample := batches.whole(batch), Mapping):
            raise UsageError(
                f"a sample for this loss holds inputs and a target; this one is a mapping with "
                f"{', '.join(map(repr, list(sample)[:6]))}; call the target one of {', '.join(batches.TARGET_NAMES)}, "
                "or give an objective, a function of (model, batch): surefoot.objective"
            )
        raise _unfit(batch, 2, PAIR.batch)
    return batches.call(model, parts[0]), parts[1]


def _value_classes(loss: Any, outputs: Any, targets: Any) -> Any:
    outputs = compared(loss, outputs, targets)
    if isinstance(outputs, Tensor) and outputs.dim() == 3 and _classes_lie_last(outputs) and targets.dim() == 2:
        # The same mean over all positions; of (N, C, T) torch takes two to four times as long, for it is copied.
        outputs, targets = outputs.movedim(1, -1).reshape(-1, outputs.shape[1]), targets.reshape(-1)
    return loss(outputs, targets)


# Losses that have had a batch whose outputs could only be (N, T, C).
_LAST: weakref.WeakSet[Any] = weakref.WeakSet()


def compared(loss: Any, outputs: Any, targets: Any) -> Any:
    """What a loss of torch's, and metrics, compare with `targets`: `batches.scores`, with classes as second dimension.

    Scores (N, ..., C) beside class indices (N, ...) become (N, C, ...), where the loss is torch's of classes and only
    this fits. Where the shapes fit both ways (N, T, T), scores that were transposed are taken as torch does, others as
    those of earlier batches; raises UsageError where there were none.

    >>> compared(nn.CrossEntropyLoss(), torch.zeros(8, 5, 30), torch.zeros(8, 5)).shape
    torch.Size([8, 30, 5])
    """
    if not isinstance(outputs, Tensor) and any(map(family, _parts(loss))):
        outputs = batches.scores(outputs)
    if not isinstance(outputs, Tensor) or outputs.dim() < 3 or not isinstance(targets, Tensor):
        return outputs
    if targets.shape != outputs.shape[:-1]:
        return outputs
    if not any(formula_of(part) in ("CrossEntropyLoss", "NLLLoss") for part in _parts(loss)):
        return outputs
    if targets.shape[1:] != outputs.shape[2:]:
        if isinstance(loss, nn.Module):  # a function may be another model's loss, too
            _LAST.add(loss)
    elif _classes_lie_last(outputs) or outputs.dim() > 3:
        return outputs
    elif loss not in _LAST:
        raise UsageError(
            f"{describe(loss)}: with outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} the classes may "
            "be the second dimension or the last; where they are the last, give outputs.transpose(1, 2); where they "
            "are the second, give the loss as a function: lambda outputs, targets: "
            "torch.nn.functional.cross_entropy(outputs, targets)"
        )
    return outputs.movedim(-1, 1)


def _parts(loss: Any) -> Sequence[Any]:
    """The losses that are summed; usually one."""
    parts: Sequence[Any] = getattr(loss, "parts", (loss,))
    return parts


def _classes_lie_last(outputs: Tensor) -> bool:
    """Whether outputs (N, C, T) are a view of (N, T, C)."""
    return outputs.stride(1) == 1 and outputs.stride(-1) != 1


def _three(batch: Any, meaning: str) -> tuple[Any, Any, Any]:
    try:
        first, second, third = batch
    except (TypeError, ValueError):
        raise _unfit(batch, 3, meaning) from None
    return first, second, third


def _forward_triplet(model: Any, batch: Any) -> tuple[Any, Any]:
    return tuple(_scores_of(model, part) for part in _three(batch, TRIPLET.batch)), None


def _forward_two_inputs(model: Any, batch: Any) -> tuple[Any, Any]:
    first, second, targets = _three(batch, TWO_INPUTS.batch)
    return (_scores_of(model, first), _scores_of(model, second)), targets


def _scores_of(model: Any, inputs: Any) -> Any:
    return batches.scores(batches.call(model, inputs))


def _forward_ctc(model: Any, batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Tensor) or len(batch) not in (3, 4):
        raise _unfit(batch, "3 or 4", CTC.batch)
    if not isinstance(log_probs := _scores_of(model, batch[0]), Tensor):
        raise UsageError(
            f"CTCLoss needs a model that returns log-probabilities (T, N, C); this one returned "
            f"{batches.form(log_probs)}; return them alone, or give an objective: surefoot.objective"
        )
    if len(batch) == 4:
        return log_probs, (batch[1], batch[2], batch[3])
    samples = log_probs.shape[1] if log_probs.dim() == 3 else 1
    lengths = torch.full((samples,), log_probs.shape[0], dtype=torch.long, device="cpu")
    return log_probs, (batch[1], lengths if log_probs.dim() == 3 else lengths[0], batch[2])


def _value_gaussian(loss: Any, outputs: Any, targets: Any) -> Any:
    try:
        mean, variance = outputs
    except (TypeError, ValueError):
        raise UsageError(
            f"GaussianNLLLoss needs a model that returns (mean, variance); this one returned {batches.form(outputs)}"
        ) from None
    return loss(mean, targets, variance)


# A function of the user's own is given what the model gave.
PAIR = Convention(
    "pair", registry.PAIR, _forward_pair, lambda loss, o, t: loss(batches.scores(o) if family(loss) else o, t)
)
TRIPLET = Convention("triplet", registry.TRIPLET, _forward_triplet, lambda loss, o, t: loss(*o))
TWO_INPUTS = Convention("two inputs", registry.TWO_INPUTS, _forward_two_inputs, lambda loss, o, t: loss(*o, t))
CTC = Convention("ctc", registry.CTC, _forward_ctc, lambda loss, o, t: loss(o, *t))
CLASSES = Convention("pair", PAIR.batch, _forward_pair, _value_classes)
GAUSSIAN = Convention("gaussian", PAIR.batch, _forward_pair, _value_gaussian)
ADAPTIVE = Convention("adaptive", PAIR.batch, _forward_pair, lambda loss, o, t: loss(o, t).loss)

_BY_NAME = {
    "CrossEntropyLoss": CLASSES,
    "NLLLoss": CLASSES,
    "TripletMarginLoss": TRIPLET,
    "TripletMarginWithDistanceLoss": TRIPLET,
    "MarginRankingLoss": TWO_INPUTS,
    "CosineEmbeddingLoss": TWO_INPUTS,
    "CTCLoss": CTC,
    "GaussianNLLLoss": GAUSSIAN,
    "AdaptiveLogSoftmaxWithLoss": ADAPTIVE,
}


def convention_of(loss: Any) -> Convention:
    """How `loss` is called; a user's own function is called as ``loss(outputs, targets)``.

    A class of one's own that needs more carries a `convention` (one of this module's, or a new one).

    >>> convention_of(nn.TripletMarginLoss()).batch
    '(anchor, positive, negative)'
    """
    # On the class, since asking a module for an attribute that it lacks costs more than the rest of this together.
    if hasattr(type(loss), "convention"):
        convention: Convention = loss.convention
        return convention
    return _BY_NAME.get(family(loss) or "", PAIR)


def apply(loss: Any, model: Callable[..., Any], batch: Sequence[Any], share: Any = None) -> LossValue:
    """The loss of one batch, which goes through `model`; it is called as its kind of loss wants it.

    `batch` is ``(inputs, targets)``, or what `convention_of(loss).batch` says. A loss with ``reduction="none"``
    (or a user's own that returns one value a sample) is averaged over its elements. `share` is this
    micro-batch's part of a larger batch, from `averaging.shares`; the loss is multiplied by it. Raises UsageError
    for a batch of the wrong make-up or a loss that returns no tensor.

    >>> batch = (torch.ones(4, 3), torch.zeros(4, 3))
    >>> apply(nn.MSELoss(), nn.Identity(), batch).loss
    tensor(1.)
    """
    convention = convention_of(loss)
    outputs, targets = convention.forward(model, batch)
    if isinstance(outputs, LossValue):  # an objective tells all of it
        if share is None:
            return outputs
        weight = batches.size(batch) if outputs.weight is None else outputs.weight
        return outputs._replace(loss=weighed(outputs.loss, share * weight), weight=weight)
    if isinstance(share, tuple):  # a sum of losses: each part has a share of its own
        return LossValue(loss(outputs, targets, shares=share), compared(loss, outputs, targets), targets)
    value = scalar(convention.value(loss, outputs, targets), loss)
    if share is not None:
        value = weighed(value, share)
    return LossValue(value, compared(loss, outputs, targets), targets)


def value_of(loss: Any, outputs: Any, targets: Any) -> Tensor:
    """The loss of `outputs` that are already there and `targets`, as a tensor of one number."""
    return scalar(convention_of(loss).value(loss, outputs, targets), loss)


def weighed(value: Tensor, share: Any) -> Tensor:
    """A micro-batch's loss times its share: a number, a tensor of one, what gives one, or None."""
    share = share() if callable(share) else share
    if isinstance(share, Tensor):
        # The mean over a micro-batch in which every position is ignored is 0/0; it has no part in the whole.
        return torch.where(share == 0, torch.zeros_like(value), value * share.to(value.dtype))
    if share == 0:
        return torch.where(torch.zeros_like(value, dtype=torch.bool), value, torch.zeros_like(value))
    return value if share is None else value * share


def scalar(value: Any, loss: Any) -> Tensor:
    """`value` as one number: the mean of a loss that gives one value a sample."""
    if not isinstance(value, Tensor):
        raise UsageError(
            f"the loss {describe(loss)} returned {type(value).__name__}; it must return a tensor (of one number, "
            "or of one value a sample) that leads back to the model's outputs"
        )
    return value.mean() if value.dim() else value


def describe(loss: Any) -> str:
    """A loss by the name that its user knows it by."""
    if isinstance(loss, nn.Module):
        return type(loss).__name__
    function = getattr(loss, "func", loss)  # of a functools.partial
    return str(getattr(loss, "__name__", None) or getattr(function, "__name__", type(loss).__name__))


def _unfit(batch: Any, wanted: int | str, meaning: str) -> UsageError:
    return UsageError(
        f"a batch for this loss holds {wanted} parts, {meaning}; this one is {batches.form(batch)}; give samples "
        "of such parts, or make the batches by surefoot.data.DatasetSource(dataset, collate=function)"
    )
