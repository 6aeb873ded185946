"""What the suite says: errors as ratios to the best peer's, and the goals that were set for them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .suite import SuiteCell

FLOOR = 1e-11  # errors below are not resolved by the references
DEFAULT, NETWORK = "bayesian_adams", "digits"
OURS, FITTED, PEER, PEER_OUR_GRIDS = "sdekit", "fitted", "peer", "peer, our grids"
SHIPPED, ANY_GRID = (PEER,), (PEER, PEER_OUR_GRIDS)


@dataclass(frozen=True)
class Series:
    """Errors that are compared.

    Attributes:
        name: Name in tables and pictures.
        groups: Groups of cells.
        method: Name of the method; without one, the best of the groups at each budget.
    """

    name: str
    groups: tuple[str, ...]
    method: str | None = None


SERIES: dict[str, Series] = {
    series.name: series
    for series in (
        Series("default", (OURS,), DEFAULT),
        Series("default, fitted", (FITTED,), DEFAULT),
        *(
            Series(f"{method}{', fitted' * (group == FITTED)}", (group,), method)
            for method in ("adams2", "adams3", "adams4")
            for group in (OURS, FITTED)
        ),
        Series("best of sdekit", (OURS,)),
        *(
            Series(method, (OURS,), method)
            for method in ("dpmpp_2m", "unipc_bh2_3", "lms4", "ddim", "edm_heun")
        ),
    )
}


@dataclass(frozen=True)
class Goal:
    """Bounds of a ratio.

    Attributes:
        name: What is to be shown.
        series: Key of `SERIES`.
        against: Groups of the peers.
        network: Whether the ratio is that on the trained network, not the mean over the laws.
        bounds: ``(first, last, bound)``: the largest ratio allowed at budgets from first to last.
    """

    name: str
    series: str
    against: tuple[str, ...]
    network: bool
    bounds: tuple[tuple[float, float, float], ...]

    def bound(self, budget: int) -> float | None:
        """Largest ratio allowed at a budget, if the goal says one."""
        found = (bound for first, last, bound in self.bounds if first <= budget <= last)
        return next(found, None)


GOALS: tuple[Goal, ...] = (
    Goal("default", "default", SHIPPED, False, ((6, 8, 0.7), (10, 15, 0.4), (20, math.inf, 0.3))),
    Goal(
        "fitted",
        "default, fitted",
        SHIPPED,
        False,
        ((6, 8, 0.4), (10, 10, 0.3), (15, 20, 0.2), (40, 40, 0.1), (80, 80, 0.03)),
    ),
    Goal("any grid", "default", ANY_GRID, False, ((8, math.inf, 0.7),)),
    Goal(NETWORK, "default", SHIPPED, True, ((6, 10, 1.0), (15, 20, 0.5), (40, math.inf, 0.4))),
)


@dataclass(frozen=True)
class Ratio:
    """A series against the best peer at one budget.

    Attributes:
        mean: Geometric mean over the laws of known score; none if none could be compared.
        worst: The largest of these ratios, and its problem.
        network: Ratio on the trained network.
        compared: Number of laws in the mean.
        skipped: Number of laws left out: an error is missing, or below `FLOOR`.
    """

    mean: float | None
    worst: tuple[float, str] | None
    network: float | None
    compared: int
    skipped: int


class Ratios:
    """The cells of a suite, compared.

    Args:
        cells: All cells, of one number of samples and seed.
    """

    def __init__(self, cells: Iterable[SuiteCell]) -> None:
        self.cells = list(cells)
        self.problems = tuple(dict.fromkeys(cell.problem for cell in self.cells))
        self.budgets = tuple(sorted({cell.budget for cell in self.cells}))
        self.has_peers = any(cell.group == PEER for cell in self.cells)
        self._found: dict[tuple[str, int], list[SuiteCell]] = {}
        for cell in self.cells:
            self._found.setdefault((cell.problem, cell.budget), []).append(cell)

    def best(
        self, problem: str, budget: int, groups: Collection[str], method: str | None = None
    ) -> SuiteCell | None:
        """Return the cell of the smallest error among groups (of one method), if there is any."""
        cells = [
            (cell.error, i, cell)
            for i, cell in enumerate(self._found.get((problem, budget), []))
            if cell.error is not None and cell.group in groups and method in (None, cell.method)
        ]
        return min(cells)[2] if cells else None

    def error(self, problem: str, budget: int, series: Series) -> float | None:
        """Return the error of a series, if it has one."""
        cell = self.best(problem, budget, series.groups, series.method)
        return None if cell is None else cell.error

    def single(
        self, problem: str, budget: int, series: Series, against: Collection[str] = SHIPPED
    ) -> float | None:
        """Return the ratio on one problem; none if an error is missing or below the floor."""
        ours = self.error(problem, budget, series)
        cell = self.best(problem, budget, against)
        if ours is None or cell is None or cell.error is None or min(ours, cell.error) < FLOOR:
            return None
        return ours / cell.error

    def at(self, budget: int, series: Series, against: Collection[str] = SHIPPED) -> Ratio:
        """Compare at one budget."""
        laws = [problem for problem in self.problems if problem != NETWORK]
        singles = {problem: self.single(problem, budget, series, against) for problem in laws}
        found = [(ratio, problem) for problem, ratio in singles.items() if ratio is not None]
        logs = [math.log(ratio) for ratio, _ in found]
        return Ratio(
            mean=math.exp(sum(logs) / len(logs)) if logs else None,
            worst=max(found, default=None),
            network=self.single(NETWORK, budget, series, against),
            compared=len(found),
            skipped=len(laws) - len(found),
        )

    def goal(self, goal: Goal, budget: int) -> float | None:
        """Return the ratio that a goal is about."""
        ratio = self.at(budget, SERIES[goal.series], goal.against)
        return ratio.network if goal.network else ratio.mean

    def met(self, goal: Goal, budget: int) -> bool | None:
        """Whether a goal is met at a budget; none if it says nothing there, or no ratio is known."""
        bound, ratio = goal.bound(budget), self.goal(goal, budget)
        return None if bound is None or ratio is None else ratio <= bound

    def ranking(
        self, budgets: Sequence[int], problems: Collection[str], group: str = OURS
    ) -> list[tuple[str, float]]:
        """Return the methods of a group by their mean error, as a ratio to the default's.

        The mean is geometric, over budgets and problems. A method that fails in one of them, or
        whose step takes more evaluations than a budget has, is left out.
        """
        logs: dict[str, list[float]] = {}
        count = 0
        for problem in problems:
            for budget in budgets:
                default = self.error(problem, budget, SERIES["default"])
                cells = self._found.get((problem, budget), [])
                if default is None or default < FLOOR:
                    continue
                count += 1
                for cell in cells:
                    if cell.group == group and cell.error:
                        logs.setdefault(cell.method, []).append(math.log(cell.error / default))
        means = {name: math.exp(sum(v) / count) for name, v in logs.items() if len(v) == count}
        return sorted(means.items(), key=lambda item: item[1])
