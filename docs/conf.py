"""Sphinx configuration; the table of methods is generated from the registry at build time."""

from pathlib import Path

import sdekit
from sdekit.solvers.registry import COLUMNS

project = "sdekit"
author = "The sdekit developers"
release = version = sdekit.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # formulas without a network
]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"sdekit {release}"
exclude_patterns = ["_build", "_generated"]
default_role = "any"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "Array": "Array"}
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True
nitpicky = False
suppress_warnings = ["ref.any"]


def write_method_table() -> None:
    """Write the registry as a Markdown table."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS)]
    rows += [(f"`{name}`", *method.row()[1:]) for name, method in sdekit.methods().items()]
    folder = Path(__file__).parent / "_generated"
    folder.mkdir(exist_ok=True)
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    (folder / "methods.md").write_text(text + "\n", encoding="utf-8")


write_method_table()
