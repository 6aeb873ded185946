"""Which method to take: for so many network evaluations, or for an error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .legend import Key, Panel, floor_of, label, points_of
from .measurements import ADAPTIVE, Results
from .repetitions import Point

# What is closer than this is the same number at the two digits that are printed.
_SAME = 1.05


@dataclass(frozen=True)
class Choice:
    """A method that answers, and what it costs.

    Attributes:
        method: Name of the method.
        grid: Name of the grid; `ADAPTIVE` for a solve to a tolerance.
        nfe: Network evaluations; between measured points if an error was asked for.
        error: Error there, geometric mean over the seeds.
        cost: What is to be least: the error, or the floor where that is larger, for a budget; the
            evaluations, as a whole number, for an error.
        by_seed: The same by seed.
        at_floor: Whether the error cannot be told from the floor.
        at_most: Whether fewer evaluations may do: none were measured.
    """

    method: str
    grid: str
    nfe: float
    error: float
    cost: float
    by_seed: Mapping[int, float]
    at_floor: bool = False
    at_most: bool = False

    @property
    def label(self) -> str:
        """Name of the method, with its grid unless that is its own."""
        return label((self.method, self.grid))

    @property
    def words(self) -> str:
        """Name of the method with its grid, in a sentence."""
        if self.grid == ADAPTIVE:
            return f"{self.method} to a tolerance"
        return f"{self.method} on {self.grid}"

    def tied(self, other: Choice) -> bool:
        """Whether the difference to another is smaller than the spread over the seeds of both."""
        if max(self.cost, other.cost) < _SAME * min(self.cost, other.cost):
            return True
        # The same seed is the same start states and noise: what is common to both drops out.
        common = self.by_seed.keys() & other.by_seed.keys()
        logs = [math.log(other.by_seed[seed] / self.by_seed[seed]) for seed in common]
        return len(logs) > 1 and abs(statistics.fmean(logs)) < statistics.stdev(logs)


@dataclass(frozen=True)
class Advice:
    """An answer: what to take on a problem, and what comes next.

    Attributes:
        problem: Name of the problem.
        metric: Name of the metric.
        budget: Network evaluations that were allowed, if that was the question.
        target: Error that was asked for, if that was.
        floor: Value below which nothing can be told, if it is known.
        ranking: The methods that answer, the best first.
    """

    problem: str
    metric: str
    budget: int | None
    target: float | None
    floor: float | None
    ranking: tuple[Choice, ...]

    @property
    def best(self) -> Choice | None:
        """The best; none if no method answers."""
        return self.ranking[0] if self.ranking else None

    @property
    def ties(self) -> tuple[Choice, ...]:
        """The methods after the best that cannot be told from it."""
        if self.best is None:
            return ()
        count = 1
        while count < len(self.ranking) and self.best.tied(self.ranking[count]):
            count += 1
        return self.ranking[1:count]

    @property
    def next(self) -> Choice | None:
        """The best of the methods that are worse by more than the spread."""
        rest = self.ranking[1 + len(self.ties) :]
        return rest[0] if rest else None

    @property
    def ratio(self) -> float | None:
        """Cost of the next over that of the best."""
        if self.best is None or self.next is None:
            return None
        return self.next.cost / self.best.cost

    def __str__(self) -> str:
        """Return the answer as a sentence."""
        question = (
            f"For {self.budget} evaluations"
            if self.target is None
            else f"For an error of {self.target:.1e}".replace(".0e", "e")
        )
        if self.target is not None and self.target < (self.floor or 0.0):
            return f"{question}: nothing can be told below the floor, {self.floor:.1e}."
        if self.best is None:
            none = "takes so few" if self.target is None else "comes so low"
            return f"{question}: no method that was measured {none}."
        parts = [f"{question}: {self.best.words}, {self._cost(self.best)}"]
        if self.ties:
            parts.append(f"tied with {_listed([choice.words for choice in self.ties])}")
        if self.next is not None and self.ratio is not None:
            of = "as many" if self.budget is None else "the error"
            of = "the floor" if self.best.at_floor else of
            parts.append(f"next: {self.next.words}, {_times(self.ratio)} {of}")
        return "; ".join(parts) + "."

    def _cost(self, choice: Choice) -> str:
        evaluations = f"{_whole(choice.nfe)} evaluations"
        if self.budget is None:
            return f"at most {evaluations}" if choice.at_most else evaluations
        error = f"error {choice.error:.1e}"
        if choice.at_floor:
            error = f"at the floor ({self.floor:.1e})"
        return error if choice.nfe == self.budget else f"{error} with {evaluations}"


def best_at(results: Results, problem: str, metric: str, budget: int) -> Advice:
    """Rank the methods on fixed grids by what they reach with so many evaluations.

    A solve to a tolerance does not take part: it promises an error, no number of evaluations.

    Args:
        results: What was measured.
        problem: Name of the problem.
        metric: Name of the metric.
        budget: Network evaluations that are allowed; a method is judged by the best of what was
            measured up to there.

    Raises:
        ValueError: If nothing was measured there, or the budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"budget = {budget}; it must be at least 1")
    panel = _panel(points_of(results, metric), problem, metric)
    return _best_at(panel, problem, metric, budget, floor_of(results, problem, metric))


