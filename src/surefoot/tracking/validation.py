"""validation.json: what the last validation of a run found, beside what its journal has of every epoch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import files, safe_tensors
from .journal import encode

FILE = "validation.json"
MOST_CLASSES = 1000
_MOST_BYTES = 16 * 1024 * 1024
_MOST_LISTED, _MOST_POINTS, _MOST_TARGETS = 200, 4000, 50
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def write_validation(run_dir: Path, content: Mapping[str, Any]) -> None:
    """Write the file; `content` is plain values by the names that `read_validation` knows. Raises OSError."""
    plain = json.loads(encode(content))
    files.write_atomically(run_dir / FILE, json.dumps({"sha256": _digest(plain), "validation": plain}).encode() + b"\n")


def read_validation(run_dir: str | Path, problem: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """What the last validation found; {} where there is no such file, and without each part that is not as expected.

    - ``epoch`` (from 0), ``step``, ``samples``, ``classes`` (names, or None);
    - ``confusion`` (C, C): counts, true classes as rows; ``reliability``: counts by confidence;
    - ``wrong`` and ``unsure``: answers, the worst first, each with ``index`` (of the sample in the data), ``loss``
      and, as far as there are such, ``true``, ``predicted``, ``confidence``, ``right``;
    - ``shown``: of each index as text, the sample: a ``picture`` (PNG in base64), ``text``, or a ``row`` of names and
      values;
    - ``residuals``: of each target of a regression, see `surefoot.metrics.hardest`.

    `problem` receives a message about what is damaged or of another form.
    """
    path = Path(run_dir) / FILE
    try:
        data = safe_tensors.parse_json(path, files.read_bounded(path, _MOST_BYTES), "it", max_containers=200_000)
        found = data["validation"] if isinstance(data, dict) else None
        if not isinstance(found, dict) or data.get("sha256") != _digest(found):
            raise ValueError
    except FileNotFoundError:
        return {}
    except (OSError, safe_tensors.BadFile, LookupError, ValueError):
        problem(f"{path}: is damaged, so that nothing of the last validation is shown")
        return {}
    for name in [name for name in found if name not in _FORMS or not _FORMS[name](found[name])]:
        if name in _FORMS:
            problem(f"{path}: {name} has a form that this version does not know, and is not shown")
        del found[name]
    return found


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**1000  # NaN is none either


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and len(text) <= 1000 for text in value)


def _numbers(value: Any, most: int = _MOST_POINTS) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(_number, value))


def is_matrix(value: Any) -> bool:
    """Whether it is a confusion matrix: counts (C, C)."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= MOST_CLASSES
        and all(isinstance(row, list) and len(row) == len(value) and all(map(_whole, row)) for row in value)
    )


def _is_reliability(value: Any) -> bool:
    if not isinstance(value, dict) or not {"samples", "right", "confidence"} <= value.keys():
        return False
    columns = [value[name] for name in ("samples", "right", "confidence")]
    if not all(_numbers(column, 100) and column for column in columns) or len({*map(len, columns)}) > 1:
        return False
    return all(0 <= right <= samples and 0 <= sure <= 1 for samples, right, sure in zip(*columns, strict=True))


def _is_list_of_answers(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_LISTED and all(map(_is_answer, value))


def _is_answer(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _whole(value.get("index"))
        and all(_number(value.get(name, 0.0)) for name in ("confidence", "right"))
        and _number(value.get("loss"))
        and ("true" in value) == ("predicted" in value)
        and all(_whole(answer) or _numbers(answer, 100) for answer in (value.get(n, 0) for n in ("true", "predicted")))
    )


def _is_shown(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= 2 * _MOST_LISTED and all(map(_is_sample, value.values()))


def _is_sample(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    ((kind, content),) = value.items()
    if kind == "row":
        return isinstance(content, list) and len(content) <= 100 and all(_texts(c) and len(c) == 2 for c in content)
    if not isinstance(content, str) or len(content) > 100_000:
        return False
    return kind == "text" or (kind == "picture" and bool(_BASE64.fullmatch(content)))


def _are_residuals(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_TARGETS and all(map(_are_of_target, value))


def _are_of_target(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("target"), str)
        and all(_whole(value.get(name)) for name in ("samples", "stride"))
        and all(_number(value.get(name)) for name in ("mean", "deviation"))
        and all(_numbers(value.get(name), 1000) for name in ("edges", "counts"))
        and len(value["edges"]) == len(value["counts"]) + 1 > 1
        and isinstance(value.get("points"), list)
        and len(value["points"]) <= _MOST_POINTS
        and all(_numbers(point, 2) and len(point) == 2 for point in value["points"])
    )


_FORMS: dict[str, Callable[[Any], bool]] = {
    "epoch": _whole,
    "step": _whole,
    "samples": _whole,
    "classes": lambda value: value is None or (_texts(value) and len(value) <= MOST_CLASSES),
    "confusion": is_matrix,
    "reliability": _is_reliability,
    "wrong": _is_list_of_answers,
    "unsure": _is_list_of_answers,
    "shown": _is_shown,
    "residuals": _are_residuals,
}
