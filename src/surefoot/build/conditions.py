"""What a resume must find unchanged: the recipe key by key, the data, the user's own code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import import_object, imports_in

if TYPE_CHECKING:
    from torch import nn

    from ..data import DataSplits
    from ..recipe import Recipe


# The fingerprint of the weights that a run began with.
STARTED = "model.weights"

# What may differ between two sittings of one run without a bit of the result being another. `execution`, `device` and
# `micro_batches` are compared as what they came to; on_nonfinite only counts where a loss is not finite, and then the
# run stops.
_HARMLESS = (
    "name",
    "epochs",
    "checkpoint",
    "checkpoint.every",
    "checkpoint.keep_last",
    "checkpoint.when_busy",
    "data.dir",
    "data.images",
    "data.masks",
    "data.path",
    "data.val",
    "data.download",
    "data.workers",
    "execution",
    "device",
    "early_stopping.patience",
    "lint_off",
    "micro_batches",
    "on_end",
    "on_nonfinite",
    "parallel",
    "strict",
    "tensorboard",
    "trackers",
)


def is_harmless(key: str) -> bool:
    """Whether a recipe's dotted key may differ between two sittings of one run."""
    return key in _HARMLESS or key.startswith(("execution.", "tensorboard."))


def conditions(recipe: Recipe, model: nn.Module, loss: Any, splits: DataSplits) -> dict[str, Any]:
    """What a resume must find unchanged: the recipe, key by key, the data and the user's own code."""
    from ..checkpoint import code_of, flatten

    values = flatten("recipe", recipe.plain())
    for name in list(values):
        key = name.removeprefix("recipe.")
        if is_harmless(key):
            del values[name]
    values["data.train"] = splits.train.fingerprint()
    if splits.val is not None:
        values["data.val"] = splits.val.fingerprint()
    own = [import_object(path) for path in dict.fromkeys(imports_in(recipe.plain()))]
    return values | code_of([model, loss, *own])
