"""Tables of a benchmark for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from ..solvers.registry import methods
from .problems import make_problem
from .runner import Cell, Results

_MAX_COLUMNS = 7  # of budgets; more do not fit 110 characters


def print_report(results: Results, console: Console) -> None:
    """Print the tables of every problem, and how to read them."""
    for name, reference in results.references.items():
        console.print()
        console.print(f"[bold]{name}[/bold]: {make_problem(name, samples=1).title}")
        console.print(
            f"reference: adaptive dopri5 against scipy's DOP853 differ by "
            f"{reference.discrepancy:.1e} (RMS); floor {reference.floor:.1e}",
            style="dim",
        )
        if any(methods()[method].fixed for method in results.config.methods):
            console.print("error within NFE ≤")
            console.print(_fixed_table(results, name))
        if results.select(name, adaptive=True):
            console.print("adaptive, by rtol = atol: error, and NFE (mean over samples)")
            console.print(_adaptive_table(results, name))
    console.print()
    console.print(
        "Errors are RMS distances of the final states from the reference. ▸ best of its column; "
        "* at the reference's floor; – the budget is less than one step."
    )
    left_out = [name for name, method in methods().items() if not method.deterministic]
    console.print(
        f"Not compared, because a stochastic path has no reference: {', '.join(left_out)}."
    )


def _fixed_table(results: Results, problem: str) -> Table:
    budgets = _some(sorted(results.config.budgets))
    columns = {
        budget: {cell.method: cell for cell in results.select(problem) if cell.budget == budget}
        for budget in budgets
    }
    table = _table("method", "grid", *(f"{budget}" for budget in budgets))
    best = {budget: _best(cells.values()) for budget, cells in columns.items()}
    for method in results.config.methods:
        if not methods()[method].fixed:
            continue
        cells = [columns[budget].get(method) for budget in budgets]
        table.add_row(
            method,
            methods()[method].row()[2],
            *(
                _mark(cell, best=cell is not None and cell.error == best[budget])
                for budget, cell in zip(budgets, cells, strict=True)
            ),
        )
    return table


def _adaptive_table(results: Results, problem: str) -> Table:
    cells = results.select(problem, adaptive=True)
    rtols = sorted({cell.rtol for cell in cells if cell.rtol is not None}, reverse=True)
    table = _table("method", *(f"{rtol:.0e}" for rtol in rtols))
    for method in dict.fromkeys(cell.method for cell in cells):
        row = results.select(problem, method, adaptive=True)
        table.add_row(method, *(f"{_mark(cell)}\n{cell.nfe:.0f}" for cell in row))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        words = column in ("method", "grid")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    return table


def _some(budgets: Sequence[int]) -> list[int]:
    """Return evenly spread budgets, the first and the last among them."""
    count = min(_MAX_COLUMNS, len(budgets))
    return [budgets[round(i)] for i in np.linspace(0, len(budgets) - 1, count)]


def _best(cells: Iterable[Cell]) -> float | None:
    return min((cell.error for cell in cells if cell.error is not None), default=None)


def _mark(cell: Cell | None, *, best: bool = False) -> str:
    if cell is None:
        return "–"
    if cell.error is None:
        return "[red]failed[/red]"
    text = f"{cell.error:.1e}{'*' if cell.at_floor else ''}"
    return f"[bold green]▸{text}[/bold green]" if best else text
