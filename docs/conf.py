"""The manual: README, docs/ and the docstrings as pages that read without a network. `sphinx-build -W -c docs . OUT`"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ringnet_ext import __version__

project = "ringnet_ext"
version = release = __version__
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/*.rst", "benchmarks/**.md"]
exclude_patterns = [".*", "_*", "build", "dist", "runs"]

default_role = "code"  # `name`, as the docstrings have it
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"ringnet_ext {release}"
html_copy_source = False
html_show_sourcelink = False


def _no_fields_of_tuples(app, what, name, value, skip, options):
    """What a NamedTuple's fields are, its own docstring says; theirs are "Alias for field number 0"."""
    return True if type(value).__name__ == "_tuplegetter" else None


def setup(app):
    app.connect("autodoc-skip-member", _no_fields_of_tuples)
