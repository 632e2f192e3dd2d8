"""The documentation site: `make docs` builds it strictly into build/docs. It needs no network, neither to build nor to read."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

project = "stitch"
author = "the authors of stitch"
copyright = author  # Sphinx wants this name
version = release = installed("stitch-lm")

extensions = ["myst_parser", "sphinx.ext.autodoc", "command_options", "notebook", "python_api"]
smartquotes = False  # `--option` in plain text keeps its two hyphens
exclude_patterns = ["_ext"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Pages are also read where they lie, so they link to files of the repository by path; these links become downloads.
suppress_warnings = ["myst.xref_ambiguous"]

# Types in signatures come from many packages, and links to them would need the network: text will do.
nitpick_ignore_regex = [("py:.*", ".*")]
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what torch and transformers say of their methods is in their markup
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "stitch"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
