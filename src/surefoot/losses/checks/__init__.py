"""The lint of the first batch: evidence gathered once, then checked from several sides."""

from __future__ import annotations

from .findings import FINDINGS, Finding
from .look import lint

__all__ = ["FINDINGS", "Finding", "lint"]
