"""What a heading is called in links: a Chinese one as its English counterpart, so that a link holds in both."""

from __future__ import annotations

import json
import os
from pathlib import Path

from myst_parser.mdit_to_docutils.base import default_slugify


def slug(title: str) -> str:
    """Called by MyST for each heading; `make_site.py` lays slugs.json beside the pages."""
    slugs = json.loads((Path(os.environ["SUREFOOT_DOCS_SOURCE"]) / "slugs.json").read_text(encoding="utf-8"))
    return slugs.get(title) or default_slugify(title)
