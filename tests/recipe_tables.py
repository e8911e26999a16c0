"""The tables of docs/recipe.md, made from the dataclasses: every key, what it takes, its default and meaning."""

from __future__ import annotations

import re

from surefoot.recipe.dump import flow
from surefoot.recipe.sections import REQUIRED, Key, Keyed, keys_of

SECTIONS = [cls for cls in Keyed.__subclasses__() if cls.__module__.startswith("surefoot.recipe.")]
# What completes an example that shows only some keys.
REST = {
    "epochs": "epochs: 10",
    "model": "model: LeNet5",
    "data": "data: garments",
    "loss": "loss: CrossEntropyLoss",
    "optimizer": "optimizer: {name: SGD, lr: 0.1}",
}
_BLOCK = re.compile(r"(<!-- keys of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(cls: type[Keyed]) -> str:
    """The Markdown table of one section's keys."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{key.name}` | {_cell(key.kind.expected)} | {_default(key)} | {_cell(key.doc)} |"
        for key in keys_of(cls).values()
    ]
    return "\n".join(rows) + "\n"


def filled(document: str) -> str:
    """`document` with the table of each section written anew between ``<!-- keys of NAME -->`` and ``<!-- end -->``."""
    sections = {cls.__name__: cls for cls in SECTIONS}
    return _BLOCK.sub(lambda block: f"{block[1]}{table(sections[block[2]])}{block[3]}", document)


def _default(key: Key) -> str:
    if key.shown:
        return _cell(key.shown)
    if key.default is REQUIRED:
        return "required"
    return f"`{flow(key.kind.plain(key.default))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
