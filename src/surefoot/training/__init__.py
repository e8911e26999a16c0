"""The visible loop: fit, evaluate, predict."""

from __future__ import annotations

from .about import About
from .evaluation import EVAL_BATCH, Evaluation, evaluate, predict
from .fit import FitResult, fit
from .journal import Journal
from .options import RunOptions
from .state import Checkpoints, EarlyStopping
from .unfreezing import Unfreezing

__all__ = [
    "EVAL_BATCH",
    "About",
    "Checkpoints",
    "EarlyStopping",
    "Evaluation",
    "FitResult",
    "Journal",
    "RunOptions",
    "Unfreezing",
    "evaluate",
    "fit",
    "predict",
]
