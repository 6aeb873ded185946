"""One panel of a picture: error against network evaluations, and what its caption says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from .legend import (
    Key,
    Panel,
    coordinates_of,
    declared_orders,
    label,
)
from .measurements import ADAPTIVE
from .metrics import LAW, METRICS
from .plots import GREY, label_ends
from .repetitions import Point

_DASHES = {"Noise": "solid", "Native": "dashed", "": (0, (4, 1.2, 1, 1.2, 1, 1.2))}
_OTHER_DASHES = "dashdot"
_DASH_NAMES = (
    ("solid", "solid: noise coordinates (σ)"),
    ("dashed", "dashed: time of the process"),
    (_OTHER_DASHES, "dash-dotted: other coordinates"),
    (_DASHES[""], "dash-dot-dotted: another package's, or composed"),
)
_PALE = "#c9c9c9"
INK = "#555555"
LABEL = 8  # points, of names of curves


@dataclass(frozen=True)
class Look:
    """What the panels of a picture have in common.

    Attributes:
        metric: Name of the metric.
        colours: Colours of the best curves; the others are grey.
        panel: Width and height of a panel, in inches.
        ticks: Number of ticks along evaluations, at most.
        width: Width of names of curves, in characters.
    """

    metric: str
    colours: Mapping[Key, str]
    panel: tuple[float, float]
    ticks: int
    width: int

    def name(self, key: Key) -> str:
        """Return the name of a curve, in lines."""
        return fill(label(key), self.width)

    @property
    def names(self) -> dict[Key, str]:
        """Names of the best curves."""
        return {key: self.name(key) for key in self.colours}

    @property
    def room(self) -> float:
        """Inches right of a panel that the names take."""
        font = FontProperties(size=LABEL)
        lines = [line for name in self.names.values() for line in name.splitlines()]
        widths = [TextPath((0, 0), line, prop=font).get_extents().width / 72 for line in lines]
        return 0.03 * self.panel[0] + max(widths, default=0.0) + 0.12

    @property
    def gap(self) -> float:
        """Distance of names, as a part of a panel's height."""
        lines = max((name.count("\n") + 1 for name in self.names.values()), default=1)
        return 1.3 * lines * LABEL / 72 / self.panel[1]


@dataclass
class Drawn:
    """What a picture shows, for its caption."""

    dashes: set[Any] = field(default_factory=set)
    adaptive: bool = False
    failed: bool = False
    seeds: int = 1
    grey: set[Key] = field(default_factory=set)

    def captions(self) -> list[str]:
        """Return what a reader has to be told."""
        parts = [text for dash, text in _DASH_NAMES if dash in self.dashes]
        if self.adaptive:
            parts.append("open circles: adaptive")
        if self.failed:
            parts.append("×: failed")
        if self.seeds > 1:
            parts.append(f"geometric means of {self.seeds} seeds, band: standard deviation")
        if self.grey:
            parts.append(f"grey: {len(self.grey)} more")
        return parts


def draw(axes: Axes, look: Look, panel: Panel, floor: float | None, drawn: Drawn) -> None:
    """Draw a panel: its frame, the floor, slopes, and the curves with their names."""
    shown = _limits(axes, panel, floor)
    _ticks(axes, look.ticks)
    axes.grid(color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    if floor is not None:
        _floor(axes, floor, look.metric, shown=shown)
    # Errors of laws end at the floor of the samples before a slope can be told.
    if not _is_law(look.metric):
        _slopes(axes, declared_orders(panel) or [1, 2, 3])
    ends = []
    _others(axes, {key: panel[key] for key in panel if key not in look.colours}, drawn)
    for key, points in panel.items():
        if key in look.colours:
            end = _curve(axes, key, points, look.colours[key], drawn)
            if end is not None:
                ends.append((*end, look.name(key), look.colours[key]))
    label_ends(axes, ends, gap=look.gap)


def _limits(axes: Axes, panel: Panel, floor: float | None) -> bool:
    """Set scales and limits; return whether the floor is within them."""
    points = [p for curve in panel.values() for p in curve]
    errors = [p.error for p in points if p.error]
    first = sorted(curve[0].error for curve in panel.values() if curve[0].error)
    # Far above what the methods begin with, one has diverged, and by how much is of no interest.
    usual = first[len(first) // 2] if first else 1.0
    low = min(errors, default=floor or 1.0)
    shown = floor is not None and low / 300 < floor
    low = min(low, floor) if shown and floor is not None else low
    nfe = [p.nfe for p in points if p.nfe > 0] or [1.0]
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(min(nfe) / 1.15, max(nfe) * 1.1)
    axes.set_ylim(low / 3, max(min(max(errors, default=1.0) * 2, usual * 30), low * 3))
    return shown


def _ticks(axes: Axes, most: int) -> None:
    first, last = axes.get_xlim()
    for digits in ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 4, 6), (1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10**k for k in range(7) for d in digits if first <= d * 10**k <= last]
        if len(ticks) <= most:
            break
    axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if t == int(t)]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    if high / low < 300:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.yaxis.set_major_locator(LogLocator(numticks=20))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _is_law(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].kind == LAW


