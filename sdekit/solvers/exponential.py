"""Exponential Runge–Kutta schemes: the linear part of the flow is exact, through φ-functions.

In ``λ = −log σ`` the flow is ``dx̂/dλ = −x̂ + D``, and ``d(x̂/σ)/dλ = x̂/σ − ε̂``. Over a step from ``s`` to
``t``, ``h = λ_t − λ_s``, polynomials in ``λ`` are integrated by φ-functions of ``−h``, or of ``h``:

    x̂_t/σ_t = x̂_s/σ_s + h/σ_t Σ_j b_j(−h) D_j        in `LogData`,
    x̂_t = x̂_s − h σ_t Σ_j b_j(h) ε̂_j                 in `LogNoise`.

A tableau serves both, so that DPM-Solver and DPM-Solver++ differ in their coordinates only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..coordinates import Coordinates, Points
from .control import Controller
from .linear import Line, LinearScheme, Plan
from .rk import Formulas, OneStep
from .scheme import Array

# A sum of terms (coefficient, k, c), each coefficient · φ_k(c z).
Combination: TypeAlias = tuple[tuple[float, int, float], ...]

_PROBES = np.array([-10.0, -1.0, 0.0, 1.0, 10.0])  # where rows of tableaus are checked


def phi(k: int, z: Array) -> Array:
    """Return ``φ_k(z) = ∫₀¹ e^((1−s)z) s^(k−1)/(k−1)! ds``, ``φ_0 = e^z``, to a few units of round-off.

    ``φ_{k+1} = (φ_k − 1/k!)/z`` cancels near 0, where sums of positive terms are taken instead:
    ``Σ_n z^n/(n + k)!`` for ``z > 0``, and its Kummer transform ``e^z Σ_n |z|^n/(n! (n + k) (k − 1)!)``
    for ``z < 0``.

    Raises:
        ValueError: If ``k`` is negative.
    """
    if k < 0:
        raise ValueError(f"k = {k}; φ_k is defined for k >= 0")
    if k == 0:
        return np.exp(z)
    cut = 2 * k + 8  # beyond it the recurrence loses less than a digit
    x = np.minimum(np.abs(z), cut)
    # What is left of the sums after so many terms is below 1e-20 of them.
    count = 24 + 4 * math.ceil(np.max(x, initial=0.0))
    positive, powers = (np.polyval(row[-count:], x) for row in _series(k, 4 * cut + 24))
    series = np.where(z > 0, positive, np.exp(-x) * powers)
    far = np.where(np.abs(z) > cut, z, cut)
    value = np.expm1(far) / far
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / far
    return np.where(np.abs(z) > cut, value, series)


@functools.cache
def _series(k: int, count: int) -> tuple[Array, Array]:
    """Return coefficients of the two sums of `phi`, the highest powers first."""
    terms = range(count)[::-1]
    positive = [1 / math.factorial(n + k) for n in terms]
    powers = [1 / (math.factorial(n) * (n + k) * math.factorial(k - 1)) for n in terms]
    return np.array(positive), np.array(powers)


def _evaluate(combination: Combination, z: Array) -> Array:
    """Return ``Σ coefficient · φ_k(c z)``."""
    total = np.zeros_like(z)
    for coefficient, k, c in combination:
        total = total + coefficient * phi(k, c * z)
    return total


@dataclass(frozen=True)
class ExponentialTableau:
    """An explicit exponential Runge–Kutta tableau, checked when it is made.

    Attributes:
        c: Stage times in units of the step, one per stage, the first 0, the others in (0, 1].
        a: Rows ``a_ij(z)`` below the diagonal, one fewer than stages.
        b: Weights ``b_j(z)``.
        order: Order.

    Raises:
        ValueError: If shapes or stage times are wrong, or ``Σ_j a_ij(z) = c_i φ_1(c_i z)`` or
            ``Σ_j b_j(z) = φ_1(z)`` fail, with which a constant slope is integrated exactly.
    """

    c: tuple[float, ...]
    a: tuple[tuple[Combination, ...], ...]
    b: tuple[Combination, ...]
    order: int

    def __post_init__(self) -> None:
        stages = len(self.c)
        if [len(row) for row in self.a] != list(range(1, stages)) or len(self.b) != stages:
            raise ValueError(f"a tableau of {stages} stages needs rows of 1 … {stages - 1} entries")
        if self.c[0] != 0 or not all(0 < c <= 1 for c in self.c[1:]):
            raise ValueError(f"c = {self.c}; the first stage is at 0 and the others are in (0, 1]")
        for c, row in self._rows:
            total = sum(_evaluate(entry, _PROBES) for entry in row)
            if not np.allclose(total, c * phi(1, c * _PROBES), rtol=1e-10, atol=0):
                raise ValueError(
                    f"the entries of a row must sum to c φ_1(c z); that of c = {c} fails"
                )

    @property
    def _rows(self) -> list[tuple[float, tuple[Combination, ...]]]:
        return list(zip((*self.c[1:], 1.0), (*self.a, self.b), strict=True))

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.c)

    def weights(self, z: Array, clocks: Sequence[Array]) -> list[dict[int, Array]]:
        """Weights of the slopes in every stage but the first, and in the result.

        They are the shares ``a_ij(z)/(c_i φ_1(c_i z))`` of what the clock advances: they add up to it,
        and one slope alone has all of it, to the last bit.

        Args:
            z: Argument of the φ-functions, an array over steps.
            clocks: What the clock advances from the start to each stage and to the end.
        """
        return [
            {
                j: clock * (_evaluate(entry, z) / (c * phi(1, c * z)))
                for j, entry in enumerate(row)
                if entry
            }
            for (c, row), clock in zip(self._rows, clocks, strict=True)
        ]


def _completed(c: float, *entries: Combination) -> tuple[Combination, ...]:
    """Return a row whose first entry is what the others leave of ``c φ_1(c z)``."""
    used = [(-coefficient, k, at) for entry in entries for coefficient, k, at in entry]
    return (((c, 1, c), *used), *entries)


def _check_inside(**times: float) -> None:
    for name, time in times.items():
        if not 0 < time <= 1:
            raise ValueError(f"{name} = {time}; stages lie inside the step: 0 < {name} <= 1")


def dpm_solver_1() -> ExponentialTableau:
    """Return DPM-Solver-1 and DPM-Solver++(1), which are DDIM: order 1.

    Source: Lu et al. 2022a, eq. 3.7.
    """
    return ExponentialTableau((0.0,), (), _completed(1.0), order=1)


def dpm_solver_2(r: float = 1 / 2) -> ExponentialTableau:
    """Return DPM-Solver-2, and DPM-Solver++(2S), with a stage at ``r``: order 2.

    With ``r = 1/2`` only the slope at the stage counts, and in `LogNoise` it is the dpm_2 of
    k-diffusion. The type "taylor" of the authors' code, with ``φ_2`` for ``φ_1/2``, is `res_2s`.

    Source: Lu et al. 2022a, alg. 1; Lu et al. 2022b, alg. 1.

    Raises:
        ValueError: If ``r`` is not in (0, 1].
    """
    _check_inside(r=r)
    b = _completed(1.0, ((1 / (2 * r), 1, 1.0),))
    return ExponentialTableau((0.0, r), (_completed(r),), b, order=2)


def dpm_solver_3(r1: float = 1 / 3, r2: float = 2 / 3) -> ExponentialTableau:
    """Return DPM-Solver-3, and DPM-Solver++(3S), with stages at ``r1`` and ``r2``.

    Its order is 3 if ``r2 = 2/3``, else 2: with ``b_3 = φ_2/r2`` parabolas are integrated by
    ``r2 φ_2/2``, which is ``φ_3(0) = 1/6`` for ``r2 = 2/3`` only.

    Source: Lu et al. 2022a, alg. 2; the authors' code for data.

    Raises:
        ValueError: If ``r1`` or ``r2`` is not in (0, 1].
    """
    _check_inside(r1=r1, r2=r2)
    a = (_completed(r1), _completed(r2, ((r2**2 / r1, 2, r2),)))
    b = _completed(1.0, (), ((1 / r2, 2, 1.0),))
    return ExponentialTableau((0.0, r1, r2), a, b, order=3 if math.isclose(r2, 2 / 3) else 2)


def res_2s(c2: float = 1 / 2) -> ExponentialTableau:
    """Return the refined exponential solver of two stages: order 2, whatever the linear part.

    Source: Hochbruck & Ostermann 2005, section 5; Zhang et al. 2023.

    Raises:
        ValueError: If ``c2`` is not in (0, 1].
    """
    _check_inside(c2=c2)
    b = _completed(1.0, ((1 / c2, 2, 1.0),))
    return ExponentialTableau((0.0, c2), (_completed(c2),), b, order=2)


def res_3s(c2: float = 1 / 2, c3: float = 1.0) -> ExponentialTableau:
    """Return the refined exponential solver of three stages: order 3.

    ``γ = (3 c3² − 2 c3)/(c2 (2 − 3 c2))``, ``b_3 = φ_2/(γ c2 + c3)``, ``b_2 = γ b_3`` and
    ``a_32 = γ c2 φ_2(c2 z) + (c3²/c2) φ_2(c3 z)``.

    Source: Hochbruck & Ostermann 2005, section 5; Zhang et al. 2023. Some code has ``c3³`` for ``c3²``,
    and so order 2 unless ``c3 = 1``.

    Raises:
        ValueError: If ``c2`` or ``c3`` is not in (0, 1], ``c2`` is 2/3, or they are equal.
    """
    _check_inside(c2=c2, c3=c3)
    if math.isclose(c2, 2 / 3) or math.isclose(c2, c3):
        raise ValueError(f"c2 = {c2}, c3 = {c3}; γ needs c2 ≠ 2/3 and c2 ≠ c3")
    gamma = (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))
    share = 1 / (gamma * c2 + c3)
    a = (_completed(c2), _completed(c3, ((gamma * c2, 2, c2), (c3**2 / c2, 2, c3))))
    b = _completed(1.0, ((gamma * share, 2, 1.0),), ((share, 2, 1.0),))
    return ExponentialTableau((0.0, c2, c3), a, b, order=3)


def etd_rk4() -> ExponentialTableau:
    """Return Krogstad's exponential Runge–Kutta method of four stages: order 4.

    Source: Krogstad 2005, eq. 51.
    """
    a = (
        _completed(0.5),
        _completed(0.5, ((1.0, 2, 0.5),)),
        _completed(1.0, (), ((2.0, 2, 1.0),)),
    )
    middle = ((2.0, 2, 1.0), (-4.0, 3, 1.0))
    b = _completed(1.0, middle, middle, ((-1.0, 2, 1.0), (4.0, 3, 1.0)))
    return ExponentialTableau((0.0, 0.5, 0.5, 1.0), a, b, order=4)


def _rate(coordinates: Coordinates) -> float:
    """``z/h``: the rate of the linear part."""
    if coordinates.growth is None:
        raise ValueError(
            "exponential schemes work in LogData() and LogNoise() coordinates, whose clock is an "
            f"exponential of λ, not in {coordinates}"
        )
    return -coordinates.growth


# DPM-Solver adaptive steps as k-diffusion does: Lu et al. 2022a, app. C, with safety 0.9.
_LU = Controller(0.0, 1.0, safety=0.9, shrink=0.1)


class ExponentialRK(OneStep):
    """An exponential Runge–Kutta scheme, in `LogData` or `LogNoise`.

    Args:
        tableau: Its coefficients.
        embedded: A tableau of lower order whose stages are among the first of ``tableau``: the
            difference of the two results estimates the error, so that steps can be adaptive.

    Raises:
        ValueError: If the stages of ``embedded`` are others.
    """

    affine_only = True
    controller = _LU

    def __init__(
        self, tableau: ExponentialTableau, embedded: ExponentialTableau | None = None
    ) -> None:
        self.tableau, self.embedded = tableau, embedded
        self.order = tableau.order
        self.nfe_per_step = tableau.stages
        if embedded is not None:
            n = embedded.stages
            if (embedded.c, embedded.a) != (tableau.c[:n], tableau.a[: n - 1]):
                raise ValueError(
                    "the stages of the embedded tableau must be the first of the other"
                )
            self.adaptive, self.error_order = True, embedded.order

    def formulas(self, coordinates: Coordinates, start: Points, end: Points) -> Formulas:
        """Rows of the tableau.

        Raises:
            ValueError: If the coordinates are others.
        """
        z = _rate(coordinates) * (end.tau - start.tau)
        inner = [
            coordinates.at_tau(start.tau + c * (end.tau - start.tau)) for c in self.tableau.c[1:]
        ]
        clocks = [coordinates.clock(p) - coordinates.clock(start) for p in (*inner, end)]
        rows = self.tableau.weights(z, clocks)
        if self.embedded is None:
            return Formulas([start, *inner], rows)
        lower_clocks = [*clocks[: self.embedded.stages - 1], clocks[-1]]
        lower = self.embedded.weights(z, lower_clocks)[-1]
        error = {j: w - lower.get(j, 0.0) for j, w in rows[-1].items()}
        error |= {j: -w for j, w in lower.items() if j not in error}
        return Formulas([start, *inner], rows, [error])


class DPMSinglestep(LinearScheme):
    """DPM-Solver "singlestep": every interval of the grid is one evaluation.

    Groups of intervals are one step each, of DPM-Solver-3, -2 or -1, whose stages are at the points
    of the grid inside. The last groups are smaller, so as to spend any number of evaluations: 3, …, 3,
    then 2, 1 or 1 or 2; 2, …, 2, then 1 if one is left. States inside a group are those of stages.

    Its order is 2, as DPM-Solver-1 takes one interval; on smooth grids it is 3 for 3, …, 3, 2.

    Source: DPM-Solver-fast (Lu et al. 2022a), as the authors' code groups a grid that is not uniform
    in ``λ``; there it has groups of equal length instead.

    Args:
        order: Intervals of a group, 2 or 3.

    Raises:
        ValueError: If it is another number.
    """

    affine_only = True
    nfe_per_step = 1
    order = 2

    def __init__(self, order: int = 3) -> None:
        if order not in (2, 3):
            raise ValueError(f"order = {order}; it must be 2 or 3")
        self.group = order

    def groups(self, count: int) -> list[int]:
        """Return the sizes of groups of ``count`` intervals."""
        whole, rest = divmod(count, self.group)
        if self.group == 3 and not rest:
            return [3] * (whole - 1) + [2, 1]
        return [self.group] * whole + [rest] * (rest > 0)

    def plan(self, coordinates: Coordinates, grid: Points) -> Plan:
        """Write down the steps of a grid.

        Raises:
            ValueError: If the coordinates are others than `LogData` or `LogNoise`.
        """
        rate, clock = _rate(coordinates), coordinates.clock(grid)
        steps: list[tuple[int, list[Line]]] = []
        for size in self.groups(len(grid.tau) - 1):
            start = len(steps)
            tau = grid.tau[start : start + size + 1] - grid.tau[start]
            inner = (tau[1:-1] / tau[-1]).tolist()
            tableau = (dpm_solver_1, dpm_solver_2, dpm_solver_3)[size - 1](*inner)
            clocks = [clock[n] - clock[start] for n in range(start + 1, start + size + 1)]
            for n, row in enumerate(tableau.weights(rate * tau[-1:], clocks), start=start):
                weights = {start + j: weight[0] for j, weight in row.items()}
                last = n == start + size - 1
                steps.append((n, [Line(start, n + 1, weights, accept=last, evaluate=False)]))
        return Plan(grid, steps)
