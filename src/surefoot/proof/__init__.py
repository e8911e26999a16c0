"""The proof behind `surefoot verify`: train untouched, train killed, compare as bytes, name what differs."""

from __future__ import annotations

from .comparison import compare
from .drive import Verdict, prove
from .job import Job

__all__ = ["Job", "Verdict", "compare", "prove"]
