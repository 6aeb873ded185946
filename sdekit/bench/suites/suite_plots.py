"""Pictures of the suite: ratios to the best peer, and error against evaluations beside the peers'."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from ..plots import PALETTE, RC, label_ends, save_figure
from ..problems import make_problem
from .ratios import ANY_GRID, FLOOR, GOALS, NETWORK, SERIES, SHIPPED, Ratios, Series
from .suite import SuiteCell

_BLUE, _ORANGE, _GREEN, _RED, _BLACK, _PINK, _SKY = PALETTE
# Of all problems these are drawn, as far as they were run; the trained network comes last.
_DRAWN = ("mixture2d", "mixture16d", "mixture64d", "wide64d", "product12d", NETWORK)
_TICKS = (5, 6, 8, 10, 15, 20, 30, 40, 50, 60, 80, 100, 120)
_TOP = 100.0  # ratios and errors above have diverged, and by how much is of no interest

_RATIO_NOTE = (
    "geometric means over the problems of known score   grey: the default on each of them   "
    "dotted: the default on the trained network   short dashes: goals   thin: sdekit's methods of "
    "these names, on their default grids"
)
_ERROR_NOTE = (
    "best peer: the smallest error of diffusers' and azula's samplers, over all their own grids and "
    "orders, at each NFE on its own   thin: sdekit's methods of these names, on their default grids"
)


class _Curve(NamedTuple):
    """How a series is drawn."""

    series: Series
    label: str
    colour: str
    width: float = 1.1
    dashes: str = "solid"


_DEFAULT = _Curve(SERIES["default"], "default", _BLUE, 2.2)
_FITTED = _Curve(SERIES["default, fitted"], "on a fitted grid", _RED, 2.2)
_NAMED = (
    _Curve(SERIES["dpmpp_2m"], "dpmpp_2m", _GREEN),
    _Curve(SERIES["unipc_bh2_3"], "unipc_bh2_3", _ORANGE),
    _Curve(SERIES["ddim"], "ddim", _PINK),
    _Curve(SERIES["edm_heun"], "edm_heun", _SKY),
)
_PEERS = _Curve(Series("best peer", SHIPPED), "best peer", _BLACK, 2.0)


def write_suite_plots(cells: Sequence[SuiteCell], folder: Path) -> list[Path]:
    """Draw the ratios, if peers were run, and the errors; return the PNG and SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    ratios = Ratios(cells)
    files: list[Path] = []
    with mpl.rc_context(RC):
        if ratios.has_peers:
            files += save_figure(_ratio_figure(ratios), folder / "suite_ratios")
        files += save_figure(_error_figure(ratios), folder / "suite_errors")
    return files


