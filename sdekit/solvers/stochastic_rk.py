"""Stochastic Runge–Kutta schemes for additive noise, as data: strong order 1.5 at two evaluations.

In `ReverseCoordinates`, on the clock ``r`` of the noise, the reverse SDE is ``dv = f dr + dB`` with
unit noise. On a step of length ``h`` a scheme uses the increment ``W`` of ``B`` and its space–time area
``H = (1/h) ∫ (B_r − r W/h) dr``, which are independent, of variance ``h`` and ``h/12``:

    z_i = v + h Σ_j a_ij f_j + p_i W + q_i H,    f_i = f(z_i, r + c_i h),    v' = v + h Σ_i b_i f_i + W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from ..coordinates import Coordinates, Points
from ..reverse import ReverseCoordinates
from ..stochasticity import Eta
from .linear import Draw, Line, Plan
from .noisy import NoisyScheme
from .view import AffineView

_CLOSE = 1e-12


@dataclass(frozen=True)
class NoiseTableau:
    """A stochastic Runge–Kutta tableau for additive unit noise, checked when it is made.

    Its strong order is 1.5, and its weak order 2, if ``Σ b_i X_i = ½`` for ``X`` each of ``c``, ``Σ_j
    a_ij`` and ``p² + q²/12``, besides ``Σ b p = ½`` and ``Σ b q = 1``, which the weak order does
    without; else both are 1. Where drifts are martingales, as along the reverse SDE of ``η = 1`` on the
    noise's clock, it is enough that the three numbers are equal.

    Attributes:
        c: Times of the stages, in units of the step.
        a: Rows of slopes before, the first of them empty.
        b: Weights of the slopes; they sum to 1.
        p: Weights of ``W`` in the stages.
        q: Weights of ``H`` in the stages.
        before: Weight, in the first stage, of the last slope of the step before.
        strong_order: Declared strong order.
        weak_order: Declared weak order.
        error: Weights of the slopes in an estimate of the local error; they sum to 0.

    Raises:
        ValueError: If shapes disagree, or the conditions of the declared orders fail.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    p: tuple[float, ...]
    q: tuple[float, ...]
    before: float = 0.0
    strong_order: float = 1.5
    weak_order: float = 2.0
    error: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.c)
        if [len(row) for row in self.a] != list(range(n)) or {
            *map(len, (self.b, self.p, self.q))
        } != {n}:
            raise ValueError(f"a tableau of {n} stages needs {n} weights, and rows of 0 … {n - 1}")
        b, p, q, c = (np.array(row) for row in (self.b, self.p, self.q, self.c))
        own = np.array([float(sum(row)) for row in self.a])
        own[0] += self.before
        drift = [b @ c, b @ own, b @ (p**2 + q**2 / 12)]
        wanted = drift[0] if self.before else 0.5
        conditions = [b.sum() - 1]
        if self.weak_order > 1:
            conditions += [b @ p - 0.5, *(value - wanted for value in drift)]
        if self.strong_order > 1:
            conditions.append(b @ q - 1)
        if np.abs(conditions).max() > _CLOSE:
            raise ValueError(
                f"the conditions of strong order {self.strong_order:g} and weak order "
                f"{self.weak_order:g} fail: {[float(value) for value in conditions]}"
            )

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.c)


def _roessler(
    c: Sequence[float],
    A: Sequence[Sequence[float]],
    B: Sequence[Sequence[float]],
    b: Sequence[float],
    error: tuple[float, ...] | None = None,
) -> NoiseTableau:
    """Return a tableau of Rößler's class SRA: his ``I_(1,0)/h`` is ``W/2 + H``."""
    rows = [sum(row) for row in B]
    p, q = tuple(row / 2 for row in rows), tuple(rows)
    return NoiseTableau(tuple(c), tuple(map(tuple, A)), tuple(b), p, q, error=error)


SEA = NoiseTableau((0.0,), ((),), (1.0,), (0.5,), (1.0,), strong_order=1.0, weak_order=1.0)
"""Shifted Euler: Foster, dos Reis & Strange 2024, eq. 5.8.

Along the reverse SDE of ``η = 1`` its strong order on Gaussian data is 2.
"""

SRA1 = _roessler((0.0, 3 / 4), ((), (3 / 4,)), ((), (3 / 2,)), (1 / 3, 2 / 3), (-2 / 3, 2 / 3))
"""Rößler 2010, table 6.3."""

SRA3 = _roessler(
    (0.0, 1.0, 0.5), ((), (1.0,), (0.25, 0.25)), ((), (0.0,), (1.0, 0.5)), (1 / 6, 1 / 6, 2 / 3)
)
"""Rößler 2010, table 6.3."""

SOSRA = _roessler(
    (0.0, 0.6923962376159507, 1.0),
    ((), (0.6923962376159507,), (-3.1609142252828395, 4.1609142252828395)),
    ((), (1.3371632704399763,), (1.442371048468624, 1.8632741501139225)),
    (0.2889874966892885, 0.6859880440839937, 0.025024459226717772),
)
"""Rackauckas & Nie 2020: optimised for stability."""

SHARK = NoiseTableau(
    (0.0, 5 / 6), ((), (5 / 6,)), (0.4, 0.6), (0.0, 5 / 6), (1.0, 1.0), error=(-0.6, 0.6)
)
"""Foster, dos Reis & Strange 2024, eq. 6.1."""

