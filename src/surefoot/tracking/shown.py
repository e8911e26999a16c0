"""What a notebook shows of results: tables of metrics, the curves of a run, its report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ..charts.figure import figure, image
from ..text import figure as figure_of
from .confusion import confusion_table
from .journal import metrics_of, run_records
from .page import html_table


def result_html(metrics: Mapping[str, float], run_dir: str | os.PathLike[str] | None = None) -> str:
    """`metrics` by name as a table of HTML; with a `run_dir`, the curves of its losses too."""
    rows = [(name, figure_of(name.rpartition("/")[2], value)) for name, value in metrics.items()]
    curves: dict[str, list[tuple[float, float]]] = {}
    if run_dir is not None and (Path(run_dir) / "metrics.jsonl").exists():
        records = run_records(Path(run_dir) / "metrics.jsonl", lambda message: None, only=b'"kind": "epoch"')
        for record in records:
            if "loss" in metrics_of(record):
                points = curves.setdefault(f"{record['split']} loss", [])
                points.append((float(record["epoch"]) + 1, float(record["loss"])))
    return html_table(["metric", "value"], rows) + (
        image(figure(curves, x="epoch", y="loss", dots=True), "losses of each epoch") if curves else ""
    )


def evaluation_html(metrics: Mapping[str, float], confusion: Sequence[Sequence[int]] | None) -> str:
    """The metrics of an evaluation, and its confusion matrix (C, C) with true classes as rows, as HTML."""
    table = "" if confusion is None else confusion_table(confusion, ())
    return "<div style='--heat: 33, 102, 196'>" + result_html(metrics) + table + "</div>"


class ReportPage:
    """The report.html of a run's directory `run_dir`, shown in a notebook; `path` is the file."""

    def __init__(self, run_dir: str | os.PathLike[str]):
        self.path = Path(run_dir) / "report.html"

    def _repr_html_(self) -> str:
        # In a frame, so that the page's style is its own; its text is in the notebook, so that it can be handed on.
        text = escape(self.path.read_text(encoding="utf-8"))
        where = f"<code>{escape(str(self.path))}</code>"  # a notebook that is not trusted has no frames
        return f'{where}<iframe srcdoc="{text}" style="width:100%;height:40rem;border:0" title="report"></iframe>'
