"""Tables of the suite of stochastic methods for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from .ratios import OURS, PEER
from .sde import HEATS, SdeCell
from .sde_ratios import (
    AT_FLOOR,
    DEFAULT,
    GOAL,
    GOAL_BUDGETS,
    METRICS,
    Comparison,
    WeakRatios,
)

_SHOWN = 12  # peers named in the ranking


def print_sde_report(cells: Iterable[SdeCell], console: Console) -> None:
    """Print errors beside the best peer's, their means, and how all methods do."""
    ratios = WeakRatios(cells)
    name, eta = DEFAULT
    console.print(f"[bold]Error of the characteristic function[/bold]: {name}, η = {eta:g}")
    console.print(_problem_table(ratios))
    if ratios.has_peers:
        console.print("\n[bold]Error / best peer's[/bold]: geometric means over the problems")
        console.print(_mean_table(ratios))
        console.print(_verdict(ratios))
    console.print(
        "\n[bold]All methods[/bold]: error of the characteristic function / that of as many exact "
        "samples, geometric mean over the problems"
    )
    console.print(_ranking_table(ratios))
    console.print(
        "\nfloor: error of as many exact samples, mean and standard deviation over sets. ≈ at the "
        f"floor: below {AT_FLOOR:g} times that. A peer is judged by the best of its settings and of "
        "the grids that its package ships, on each problem at each budget."
    )


def _problem_table(ratios: WeakRatios) -> Table:
    table = _table("problem", "NFE", "ours", "floor", "best peer", "of", "its grid", "ratio")
    for problem in ratios.problems:
        floor = ratios.floor(problem)
        for budget in ratios.budgets:
            found = ratios.compare(problem, budget)
            table.add_row(
                problem,
                f"{budget}",
                _error(ratios.error(problem, budget)),
                f"{floor.mean:.1e} ± {floor.std:.0e}",
                _error(found.best if found else None),
                found.peer.method if found else "–",
                found.peer.grid if found else "–",
                marked(found),
                end_section=budget == ratios.budgets[-1],
            )
    return table


def _mean_table(ratios: WeakRatios) -> Table:
    table = _table("NFE", *METRICS.values(), "at the floor")
    for budget in ratios.budgets:
        found = ratios.comparisons(budget)
        table.add_row(
            f"{budget}",
            *(_number(ratios.mean(budget, metric=metric)) for metric in METRICS),
            f"{sum(c.at_floor for c in found)} of {len(found)}",
        )
    return table


def _verdict(ratios: WeakRatios) -> str:
    first, last = GOAL_BUDGETS
    missed = [f"{c.problem} at {c.budget} ({c.ratio:.2g})" for c in ratios.missed()]
    return (
        f"goal at {first} to {last} NFE: at most {GOAL:g} of the best peer's error, or at the floor: "
        + (f"missed on {', '.join(missed)}" if missed else "met everywhere")
    )


def _ranking_table(ratios: WeakRatios) -> Table:
    heats = [budget for budget in HEATS if budget in ratios.budgets]
    table = _table("method", "η", *(f"{budget} NFE" for budget in heats))
    for group in (OURS, PEER):
        rows = ratios.ranking(heats, group)[: None if group == OURS else _SHOWN]
        for i, (name, eta, values) in enumerate(rows):
            own = "–" if eta is None else f"{eta:g}"
            table.add_row(name, own, *map(_number, values), end_section=i == len(rows) - 1)
    return table


def marked(comparison: Comparison | None) -> str:
    """Write a ratio and, where a goal is set for it, whether it is met."""
    if comparison is None:
        return "–"
    text = _number(comparison.ratio) + " ≈" * comparison.at_floor
    first, last = GOAL_BUDGETS
    if first <= comparison.budget <= last:
        text += " [green]✓[/green]" if comparison.met else " [red]✗[/red]"
    return text


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        words = column in ("method", "problem", "of", "its grid", "ratio")
        table.add_column(
            column, justify="left" if words else "right", no_wrap=column != "of", overflow="fold"
        )
    return table


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"
