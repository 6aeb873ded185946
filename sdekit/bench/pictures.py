"""Pictures of results: error against network evaluations, and the answer for one budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from .legend import (
    Key,
    Panel,
    coordinates_of,
    declared_orders,
    floor_of,
    label,
    metric_title,
    points_of,
    problem_title,
    ranking,
)
from .measurements import ADAPTIVE, Results
from .metrics import LAW, METRICS
from .plots import GREY, PALETTE, RC, label_ends, save_figure
from .recommend import Choice, best_at
from .repetitions import Point

FORMATS = ("png", "svg", "pdf")

_BEST = 5  # curves of an answer
_NEAR = 5  # times the budget: as far as an answer is drawn
_DASHES = {"Noise": "solid", "Native": "dashed", "": (0, (4, 1.2, 1, 1.2, 1, 1.2))}
_OTHER_DASHES = "dashdot"
_DASH_NAMES = (
    ("solid", "solid: noise coordinates (σ)"),
    ("dashed", "dashed: time of the process"),
    (_OTHER_DASHES, "dash-dotted: other coordinates"),
    (_DASHES[""], "dash-dot-dotted: another package's, or composed"),
)
_PALE = "#c9c9c9"
_INK = "#555555"
_LABEL = 8  # points, of names of curves


@dataclass(frozen=True)
class _Look:
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
        return fill(label(key), self.width)

    @property
    def names(self) -> dict[Key, str]:
        return {key: self.name(key) for key in self.colours}

    @property
    def room(self) -> float:
        """Inches right of a panel that the names take."""
        font = FontProperties(size=_LABEL)
        lines = [line for name in self.names.values() for line in name.splitlines()]
        widths = [TextPath((0, 0), line, prop=font).get_extents().width / 72 for line in lines]
        return 0.03 * self.panel[0] + max(widths, default=0.0) + 0.12

    @property
    def gap(self) -> float:
        """Distance of names, as a part of a panel's height."""
        lines = max((name.count("\n") + 1 for name in self.names.values()), default=1)
        return 1.3 * lines * _LABEL / 72 / self.panel[1]


@dataclass
class _Drawn:
    """What a picture shows, for its caption."""

    dashes: set[Any] = field(default_factory=set)
    adaptive: bool = False
    failed: bool = False
    seeds: int = 1
    grey: set[Key] = field(default_factory=set)

    def captions(self) -> list[str]:
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


