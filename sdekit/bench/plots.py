"""Pictures of error against network evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from ..solvers.registry import methods
from .problems import make_problem
from .runner import Cell, Results

# Okabe & Ito's palette, without its yellow, which is too light for lines on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#000000", "#CC79A7", "#56B4E9")
_DASHES = {"Noise": "solid", "Native": "dashed"}
_OTHER_DASHES = "dashdot"
GREY = "#8a8a8a"
_CAPTION = (
    "solid: noise coordinates (σ)   dashed: time of VP   dash-dotted: others   "
    "open circles: adaptive   ×: failed\neach method on its own default grid"
)
RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "sdekit",  # the same results give the same file
}


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Draw a picture for each problem and one of all; return the PNG and SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = results.config.problems
    pictures: dict[str, tuple[str, ...]] = {f"error_vs_nfe_{name}": (name,) for name in problems}
    pictures["error_vs_nfe"] = problems
    files: list[Path] = []
    with mpl.rc_context(RC):
        for stem, names in pictures.items():
            files += save_figure(_figure(results, names), folder / stem)
    return files


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG, the same bytes for the same figure; return the files."""
    files = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def scheme_of(method: str) -> str:
    """Return the name of a method's scheme: ``heun`` for its twins ``heun_t`` and ``heun_theta``."""
    return method.removesuffix("_t").removesuffix("_theta")


def scheme_colours(results: Results) -> dict[str, str]:
    """Give the schemes of the smallest errors a colour each, the same in every picture."""
    logs: dict[str, list[float]] = {}
    for cell in results.cells:
        if cell.rtol is None or not methods()[cell.method].fixed:
            error = 1e3 if cell.error is None else max(cell.error, 1e-16)
            logs.setdefault(scheme_of(cell.method), []).append(math.log(error))
    best = sorted(logs, key=lambda scheme: float(np.mean(logs[scheme])))[: len(PALETTE)]
    return dict(zip((scheme for scheme in logs if scheme in best), PALETTE, strict=False))


def _figure(results: Results, names: Sequence[str]) -> Figure:
    colours = scheme_colours(results)
    # In inches: the room right of a panel is for the names of its curves.
    left, panel, right, bottom, height, above = 0.75, 4.6, 2.1, 0.9, 4.5, 0.4
    size = (left + len(names) * (panel + right), bottom + height + above)
    figure = Figure(figsize=size)
    for i, name in enumerate(names):
        corner = ((left + i * (panel + right)) / size[0], bottom / size[1])
        axes = figure.add_axes((*corner, panel / size[0], height / size[1]))
        _panel(axes, results, name, colours)
        if i == 0:
            axes.set_ylabel("RMS error of the final state")
    figure.text(left / size[0], 0.15 / size[1], _CAPTION, fontsize=8, color="#555555")
    return figure


def _panel(axes: Axes, results: Results, name: str, colours: dict[str, str]) -> None:
    cells = results.select(name) + results.select(name, adaptive=True)
    errors = [cell.error for cell in cells if cell.error is not None]
    floor = results.references[name].floor
    # Above 100 a method has diverged, and by how much is of no interest.
    top = min(max(errors, default=1.0) * 3, 100.0)
    nfe = [cell.nfe for cell in cells] or [1.0]
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per sample (NFE)")
    axes.set_xlim(min(nfe) / 1.15, max(nfe) * 1.1)
    axes.set_ylim(min([floor, *errors]) / 4, top)
    ticks = [n for n in (4, 6, 10, 20, 40, 100, 200, 400, 1000, 2000, 4000, 10000) if n <= max(nfe)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(numticks=20))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(make_problem(name, samples=1).title, loc="left", fontsize=10)
    axes.axhline(floor, color=GREY, linestyle=(0, (6, 4)), linewidth=0.9)
    axes.annotate(
        "errors below are not resolved by the reference",
        (0.01, floor),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=7.5,
        color="#666666",
    )
    _slopes(axes, results)
    ends = []
    for method in results.config.methods:
        for adaptive in (False, True):
            curve = results.select(name, method, adaptive=adaptive)
            colour = colours.get(scheme_of(method))
            end = _curve(axes, method, curve, colour, adaptive=adaptive)
            if end is not None and colour is not None:
                label = f"{method} adaptive" if adaptive else method
                ends.append((*end, label, colour))
    label_ends(axes, ends)


def _curve(
    axes: Axes, method: str, cells: Sequence[Cell], colour: str | None, *, adaptive: bool
) -> tuple[float, float] | None:
    """Draw the curve of a method; return its last point, if there is one."""
    style: dict[str, Any] = {
        "color": colour or "#cccccc",
        "linewidth": 1.4 if colour else 0.7,
        "zorder": 3 if colour else 1.5,
    }
    top = axes.get_ylim()[1]
    failed = [cell.nfe for cell in cells if cell.error is None]
    axes.plot(failed, [top] * len(failed), "x", clip_on=False, **style)
    points = sorted({(cell.nfe, cell.error) for cell in cells if cell.error is not None})
    if not points:
        return None
    if adaptive:
        # By tolerance, not by evaluations: a tighter tolerance may take fewer.
        points = [(cell.nfe, cell.error) for cell in cells if cell.error is not None]
        style |= {"linestyle": "dotted", "marker": "o", "markersize": 4, "markerfacecolor": "white"}
    else:
        dashes = _DASHES.get(methods()[method].coordinates, _OTHER_DASHES)
        style |= {"linestyle": dashes, "marker": "o", "markersize": 2.5}
    axes.plot(*zip(*points, strict=True), **style)
    return points[-1]


def _slopes(axes: Axes, results: Results) -> None:
    """Draw a small fan of the slopes that the methods' orders would give."""
    fixed = [methods()[name] for name in results.config.methods if methods()[name].fixed]
    orders = sorted({method.solver.scheme.order or 1 for method in fixed})
    bottom, top = axes.get_ylim()
    x = axes.get_xlim()[0] * 1.25
    y = bottom * (top / bottom) ** 0.42
    reach = 2.5
    for order in orders:
        end = (x * reach, y * reach**-order)
        axes.plot([x, end[0]], [y, end[1]], color=GREY, linewidth=0.8)
        axes.annotate(
            f"order {order}" if order == orders[0] else f"{order}",
            end,
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color="#666666",
        )


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
