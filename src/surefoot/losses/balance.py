"""Class weights from the data: rare classes count as much as frequent ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError


def class_weights(targets: Tensor, classes: int | None = None, *, ignore_index: int = -100) -> Tensor:
    """``n / (C * n_c)`` for each class c, the formula of scikit-learn's ``class_weight="balanced"``.

    `targets` are class indices of any shape; `classes` is C (default: the highest index + 1); `ignore_index` is not
    counted: where it is one of the classes its weight is 0, and the formula's C is one less. Returns (C,) in torch's
    default dtype. Raises UsageError where targets are no indices, lie outside the classes, or a class has no samples.

    >>> class_weights(torch.tensor([0, 0, 0, 1]))
    tensor([0.6667, 2.0000])
    """
    targets = torch.as_tensor(targets)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        dtype = str(targets.dtype).removeprefix("torch.")
        raise UsageError(f"weight: balanced counts class indices (int64); these targets are {dtype}")
    targets = targets.reshape(-1).to(torch.long)
    targets = targets[targets != ignore_index]
    if not targets.numel():
        raise UsageError("weight: balanced cannot be computed: the training data holds no targets")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or (classes is not None and high >= classes):
        outside = low if low < 0 else high
        upto = f"0 to {classes - 1}" if classes is not None else "0 and up"
        raise UsageError(f"weight: balanced met the target {outside}; class indices are {upto}")
    counts = torch.bincount(targets, minlength=classes or 0)
    wanted = torch.arange(len(counts), device=counts.device) != ignore_index
    empty = ((counts == 0) & wanted).nonzero().flatten().tolist()
    if empty:
        shown = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        raise UsageError(
            f"weight: balanced cannot weigh a class that has no samples: class {shown} of {len(counts)}; "
            "give the weights as a list, or more data"
        )
    weights = targets.numel() / (int(wanted.sum()) * counts.double())
    return weights.where(wanted, 0.0).to(torch.get_default_dtype())


def positive_weight(targets: Tensor) -> Tensor:
    """``negatives / positives`` for each label, what BCEWithLogitsLoss's documentation gives for `pos_weight`.

    `targets` are 0 or 1: (N,), (N, labels), or masks (N, H, W) and (N, labels, H, W). Returns (1,), (labels,) or
    (labels, 1, 1). Raises UsageError for other values or a label without positives.

    >>> positive_weight(torch.tensor([0., 0., 0., 1.]))
    tensor([3.])
    """
    targets = torch.as_tensor(targets).double()
    if not targets.numel():
        raise UsageError("pos_weight: balanced cannot be computed: the training data holds no targets")
    if bool(((targets != 0) & (targets != 1)).any()):
        raise UsageError("pos_weight: balanced counts targets of 0 and 1; these hold other values")
    labels = targets.shape[1] if targets.dim() == 2 or targets.dim() > 3 else 1
    flat = (targets.movedim(1, -1) if targets.dim() > 3 else targets).reshape(-1, labels)
    positives = flat.sum(0)
    empty = (positives == 0).nonzero().flatten().tolist()
    if empty:
        raise UsageError(f"pos_weight: balanced cannot weigh a label without positives: label {empty[0]}")
    weight = (len(flat) - positives) / positives
    weight = weight.reshape(labels, *[1] * (targets.dim() - 2 if targets.dim() > 3 else 0))
    return weight.to(torch.get_default_dtype())
