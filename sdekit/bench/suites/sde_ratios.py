"""What the suite of stochastic methods says: errors beside those of peers and of exact samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..problems import PROBLEMS
from ..repetitions import geometric_mean
from .ratios import OURS, PEER
from .sde import CHOSEN, EXACT, SHARE, SdeCell

DEFAULT, HALF = CHOSEN[0], CHOSEN[-1]  # the latter has half the noise
METRICS = {
    "cf": "characteristic function",
    "w2": "sliced W2",
    "mean": "mean",
    "cov": "covariance",
}
# At most this ratio at these budgets, or no more than so many times the error of exact samples.
GOAL, GOAL_BUDGETS, AT_FLOOR = 0.2, (8, 20), 1.5


@dataclass(frozen=True)
class Floor:
    """The error of exact samples.

    Attributes:
        mean: Mean over sets of samples.
        std: Standard deviation over them.
    """

    mean: float
    std: float


@dataclass(frozen=True)
class Comparison:
    """One of our methods beside the best peer.

    Attributes:
        problem: Name of the problem.
        budget: Evaluations allowed.
        ours: Error of our method.
        best: Error of the best peer.
        peer: The best peer.
        floor: Error of exact samples.
    """

    problem: str
    budget: int
    ours: float
    best: float
    peer: SdeCell
    floor: Floor

    @property
    def ratio(self) -> float:
        """Our error by the peer's."""
        return self.ours / self.best

    @property
    def at_floor(self) -> bool:
        """Whether our samples can hardly be told from exact ones."""
        return self.ours <= AT_FLOOR * self.floor.mean

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.ratio <= GOAL or self.at_floor


class WeakRatios:
    """The cells of the suite, compared.

    Args:
        cells: All cells, of one number of samples and seed.
    """

    def __init__(self, cells: Iterable[SdeCell]) -> None:
        self.cells = list(cells)
        found = {cell.problem for cell in self.cells}
        self.problems = tuple(problem for problem in PROBLEMS if problem in found)
        self.budgets = tuple(sorted({c.budget for c in self.cells if c.group == OURS}))
        self.samples = {
            problem: max(c.samples for c in self.cells if c.problem == problem)
            for problem in self.problems
        }
        self._ours: dict[tuple[str, int, str, float | None, int], SdeCell] = {}
        self._peers: dict[tuple[str, int, int], list[SdeCell]] = {}
        for cell in self.cells:
            if cell.group == OURS:
                key = (cell.problem, cell.budget, cell.method, cell.eta, cell.samples)
                self._ours[key] = cell
            elif cell.group == PEER and cell.cf is not None:
                place = (cell.problem, cell.budget, cell.samples)
                self._peers.setdefault(place, []).append(cell)

    @property
    def has_peers(self) -> bool:
        """Whether other packages were run."""
        return bool(self._peers)

    def floor(self, problem: str, metric: str = "cf") -> Floor:
        """Return the error of exact samples, as many as the chosen methods had."""
        cells = (c for c in self.cells if (c.problem, c.group) == (problem, EXACT))
        values = [value for cell in cells if (value := getattr(cell, metric)) is not None]
        mean = sum(values) / len(values)
        square = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
        return Floor(mean, math.sqrt(square))

    def error(
        self,
        problem: str,
        budget: int,
        method: tuple[str, float | None] = DEFAULT,
        metric: str = "cf",
        *,
        share: bool = False,
    ) -> float | None:
        """Return the error of one of our methods, on all samples or on a share of them."""
        samples = self.samples[problem] // (SHARE if share else 1)
        cell = self._ours.get((problem, budget, *method, samples))
        value: float | None = None if cell is None else getattr(cell, metric)
        return value

    def peer(
        self, problem: str, budget: int, metric: str = "cf", *, full: bool = False
    ) -> SdeCell | None:
        """Return the peer of the least error on all samples (among those of ``η = 1``)."""
        cells = self._peers.get((problem, budget, self.samples[problem]), [])
        chosen = [cell for cell in cells if not full or cell.eta == 1]
        return min(chosen, key=lambda cell: getattr(cell, metric), default=None)

    def compare(
        self,
        problem: str,
        budget: int,
        method: tuple[str, float | None] = DEFAULT,
        metric: str = "cf",
        *,
        full: bool = False,
    ) -> Comparison | None:
        """Compare one of our methods with the best peer (of ``η = 1``), if there is one."""
        ours = self.error(problem, budget, method, metric)
        peer = self.peer(problem, budget, metric, full=full)
        if ours is None or peer is None:
            return None
        best = getattr(peer, metric)
        return Comparison(problem, budget, ours, best, peer, self.floor(problem, metric))

    def comparisons(
        self,
        budget: int,
        method: tuple[str, float | None] = DEFAULT,
        metric: str = "cf",
        *,
        full: bool = False,
    ) -> list[Comparison]:
        """Return the comparisons on all problems."""
        found = (self.compare(p, budget, method, metric, full=full) for p in self.problems)
        return [comparison for comparison in found if comparison is not None]

    def mean(
        self,
        budget: int,
        method: tuple[str, float | None] = DEFAULT,
        metric: str = "cf",
        *,
        full: bool = False,
    ) -> float | None:
        """Return the geometric mean of the ratios over all problems."""
        found = self.comparisons(budget, method, metric, full=full)
        return geometric_mean([comparison.ratio for comparison in found])

    def missed(
        self, method: tuple[str, float | None] = DEFAULT, *, full: bool = False
    ) -> tuple[list[Comparison], int]:
        """Return the comparisons in which the goal is missed, and the number of all that it is for."""
        first, last = GOAL_BUDGETS
        budgets = (budget for budget in self.budgets if first <= budget <= last)
        found = [c for budget in budgets for c in self.comparisons(budget, method, full=full)]
        return [c for c in found if not c.met], len(found)

    def ranking(
        self, budgets: Sequence[int], group: str = OURS
    ) -> list[tuple[str, float | None, list[float]]]:
        """Return methods, their η and at each budget their error by that of exact samples.

        The error is that on a share of the samples, a peer's on its best grid for each problem; the
        mean over problems is geometric. Methods that fail, or take more than a budget has, are left
        out. The best comes first.
        """
        logs: dict[tuple[str, float | None], dict[tuple[int, str], float]] = {}
        for cell in self.cells:
            share = self.samples[cell.problem] // SHARE
            if (cell.group, cell.samples) != (group, share) or cell.budget not in budgets:
                continue
            if cell.cf is not None:
                # Of a share of the samples the characteristic function is known so much worse.
                floor = math.sqrt(SHARE) * self.floor(cell.problem).mean
                values = logs.setdefault((cell.method, cell.eta), {})
                key, value = (cell.budget, cell.problem), math.log(cell.cf / floor)
                values[key] = min(value, values.get(key, math.inf))
        rows = []
        for (name, eta), found in logs.items():
            if len(found) == len(budgets) * len(self.problems):
                means = [
                    math.exp(sum(found[n, p] for p in self.problems) / len(self.problems))
                    for n in budgets
                ]
                rows.append((name, eta, means))
        return sorted(rows, key=lambda row: math.prod(row[2]))
