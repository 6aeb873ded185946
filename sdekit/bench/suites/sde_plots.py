"""Picture of the suite of stochastic methods: error of the law against evaluations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plots import GREY, PALETTE, RC, label_ends, save_figure
from ..problems import make_problem
from .sde import SdeCell
from .sde_ratios import DEFAULT, HALF, WeakRatios
from .suite_plots import frame, line, panels_of

_BLUE, _ORANGE, _GREEN, _RED, _BLACK, _PINK, _SKY = PALETTE
_NAMED: dict[tuple[str, float | None], tuple[str, str, float]] = {
    ("stochastic_adams2", 1.0): ("stochastic_adams2", _GREEN, 1.1),
    ("shark_theta", 1.0): ("shark_theta", _PINK, 1.1),
    HALF: (f"{HALF[0]}, η = ½", _ORANGE, 1.5),
    DEFAULT: (DEFAULT[0], _BLUE, 2.2),
}
_NOTE = (
    "error of the characteristic function, RMS over 256 frequencies   dashed: that of as many exact "
    "samples, below which the best of many is by chance   best peer: the smallest error among the "
    "stochastic samplers of diffusers, azula and torchsde, over all their own grids and settings (of "
    "η = 1; of any), at each NFE on its own   sdekit's methods have η = 1, but one"
)


def write_sde_plots(cells: Iterable[SdeCell], folder: Path) -> list[Path]:
    """Draw the errors; return the PNG and SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(RC):
        return save_figure(_figure(WeakRatios(cells)), folder / "sde_errors")


def _figure(ratios: WeakRatios) -> Figure:
    columns = min(3, len(ratios.problems))
    rows = -(-len(ratios.problems) // columns)
    figure, panels = panels_of(columns, rows, (2.9, 2.6), 1.75, _NOTE)
    for axes in panels[len(ratios.problems) :]:
        axes.set_axis_off()
    for i, (axes, problem) in enumerate(zip(panels, ratios.problems, strict=False)):
        _panel(axes, ratios, problem)
        if i % columns == 0:
            axes.set_ylabel("error of the law of the samples")
    return figure


def _panel(axes: Axes, ratios: WeakRatios, problem: str) -> None:
    curves = {
        label: ([ratios.error(problem, n, method) for n in ratios.budgets], colour, width)
        for method, (label, colour, width) in _NAMED.items()
    }
    for label, full, colour in (("peer, η = 1", True, GREY), ("peer, any η", False, _BLACK)):
        peers = [ratios.peer(problem, n, full=full) for n in ratios.budgets]
        curves[f"best {label}"] = ([peer.cf if peer else None for peer in peers], colour, 2.0)
    floor = ratios.floor(problem).mean
    errors = [error for row, _, _ in curves.values() for error in row if error is not None]
    frame(axes, ratios.budgets, (floor / 2, 2 * max(errors, default=1.0)))
    axes.set_title(make_problem(problem, samples=1).title, loc="left", fontsize=8)
    axes.axhline(floor, color=GREY, linestyle=(0, (6, 4)), linewidth=0.9)
    ends = []
    for label, (row, colour, width) in curves.items():
        style = {
            "color": colour,
            "linewidth": width,
            "marker": "o",
            "markersize": 1.5 + width,
            "zorder": 2 + width,
        }
        end = line(axes, ratios.budgets, row, style)
        if end is not None:
            ends.append((*end, label, colour))
    label_ends(axes, ends, gap=0.07)
