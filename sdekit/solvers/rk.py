"""Explicit Runge–Kutta schemes: tableaux as data, one stepper for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..coordinates import Coordinates, Points
from .linear import Line, LinearScheme, Plan


@dataclass(frozen=True)
class Tableau:
    """An explicit Butcher tableau, checked when it is made.

    Attributes:
        c: Stage times, one per stage, the first 0.
        a: Rows of the stage matrix below the diagonal, one fewer than stages.
        b: Weights.
        order: Order of the weights ``b``.
        b_error: Weights minus those of the embedded method, if there is one.
        error_order: Order of the embedded method.

    Raises:
        ValueError: If shapes disagree, or ``Σ_j a_ij = c_i``, ``Σ b = 1`` or ``Σ b_error = 0`` fail.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    b_error: tuple[float, ...] | None = None
    error_order: int | None = None

    def __post_init__(self) -> None:
        stages = len(self.c)
        if [len(row) for row in self.a] != list(range(1, stages)) or len(self.b) != stages:
            raise ValueError(f"a tableau of {stages} stages needs rows of 1 … {stages - 1} entries")
        if self.c[0] != 0:
            raise ValueError(f"the first stage time of an explicit tableau is 0, not {self.c[0]}")
        if (self.b_error is None) != (self.error_order is None):
            raise ValueError("b_error and error_order belong together; give both or neither")
        if not np.allclose([sum(row) for row in self.a], self.c[1:], rtol=0, atol=1e-12):
            raise ValueError("each row of a tableau must sum to its stage time c")
        if abs(sum(self.b) - 1) > 1e-12:
            raise ValueError(f"the weights of a tableau must sum to 1, not {sum(self.b)}")
        if self.b_error is not None and abs(sum(self.b_error)) > 1e-12:
            raise ValueError("error weights must sum to 0: both methods are consistent")

    @property
    def stages(self) -> int:
        """Stages that the weights ``b`` use: a last one that serves the error only is left out."""
        return max(i + 1 for i, weight in enumerate(self.b) if weight)

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the first of the next step."""
        return len(self.a) > 0 and self.c[-1] == 1 and self.a[-1] == self.b[:-1] and not self.b[-1]


EULER = Tableau(c=(0.0,), a=(), b=(1.0,), order=1)
MIDPOINT = Tableau(c=(0.0, 0.5), a=((0.5,),), b=(0.0, 1.0), order=2)
HEUN = Tableau(c=(0.0, 1.0), a=((1.0,),), b=(0.5, 0.5), order=2)
RK4 = Tableau(
    c=(0.0, 0.5, 0.5, 1.0),
    a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    order=4,
)
# Dormand & Prince (1980), with the error weights of Shampine (1986).
DORMAND_PRINCE = Tableau(
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    order=5,
    b_error=(
        35 / 384 - 1951 / 21600,
        0.0,
        500 / 1113 - 22642 / 50085,
        125 / 192 - 451 / 720,
        -2187 / 6784 + 12231 / 42400,
        11 / 84 - 649 / 6300,
        -1 / 60,
    ),
    error_order=4,
)


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
        tableau, stages, count = self.tableau, self.tableau.stages, len(start.tau)
        dt = end.tau - start.tau
        inner = [coordinates.at_tau(start.tau + c * dt) for c in tableau.c[1:stages]]
        # Row i of a table of points holds stage i of every step; the last row where steps end.
        points = Points(*(np.concatenate(parts) for parts in zip(start, *inner, end, strict=True)))
        weight = coordinates.weight(points)
        steps = []
        for n in range(count):
            at = [n + i * count for i in range(stages + 1)]
            lines = []
            for i, row in enumerate((*tableau.a[: stages - 1], tableau.b[:stages]), start=1):
                weights = {at[j]: dt[n] * w * weight[at[j]] for j, w in enumerate(row) if w}
                last = i == stages
                lines.append(Line(n, at[i], weights, accept=last, evaluate=not last))
            steps.append((n, lines))
        return Plan(points, steps)
