"""How a step runs on this machine: settings that are measured, verified against the plain step, and recorded."""

from __future__ import annotations

from .backends import make_backend, verified_backend
from .choose import Row, TuneTable, asked_for, choose_execution, tune, with_asked
from .evaluation import evaluation_batch
from .graph_step import CannotCompile
from .in_pieces import asked_in_pieces, require_in_pieces
from .parts import verified_part
from .settings import Execution, as_torch_would, prepare
from .verify import verify

__all__ = [
    "CannotCompile",
    "Execution",
    "Row",
    "TuneTable",
    "as_torch_would",
    "asked_for",
    "asked_in_pieces",
    "choose_execution",
    "evaluation_batch",
    "make_backend",
    "prepare",
    "require_in_pieces",
    "tune",
    "verified_backend",
    "verified_part",
    "verify",
    "with_asked",
]