def to_reach(results: Results, problem: str, metric: str, target: float) -> Advice:
    """Rank the methods by the evaluations that an error costs.

    Args:
        results: What was measured.
        problem: Name of the problem.
        metric: Name of the metric.
        target: Error to reach.

    Raises:
        ValueError: If nothing was measured there, or the error is not positive and finite.
    """
    if not 0 < target < math.inf:
        raise ValueError(f"target = {target}; an error to reach must be positive and finite")
    panel = _panel(points_of(results, metric), problem, metric)
    floor = floor_of(results, problem, metric)
    found = [] if target < (floor or 0.0) else _reaching(panel, target)
    ranking = tuple(sorted(found, key=lambda c: (c.cost, not c.at_most, c.nfe)))
    return Advice(problem, metric, None, target, floor, ranking)


def best_map(results: Results, metric: str) -> dict[tuple[str, int], str]:
    """Return the label of the best method by problem and budget, where there is one."""
    found = {}
    for problem, panel in points_of(results, metric).items():
        floor = floor_of(results, problem, metric)
        budgets = {p.setting.budget for points in panel.values() for p in points}
        for budget in sorted(n for n in budgets if n is not None):
            best = _best_at(panel, problem, metric, budget, floor).best
            if best is not None:
                found[problem, budget] = best.label
    return found


def nfe_to_reach(points: Iterable[tuple[float, float]], target: float) -> float | None:
    """Network evaluations that an error costs.

    Only points count that no cheaper one surpasses. Between the first of these that meets the target
    and the last that does not, the logarithm of the evaluations is linear in that of the error.

    Args:
        points: Evaluations and error of each solve, in any order.
        target: Error to reach.

    Returns:
        The evaluations; none if no point meets the target.
    """
    before: tuple[float, float] | None = None
    for nfe, error in sorted(points):
        if before is not None and error >= before[1]:
            continue
        if error <= target:
            if before is None:
                return nfe
            part = math.log(before[1] / target) / math.log(before[1] / max(error, 1e-300))
            return before[0] * float((nfe / before[0]) ** part)
        before = (nfe, error)
    return None


def _panel(panels: Mapping[str, Panel], problem: str, metric: str) -> Panel:
    if not panels:
        raise ValueError(f"metric {metric!r} was not measured")
    if problem not in panels:
        raise ValueError(
            f"metric {metric!r} was not measured on {problem!r}; it was on {', '.join(panels)}"
        )
    return panels[problem]


def _best_at(panel: Panel, problem: str, metric: str, budget: int, floor: float | None) -> Advice:
    least = max(floor or 0.0, 1e-300)

    def choice(key: Key, point: Point, error: float) -> Choice:
        values = point.by_seed.items()
        by_seed = {seed: max(value, least) for seed, value in values if value is not None}
        cost = max(error, least)
        return Choice(*key, point.nfe, error, cost, by_seed, floor is not None and error <= floor)

    found = []
    for key, points in panel.items():
        choices = [
            choice(key, p, p.error)
            for p in points
            if p.error is not None and p.setting.budget is not None and p.nfe <= budget
        ]
        if choices:
            found.append(min(choices, key=_error_first))
    return Advice(problem, metric, budget, None, floor, tuple(sorted(found, key=_error_first)))


def _error_first(choice: Choice) -> tuple[float, float]:
    return choice.cost, choice.nfe


def _reaching(panel: Panel, target: float) -> list[Choice]:
    found = []
    for (method, grid), points in panel.items():
        curve = [(p.nfe, p.error) for p in points if p.error is not None]
        nfe = nfe_to_reach(curve, target)
        if nfe is None:
            continue
        of_seeds = {seed: _of_seed(points, seed, target) for p in points for seed in p.by_seed}
        by_seed = {seed: cost for seed, cost in of_seeds.items() if cost is not None}
        at_most = nfe == min(n for n, _ in curve)
        found.append(Choice(method, grid, nfe, target, _whole(nfe), by_seed, at_most=at_most))
    return found


def _whole(nfe: float) -> int:
    return math.ceil(nfe * (1 - 1e-9))  # round-off of the interpolation is no evaluation


def _of_seed(points: Sequence[Point], seed: int, target: float) -> float | None:
    values = ((p.nfe, p.by_seed.get(seed)) for p in points)
    return nfe_to_reach([(nfe, value) for nfe, value in values if value is not None], target)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:.0f} times"
