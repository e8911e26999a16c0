"""A page of HTML that needs no network: its frame, its look, its tables; every text in it is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from ..charts import interactive, svg


def page(title: str, sections: Iterable[str], *, live: float | None = None) -> str:
    """The whole page, `sections` of HTML below one another.

    Where there is a chart or a confusion matrix it has scripts, its own and no others: the policy in its head lets
    nothing else run, and nothing be fetched. A `live` page asks its own server for news every so many seconds.
    """
    body = "\n".join(part for part in sections if part)
    runs = "data-chart=" in body or "data-matrix" in body
    policy = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    head = f"<title>{escape(title)} - surefoot</title>\n<style>{svg.STYLE}{interactive.style()}</style>"
    foot = status = ""
    if runs:
        policy.append(f"script-src {interactive.source_hashes()}")
        foot = f"<!-- The charts are drawn by uPlot:\n{interactive.licence()} -->\n"
        foot += "".join(f"<script>{script}</script>\n" for script in interactive.scripts())
    if live is not None:
        policy.append("connect-src 'self'")
        head = f'<meta name="surefoot-live" content="{live:g}">{head}'
        status = '<p id="live-status" role="status">live</p>'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(policy)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{head}</head>\n'
        f"<body>\n{status}<main>\n{body}\n</main>\n{foot}</body></html>\n"
    )


def section(heading: str, body: str) -> str:
    """A part of a page; "" where there is nothing to show."""
    return f'<section id="{anchor(heading)}"><h2>{escape(heading)}</h2>\n{body}</section>' if body else ""


def anchor(heading: str) -> str:
    """The name of a part in links within the page.

    >>> anchor("Hardware and versions")
    'hardware-and-versions'
    """
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]], long: str = "") -> str:
    """A table of texts, figures to the right; those of the column `long` may have several lines."""

    def cell(head: str, text: str) -> str:
        words = text[:1].isalpha() or text[:1] in "<_("
        return f"<td{' class=text' if long and head == long else ' class=words' if words else ''}>{escape(text)}</td>"

    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = ("<tr>" + "".join(map(cell, heads, row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>\n' + "\n".join(body) + "</table></div>"
