"""Class weights from the data: rare classes count as much as frequent ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError


def class_weights(targets: Tensor, classes: int | None = None, *, ignore_index: int = -100) -> Tensor:
    """``n / (C * n_c)`` for each class c, the formula of scikit-learn's ``class_weight="balanced"``.

    `targets` are class indices of any shape; `classes` is C (default: the highest index + 1); `ignore_index` is not
    counted. Returns (C,) in torch's default dtype. Raises UsageError where targets are no indices, lie outside the
    classes, or a class has no samples.

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
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        shown = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        raise UsageError(
            f"weight: balanced cannot weigh a class that has no samples: class {shown} of {len(counts)}; "
            "give the weights as a list, or more data"
        )
    return (targets.numel() / (len(counts) * counts.double())).to(torch.get_default_dtype())


def positive_weight(targets: Tensor) -> Tensor:
    """``negatives / positives`` for each label, what BCEWithLogitsLoss's documentation gives for `pos_weight`.

    `targets` are 0 or 1, of shape (N,) or (N, labels). Returns (1,) or (labels,). Raises UsageError for other values or
    a label without positives.

    >>> positive_weight(torch.tensor([0., 0., 0., 1.]))
    tensor([3.])
    """
    targets = torch.as_tensor(targets).double()
    if not targets.numel():
        raise UsageError("pos_weight: balanced cannot be computed: the training data holds no targets")
    if bool(((targets != 0) & (targets != 1)).any()):
        raise UsageError("pos_weight: balanced counts targets of 0 and 1; these hold other values")
    flat = targets.reshape(len(targets), -1)
    positives = flat.sum(0)
    empty = (positives == 0).nonzero().flatten().tolist()
    if empty:
        raise UsageError(f"pos_weight: balanced cannot weigh a label without positives: label {empty[0]}")
    weight = (len(flat) - positives) / positives
    if targets.dim() > 1:
        weight = weight.reshape(targets.shape[1:])
    return weight.to(torch.get_default_dtype())
