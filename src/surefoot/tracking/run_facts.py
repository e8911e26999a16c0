"""What run.json and recipe.yaml say of a run, for its report: what it was, what it ran on, what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from ..text import counted, duration
from .page import html_table
from .run_numbers import RunNumbers

MOST_TEXT = 40_000
_MOST_ROWS = 60


def byline(run: Mapping[str, Any]) -> str:
    """The run's name, age and state in a line."""
    parts = [
        f"{word} {run[key]}"[:200]
        for key, word in (("id", "run"), ("created", "begun"), ("status", "status"))
        if run.get(key)
    ]
    if allowed := listed(run.get("inexact")):
        parts.append("resumed inexactly: " + ", ".join(allowed))
    return " · ".join(parts)


def listed(value: Any) -> list[str]:
    """The texts of a list that a file holds; none where it is no list."""
    return [str(item)[:300] for item in value[:200]] if isinstance(value, list) else []


def recipe_html(recipe: str, brief: str) -> str:
    """What differs from the defaults, then everything; the whole recipe alone where nobody has told what differs."""
    if not recipe:
        return ""
    whole = f"<pre>{escape(_limited(recipe, 'recipe.yaml'))}</pre>"
    if not brief:
        return f"<details><summary>The whole recipe</summary>{whole}</details>"
    shown = f"<pre>{escape(_limited(brief, 'recipe.yaml'))}</pre>"
    return (
        f"<details open><summary>What differs from the defaults</summary>{shown}</details>"
        f"<details><summary>Every default filled in</summary>{whole}</details>"
    )


def machine_html(run: Mapping[str, Any]) -> str:
    """Processor, accelerator, versions, execution settings: of the conditions that a resume compares."""
    beginnings = ("device.", "threads", "versions.", "execution.", "variables.")
    rows = [[name[:100], str(value)[:200]] for name, value in _conditions(run).items() if name.startswith(beginnings)]
    return html_table(["", "value"], rows[:_MOST_ROWS]) if rows else ""


def samples_a_step(run: Mapping[str, Any]) -> int:
    """How many samples an update is made of; 0 where the run does not say."""
    conditions = _conditions(run)
    return _whole(conditions.get("loader.batch_size")) * (_whole(conditions.get("fit.grad_accum_steps")) or 1)


def cost_html(run: Mapping[str, Any], numbers: RunNumbers) -> str:
    """Time, speed, processors and memory."""
    last = numbers.last
    if last is None or not float(last.get("wall_s", 0.0)) > 0:
        return ""
    seconds, epochs, steps = float(last["wall_s"]), last["epoch"] + 1, last["step"]
    training = seconds - numbers.validating_s
    rows = [["time", duration(seconds)]]
    if numbers.validating_s:
        rows.append(
            ["of it validation", f"{duration(numbers.validating_s)} ({100 * numbers.validating_s / seconds:.0f} %)"]
        )
    rows.append(["done", f"{counted(epochs, 'epoch')}, {counted(steps, 'step')}"])
    rows.append(["an epoch", duration(seconds / epochs)])
    if steps and training > 0:
        rows.append(["a step", duration(training / steps)])
        if each := samples_a_step(run):
            rows.append(["samples a second", f"{each * steps / training:,.0f}"])
    rows += _processors(run, seconds)
    for key, what in (("peak_bytes", "memory"), ("gpu_peak_bytes", "GPU memory")):
        if memory := _whole(run.get(key)):
            rows.append([f"{what}, at most", f"{memory / 1e6:,.0f} MB"])
    return html_table(["", "all sittings"], rows)


def _processors(run: Mapping[str, Any], seconds: float) -> list[list[str]]:
    conditions = _conditions(run)
    processes, threads = _whole(run.get("processes")) or 1, _whole(conditions.get("threads"))
    accelerator = conditions.get("device.accelerator")
    if isinstance(accelerator, str) and accelerator != "none":
        on = f"{counted(processes, 'process')}: {accelerator[:100]}"
        return [["GPU hours", f"{processes * seconds / 3600:.3g} ({on})"]]
    if not threads:
        return []
    words = counted(threads, "thread") + (f" in each of {counted(processes, 'process')}" if processes > 1 else "")
    return [["core hours, at most", f"{threads * processes * seconds / 3600:.3g} ({words})"]]


def settings_html(run: Mapping[str, Any]) -> str:
    """run.json, folded away."""
    text = _limited(json.dumps(run, indent=2, ensure_ascii=False), "run.json") if run else ""
    return f"<details><summary>run.json</summary><pre>{escape(text, quote=False)}</pre></details>" if text else ""


def _conditions(run: Mapping[str, Any]) -> Mapping[str, Any]:
    conditions = run.get("conditions")
    return conditions if isinstance(conditions, dict) else {}


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 < value < 2**53 else 0


def _limited(text: str, file: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}\n... ({file} has all of it)"