_X1, _X2 = (3 - sqrt(3)) / 6, sqrt(3) / 3
SPARK = NoiseTableau(
    (0.0, 0.5, 1.0),
    ((), (0.5,), (0.0, 1.0)),
    (_X1, _X2, _X1),
    (0.0, 0.5, 1.0),
    (0.0, sqrt(3), 0.0),
    error=(_X1 - 0.5, _X2, _X1 - 0.5),
)
"""Foster 2023, definition 1.6, for additive noise."""

HEUN = NoiseTableau(
    (0.0, 1.0),
    ((), (1.0,)),
    (0.5, 0.5),
    (0.0, 1.0),
    (0.0, 0.0),
    strong_order=1.0,
    error=(-0.5, 0.5),
)
"""Heun with the noise of the whole step in its stage, and Euler–Maruyama as the other of the pair."""

SEA_M = NoiseTableau((1 / 3,), ((),), (1.0,), (0.5,), (1.0,), before=1 / 3)
"""Experimental: strong order 1.5 with one evaluation per step, for ``η = 1`` only.

There the drift is a martingale, on the noise's clock in any coordinates, so that the three conditions
on it reduce to equality; the slope of the step before is near enough to the stage's own. It takes the
exact posterior mean to be a martingale: for a network expect order 1, with a small constant.
"""


SEA_W = NoiseTableau(
    (1 / 4,), ((),), (1.0,), (0.5,), (0.0,), before=1 / 4, strong_order=1.0, weak_order=2.0
)
"""The same without ``H``, which the weak order 2 does not need: the three numbers are ``p² = ¼``."""


class StochasticRK(NoisyScheme):
    """A stochastic Runge–Kutta scheme on the clock of the noise; it takes a constant ``η``.

    In `Noise` coordinates the clock is ``σ²``; in `Preconditioned` ``(σ² + σ_d²)^(−η²)``, and what
    remains of the drift is ``F``.

    Args:
        tableau: Its coefficients.
        redraws: Whether an adaptive step that is rejected draws its noise afresh, which biases the
            law, as in "Gotta go fast" (Jolicoeur-Martineau et al. 2021, algorithm 1), instead of
            following the same path again.
    """

    def __init__(self, tableau: NoiseTableau, *, redraws: bool = False) -> None:
        self.tableau, self.redraws = tableau, redraws
        self.adaptive = tableau.error is not None
        self.nfe_per_step = tableau.stages
        self.strong_order, self.weak_order = tableau.strong_order, tableau.weak_order

    def in_coordinates(self, view: AffineView) -> ReverseCoordinates:
        """Those of the SDE.

        Raises:
            ValueError: If a scheme that needs martingales is used where scores are none.
        """
        coordinates = ReverseCoordinates(view.coordinates, Eta(view.problem.eta))
        if self.tableau.before and view.problem.eta != 1:
            raise ValueError(
                f"eta = {view.problem.eta:g}; the scheme rests on slopes being martingales: it "
                "needs eta = 1"
            )
        return coordinates

    def noisy_plan(self, coordinates: Coordinates, grid: Points, view: AffineView) -> Plan:
        """Write down the steps of a grid."""
        assert isinstance(coordinates, ReverseCoordinates)
        tableau, count = self.tableau, len(grid.sigma) - 1
        time = coordinates.noise_time(grid.sigma)
        start, step = time[:-1], np.diff(time)  # negative where the clock is σ²
        # Round-off must not carry a stage off its step.
        levels = [
            np.clip(coordinates.sigma_at(start + c * step), grid.sigma[1:], grid.sigma[:-1])
            for c in tableau.c
        ]
        inner = [
            grid.sigma[:-1] if c == 0 else grid.sigma[1:] if c == 1 else level
            for c, level in zip(tableau.c, levels, strict=True)
        ]
        sigma = np.concatenate([grid.sigma[:-1], *inner, grid.sigma[1:]])
        points = coordinates.at(sigma)
        rate = (coordinates.clock_rate(sigma) / coordinates.time_rate(sigma)).reshape(-1, count)
        clock, size = coordinates.noise_clock, coordinates.noise_size
        ends = np.sort(np.stack([start, time[1:]], axis=1), axis=1).tolist()
        draws = [Draw(kind, a, b, clock) for a, b in ends for kind in ("increment", "area")]
        # Seen backward, the path has the same increments if its sign is changed, and then -H for H.
        area = size * np.sign(step)
        steps: list[tuple[int | None, list[Line]]] = []
        for n in range(count):
            place = [(i + 1) * count + n for i in range(tableau.stages)]
            weight = [step[n] * rate[i + 1, n] for i in range(tableau.stages)]
            lines = []
            for i, row in enumerate(tableau.a):
                weights = {place[j]: a * weight[j] for j, a in enumerate(row) if a}
                if i == 0 and n and tableau.before:
                    last = place[-1] - 1
                    weights[last] = tableau.before * step[n] * rate[-2, n - 1]
                noise = {2 * n: size * tableau.p[i], 2 * n + 1: area[n] * tableau.q[i]}
                noise = {k: value for k, value in noise.items() if value}
                if i == 0 and not (noise or weights or tableau.c[0]):
                    continue  # the first slope is that of the state itself
                lines.append(Line(n, place[i], weights, accept=False, evaluate=True, noise=noise))
            first = None if len(lines) == tableau.stages else place[0]
            weights = {e: b * w for e, b, w in zip(place, tableau.b, weight, strict=True) if b}
            end = (tableau.stages + 1) * count + n
            lines.append(Line(n, end, weights, accept=True, evaluate=False, noise={2 * n: size}))
            steps.append((first, lines))
        return Plan(points, steps, draws)
