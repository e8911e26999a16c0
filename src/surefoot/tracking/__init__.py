"""What a run leaves to be read: the journal (the truth), TensorBoard's events, progress lines, a report."""

from __future__ import annotations

from .journal import Journal, read_records
from .progress import Progress, RunInfo, Summary, duration, make_progress
from .report import write_report
from .tensorboard import TensorBoard

__all__ = [
    "Journal",
    "Progress",
    "RunInfo",
    "Summary",
    "TensorBoard",
    "duration",
    "make_progress",
    "read_records",
    "write_report",
]
