"""Every code block of docs/data.md runs, one after the other, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "data.md"


def test_the_code_in_the_documentation_runs():
    text = DOCUMENT.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
    assert len(blocks) >= 5
    namespace: dict = {}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(DOCUMENT), "exec"), namespace)
