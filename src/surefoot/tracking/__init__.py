"""The numbers of a run: the journal (which the rest is made from), TensorBoard's events, progress lines, a report."""

from __future__ import annotations

from .journal import JournalFile, read_records
from .notebook import NotebookProgress
from .progress import Progress, RunInfo, Summary
from .progress_for import make_progress
from .recording import TOGETHER, RunRecords
from .report import write_report
from .shown import ReportPage, evaluation_html, result_html
from .tensorboard import TensorBoard

__all__ = [
    "TOGETHER",
    "JournalFile",
    "NotebookProgress",
    "Progress",
    "ReportPage",
    "RunInfo",
    "RunRecords",
    "Summary",
    "TensorBoard",
    "evaluation_html",
    "make_progress",
    "read_records",
    "result_html",
    "write_report",
]
