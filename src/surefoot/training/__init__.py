"""The visible loop: fit, evaluate, predict."""

from __future__ import annotations

from .evaluation import EVAL_BATCH, Evaluation, evaluate, predict
from .fit import About, FitResult, fit, learns
from .state import Checkpoints, EarlyStopping
from .unfreezing import Unfreezing

__all__ = [
    "EVAL_BATCH",
    "About",
    "Checkpoints",
    "EarlyStopping",
    "Evaluation",
    "FitResult",
    "Unfreezing",
    "evaluate",
    "fit",
    "learns",
    "predict",
]
