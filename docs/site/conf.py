"""Sphinx's settings for both languages; `make_site.py` lays out the pages and sets the language."""

from __future__ import annotations

import os

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "Surefoot"
author = "The Surefoot developers"
copyright = author
language = os.environ.get("SUREFOOT_DOCS_LANGUAGE", "en")
extensions = ["myst_nb", "sphinx_copybutton"]
templates_path = ["templates"]
exclude_patterns = ["_files"]
locale_dirs = ["locale"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

nb_execution_mode = "cache"
nb_execution_cache_path = os.environ.get("SUREFOOT_DOCS_CACHE", "")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

html_theme = "furo"
html_title = "Surefoot"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
pygments_style, pygments_dark_style = "friendly", "monokai"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _math(translator, node):
    """Formulas as MathML, which every browser draws by itself: no script, no request."""
    block = isinstance(node, nodes.math_block)
    translator.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def setup(app):
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_math, None), (_math, None))
