"""The limits of settings that a recipe's keys and Python's arguments share: ranges of numbers, words to choose from."""

from __future__ import annotations

from .registry import Range

PRECISIONS = ("float32", "bf16", "fp16")
ON_NONFINITE = ("stop", "skip")
PARALLEL = ("ddp", "fsdp2", "none")
WHEN_BUSY = ("wait", "skip")
CLIPPING = Range(low=0, low_open=True, hint="give None for no limit")
EMA_DECAY = Range(low=0, high=1, high_open=True, hint="give a decay such as 0.999")
LAYER_DECAY = Range(low=0, high=1, low_open=True, hint="give a factor such as 0.9")
MIN_DELTA = Range(low=0, hint="give 0 or more")
# Of any whole number: what is computed with it stays a finite float.
MOST = 2**63 - 1
MOST_THREADS = 4096
