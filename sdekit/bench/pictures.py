"""Pictures of results: error against network evaluations, and the answer for one budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
from matplotlib.figure import Figure

from .legend import (
    Key,
    Panel,
    floor_of,
    metric_title,
    points_of,
    problem_title,
    ranking,
)
from .measurements import Results
from .panels import INK, LABEL, Drawn, Look, draw
from .plots import PALETTE, RC, save_figure
from .recommend import Choice, best_at

FORMATS = ("png", "svg", "pdf")

_BEST = 5  # curves of an answer
_NEAR = 5  # times the budget: as far as an answer is drawn


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
                look = Look(metric, colours, (4.3, 3.7), 9, 34)
                figure = _figure(results, look, {problem: panels[problem]})
                files += save_figure(figure, folder / f"{metric}_{_stem(problem)}", formats)
            if len(panels) > 1:
                look = Look(metric, colours, (2.9, 2.9), 6, 24)
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
    look = Look(metric, dict(zip(best, PALETTE, strict=False)), (4.3, 3.7), 9, 34)
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
        fontsize=LABEL,
    )
    ring: dict[str, Any] = {"fillstyle": "none", "markersize": 9, "zorder": 4}
    axes.plot([best.nfe], [best.error], "o", color=colour, **ring)
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=9, color=INK)
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
    results: Results, look: Look, panels: Mapping[str, Panel], *, above: float = 0.3
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
    drawn = Drawn()
    for i, (problem, panel) in enumerate(panels.items()):
        row, column = divmod(i, columns)
        x = left + column * cell
        y = bottom + (rows - 1 - row) * (look.panel[1] + between)
        box = (x / width, y / height, look.panel[0] / width, look.panel[1] / height)
        axes = figure.add_axes(box)
        draw(axes, look, panel, floor_of(results, problem, look.metric), drawn)
        axes.set_title(problem_title(results, problem), loc="left", fontsize=9)
        if column == 0:
            axes.set_ylabel(metric_title(look.metric))
        if i + columns >= len(panels):
            axes.set_xlabel("network evaluations per sample (NFE)")
    caption = _lines(drawn.captions(), width - left)
    figure.text(left / width, 0.1 / height, caption, fontsize=7.5, color=INK, va="bottom")
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
