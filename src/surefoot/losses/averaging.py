"""What a loss's mean divides by, so that means over epochs and micro-batches are means over samples.

A mean of batch means is not the mean when the last batch is short, when classes are weighted or when positions are
ignored. Here is the denominator of each of torch's losses; with it, losses of several batches add up to exactly the
loss of one large batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import batches
from ..micro_batches import MicroBatches
from ..world import World
from .composite import WeightedSum
from .conventions import convention_of
from .torch_losses import formula_of, ignored, option, reduction

# Losses whose mean is over all elements. The others average over samples, or over classes' weights (below).
_OVER_ELEMENTS = (
    *("L1Loss", "MSELoss", "SmoothL1Loss", "HuberLoss", "BCELoss", "BCEWithLogitsLoss", "KLDivLoss"),
    *("PoissonNLLLoss", "GaussianNLLLoss", "SoftMarginLoss", "HingeEmbeddingLoss"),
)
_OVER_CLASSES = frozenset({"CrossEntropyLoss", "NLLLoss", "LinearCrossEntropyLoss"})


def weighs_by(loss: Any) -> str:
    """What the loss's mean is over: ``"samples"``, ``"elements"`` or ``"targets"`` (their classes' weights).

    The first two are known from shapes alone; only the last looks at the targets' values.

    >>> weighs_by(torch.nn.MSELoss()), weighs_by(torch.nn.CrossEntropyLoss()), weighs_by(torch.nn.CTCLoss())
    ('elements', 'targets', 'samples')
    """
    name = formula_of(loss)
    if isinstance(loss, WeightedSum):
        kinds = {weighs_by(part) for part in loss.parts}
        if len(kinds) == 1 and kinds <= {"samples", "elements"}:
            return kinds.pop()
        if kinds == {"targets"} and all(_same_weighing(loss.parts[0], part) for part in loss.parts):
            return "targets"
        return "samples"
    if reduction(loss) == "sum" or name is None:
        return "samples"
    if name in _OVER_CLASSES:
        return "targets" if reduction(loss) == "mean" else "elements"
    if name in _OVER_ELEMENTS and reduction(loss) != "batchmean":
        return "elements"
    return "samples"


def is_summed(loss: Any) -> bool:
    """Whether the loss of a batch is a sum over its samples (``reduction="sum"``) and not a mean."""
    if isinstance(loss, WeightedSum):
        return all(is_summed(part) for part in loss.parts)
    return reduction(loss) == "sum"


def sample_weight(loss: Any, outputs: Any, targets: Any) -> int | Tensor:
    """What the mean of this batch's loss was divided by: samples, elements, or the sum of its classes' weights.

    ``sum(loss_i * weight_i) / sum(weight_i)`` over any split of a batch is the loss of the whole batch. It needs
    `outputs` only where there are no targets (triplets). An int where shapes tell; otherwise a tensor of one number
    on the targets' device (float64 for class weights), so that nothing waits for the device.

    >>> targets = torch.tensor([0, 1, -100])
    >>> sample_weight(torch.nn.CrossEntropyLoss(), None, targets)
    tensor(2)
    >>> sample_weight(torch.nn.MSELoss(), None, torch.zeros(4, 3))
    12
    """
    kind = weighs_by(loss)
    if isinstance(loss, WeightedSum) and kind == "targets":
        loss = loss.parts[0]
    if kind == "targets":
        return _weight_of_classes(loss, targets)
    if kind == "elements" and isinstance(targets, Tensor):
        return targets.numel()
    return samples_of(loss, outputs, targets)


def samples_of(loss: Any, outputs: Any, targets: Any) -> int:
    """The number of samples in a batch, from its targets (or outputs, where there are no targets)."""
    if convention_of(loss).name == "ctc":
        targets = targets[2]
    return batches.size(outputs if targets is None else targets)


def many_weights(loss: Any, targets: Sequence[Tensor]) -> list[float]:
    """`sample_weight` of `loss` for many batches' `targets`, as numbers: one look at the device for all of them.

    Each number is the same as for its batch alone, to the last bit.
    """
    if isinstance(loss, WeightedSum):
        loss = loss.parts[0]
    if option(loss, "weight") is None and not any(t.is_floating_point() for t in targets):
        try:
            joined = torch.cat(list(targets))
        except RuntimeError:  # of several shapes
            joined = torch.cat([t.reshape(-1) for t in targets])
        if not bool((joined.long() == ignored(loss)).any()):
            return [t.numel() for t in targets]
    weights = [_weight_of_classes(loss, t) for t in targets]
    tensors = [w for w in weights if isinstance(w, Tensor)]
    if len(tensors) == len(weights):
        return [float(w) for w in torch.stack(tensors).tolist()]
    return [float(w) for w in weights]


def all_count(loss: Any, whole: Any) -> bool:
    """Whether targets count by their number: none of `whole`, all samples as one batch, is ignored or weighs more.

    >>> all_count(torch.nn.CrossEntropyLoss(), (torch.zeros(3, 4), torch.tensor([0, 3, 1])))
    True
    """
    if isinstance(loss, WeightedSum):
        return all(all_count(part, whole) for part in loss.parts)
    if not _weighs_targets(loss, whole):
        return True
    targets = (batches.pair(whole) or (None, None))[1]
    if not isinstance(targets, Tensor) or option(loss, "weight") is not None or targets.is_floating_point():
        return False
    least, most = map(int, targets.aminmax())
    return not least <= ignored(loss) <= most


def shares(loss: Any, micro_batches: Sequence[Any], world: World | None = None, complete: bool = False) -> list[Any]:
    """By how much each micro-batch's loss counts, so that their sum is the loss of all of them as one batch.

    From the targets alone. One entry for each of `micro_batches`, for `conventions.apply(..., share=...)`: None (one
    micro-batch, or a summed loss), a number, a tensor of one number, or a tuple (a `WeightedSum`, whose parts may
    divide by different things). Of MicroBatches "all of them" are those of all ranks of the `world`, and what stands in
    counts 0. The world is asked only where shapes do not tell what they hold, and the data are not `complete`
    (`all_count`); a share is then a function, which waits for the answer.

    >>> x = torch.arange(6.)
    >>> shares(torch.nn.MSELoss(), [(x[:4], x[:4]), (x[4:], x[4:])])
    [0.6666666666666666, 0.3333333333333333]
    """
    divided = isinstance(micro_batches, MicroBatches)
    rows = micro_batches.rows if isinstance(micro_batches, MicroBatches) else list(map(batches.size, micro_batches))
    if len(micro_batches) == 1 and not divided:
        return [None]
    samples = micro_batches.samples if isinstance(micro_batches, MicroBatches) else sum(rows)
    if convention_of(loss).name == "objective":  # its weights are known afterwards; the step divides by them
        return [1 / samples if n else 0.0 for n in rows]
    if isinstance(loss, WeightedSum):
        by_part = [shares(part, micro_batches, world, complete) for part in loss.parts]
        return [tuple(part[i] for part in by_part) for i in range(len(micro_batches))]
    if is_summed(loss):
        return [None if n else 0.0 for n in rows]
    if not _weighs_targets(loss, micro_batches[0]):
        return [n / samples for n in rows]
    weights = [_weight_of(loss, batch, complete) if n else 0 for n, batch in zip(rows, micro_batches, strict=True)]
    if isinstance(micro_batches, MicroBatches):
        each = _weight_of(loss, micro_batches[0], complete)
        if micro_batches.whole is None or isinstance(each, Tensor):
            exchanged = of_all_ranks(weights, micro_batches, world)
            of_all = functools.cache(lambda: sum(exchanged().unbind()))
            # Asked for when a loss is weighed: the ranks need not meet before their forward passes.
            return [functools.partial(_share, weight, of_all) for weight in weights]
        total: Any = each // batches.size(micro_batches[0]) * samples
    else:
        total = sum(weights)
    return [_share(weight, lambda: total) for weight in weights]


def _share(weight: float | Tensor, total: Callable[[], Any]) -> Any:
    return (weight.double() if isinstance(weight, Tensor) else weight) / total()


def of_all_ranks(
    values: Sequence[float | Tensor], micro_batches: MicroBatches, world: World | None
) -> Callable[[], Tensor]:
    """One number of each micro-batch, of those of all ranks in their order: float64 (parts,), where the numbers are.

    The same on every rank to the bit, and whatever the number of ranks. It is exchanged from now on; what is returned
    gives it.
    """
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    numbers = torch.zeros(micro_batches.parts, dtype=torch.float64, device=device)
    for place, value in zip(micro_batches.numbers, values, strict=True):
        numbers[place] = value
    return (World.alone() if world is None else world).begin_sum(numbers)


def _weighs_targets(loss: Any, batch: Any) -> bool:
    """Whether a batch's weight is read from its targets, and is not its number of samples."""
    pairs = convention_of(loss).name in ("pair", "gaussian", "adaptive")
    return pairs and weighs_by(loss) != "samples" and batches.pair(batch) is not None


def _weight_of(loss: Any, batch: Any, complete: bool) -> int | Tensor:
    parts = batches.pair(batch)
    assert parts is not None
    if complete and weighs_by(loss) == "targets":
        return int(parts[1].numel())
    return sample_weight(loss, None, parts[1])


def _weight_of_classes(loss: Any, targets: Tensor) -> int | Tensor:
    if targets.is_floating_point():  # class probabilities (C,) or (N, C, d1, ...): torch divides by N * d1 * ...
        return targets.numel() // targets.shape[1 if targets.dim() > 1 else 0]
    counted = targets.long() != ignored(loss)  # in uint8 -100 would be class 156
    weight: Tensor | None = option(loss, "weight")
    if weight is None:
        return counted.sum()
    return (weight.double()[targets.where(counted, 0).long()] * counted).sum()


def _same_weighing(a: Any, b: Any) -> bool:
    if ignored(a) != ignored(b):
        return False
    first, second = option(a, "weight"), option(b, "weight")
    return first is second or (first is not None and second is not None and torch.equal(first, second))
