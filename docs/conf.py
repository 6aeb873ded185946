"""Sphinx configuration; tables are made from the registry and the committed results at build time."""

import sys
from pathlib import Path

import numpy as np
import torch
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole

import sdekit

sys.path.insert(0, str(Path(__file__).parent))
import generate
import generate_calibration
import generate_guidance
import generate_published
import generate_theory
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
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"sdekit {release}"
exclude_patterns = ["_build", "_generated", "gallery"]  # pages of the gallery are in examples/
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": ("matplotlib", "gallery_style.reset"),
    "abort_on_example_error": True,
    "capture_repr": (),
    "doc_module": ("sdekit",),
    "reference_url": {"sdekit": None},
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": 3600,  # the times of a build machine are of no use to a reader
    "show_signature": False,
    "remove_config_comments": True,
}
rst_epilog = f"""
.. |torch| replace:: {torch.__version__}
.. |numpy| replace:: {np.__version__}
"""
default_role = "any"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "Array": "Array"}
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True
nitpicky = False
suppress_warnings = ["ref.any"]

generate.write_all()
generate_calibration.write_all()
generate_guidance.write_all()
generate_published.write_all()
generate_theory.write_all()
generate_weak.write_all()


def setup(app: Sphinx) -> None:
    """Add the role that links a formula to its code; a target that is not there is a warning."""
    app.add_role_to_domain("py", "source", PyXRefRole(warn_dangling=True))
