"""Surefoot trains PyTorch models: the public names, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    import fcntl  # noqa: F401
except ImportError:
    raise ImportError(
        "surefoot needs Linux or macOS: it locks runs and makes files durable with POSIX calls; on Windows use WSL"
    ) from None

from .errors import Problems, RunFailed, Stopped, SurefootError, UsageError
from .lazy import lazily
from .version import __version__

if TYPE_CHECKING:
    from .artifacts import LoadedModel, export, import_weights, load_model, open_model, save_model
    from .checkpoint import Checkpointer
    from .data import DataSplits, Loader, TensorSource
    from .losses import Objective, lint, objective
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
    from .step import StepOptions
    from .training import About, Checkpoints, EarlyStopping, Journal, RunOptions, evaluate, predict
    from .training.fit import fit
    from .world import World

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
    "Objective",
    "Preprocessing",
    "Problems",
    "RAdamWarmup",
    "RunFailed",
    "RunOptions",
    "Schedule",
    "StepOptions",
    "Stopped",
    "SurefootError",
    "TensorSource",
    "UntunedExponentialWarmup",
    "UntunedLinearWarmup",
    "UsageError",
    "World",
    "__version__",
    "evaluate",
    "export",
    "fit",
    "import_weights",
    "lint",
    "load_model",
    "load_recipe",
    "objective",
    "open_model",
    "predict",
    "save_model",
]

# Looked up when first used, so that `import surefoot` and `surefoot --help` import no torch.
__getattr__ = lazily(
    __name__,
    {
        "artifacts": "LoadedModel export import_weights load_model open_model save_model",
        "checkpoint": "Checkpointer",
        "data": "DataSplits Loader TensorSource",
        "losses": "Objective lint objective",
        "preprocessing": "Preprocessing",
        "recipe": "load_recipe",
        "schedules": "ExponentialWarmup LinearWarmup RAdamWarmup Schedule UntunedExponentialWarmup UntunedLinearWarmup",
        "step": "StepOptions",
        "world": "World",
        "training": "About Checkpoints EarlyStopping Journal RunOptions evaluate fit predict",
    },
)
