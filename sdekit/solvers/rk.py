"""One-step schemes: those that know nothing of the steps before; explicit Runge–Kutta among them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from ..coordinates import Coordinates, Points
from .control import PI, Controller
from .linear import Line, LinearScheme, Plan
from .scheme import Array
from .tableaus import Tableau

Row: TypeAlias = Mapping[int, Array]
"""Weights of slopes, by their place among them; arrays over steps, or over steps and directions."""


class Formulas(NamedTuple):
    """Steps written down, an array over steps in every place: ``u_i = u + Σ_j rows[i][j] N_j``.

    Slopes are numbered: those of the stages, then the one where the step ends, then extra ones.

    Attributes:
        stages: Points of the stages, the start among them.
        rows: Weights of the slopes in every stage but the first, and in the result.
        errors: Weights of the error estimate; of none, or of two that are combined as in DOP853.
    """

    stages: Sequence[Points]
    rows: Sequence[Row]
    errors: Sequence[Row] = ()


class OneStep(LinearScheme):
    """A scheme whose steps are formulas of their own stages.

    Attributes:
        controller: What chooses step sizes, where they are adaptive.
        error_order: Order of the method that the error estimate compares with; for DOP853, see
            `Tableau.estimate_order`.
        fsal: Whether the error estimate needs the slope where the step ends.
        extra_nfe: Evaluations that the interpolant needs beyond the stages and the end.
    """

    controller: Controller = PI
    error_order: int | None = None
    fsal: bool = False
    extra_nfe: int = 0

    @abstractmethod
    def formulas(self, coordinates: Coordinates, start: Points, end: Points) -> Formulas:
        """Write down steps from ``start[n]`` to ``end[n]``."""

    def extra(self, coordinates: Coordinates, start: Points, end: Points) -> Formulas:
        """Write down what the interpolant evaluates beyond stages and end: points and their rows."""
        return Formulas((), ())

    def interpolation(self, coordinates: Coordinates, start: Points, end: Points, s: Array) -> Row:
        """Weights of the state at fractions ``s`` of steps; by default cubic Hermite interpolation.

        It is of order 3, from the states and slopes at both ends.
        """
        stages, rows, _ = self.formulas(coordinates, start, end)
        dt = end.tau - start.tau
        first, last = coordinates.weight(start), coordinates.weight(end)
        if first.ndim == 2:
            dt, s = dt[:, None], s[:, None]
        weights = {j: s**2 * (3 - 2 * s) * w for j, w in rows[-1].items()}
        weights[0] = weights.get(0, 0.0) + s * (1 - s) ** 2 * dt * first
        weights[len(stages)] = s**2 * (s - 1) * dt * last
        return weights

    def plan(self, coordinates: Coordinates, grid: Points) -> Plan:
        """Write down the steps of a grid."""
        start, end = Points(*(v[:-1] for v in grid)), Points(*(v[1:] for v in grid))
        return self.between(coordinates, start, end)

    def between(self, coordinates: Coordinates, start: Points, end: Points) -> Plan:
        """Plan steps from ``start[n]`` to ``end[n]``, which need not be those of a grid."""
        stages, rows, _ = self.formulas(coordinates, start, end)
        # Row i of a table of points holds stage i of every step; the last row where steps end.
        points = Points(*(np.concatenate(parts) for parts in zip(*stages, end, strict=True)))
        count = len(end.tau)
        steps = []
        for n in range(count):
            lines = []
            for i, row in enumerate(rows, start=1):
                weights = {n + j * count: weight[n] for j, weight in row.items()}
                last = i == len(rows)
                lines.append(Line(n, n + i * count, weights, accept=last, evaluate=not last))
            steps.append((n, lines))
        return Plan(points, steps)


class RungeKutta(OneStep):
    """An explicit Runge–Kutta scheme.

    Args:
        tableau: Its coefficients.
        controller: What chooses its steps, if the tableau has error weights.
    """

    def __init__(self, tableau: Tableau, controller: Controller = PI) -> None:
        self.tableau, self.controller = tableau, controller
        self.order = tableau.order
        self.nfe_per_step = tableau.stages
        self.adaptive = tableau.b_error is not None
        self.error_order = tableau.estimate_order
        self.fsal = tableau.fsal
        self.extra_nfe = len(tableau.extra)

    def formulas(self, coordinates: Coordinates, start: Points, end: Points) -> Formulas:
        """Rows of the tableau, with the step and the integration weights multiplied in."""
        tableau, stages = self.tableau, self.tableau.stages
        inner = [
            coordinates.at_tau(start.tau + c * (end.tau - start.tau)) for c in tableau.c[1:stages]
        ]
        factors = _factors(coordinates, [start, *inner, end], start, end)
        rows = [_row(row, factors) for row in (*tableau.a[: stages - 1], tableau.b[:stages])]
        estimates = (tableau.b_error, tableau.b_error_low)
        errors = [_row(weights, factors) for weights in estimates if weights is not None]
        return Formulas([start, *inner], rows, errors)

    def extra(self, coordinates: Coordinates, start: Points, end: Points) -> Formulas:
        """Further stages of the tableau's interpolant."""
        points, rows = self._slopes(coordinates, start, end), []
        factors = _factors(coordinates, points, start, end)
        rows = [_row(row, factors) for _, row in self.tableau.extra]
        return Formulas(points[len(points) - len(rows) :], rows)

    def interpolation(self, coordinates: Coordinates, start: Points, end: Points, s: Array) -> Row:
        """The tableau's interpolant, if it has one."""
        if self.tableau.interpolant is None:
            return super().interpolation(coordinates, start, end, s)
        factors = _factors(coordinates, self._slopes(coordinates, start, end), start, end)
        shares = self.tableau.weights_at(s).T
        return {
            j: (share if factor.ndim == 1 else share[:, None]) * factor
            for j, (share, factor) in enumerate(zip(shares, factors, strict=True))
        }

    def _slopes(self, coordinates: Coordinates, start: Points, end: Points) -> list[Points]:
        """Points of all slopes of the interpolant."""
        tableau = self.tableau
        times = [*tableau.c[1 : tableau.stages], *(c for c, _ in tableau.extra)]
        inner = [coordinates.at_tau(start.tau + c * (end.tau - start.tau)) for c in times]
        return [start, *inner[: tableau.stages - 1], end, *inner[tableau.stages - 1 :]]


def _factors(
    coordinates: Coordinates, points: Sequence[Points], start: Points, end: Points
) -> list[Array]:
    """Length of the steps times the integration weight at points."""
    dt = end.tau - start.tau
    weights = [coordinates.weight(p) for p in points]
    return [(dt if w.ndim == 1 else dt[:, None]) * w for w in weights]


def _row(weights: Sequence[float], factors: Sequence[Array]) -> Row:
    return {j: w * factors[j] for j, w in enumerate(weights) if w}
