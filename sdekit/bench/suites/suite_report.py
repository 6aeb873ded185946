"""Tables of the suite for the terminal: our errors against the best peer's, and the goals."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .ratios import ANY_GRID, FLOOR, GOALS, NETWORK, OURS, SERIES, SHIPPED, Goal, Ratios
from .suite import SuiteCell

_SHOWN = (6, 10, 20, 40, 80)  # budgets at which the best peer of every problem is named


def print_suite_report(cells: Sequence[SuiteCell], console: Console) -> None:
    """Print the ratios and the goals, who the best peer is, and the trained network."""
    ratios = Ratios(cells)
    if ratios.has_peers:
        console.print("[bold]Error / best peer's, geometric mean over the analytic problems[/bold]")
        console.print(_goal_table(ratios))
        _print_verdicts(ratios, console)
        console.print("\n[bold]The same of more methods[/bold]")
        console.print(_series_table(ratios))
        skipped = [(n, ratios.at(n, SERIES["default"]).skipped) for n in ratios.budgets]
        missing = ", ".join(f"{count} at {n}" for n, count in skipped if count)
        if missing:
            console.print(
                f"Problems left out, an error being missing or below {FLOOR:g}: {missing} NFE.",
                style="dim",
            )
    else:
        console.print("No other package was run, so there is nothing to compare with.")
    console.print("\n[bold]The best peer, by problem[/bold]")
    console.print(_problem_table(ratios))
    if NETWORK in ratios.problems:
        console.print("\n[bold]The trained network[/bold] (digits)")
        console.print(_network_table(ratios))
    console.print(
        "\ndefault: bayesian_adams on the grid balanced. fitted: the same on grids that equidistribute "
        "fitted to other samples. ratio: default / best peer. A peer is judged by the best of its own "
        "grids and orders on each problem at each budget; any grid: also of sdekit's. A step of "
        "several evaluations is taken as often as the budget allows."
    )


def _goal_table(ratios: Ratios) -> Table:
    """Ratios with goals, by budget."""
    table = _table("NFE")
    goals = [goal for goal in GOALS if not goal.network]
    for goal in goals:
        table.add_column(goal.name, justify="right", no_wrap=True)
        table.add_column("goal", no_wrap=True)
        table.add_column("worst", no_wrap=True)
    for budget in ratios.budgets:
        row = []
        for goal in goals:
            worst = ratios.at(budget, SERIES[goal.series], goal.against).worst
            row += [
                _number(ratios.goal(goal, budget)),
                _verdict(ratios, goal, budget),
                f"{_number(worst[0])} {worst[1]}" if worst else "–",
            ]
        table.add_row(f"{budget}", *row)
    return table


def _print_verdicts(ratios: Ratios, console: Console) -> None:
    for goal in GOALS:
        verdicts = [(n, ratios.met(goal, n)) for n in ratios.budgets]
        known = [met for _, met in verdicts if met is not None]
        missed = ", ".join(
            f"{n} ({ratios.goal(goal, n):.3g} > {goal.bound(n):g})"
            for n, met in verdicts
            if met is False
        )
        if known:
            text = f"missed at NFE {missed}" if missed else "met at every budget"
            console.print(f"goal '{goal.name}': {sum(known)} of {len(known)} met; {text}")


def _series_table(ratios: Ratios) -> Table:
    """Mean ratios of all series, a column per budget."""
    table = _table("method", *(f"{budget}" for budget in ratios.budgets))
    rows = [(series, SHIPPED) for series in SERIES.values()]
    for series, against in [*rows, (SERIES["default, fitted"], ANY_GRID)]:
        name = "fitted, peers on any grid" if against == ANY_GRID else series.name
        means = [ratios.at(budget, series, against).mean for budget in ratios.budgets]
        if any(mean is not None for mean in means):
            table.add_row(name, *map(_number, means))
    return table


def _problem_table(ratios: Ratios) -> Table:
    """The best peer and our errors, by problem and budget."""
    table = _table("problem", "NFE", "best peer", "its grid", "error", "default", "fitted", "ratio")
    for problem in ratios.problems:
        for budget in [n for n in _SHOWN if n in ratios.budgets]:
            table.add_row(*_errors(ratios, problem, budget), end_section=budget == _SHOWN[-1])
    return table


def _errors(ratios: Ratios, problem: str, budget: int) -> tuple[str, ...]:
    """Problem, budget, peer, grid, three errors and the ratio."""
    peer = ratios.best(problem, budget, SHIPPED)
    return (
        problem,
        f"{budget}",
        peer.method if peer else "–",
        peer.grid if peer else "–",
        _error(peer.error if peer else None),
        _error(ratios.error(problem, budget, SERIES["default"])),
        _error(ratios.error(problem, budget, SERIES["default, fitted"])),
        _number(ratios.single(problem, budget, SERIES["default"])),
    )


def _network_table(ratios: Ratios) -> Table:
    """The trained network at every budget."""
    table = _table(
        "NFE",
        "best peer",
        "its grid",
        "error",
        "default",
        "ratio",
        "goal",
        "fitted",
        "best of sdekit",
    )
    (goal,) = (goal for goal in GOALS if goal.network)
    for budget in ratios.budgets:
        _, *row, ratio = _errors(ratios, NETWORK, budget)
        best = ratios.best(NETWORK, budget, (OURS,))
        table.add_row(
            *row[:5],
            ratio,
            _verdict(ratios, goal, budget),
            row[5],
            f"{_error(best.error)} {best.method}" if best else "–",
        )
    return table


def _verdict(ratios: Ratios, goal: Goal, budget: int) -> str:
    bound, met = goal.bound(budget), ratios.met(goal, budget)
    if bound is None:
        return ""
    mark = {True: " [green]✓[/green]", False: " [red]✗[/red]", None: ""}[met]
    return f"≤ {bound:g}{mark}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    words = ("method", "problem", "best peer", "its grid", "goal", "best of sdekit")
    for column in columns:
        table.add_column(
            column,
            justify="left" if column in words else "right",
            no_wrap=column != "best peer",
        )
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"
