"""How the pictures of the gallery look; called before each example runs."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import torch

from sdekit.bench.plots import PALETTE

STYLE: dict[str, Any] = {
    "figure.dpi": 130,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.6,
    "image.cmap": "cividis",
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}


def reset(gallery_conf: dict[str, Any], name: str) -> None:
    """Set the style, and one thread: the examples are small, and their sums then always the same."""
    mpl.rcParams.update(STYLE)
    torch.set_num_threads(1)
