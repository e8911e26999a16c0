"""Surefoot trains PyTorch models: the public names, and nothing else."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import Problems, RunFailed, Stopped, SurefootError, UsageError
from .version import __version__

if TYPE_CHECKING:
    from .artifacts import LoadedModel, export, import_weights, load_model, open_model, save_model
    from .checkpoint import Checkpointer
    from .data import DataSplits, Loader, TensorSource
    from .losses import lint
    from .preprocessing import Preprocessing
    from .recipe import load_recipe
    from .schedules import Schedule
    from .schedules.warmup import (
        ExponentialWarmup,
        LinearWarmup,
        RAdamWarmup,
        UntunedExponentialWarmup,
        UntunedLinearWarmup,
    )
    from .training import About, Checkpoints, EarlyStopping, Journal, evaluate, fit, predict

# Looked up when first used, so that `import surefoot` and `surefoot --help` import no torch.
_HOMES = {
    "About": "training",
    "Checkpointer": "checkpoint",
    "Checkpoints": "training",
    "DataSplits": "data",
    "EarlyStopping": "training",
    "ExponentialWarmup": "schedules",
    "Journal": "training",
    "LinearWarmup": "schedules",
    "LoadedModel": "artifacts",
    "Loader": "data",
    "Preprocessing": "preprocessing",
    "RAdamWarmup": "schedules",
    "Schedule": "schedules",
    "TensorSource": "data",
    "UntunedExponentialWarmup": "schedules",
    "UntunedLinearWarmup": "schedules",
    "evaluate": "training",
    "export": "artifacts",
    "fit": "training",
    "import_weights": "artifacts",
    "lint": "losses",
    "load_model": "artifacts",
    "load_recipe": "recipe",
    "open_model": "artifacts",
    "predict": "training",
    "save_model": "artifacts",
}

__all__ = [
    "About",
    "Checkpointer",
    "Checkpoints",
    "DataSplits",
    "EarlyStopping",
    "ExponentialWarmup",
    "Journal",
    "LinearWarmup",
    "LoadedModel",
    "Loader",
    "Preprocessing",
    "Problems",
    "RAdamWarmup",
    "RunFailed",
    "Schedule",
    "Stopped",
    "SurefootError",
    "TensorSource",
    "UntunedExponentialWarmup",
    "UntunedLinearWarmup",
    "UsageError",
    "__version__",
    "evaluate",
    "export",
    "fit",
    "import_weights",
    "lint",
    "load_model",
    "load_recipe",
    "open_model",
    "predict",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
