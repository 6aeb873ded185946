"""Tables of a benchmark for the terminal, at most 110 columns wide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .legend import Panel, floor_of, label, metric_title, points_of, problem_title
from .measurements import ADAPTIVE, Results
from .recommend import Advice, best_at, to_reach
from .regression import Estimate, Order, orders
from .repetitions import Point

_T = TypeVar("_T")

_MAX_COLUMNS = 7  # of budgets or tolerances; more do not fit
_MAX_LABEL = 38
_ADVISED = 3  # budgets and errors for which a method is named when none are asked for

_LEGEND = (
    "▸ best of its column; * at the floor, below which nothing can be told; – the budget is less than "
    "one step. Of several seeds, geometric means. An order is told from the points between the "
    "evaluations named beside it; ± is its standard error, statistical and systematic."
)


def print_results(
    results: Results,
    console: Console,
    *,
    budget: int | None = None,
    target: float | None = None,
) -> None:
    """Print the tables of every problem, and which method to take.

    Args:
        results: What was measured.
        console: Where.
        budget: Network evaluations for which a method is wanted, …
        target: … or the error; if neither is given, some of both are answered.
    """
    panels = {metric: points_of(results, metric) for metric in results.metrics}
    for problem in results.problems:
        if not any(problem in of_metric for of_metric in panels.values()):
            continue
        console.print()
        console.print(f"[bold]{escape(problem)}[/bold]: {escape(problem_title(results, problem))}")
        reference = results.problems[problem].reference
        if reference:
            console.print(f"reference: {escape(reference)}", style="dim")
        for metric, of_metric in panels.items():
            if problem in of_metric:
                _print_metric(results, problem, metric, of_metric[problem], console, budget, target)
    console.print()
    console.print(_LEGEND, style="dim")


def _print_metric(
    results: Results,
    problem: str,
    metric: str,
    panel: Panel,
    console: Console,
    budget: int | None,
    target: float | None,
) -> None:
    floor = floor_of(results, problem, metric)
    title = f"[bold]{escape(metric_title(metric))}[/bold]"
    title += f", floor {floor:.1e}" if floor else ""
    fixed = {key: points for key, points in panel.items() if key[1] != ADAPTIVE}
    to_tolerance = {key: points for key, points in panel.items() if key[1] == ADAPTIVE}
    if fixed:
        budgets = _budgets(fixed, budget)
        console.print(f"{title}; within NFE ≤")
        console.print(fixed_table(fixed, budgets, floor))
    if to_tolerance:
        console.print(f"{title}; to rtol = atol, and below it NFE (mean over samples)")
        console.print(adaptive_table(to_tolerance, floor))
    rows = [row for row in orders(results, metric) if row.problem == problem]
    if rows:
        console.print(f"{title}; orders")
        console.print(orders_table(rows))
    for advice in _advice(results, problem, metric, panel, budget, target):
        asked = budget is not None or target is not None
        console.print(str(advice), style="bold" if asked else None, highlight=False, markup=False)


def fixed_table(panel: Panel, budgets: Sequence[int], floor: float | None) -> Table:
    """Table of errors by method and budget.

    Args:
        panel: Curves on fixed grids.
        budgets: The columns.
        floor: Value below which nothing can be told.
    """
    table = _table("method", *(f"{budget}" for budget in budgets))
    rows = {
        key: {p.setting.budget: p for p in points if p.setting.budget is not None}
        for key, points in panel.items()
    }
    best = {n: _least(row[n] for row in rows.values() if n in row) for n in budgets}
    for key, row in rows.items():
        cells = (_cell(row.get(budget), floor, best[budget]) for budget in budgets)
        table.add_row(escape(label(key)), *cells)
    return table


def adaptive_table(panel: Panel, floor: float | None) -> Table:
    """Table of errors and evaluations by method and tolerance.

    Args:
        panel: Curves of solves to a tolerance.
        floor: Value below which nothing can be told.
    """
    known = {p.setting.rtol for points in panel.values() for p in points}
    rtols = _some(sorted((rtol for rtol in known if rtol is not None), reverse=True))
    table = _table("method", *(f"{rtol:.0e}" for rtol in rtols))
    for (method, _), points in panel.items():
        row = {p.setting.rtol: p for p in points}
        cells = []
        for rtol in rtols:
            point = row.get(rtol)
            nfe = f"\n{point.nfe:.0f}" if point is not None and point.error is not None else ""
            cells.append(_cell(point, floor, None) + nfe)
        table.add_row(escape(method), *cells)
    return table


def orders_table(rows: Iterable[Order]) -> Table:
    """Table of orders, or of why there is none."""
    table = Table(box=None, pad_edge=False)
    table.add_column("method", max_width=_MAX_LABEL, overflow="fold")
    table.add_column("order", justify="right", no_wrap=True)
    table.add_column("NFE", justify="right", no_wrap=True)
    table.add_column("levels off at", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        found = row.estimate
        reason = "" if found.order is not None else found.verdict.removeprefix("no order: ")
        table.add_row(
            escape(label((row.method, row.grid))),
            order_text(found),
            f"{found.first:.0f}–{found.last:.0f}" if found.first and found.last else "",
            f"{found.floor:.1e}" if found.floor and found.floor_se is not None else "",
            f"[dim]{escape(reason)}[/dim]",
        )
    return table


def order_text(found: Estimate) -> str:
    """Return an order with its standard error; a dash where there is none."""
    if found.order is None or found.order_se is None:
        return "–"
    return f"{found.order:.2f} ± {found.order_se:.2f}"


def _advice(
    results: Results,
    problem: str,
    metric: str,
    panel: Panel,
    budget: int | None,
    target: float | None,
) -> list[Advice]:
    """Answers to what was asked, or to some of what might be."""
    if budget is not None or target is not None:
        return [
            *([] if budget is None else [best_at(results, problem, metric, budget)]),
            *([] if target is None else [to_reach(results, problem, metric, target)]),
        ]
    at = [best_at(results, problem, metric, n) for n in _some(_budgets(panel, None), _ADVISED)]
    errors = [p.error for points in panel.values() for p in points if p.error]
    floor = max(floor_of(results, problem, metric) or 0.0, min(errors, default=1.0))
    decades = range(-1, math.ceil(math.log10(floor)) - 1, -1)
    reached = [to_reach(results, problem, metric, 10.0**k) for k in decades]
    # What the fewest evaluations that were measured reach already says little of a method.
    telling = [advice for advice in reached if advice.best and not advice.best.at_most]
    return [*at, *_some(telling, _ADVISED)]


def _budgets(panel: Panel, asked: int | None) -> list[int]:
    """Budgets that are shown, that which is asked for among them."""
    known = {p.setting.budget for points in panel.values() for p in points}
    budgets = sorted(n for n in known if n is not None)
    shown = _some(budgets)
    if asked in budgets and asked not in shown:
        nearest = min(shown, key=lambda n: abs(math.log(n / asked)))
        shown[shown.index(nearest)] = asked
    return shown


def _some(values: Sequence[_T], count: int = _MAX_COLUMNS) -> list[_T]:
    """Return evenly spread values, the first and the last among them."""
    count = min(count, len(values))
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, count)]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        if column == "method":
            table.add_column(column, max_width=_MAX_LABEL, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def _least(points: Iterable[Point]) -> float | None:
    return min((p.error for p in points if p.error is not None), default=None)


def _cell(point: Point | None, floor: float | None, best: float | None) -> str:
    if point is None:
        return "–"
    if point.error is None:
        return "[red]failed[/red]"
    if floor is not None and point.error <= floor:
        return f"{point.error:.1e}*"
    text = f"{point.error:.1e}"
    return f"[bold green]▸{text}[/bold green]" if point.error == best else text
