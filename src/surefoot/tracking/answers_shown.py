"""What a report shows of single answers: the samples most wrongly and least surely answered, and residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..charts.interactive import chart
from ..charts.scale import Axis
from ..charts.svg import Line
from .page import html_table

_MOST_TARGETS = 8
_MOST_POINTS = 1200  # of all targets together
_PNG = "iVBOR"  # how base64 of a PNG file begins


def samples(found: Mapping[str, Any], which: str) -> str:
    """The answers of the list `which`, ``"wrong"`` or ``"unsure"``, as pictures or as rows of a table."""
    entries = found.get(which) or []
    shown = found.get("shown") or {}
    if not entries:
        return ""
    names = found.get("classes") or ()
    if any("picture" in shown.get(str(entry["index"]), {}) for entry in entries):
        cards = "".join(_card(entry, shown.get(str(entry["index"]), {}), names) for entry in entries)
        return f'<div class="samples">{cards}</div>'
    targets = [each["target"] for each in found.get("residuals") or () if each["target"]]
    return _table(entries, shown, names, f" {', '.join(targets)}" if targets else "")


def _card(entry: Mapping[str, Any], sample: Mapping[str, Any], names: Sequence[str]) -> str:
    picture = sample.get("picture", "")
    form = "png" if picture.startswith(_PNG) else "jpeg"
    alt = escape(f"sample {entry['index']}")
    image = f'<img class="{"small" if form == "png" else ""}" alt="{alt}" src="data:image/{form};base64,{picture}">'
    lines = [f'<span class="dim">sample {entry["index"]:,}</span>']
    if "predicted" in entry:
        lines.append(f"<b>{escape(answer_text(entry['predicted'], names))}</b>")
        lines.append(f"true: {escape(answer_text(entry['true'], names))}")
    lines.append(f'<span class="dim">{escape(how_sure(entry))}</span>')
    return f'<div class="sample">{image if picture else ""}{"<br>".join(lines)}</div>'


def how_sure(entry: Mapping[str, Any]) -> str:
    """How sure an answer was, and its loss."""
    parts = [f"{100 * entry['confidence']:.1f} % sure"] if "confidence" in entry else []
    parts += [f"{100 * entry['right']:.1f} % right"] if "right" in entry else []
    return ", ".join([*parts, f"loss {entry['loss']:.3g}"])


def answer_text(answer: Any, names: Sequence[str]) -> str:
    """A class by name, labels as a list of names, numbers as they are."""
    if isinstance(answer, int):
        return names[answer] if answer < len(names) else str(answer)
    if answer and any(isinstance(item, float) for item in answer):
        return ", ".join(item if isinstance(item, str) else f"{item:.5g}" for item in answer)
    return ", ".join(answer_text(item, names) for item in answer) or "none"


def _table(entries: Sequence[Mapping[str, Any]], shown: Mapping[str, Any], names: Sequence[str], of: str) -> str:
    """A row each; `of` names what is answered."""
    there = [key for key in ("confidence", "right") if any(key in entry for entry in entries)]
    answers = any("predicted" in entry for entry in entries)
    parts = [shown.get(str(entry["index"]), {}) for entry in entries]
    cells = list(dict.fromkeys(name for part in parts for name, _ in part.get("row", ())))
    text = any("text" in part for part in parts)
    heads = [
        "sample",
        *([f"true{of}", f"predicted{of}"] if answers else []),
        *there,
        "loss",
        *cells,
        *(["text"] if text else []),
    ]
    rows = []
    for entry, part in zip(entries, parts, strict=True):
        row = dict(part.get("row", ()))
        rows.append(
            [f"{entry['index']:,}"]
            + (
                [answer_text(entry[key], names) if key in entry else "" for key in ("true", "predicted")]
                if answers
                else []
            )
            + [f"{100 * entry[key]:.1f} %" if key in entry else "" for key in there]
            + [
                f"{entry['loss']:.4g}",
                *(row.get(name, "") for name in cells),
                *([part.get("text", "")] if text else []),
            ]
        )
    return html_table(heads, rows, long="text")


def residuals(found: Mapping[str, Any]) -> str:
    """Predicted against true numbers and how their differences spread, for each target of a regression."""
    parts, targets = [], (found.get("residuals") or [])[:_MOST_TARGETS]
    for each in targets:
        drawn = each["points"][:: -(-len(each["points"]) * len(targets) // _MOST_POINTS) or 1]
        points = [(float(true), float(predicted)) for true, predicted in drawn]
        few = f", of one sample in {each['stride']:,}" if each["stride"] > 1 else ""
        note = (
            f"Predicted minus true: mean {each['mean']:.4g}, standard deviation {each['deviation']:.4g}, "
            f"{each['samples']:,} samples{few}; what lies beyond the histogram's ends is in its first and last column."
        )
        heading = f"<h3>{escape(each['target'])}</h3>" if each["target"] else ""
        parts.append(
            f'{heading}<p class="dim">{escape(note)}</p>'
            f'<div class="pair"><div>{_against(points)}</div><div>{_histogram(each)}</div></div>'
        )
    return "".join(parts)


def _against(points: Sequence[tuple[float, float]]) -> str:
    """Each sample's prediction over its true value, and the line on which all would lie."""
    right = [(x, x) for x, _ in points]
    lines = [Line("as true", right, 3, dashed=True), Line("predicted", points, 0, form="points")]
    return chart(lines, x_label="true", y_label="predicted")


def _histogram(residuals: Mapping[str, Any]) -> str:
    edges, counts = residuals["edges"], residuals["counts"]
    points = list(zip(edges, [*counts, counts[-1]], strict=True))
    axis = Axis(0.0, 1.05 * (max(counts) or 1))
    lines = [Line("predicted minus true", points, 0, form="steps")]
    return chart(lines, x_label="residual", y_label="samples", y_axis=axis)
