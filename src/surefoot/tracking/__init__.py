"""The numbers of a run: the journal (which the rest is made from), TensorBoard's events, progress lines, a report."""

from __future__ import annotations

from .journal import JournalFile, read_records
from .progress import Progress, RunInfo, Summary, make_progress
from .recording import TOGETHER, RunRecords
from .report import write_report
from .tensorboard import TensorBoard

__all__ = [
    "TOGETHER",
    "JournalFile",
    "Progress",
    "RunInfo",
    "RunRecords",
    "Summary",
    "TensorBoard",
    "make_progress",
    "read_records",
    "write_report",
]
