"""Sphinx configuration; tables are made from the registry and the committed results at build time."""

import sys
from pathlib import Path

import sdekit

sys.path.insert(0, str(Path(__file__).parent))
import generate
import generate_guidance
import generate_weak

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

generate.write_all()
generate_guidance.write_all()
generate_weak.write_all()