def panels_of(
    columns: int, rows: int, size: tuple[float, float], right: float, note: str
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels ``size`` in inches, each with room for names on its right."""
    left, bottom, gap, above = 0.75, 1.0, 0.75, 0.35
    width = left + columns * size[0] + (columns - 1) * 0.35 + columns * right
    height = bottom + rows * size[1] + (rows - 1) * gap + above
    figure = Figure(figsize=(width, height))
    panels = []
    for row in reversed(range(rows)):
        for column in range(columns):
            x = left + column * (size[0] + 0.35 + right)
            y = bottom + row * (size[1] + gap)
            box = (x / width, y / height, size[0] / width, size[1] / height)
            panels.append(figure.add_axes(box))
    note = fill(note, int(17 * (width - left)))  # characters per inch of that size
    figure.text(left / width, 0.15 / height, note, fontsize=8, color="#555555")
    return figure, panels


def _ratio_figure(ratios: Ratios) -> Figure:
    figure, (shipped, shared) = panels_of(2, 1, (4.6, 4.3), 1.25, _RATIO_NOTE)
    fitted = [ratios.at(n, _FITTED.series).mean for n in ratios.budgets]
    low = min([0.02, *(value for value in fitted if value is not None)]) / 2
    for axes in (shipped, shared):
        frame(axes, ratios.budgets, (low, _TOP))
    _ratio_panel(shipped, ratios, SHIPPED, (*_NAMED[:2], _DEFAULT, _FITTED))
    _ratio_panel(shared, ratios, ANY_GRID, (_DEFAULT, _FITTED))
    shipped.set_ylabel("error / best peer's error")
    shipped.set_title("peers on their own grids", loc="left", fontsize=10)
    shared.set_title("peers on sdekit's grids, too", loc="left", fontsize=10)
    return figure


def _ratio_panel(
    axes: Axes, ratios: Ratios, against: Collection[str], curves: Sequence[_Curve]
) -> None:
    for problem in ratios.problems:
        singles = [ratios.single(problem, n, _DEFAULT.series, against) for n in ratios.budgets]
        style: dict[str, Any] = {"color": "#cccccc", "linewidth": 0.7, "zorder": 1.5}
        if problem == NETWORK:
            style = {"color": _DEFAULT.colour, "linewidth": 1.2, "linestyle": "dotted"}
        line(axes, ratios.budgets, singles, style)
    axes.axhline(1.0, color=_BLACK, linewidth=0.9)
    at = (ratios.budgets[-1], 1.0)
    axes.annotate("best peer", at, (0, 3), textcoords="offset points", fontsize=8, ha="right")
    ends = []
    for curve in curves:
        means = [ratios.at(n, curve.series, against).mean for n in ratios.budgets]
        end = line(axes, ratios.budgets, means, _style(curve))
        if end is not None and end[1] < _TOP:
            ends.append((*end, curve.label, curve.colour))
        elif end is not None:
            _name_at_top(axes, curve, ratios.budgets, means)
    for goal in GOALS:
        if goal.network or tuple(goal.against) != tuple(against):
            continue
        for first, last, bound in goal.bounds:
            span = [n for n in ratios.budgets if first <= n <= last]
            if span:
                colour = _FITTED.colour if "fitted" in goal.series else _DEFAULT.colour
                ends_at = (span[0] / 1.06, span[-1] * 1.06)
                axes.plot(ends_at, (bound, bound), color=colour, linewidth=1.0, dashes=(3, 2))
    label_ends(axes, ends, gap=0.04)


def _name_at_top(
    axes: Axes, curve: _Curve, budgets: Sequence[int], values: Sequence[float | None]
) -> None:
    """Write the name of a curve that leaves through the top at its last point inside."""
    inside = [(n, v) for n, v in zip(budgets, values, strict=True) if v is not None and v < _TOP]
    axes.annotate(
        curve.label,
        inside[-1] if inside else (budgets[0], _TOP),
        xytext=(-5, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=curve.colour,
    )


def _error_figure(ratios: Ratios) -> Figure:
    chosen = [name for name in _DRAWN if name in ratios.problems]
    spare = [name for name in ratios.problems if name not in _DRAWN]
    chosen = (spare[: len(_DRAWN) - len(chosen)] + chosen)[: len(_DRAWN)]
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, panels = panels_of(columns, rows, (2.9, 2.9), 1.1, _ERROR_NOTE)
    for i, axes in enumerate(panels):
        if i >= len(chosen):
            axes.set_axis_off()
            continue
        _error_panel(axes, ratios, chosen[i])
        if i % columns == 0:
            axes.set_ylabel("RMS error of the final state")
    return figure


def _error_panel(axes: Axes, ratios: Ratios, problem: str) -> None:
    curves = (*_NAMED, _PEERS, _DEFAULT, _FITTED)
    rows = [[ratios.error(problem, n, c.series) for n in ratios.budgets] for c in curves]
    errors = [error for row in rows for error in row if error is not None]
    low, high = min(errors, default=0.01), max(errors, default=1.0)
    frame(axes, ratios.budgets, (max(low, FLOOR) / 3, min(3 * high, _TOP)))
    axes.set_title(make_problem(problem, samples=1).title, loc="left", fontsize=8)
    ends = []
    for curve, row in zip(curves, rows, strict=True):
        end = line(axes, ratios.budgets, row, _style(curve))
        if end is not None:
            ends.append((*end, curve.label, curve.colour))
    label_ends(axes, ends, gap=0.062)


def frame(axes: Axes, budgets: Sequence[int], limits: tuple[float, float]) -> None:
    """Give axes of error over evaluations their scales, limits and ticks."""
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per sample (NFE)")
    axes.set_xlim(budgets[0] / 1.1, budgets[-1] * 1.1)
    axes.set_ylim(*limits)
    few = [n for n in _TICKS if n in budgets]
    axes.xaxis.set_major_locator(FixedLocator([n for n in few if n not in (6, 8, 15, 30, 60)]))
    axes.xaxis.set_minor_locator(FixedLocator(few))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.yaxis.set_major_locator(LogLocator(numticks=20))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)


def _style(curve: _Curve) -> dict[str, Any]:
    return {
        "color": curve.colour,
        "linewidth": curve.width,
        "marker": "o",
        "markersize": 1.5 + curve.width,
        "zorder": 2 + curve.width,
    }


def line(
    axes: Axes, budgets: Sequence[int], values: Sequence[float | None], style: dict[str, Any]
) -> tuple[float, float] | None:
    """Draw the values that there are; return the last point, if there is one."""
    points = [(n, value) for n, value in zip(budgets, values, strict=True) if value is not None]
    if not points:
        return None
    axes.plot(*zip(*points, strict=True), **style)
    return points[-1]
