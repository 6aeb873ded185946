"""Explicit Runge–Kutta schemes: one stepper for all tableaux."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..coordinates import Coordinates, Points
from .linear import Line, LinearScheme, Plan
from .scheme import Array
from .tableaus import Tableau


def combine(
    u: Tensor, slopes: Sequence[Tensor], weights: Sequence[float], dt: float | Tensor
) -> Tensor:
    """Return ``u + dt Σ w_j k_j``; ``dt`` is a number, or one per sample shaped like the state."""
    scale = dt if isinstance(dt, float) else 1.0
    terms = [(k, scale * w) for k, w in zip(slopes, weights, strict=False) if w]
    if not isinstance(dt, float):
        total = terms[0][0] * terms[0][1]
        for k, w in terms[1:]:
            total.add_(k, alpha=w)
        return torch.addcmul(u, dt, total)
    total = torch.add(u, terms[0][0], alpha=terms[0][1])
    for k, w in terms[1:]:
        total.add_(k, alpha=w)
    return total


def stage_slopes(
    tableau: Tableau,
    slope: Callable[[int, Tensor], Tensor],
    u: Tensor,
    dt: float | Tensor,
    *,
    stages: int,
    first: Tensor | None = None,
) -> list[Tensor]:
    """Evaluate the stages of one step.

    Args:
        tableau: The method.
        slope: ``slope(i, u)``, the right-hand side at the time of stage ``i``.
        u: State at the start of the step.
        dt: Step, a number or one per sample.
        stages: How many stages to evaluate.
        first: Slope of stage 0, if it is known.
    """
    slopes = [slope(0, u) if first is None else first]
    for i in range(1, stages):
        slopes.append(slope(i, combine(u, slopes, tableau.a[i - 1], dt)))
    return slopes


class RungeKutta(LinearScheme):
    """An explicit Runge–Kutta scheme.

    Args:
        tableau: Its coefficients.
    """

    def __init__(self, tableau: Tableau) -> None:
        self.tableau = tableau
        self.order = tableau.order
        self.nfe_per_step = tableau.stages
        self.adaptive = tableau.b_error is not None

    def plan(self, coordinates: Coordinates, grid: Points) -> Plan:
        """Write down the steps of a grid."""
        start, end = Points(*(v[:-1] for v in grid)), Points(*(v[1:] for v in grid))
        return self.between(coordinates, start, end)

    def between(self, coordinates: Coordinates, start: Points, end: Points) -> Plan:
        """Write down steps from ``start[n]`` to ``end[n]``, which need not be those of a grid."""
        tableau, stages = self.tableau, self.tableau.stages
        dt = end.tau - start.tau
        inner = [coordinates.at_tau(start.tau + c * dt) for c in tableau.c[1:stages]]
        factor = [coordinates.weight(p) for p in (start, *inner)]
        if factor[0].ndim == 2:
            dt = dt[:, None]
        rows = [
            {j: dt * w * factor[j] for j, w in enumerate(row) if w}
            for row in (*tableau.a[: stages - 1], tableau.b[:stages])
        ]
        return one_step_plan([start, *inner], end, rows)


def one_step_plan(
    stages: Sequence[Points], end: Points, rows: Sequence[Mapping[int, Array]]
) -> Plan:
    """Write down steps that know nothing of the steps before them.

    Args:
        stages: Points of each stage, an array over steps.
        end: Points where the steps end.
        rows: Weights of the slopes in every stage but the first, and in the result, by the stages
            they were evaluated at; arrays over steps.
    """
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
