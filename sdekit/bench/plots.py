"""What pictures share: colours, labels at the ends of curves, files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito's palette, without its yellow, which is too light for lines on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#000000", "#CC79A7", "#56B4E9")
GREY = "#8a8a8a"
RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "sdekit",  # the same results give the same file
    "pdf.fonttype": 42,  # text stays text, as journals ask
}
_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save_figure(
    figure: Figure, stem: Path, formats: Collection[str] = ("png", "svg")
) -> list[Path]:
    """Write a figure, the same bytes for the same figure; return the files.

    Args:
        figure: The figure.
        stem: Path of the files, without what tells the format.
        formats: Of ``"png"``, ``"svg"`` and ``"pdf"``.
    """
    files = []
    for kind in formats:
        # Not `with_suffix`, which takes what follows a point in a name for one.
        file = stem.with_name(f"{stem.name}.{kind}")
        figure.savefig(file, dpi=150, metadata=_UNDATED.get(kind))
        files.append(file)
    return files


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], *, gap: float = 0.036
) -> None:
    """Write the names of curves right of the axes, led there by thin lines and clear of overlaps.

    Args:
        axes: The axes, its limits set.
        ends: Last point, name and colour of each curve.
        gap: Smallest distance of two names, as a part of the axes' height.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        (float(np.clip(to_axes.transform((x, y))[1], 0, 1)), x, y, s, c) for x, y, s, c in ends
    )
    heights = spread([height for height, *_ in placed], gap)
    for height, (_, x, y, name, colour) in zip(heights, placed, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.03, height),
            textcoords=axes.transAxes,
            va="center",
            fontsize=8,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.6},
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights as little as possible so that neighbours are a gap apart.

    Least squares under that constraint is isotonic regression of ``height − i · gap``, which
    pooling neighbours in the wrong order solves exactly.
    """
    pools: list[tuple[float, int]] = []  # mean, count
    for i, height in enumerate(heights):
        mean, count = height - i * gap, 1
        while pools and pools[-1][0] > mean:
            before, size = pools.pop()
            mean = (before * size + mean * count) / (size + count)
            count += size
        pools.append((mean, count))
    means = [mean for mean, count in pools for _ in range(count)]
    return [mean + i * gap for i, mean in enumerate(means)]
