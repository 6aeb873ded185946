"""What the curves of a benchmark are called, which come first, and where they run: for every report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from ..solvers.registry import grid_name, methods
from .measurements import ADAPTIVE, Results, curves, method_label
from .metrics import METRICS
from .repetitions import Point, repeated

Key = tuple[str, str]  # a method and its grid
Panel = Mapping[Key, Sequence[Point]]  # the curves of a problem, by a metric

# In decades above the best: what is worse has not solved the problem, and by how much says nothing.
_WORST = 3.0


def metric_title(metric: str) -> str:
    """Return the title of a metric, as it stands on axes."""
    return METRICS[metric].title if metric in METRICS else metric


def problem_title(results: Results, problem: str) -> str:
    """Return what a problem is."""
    card = results.problems.get(problem)
    return card.title if card is not None else problem


def floor_of(results: Results, problem: str, metric: str) -> float | None:
    """Return the value below which nothing can be told, if it is known."""
    card = results.problems.get(problem)
    return card.floors.get(metric) if card is not None else None


def label(key: Key) -> str:
    """Return the name of a curve: with its grid, unless that is the method's own."""
    method, grid = key
    known = method in methods() and methods()[method].fixed
    default = grid_name(methods()[method].solver.grid) if known else None
    return method_label(method, grid, default)


def coordinates_of(method: str) -> str:
    """Return the coordinates of a method of the registry; nothing of others."""
    return methods()[method].coordinates.split("(")[0] if method in methods() else ""


def declared_orders(keys: Iterable[Key]) -> list[int]:
    """Return the orders that methods of the registry declare on fixed grids."""
    schemes = [
        methods()[name].solver.scheme
        for name, grid in keys
        if grid != ADAPTIVE and name in methods()
    ]
    return sorted({int(scheme.order or scheme.weak_order or 1) for scheme in schemes})


def points_of(results: Results, metric: str) -> dict[str, Panel]:
    """Return the curves of a metric by problem, then by method and grid; seeds are taken together."""
    found: dict[str, dict[Key, list[Point]]] = {}
    for (problem, method, grid), measured in curves(results.measurements, metric).items():
        found.setdefault(problem, {})[method, grid] = repeated(measured, metric)
    return {
        name: found[name] for name in dict.fromkeys((*results.problems, *found)) if name in found
    }


def ranking(panels: Iterable[Panel], floors: Iterable[float | None]) -> list[Key]:
    """Order curves by how far above the best they are on average over budgets and problems.

    Within each budget the smallest error counts, so that solves to a tolerance, which take no
    budget, are judged beside those on grids.

    Args:
        panels: The curves of each problem.
        floors: Floor of each problem; errors below count as it.

    Returns:
        The curves, the best first.
    """
    panels = list(panels)
    scores: dict[Key, list[float]] = {key: [] for panel in panels for key in panel}
    for panel, floor in zip(panels, floors, strict=True):
        least = max(floor or 0.0, 1e-300)
        solved = {
            key: [(p.nfe, max(error, least)) for p in points if (error := p.error) is not None]
            for key, points in panel.items()
        }
        for budget in _budgets(panel):
            within = {
                key: min((error for nfe, error in points if nfe <= budget), default=math.inf)
                for key, points in solved.items()
            }
            best = min(within.values())
            for key, of_key in scores.items():
                error = within.get(key, math.inf)
                of_key.append(
                    _WORST if error == math.inf else min(_WORST, math.log10(error / best))
                )
    return sorted(scores, key=lambda key: statistics.fmean(scores[key] or [_WORST]))


def _budgets(panel: Panel) -> Sequence[float]:
    """Budgets of a problem; evaluations where there are only tolerances."""
    points = [p for curve in panel.values() for p in curve]
    budgets = {float(p.setting.budget) for p in points if p.setting.budget is not None}
    return sorted(budgets or {p.nfe for p in points})
