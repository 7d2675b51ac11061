"""The documentation site. Build it as CONTRIBUTING.md says; it documents the installed rustbn."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "rustbn"
author = "the rustbn authors"
copyright = author
release = version = version_of("rustbn")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "mathml",
]
exclude_patterns = ["_build"]

# Pages are Markdown that GitHub shows as well.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Signatures come without types: each docstring says what its parameters are.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# In docstrings, `name` is code, and a link where there is something of that name. Whatever is
# referred to by an explicit role has to exist.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:obj", r".*")]

html_theme = "furo"
html_title = "rustbn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