def write_pictures(
    results: Results, folder: Path, formats: Collection[str] = FORMATS
) -> list[Path]:
    """Draw error against evaluations: for each metric a picture of each problem, and one of all.

    The same results give the same files, byte by byte.

    Args:
        results: What was measured.
        folder: Where the files are written.
        formats: Of ``"png"``, ``"svg"`` and ``"pdf"``.

    Returns:
        The files: ``<metric>_<problem>`` and, where there are several problems, ``<metric>``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with mpl.rc_context(RC):
        for metric in results.metrics:
            panels = points_of(results, metric)
            colours = _colours(results, metric, panels)
            for problem in panels:
                look = _Look(metric, colours, (4.3, 3.7), 9, 34)
                figure = _figure(results, look, {problem: panels[problem]})
                files += save_figure(figure, folder / f"{metric}_{_stem(problem)}", formats)
            if len(panels) > 1:
                look = _Look(metric, colours, (2.9, 2.9), 6, 24)
                files += save_figure(_figure(results, look, panels), folder / metric, formats)
    return files


def answer_picture(
    results: Results,
    problem: str,
    budget: int,
    folder: Path,
    *,
    metric: str | None = None,
    formats: Collection[str] = FORMATS,
) -> list[Path]:
    """Draw which method to take for a budget: the best five, and what `best_at` says of them.

    Args:
        results: What was measured.
        problem: Name of the problem.
        budget: Network evaluations.
        folder: Where the files are written.
        metric: Name of the metric; the first of the results by default.
        formats: Of ``"png"``, ``"svg"`` and ``"pdf"``.

    Returns:
        The files, ``answer_<problem>_<budget>``.

    Raises:
        ValueError: If the problem was not measured by that metric, or nothing on a fixed grid was
            solved within the budget.
    """
    metric = metric or next(iter(results.metrics), "")
    panel = points_of(results, metric).get(problem, {})
    advice = best_at(results, problem, metric, budget)
    if advice.best is None:
        least = min(
            (p.nfe for points in panel.values() for p in points if p.error), default=math.inf
        )
        raise ValueError(
            f"no method solved {problem} within {budget} evaluations; the fewest that one took are "
            f"{least:g}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    best = [(choice.method, choice.grid) for choice in advice.ranking[:_BEST]]
    look = _Look(metric, dict(zip(best, PALETTE, strict=False)), (4.3, 3.7), 9, 34)
    near = {key: [p for p in panel[key] if p.nfe <= _NEAR * budget] for key in panel}
    near = {key: points for key, points in near.items() if points}
    with mpl.rc_context(RC):
        sentence = fill(str(advice), int(12.8 * (look.panel[0] + look.room)))  # characters per inch
        above = 0.35 + 0.17 * (sentence.count("\n") + 1)
        figure = _figure(results, look, {problem: near}, above=above)
        _answer(figure, budget, advice.best, sentence, look.colours[best[0]])
        return save_figure(figure, folder / f"answer_{_stem(problem)}_{budget}", formats)


def _stem(problem: str) -> str:
    """A problem's name as part of a file's; different names stay different."""
    return quote(problem, safe="")


def _colours(results: Results, metric: str, panels: Mapping[str, Panel]) -> dict[Key, str]:
    """Give the best curves a colour each, the same in every picture of a metric."""
    order = ranking(panels.values(), [floor_of(results, name, metric) for name in panels])
    return dict(zip(order, PALETTE, strict=False))


def _answer(figure: Figure, budget: int, best: Choice, sentence: str, colour: str) -> None:
    """Draw the budget and the best point within it, and write the answer above."""
    (axes,) = figure.axes
    axes.axvline(budget, color="#222222", linewidth=0.9, zorder=2)
    axes.annotate(
        f"{budget} evaluations",
        (budget, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(3, -3),
        textcoords="offset points",
        va="top",
        fontsize=_LABEL,
    )
    ring: dict[str, Any] = {"fillstyle": "none", "markersize": 9, "zorder": 4}
    axes.plot([best.nfe], [best.error], "o", color=colour, **ring)
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=9, color=_INK)
    figure.text(
        axes.get_position().x0,
        1 - 0.08 / figure.get_figheight(),
        sentence,
        fontsize=9,
        weight="bold",
        va="top",
        color=colour,
    )


def _figure(
    results: Results, look: _Look, panels: Mapping[str, Panel], *, above: float = 0.3
) -> Figure:
    """Draw panels in rows of three, `above` inches below the upper edge."""
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    # In inches: the room right of a panel is for the names of its curves.
    left, bottom, between = 0.7, 0.85, 0.55
    cell = look.panel[0] + look.room + (0.45 if columns > 1 else 0.0)
    width = left + columns * cell
    height = bottom + rows * look.panel[1] + (rows - 1) * between + above
    figure = Figure(figsize=(width, height))
    drawn = _Drawn()
    for i, (problem, panel) in enumerate(panels.items()):
        row, column = divmod(i, columns)
        x = left + column * cell
        y = bottom + (rows - 1 - row) * (look.panel[1] + between)
        box = (x / width, y / height, look.panel[0] / width, look.panel[1] / height)
        axes = figure.add_axes(box)
        _draw(axes, look, panel, floor_of(results, problem, look.metric), drawn)
        axes.set_title(problem_title(results, problem), loc="left", fontsize=9)
        if column == 0:
            axes.set_ylabel(metric_title(look.metric))
        if i + columns >= len(panels):
            axes.set_xlabel("network evaluations per sample (NFE)")
    caption = _lines(drawn.captions(), width - left)
    figure.text(left / width, 0.1 / height, caption, fontsize=7.5, color=_INK, va="bottom")
    return figure


def _lines(parts: Sequence[str], width: float) -> str:
    """Set the parts of a caption in lines of a width in inches, none of them broken."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}   {part}".strip()
        if len(longer) < 17 * width:  # characters per inch of its size
            lines[-1] = longer
        else:
            lines.append(part)
    return "\n".join(lines)


def _draw(axes: Axes, look: _Look, panel: Panel, floor: float | None, drawn: _Drawn) -> None:
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


def _others(axes: Axes, panel: Panel, drawn: _Drawn) -> None:
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
    axes: Axes, key: Key, points: Sequence[Point], colour: str, drawn: _Drawn
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
