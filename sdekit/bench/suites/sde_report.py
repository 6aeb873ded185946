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
    HALF,
    METRICS,
    Comparison,
    WeakRatios,
)

_SHOWN = 12  # peers named in the ranking
# What is compared with what: a name, our method, and whether peers are those of η = 1 only.
COMPARED = {
    f"{DEFAULT[0]}, η = 1 / best peer of η = 1": (DEFAULT, True),
    f"{DEFAULT[0]}, η = 1 / best peer": (DEFAULT, False),
    f"{HALF[0]}, η = ½ / best peer": (HALF, False),
}


def print_sde_report(cells: Iterable[SdeCell], console: Console) -> None:
    """Print errors beside the best peers', their means, and how all methods do."""
    ratios = WeakRatios(cells)
    console.print(f"[bold]Error of the characteristic function[/bold]: {DEFAULT[0]}, η = 1")
    console.print(_problem_table(ratios))
    if ratios.has_peers:
        for name, (method, full) in COMPARED.items():
            console.print(f"\n[bold]{name}[/bold]: geometric means over the problems")
            console.print(_mean_table(ratios, method, full=full))
            console.print(verdict(ratios, method, full=full))
    console.print(
        "\n[bold]All methods[/bold]: error of the characteristic function / that of as many exact "
        "samples, geometric mean over the problems"
    )
    console.print(_ranking_table(ratios))
    console.print(
        "\nfloor: error of as many exact samples, mean and standard deviation over sets. ≈ at the "
        f"floor: below {AT_FLOOR:g} times that; there the best of many is better by chance. A peer is "
        "judged by the best of its settings and of the grids that its package ships, on each problem "
        "at each budget; η is its own, 1 being Anderson's reverse SDE."
    )


def _problem_table(ratios: WeakRatios) -> Table:
    table = _table(
        "problem", "NFE", "ours", "floor", "η = 1", "ratio", "any η", "ratio ", "of", "on"
    )
    for problem in ratios.problems:
        floor = ratios.floor(problem)
        for budget in ratios.budgets:
            full, found = (ratios.compare(problem, budget, full=full) for full in (True, False))
            table.add_row(
                problem,
                f"{budget}",
                _error(ratios.error(problem, budget)),
                f"{floor.mean:.1e} ± {floor.std:.0e}",
                _error(full.best if full else None),
                _marked(full),
                _error(found.best if found else None),
                _marked(found),
                found.peer.method if found else "–",
                found.peer.grid if found else "–",
                end_section=budget == ratios.budgets[-1],
            )
    return table


def _mean_table(ratios: WeakRatios, method: tuple[str, float | None], *, full: bool) -> Table:
    table = _table("NFE", *METRICS.values(), "at the floor")
    for budget in ratios.budgets:
        found = ratios.comparisons(budget, method, full=full)
        table.add_row(
            f"{budget}",
            *(_number(ratios.mean(budget, method, metric, full=full)) for metric in METRICS),
            f"{sum(c.at_floor for c in found)} of {len(found)}",
        )
    return table


def verdict(ratios: WeakRatios, method: tuple[str, float | None], *, full: bool) -> str:
    """Say where the goal is met."""
    first, last = GOAL_BUDGETS
    missed, count = ratios.missed(method, full=full)
    names = ", ".join(f"{c.problem} at {c.budget} ({_number(c.ratio)})" for c in missed)
    return (
        f"At {first} to {last} NFE, at most {GOAL:g} of the peer's error or the floor is reached in "
        f"{count - len(missed)} of {count} cases" + (f"; not on {names}." if missed else ".")
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


def _marked(comparison: Comparison | None) -> str:
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
        words = column.strip() in ("method", "problem", "of", "on", "ratio")
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
