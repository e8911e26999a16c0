"""A page of HTML that needs no network: its frame, its look, its tables; every text in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ..charts import svg

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1d2228; --dim: #6a7280; --line: #e3e6ea;
  --card: #f6f7f9; --heat: 33, 102, 196; }
@media (prefers-color-scheme: dark) { :root {
  --back: #14171b; --text: #e4e7eb; --dim: #98a1ad; --line: #2b3038; --card: #1c2026;
  --heat: 107, 167, 255; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
.dim { color: var(--dim); } section, .scroll { overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; }
.tile b { display: block; font-size: 1.3rem; } .tile span { color: var(--dim); font-size: .85rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--dim); } th:first-child, td:first-child { text-align: left; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; color: var(--dim); }
"""


def page(title: str, sections: Iterable[str], style: str = "") -> str:
    """The whole page, `sections` of HTML below one another; `style` is CSS beside that of pages and charts."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - surefoot</title>\n<style>{_STYLE}{style}{svg.STYLE}</style>"
        "</head>\n<body>\n" + "\n".join(part for part in sections if part) + "\n</body></html>\n"
    )


def section(heading: str, body: str) -> str:
    """A part of a page; "" where there is nothing to show."""
    return f"<section><h2>{escape(heading)}</h2>\n{body}</section>" if body else ""


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = ("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>\n' + "\n".join(body) + "</table></div>"
