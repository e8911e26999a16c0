"""Which loss of torch a live object is, and the arguments that it was made with."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.nn import functional

# torch.nn.functional's losses are accepted in a script as they are; each means its class with the same arguments.
_FUNCTIONS = {
    getattr(functional, function): name
    for function, name in {
        "l1_loss": "L1Loss",
        "mse_loss": "MSELoss",
        "smooth_l1_loss": "SmoothL1Loss",
        "huber_loss": "HuberLoss",
        "cross_entropy": "CrossEntropyLoss",
        "nll_loss": "NLLLoss",
        "binary_cross_entropy": "BCELoss",
        "binary_cross_entropy_with_logits": "BCEWithLogitsLoss",
        "kl_div": "KLDivLoss",
        "poisson_nll_loss": "PoissonNLLLoss",
        "gaussian_nll_loss": "GaussianNLLLoss",
        "multi_margin_loss": "MultiMarginLoss",
        "multilabel_margin_loss": "MultiLabelMarginLoss",
        "multilabel_soft_margin_loss": "MultiLabelSoftMarginLoss",
        "soft_margin_loss": "SoftMarginLoss",
        "hinge_embedding_loss": "HingeEmbeddingLoss",
        "cosine_embedding_loss": "CosineEmbeddingLoss",
        "margin_ranking_loss": "MarginRankingLoss",
        "triplet_margin_loss": "TripletMarginLoss",
        "triplet_margin_with_distance_loss": "TripletMarginWithDistanceLoss",
        "ctc_loss": "CTCLoss",
    }.items()
}


@functools.lru_cache(maxsize=256)
def _name_of_class(cls: Any) -> tuple[str | None, bool]:
    for base in cls.__mro__:
        if base.__module__.startswith("torch.nn.modules.") and base.__name__ in nn.__dict__ and base is not nn.Module:
            name = "NLLLoss" if base.__name__ == "NLLLoss2d" else base.__name__
            return name, cls.forward is base.forward
    return None, False


def family(loss: Any) -> str | None:
    """The torch.nn class that a loss is or derives from, by name; None for a user's own.

    >>> family(nn.CrossEntropyLoss()), family(functional.mse_loss), family(lambda outputs, targets: 0)
    ('CrossEntropyLoss', 'MSELoss', None)
    """
    if isinstance(loss, nn.Module):
        return _name_of_class(type(loss))[0]  # type: ignore[arg-type]  # mypy takes the class for its instance
    if isinstance(loss, functools.partial):
        loss = loss.func
    try:
        return _FUNCTIONS.get(loss)
    except TypeError:  # an unhashable callable is nobody's function but the user's
        return None


def formula_of(loss: Any) -> str | None:
    """As `family`, but None for a class that overrides torch's `forward`: its formula is its own."""
    if isinstance(loss, nn.Module) and not _name_of_class(type(loss))[1]:  # type: ignore[arg-type]  # as above
        return None
    return family(loss)


def option(loss: Any, argument: str, default: Any = None) -> Any:
    """The value of a loss's argument, whether it is a module, a function or a `functools.partial`."""
    if isinstance(loss, functools.partial):
        return loss.keywords.get(argument, default)
    return getattr(loss, argument, default)


def reduction(loss: Any) -> str:
    """``"mean"``, ``"sum"``, ``"none"`` or ``"batchmean"``; a user's own function is taken to give a mean."""
    value = option(loss, "reduction", "mean")
    return value if isinstance(value, str) else "mean"


def ignored(loss: Any) -> int:
    """The class index that the loss leaves out; torch's own default is -100."""
    index = option(loss, "ignore_index", None)
    return -100 if index is None else int(index)
