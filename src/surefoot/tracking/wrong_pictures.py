"""Pictures of the samples that were most wrongly answered, each with what it was taken for: for TensorBoard."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..text import printable
from .answers_shown import answer_text, how_sure

_MOST = 16
_LONGEST = 40


@dataclass(frozen=True)
class Captioned:
    """A PNG or JPEG file with a caption of one line."""

    caption: str
    data: bytes
    width: int
    height: int


def wrong_pictures(found: Mapping[str, Any]) -> list[Captioned]:
    """Of what `read_validation` gives, the first that are pictures, the worst first.

    >>> wrong_pictures({})
    []
    """
    from PIL import Image

    shown, names, pictures = found.get("shown") or {}, found.get("classes") or (), list[Captioned]()
    for entry in found.get("wrong") or ():
        sample = shown.get(str(entry["index"]), {})
        if "picture" not in sample or len(pictures) == _MOST:
            continue
        with contextlib.suppress(OSError, ValueError):  # a file of somebody's making
            data = base64.b64decode(sample["picture"], validate=True)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
                width, height = picture.size
            words = [f"sample {entry['index']}", how_sure(entry)]
            if "predicted" in entry:
                true, taken_for = (printable(answer_text(entry[k], names))[:_LONGEST] for k in ("true", "predicted"))
                words.insert(0, f"{true}, taken for {taken_for}")
            pictures.append(Captioned(f"{len(pictures) + 1:02d}: {'; '.join(words)}", data, width, height))
    return pictures