def _floor(axes: Axes, floor: float, metric: str, *, shown: bool) -> None:
    law = _is_law(metric)
    text = "exact samples" if law else "below: not resolved by the reference"
    if shown:
        axes.axhline(floor, color=GREY, linestyle=(0, (6, 4)), linewidth=0.9, zorder=2)
    else:
        text = f"↓ floor {floor:.0e}"
    below = law and shown  # where curves end at the floor there is no room above it
    axes.annotate(
        text,
        (0.01, floor if shown else axes.get_ylim()[0]),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, -3 if below else 3),
        textcoords="offset points",
        va="top" if below else "bottom",
        fontsize=7,
        color="#666666",
    )


def _slopes(axes: Axes, orders: Sequence[int]) -> None:
    """Draw a small fan of slopes in the lower left corner, which falling curves leave free."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    decades = math.log10(top / bottom)
    # The steepest takes a quarter of the height, and none a third of the width.
    reach = 10 ** min(0.25 * decades / max(orders), 0.2 * math.log10(right / left), 0.4)
    x = left * (right / left) ** 0.05
    y = bottom * 10 ** (0.11 * decades) * reach ** max(orders)
    last = y
    for order in orders:
        end = (x * reach, y * reach**-order)
        axes.plot([x, end[0]], [y, end[1]], color=GREY, linewidth=0.8, zorder=1.2)
        # A name needs a line's height of its own.
        if order == orders[0] or math.log10(last / end[1]) > 0.03 * decades:
            axes.annotate(
                f"order {order}" if order == orders[0] else f"{order}",
                end,
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color="#666666",
            )
            last = end[1]


def _others(axes: Axes, panel: Panel, drawn: Drawn) -> None:
    """Draw curves in grey, the thinner the more there are."""
    width = 0.8 if len(panel) <= 20 else 0.4
    for adaptive, dashes in ((False, "solid"), (True, "dotted")):
        chosen = {key: panel[key] for key in panel if (key[1] == ADAPTIVE) == adaptive}
        lines = [
            [(p.nfe, p.error or 0.0) for p in part]
            for points in chosen.values()
            for part in _solved(points)
        ]
        style: dict[str, Any] = {
            "color": _PALE,
            "linestyle": dashes,
            "linewidth": width,
            "zorder": 1.5,
        }
        axes.add_collection(LineCollection(lines, **style), autolim=False)
        # What has one point only is no line.
        dots = [line[0] for line in lines if len(line) == 1]
        if dots:
            axes.plot(*zip(*dots, strict=True), ".", color=_PALE, markersize=3)
    drawn.grey.update(panel)


def _curve(
    axes: Axes, key: Key, points: Sequence[Point], colour: str, drawn: Drawn
) -> tuple[float, float] | None:
    """Draw a curve; return its last point, if there is one."""
    method, grid = key
    dashes = _DASHES.get(coordinates_of(method), _OTHER_DASHES)
    style: dict[str, Any] = {"color": colour, "linewidth": 1.4, "zorder": 3, "marker": "o"}
    failed = [p.nfe for p in points if p.error is None and p.nfe > 0]
    top = axes.get_ylim()[1]
    axes.plot(failed, [top] * len(failed), "x", color=colour, markersize=4, clip_on=False)
    drawn.failed |= bool(failed)
    drawn.seeds = max([drawn.seeds, *(len(p.by_seed) for p in points)])
    if grid == ADAPTIVE:
        style |= {"linestyle": "dotted", "markersize": 4, "markerfacecolor": "white"}
        drawn.adaptive = True
    else:
        style |= {"linestyle": dashes, "markersize": 2.5}
        drawn.dashes.add(dashes)
    last = None
    for part in _solved(points):
        # By budget or tolerance, not by evaluations: a tighter tolerance may take fewer.
        nfe, errors = [p.nfe for p in part], [p.error or 0.0 for p in part]
        axes.plot(nfe, errors, **style)
        spread = [math.exp(p.deviation or 0.0) for p in part]
        if max(spread) > 1:
            low = [e / s for e, s in zip(errors, spread, strict=True)]
            high = [e * s for e, s in zip(errors, spread, strict=True)]
            axes.fill_between(nfe, low, high, color=colour, alpha=0.15, linewidth=0, zorder=1.4)
        last = (nfe[-1], errors[-1])
    return last


def _solved(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Go through the parts of a curve between failures."""
    part: list[Point] = []
    for point in points:
        if point.error:
            part.append(point)
        elif part:
            yield part
            part = []
    if part:
        yield part
