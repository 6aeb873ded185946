"""Tables of the suite of adaptive methods for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from .ratios import OURS, PEER
from .tolerance import ToleranceCell, targets
from .tolerance_ratios import DECADES, FACTOR, MEAN_GOAL, WORST_GOAL, Comparison, Costs, Proportion


def print_tolerance_report(cells: Iterable[ToleranceCell], console: Console) -> None:
    """Print costs beside the best peer's, by problem and by method, and achieved errors."""
    costs = Costs(cells)
    console.print(f"[bold]Network evaluations per sample to reach an error[/bold]: {costs.ours}")
    console.print(_problem_table(costs))
    if costs.methods(PEER):
        console.print("\n[bold]The same by target[/bold]: geometric means and the worst")
        console.print(_target_table(costs))
        console.print("\n[bold]Every method[/bold]: evaluations / the best peer's, geometric mean")
        console.print(_method_table(costs))
    if costs.methods(OURS):
        console.print(f"\n[bold]Achieved error / rtol[/bold]: {costs.ours}, atol = rtol")
        console.print(_proportion_table(costs))
    console.print(
        "\nErrors are RMS distances of the final states from the reference. A cost is interpolated "
        "between solves; it is the mean over samples. A peer is judged by its best setting for each "
        "problem and error: all samples as one system or each alone, atol = rtol or 10 rtol. "
        f"! error not within a factor {FACTOR:g} of the tolerance; ↑ not below the error before; "
        "– not reached, or not run."
    )


def _problem_table(costs: Costs) -> Table:
    table = _table("problem", "error", "ours", "best peer", "of", "run as", "ratio")
    for problem in costs.problems:
        for target in targets(problem):
            row = costs.compare(problem, target)
            peer = row.peer
            table.add_row(
                problem,
                f"{target:.0e}",
                _count(row.ours.nfe if row.ours else None),
                _count(peer.nfe if peer else None),
                peer.method if peer else "–",
                peer.setting if peer else "–",
                _judged(row.ratio, WORST_GOAL),
                end_section=target == targets(problem)[-1],
            )
    return table


def _target_table(costs: Costs) -> Table:
    table = _table("error", "problems", "mean", f"goal ≤ {MEAN_GOAL:g}", "worst", "on")
    for target in (*costs.targets, None):
        worst = costs.worst(target)
        table.add_row(
            "all" if target is None else f"{target:.0e}",
            str(len(costs.comparisons(target))),
            _number(costs.mean(target)),
            _judged(costs.mean(target), MEAN_GOAL, mark_only=True),
            _judged(worst.ratio if worst else None, WORST_GOAL),
            _where(worst),
        )
    return table


def _where(comparison: Comparison | None) -> str:
    return f"{comparison.problem}, {comparison.target:.0e}" if comparison else "–"


def _method_table(costs: Costs) -> Table:
    table = _table("method", *(f"{target:.0e}" for target in costs.targets))
    for group in (OURS, PEER):
        for method in costs.methods(group):
            row = []
            for target in costs.targets:
                mean, count = costs.beside_best_peer(group, method, target)
                total = len(costs.comparisons(target))
                row.append(_number(mean) + (f" ({count} of {total})" if count < total else ""))
            table.add_row(method, *row, end_section=method == costs.methods(group)[-1])
    return table


def _proportion_table(costs: Costs) -> Table:
    table = _table("problem", *(f"{rtol:.0e}" for rtol in DECADES))
    for proportion in costs.proportions():
        table.add_row(proportion.problem, *_marked(proportion))
    return table


def _marked(proportion: Proportion) -> list[str]:
    cells = []
    flags = zip(proportion.ratios, proportion.outside, proportion.rising, strict=True)
    for ratio, outside, rising in flags:
        marks = "!" * (outside and ratio is not None) + "↑" * rising
        cells.append(_number(ratio) + (f"[red]{marks}[/red]" if marks else ""))
    return cells


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        words = column in ("method", "problem", "of", "run as", "on")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    return table


def _judged(value: float | None, bound: float, *, mark_only: bool = False) -> str:
    """Write a ratio and whether it is within its bound."""
    if value is None:
        return "–"
    mark = "[green]✓[/green]" if value <= bound else "[red]✗[/red]"
    return mark if mark_only else f"{_number(value)} {mark}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"
