"""The documentation site: `make docs` builds it from the README, this folder's pages and the packages' docstrings."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent.parent))

project = html_title = "datamodels"
author = "the datamodels authors"
version = release = version_of("datamodels-harness")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
html_theme = "furo"
html_copy_source = html_show_sphinx = False
default_role = "code"  # docstrings mark code with single backticks
autodoc_default_options = {"members": True, "imported-members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

ARRAY = re.compile(r"~?(?:numpy\.)?ndarray\[tuple\[~?(?:typing\.)?Any, \.\.\.\], ~?(?:numpy\.)?dtype\[([^]]+)\]\]")


def shorten(app: Sphinx, what: str, name: str, obj: object, options: object, *texts: str | None) -> object:
    """Signature and return value with NDArray[X] as it was written, rather than what it stands for."""
    return tuple(text and ARRAY.sub(r"NDArray[\1]", text) for text in texts)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", shorten)
