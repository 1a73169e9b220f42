"""Sphinx: `make docs`, with warnings as errors."""

import seqkern

project = "seqkern"
author = copyright = "the seqkern authors"
version = release = seqkern.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx-mathjax-offline",  # formulas without a network: MathJax comes with the pages
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"seqkern {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
