"""What the suite of adaptive methods says: the cost of an error beside the best peer's, and goals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ...inputs import default_method
from ..problems import PROBLEMS
from ..recommend import nfe_to_reach
from ..repetitions import geometric_mean
from .ratios import OURS, PEER
from .tolerance import ToleranceCell, targets

MEAN_GOAL, WORST_GOAL = 0.5, 0.8
# Tolerances at which the achieved error is to be within this factor of the tolerance.
DECADES = tuple(10.0**-k for k in range(2, 11))
FACTOR = 10.0


@dataclass(frozen=True)
class Cost:
    """What an error costs with a method.

    Attributes:
        nfe: Network evaluations, mean over the samples.
        method: Name of the method.
        setting: How it was run.
    """

    nfe: float
    method: str
    setting: str


@dataclass(frozen=True)
class Comparison:
    """Ours beside the best peer, on one problem, for one error.

    Attributes:
        problem: Name of the problem.
        target: The error.
        ours: Cost with our method; none if it does not reach the error.
        peer: Cost with the best peer; none if no peer does.
    """

    problem: str
    target: float
    ours: Cost | None
    peer: Cost | None

    @property
    def ratio(self) -> float | None:
        """Evaluations of ours by those of the peer; infinite if only the peer arrives."""
        if self.peer is None:
            return None
        return math.inf if self.ours is None else self.ours.nfe / self.peer.nfe


@dataclass(frozen=True)
class Proportion:
    """Achieved errors of a method on a problem, as multiples of the tolerances `DECADES`.

    Attributes:
        problem: Name of the problem.
        ratios: Error by tolerance; none where there is no solve.
    """

    problem: str
    ratios: tuple[float | None, ...]

    @property
    def errors(self) -> tuple[float | None, ...]:
        """The errors themselves."""
        pairs = zip(self.ratios, DECADES, strict=True)
        return tuple(None if ratio is None else ratio * rtol for ratio, rtol in pairs)

    @property
    def outside(self) -> tuple[bool, ...]:
        """Where the error is further than a factor `FACTOR` from the tolerance, or missing."""
        return tuple(r is None or not 1 / FACTOR <= r <= FACTOR for r in self.ratios)

    @property
    def rising(self) -> tuple[bool, ...]:
        """Where the error is not below that at the looser tolerance before."""
        flags, last = [], math.inf
        for error in self.errors:
            flags.append(error is not None and error >= last)
            last = last if error is None else error
        return tuple(flags)


class Costs:
    """The cells of the suite, compared.

    Args:
        cells: All cells, of one number of samples and seed.
        ours: Name of our method; sdekit's default one if not given.
    """

    def __init__(self, cells: Iterable[ToleranceCell], ours: str | None = None) -> None:
        self.cells = list(cells)
        self.ours = ours or default_method(flow=True, affine=True, adaptive=True)
        found = {cell.problem for cell in self.cells}
        self.problems = tuple(problem for problem in PROBLEMS if problem in found)
        self.targets = tuple(
            sorted({t for problem in self.problems for t in targets(problem)}, reverse=True)
        )
        self._curves: dict[tuple[str, str], dict[tuple[str, str], list[tuple[float, float]]]] = {}
        for cell in self.cells:
            if cell.nfe is not None and cell.error is not None:
                curves = self._curves.setdefault((cell.problem, cell.group), {})
                points = curves.setdefault((cell.method, cell.setting), [])
                points.append((cell.nfe, cell.error))

    def methods(self, group: str) -> list[str]:
        """Return the names of the methods of a group."""
        return list(dict.fromkeys(cell.method for cell in self.cells if cell.group == group))

    def cost(
        self, problem: str, target: float, group: str, method: str | None = None
    ) -> Cost | None:
        """Return the least cost among all settings of a group's methods (of one method)."""
        found = [
            (nfe, name, setting)
            for (name, setting), points in self._curves.get((problem, group), {}).items()
            if method in (None, name) and (nfe := nfe_to_reach(points, target)) is not None
        ]
        return Cost(*min(found)) if found else None

    def compare(self, problem: str, target: float) -> Comparison:
        """Compare our method with the best peer."""
        ours = self.cost(problem, target, OURS, self.ours)
        return Comparison(problem, target, ours, self.cost(problem, target, PEER))

    def comparisons(self, target: float | None = None) -> list[Comparison]:
        """Return all comparisons (of one target) in which a peer arrives."""
        found = [
            self.compare(problem, error)
            for problem in self.problems
            for error in targets(problem)
            if target in (None, error)
        ]
        return [comparison for comparison in found if comparison.peer is not None]

    def mean(self, target: float | None = None) -> float | None:
        """Return the geometric mean of the ratios (of one target)."""
        return geometric_mean([c.ratio for c in self.comparisons(target) if c.ratio is not None])

    def worst(self, target: float | None = None) -> Comparison | None:
        """Return the comparison of the largest ratio (of one target)."""
        found = self.comparisons(target)
        return max(found, key=lambda c: c.ratio or 0.0, default=None)

    def beside_best_peer(self, group: str, method: str, target: float) -> tuple[float | None, int]:
        """Return a method's cost by the best peer's and on how many problems it arrives.

        The mean is geometric, over the problems on which both arrive.
        """
        ratios = []
        for problem in self.problems:
            if target in targets(problem):
                cost = self.cost(problem, target, group, method)
                best = self.cost(problem, target, PEER)
                if cost is not None and best is not None:
                    ratios.append(cost.nfe / best.nfe)
        return geometric_mean(ratios), len(ratios)

    def proportions(self) -> list[Proportion]:
        """Return the achieved errors of our method on every problem."""
        rows = []
        for problem in self.problems:
            errors = {
                round(math.log10(cell.rtol), 6): cell.error
                for cell in self.cells
                if (cell.problem, cell.group, cell.method) == (problem, OURS, self.ours)
            }
            found = [errors.get(round(math.log10(rtol), 6)) for rtol in DECADES]
            pairs = zip(found, DECADES, strict=True)
            ratios = tuple(None if error is None else error / rtol for error, rtol in pairs)
            rows.append(Proportion(problem, ratios))
        return rows
