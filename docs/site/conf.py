"""Sphinx's settings for both languages; `make_site.py` lays out the pages and sets the language."""

from __future__ import annotations

import os
import sys

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.search.zh import SearchChinese

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # for slugs.py

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
myst_heading_slug_func = "slugs.slug"

nb_execution_mode = "cache"
nb_execution_cache_path = os.environ.get("SUREFOOT_DOCS_CACHE", "")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "image/svg+xml", 1)]  # a file of its own, with the cell's caption and words

html_theme = "furo"
html_title = "Surefoot"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/icon.svg"
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_use_index = False
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
pygments_style, pygments_dark_style = "a11y-light", "a11y-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _math(translator, node):
    """Formulas as MathML, which every browser draws by itself: no script, no request."""
    block = isinstance(node, nodes.math_block)
    translator.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


class ChineseSearch(SearchChinese):
    """Sphinx's, with what it lacks in the browser: the name of its stemmer, and a splitter of questions into words.

    Chinese has no spaces; the longest words of the index that a question is made of are what is searched for.
    """

    language_name = "English"  # the stemmer that Sphinx 9 gives the page; it asks for a ChineseStemmer
    js_splitter_code = r"""
var splitQuery = (query) => {
  const known = (word) => Object.hasOwn(Search._index.terms, word) || Object.hasOwn(Search._index.titleterms, word);
  const words = [];
  for (const run of query.toLowerCase().match(/\p{Script=Han}+|[a-z0-9_]+/gu) || []) {
    if (!/\p{Script=Han}/u.test(run)) { words.push(run); continue; }
    for (let at = 0; at < run.length; ) {
      let end = run.length;
      while (end > at + 1 && !known(run.slice(at, end))) end--;
      if (end > at + 1) words.push(run.slice(at, end));
      at = end;
    }
  }
  return words;
};
"""


def setup(app):
    """Called by Sphinx."""
    app.add_search_language(ChineseSearch)
    app.add_html_math_renderer("mathml", (_math, None), (_math, None))
