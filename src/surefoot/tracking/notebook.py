"""Progress in a notebook: a bar that is redrawn in its place, and after each epoch the curves of the losses."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from html import escape
from typing import Any

from ..charts.figure import Figure, figure, image
from .progress import Progress, RunInfo, Summary, epoch_line, headline, position

_SECONDS_BETWEEN = 0.3  # each drawing is a message to the browser
_MOST_LINES = 8  # of text; the curve has all epochs


def in_notebook() -> bool:
    """Whether a kernel of IPython shows what is displayed; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookProgress(Progress):
    """One output that changes: the run, messages, epochs, a bar, and the curves; plain text where HTML is not shown."""

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None
        self._drawn_at = 0.0
        self._losses: dict[str, list[tuple[float, float]]] = {}
        self._curve: Figure | None = None
        self._lines: list[str] = []
        self._bar: tuple[int, int, str] | None = None

    def start(self, info: RunInfo) -> None:
        """Say what runs."""
        super().start(info)
        self._say(headline(info))

    def message(self, text: str) -> None:
        """A line that stays."""
        self._say(text)

    def finish(self, summary: Summary) -> None:
        """The table of what was reached."""
        self._bar = None
        self._say("\n".join([summary.title, *(f"  {key}  {value}" for key, value in summary.rows.items())]))

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar = None
            self._draw()

    def _show_step(self, record: Mapping[str, Any]) -> None:
        text = "  ".join([position(self.info, record), *self._live_figures(record)])
        self._bar = (record["step"], self.info.steps, text)
        if time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN:
            self._draw()

    def _show_epoch(self, train: Mapping[str, Any] | None, val: Mapping[str, Any] | None) -> None:
        for name, record in (("train loss", train), ("val loss", val)):
            if record is not None and "loss" in record:
                self._losses.setdefault(name, []).append((float(record["epoch"]) + 1, float(record["loss"])))
        ends = (1.0, float(max(2, self.info.epochs, *(points[-1][0] for points in self._losses.values()))))
        self._curve = figure(self._losses, x="epoch", y="loss", dots=True, across=ends) if self._losses else None
        self._say(epoch_line(self.info, train, val))

    def _say(self, text: str) -> None:
        self._lines.append(text)
        self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        self._drawn_at = time.monotonic()
        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        shown = self._lines[:1] + self._lines[1:][-_MOST_LINES:]
        parts = [f"<pre style='margin:0;white-space:pre-wrap'>{escape(chr(10).join(shown))}</pre>"]
        if self._bar is not None:
            done, steps, text = self._bar
            whole = f" max='{steps}' value='{done}'" if steps else ""
            parts.append(f"<progress style='width:12em'{whole}></progress> <code>{escape(text)}</code>")
            shown = [*shown, text]
        if self._curve is not None:
            parts.append(image(self._curve, "losses of each epoch"))
        return {"text/html": "<div>" + "<br>".join(parts) + "</div>", "text/plain": "\n".join(shown)}
