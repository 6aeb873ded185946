"""Multistep schemes whose coefficients were fitted to a model, for one grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..coordinates import Coordinates, Points
from .linear import Draw, Line, LinearScheme, Plan
from .noisy import NoisyScheme
from .scheme import Array
from .view import AffineView


@dataclass(frozen=True)
class Coefficients:
    """What a calibrated solver is made of, in coordinates ``(u, θ)``, ``du/dθ = N``.

    Step ``i`` is ``u_{i+1} = a_i u_i + Σ_{j ≤ i} b_ij N_j``, with ``N_j`` evaluated at ``u_j`` by a
    network that is told the noise level ``told[j]``.

    Attributes:
        sigmas: Noise levels of the grid, decreasing, ``(n + 1,)``.
        told: What the network is told to be the levels of the first ``n``, ``(n,)``.
        keep: ``a_i``, ``(n,)``, or ``(n, d)`` with one for each direction.
        weights: ``b_ij``, arrays ``(i + 1,)``, or ``(i + 1, d)`` with one for each direction.
        noise: Standard deviation of the noise that a step adds to ``u``, ``(n,)`` or ``(n, d)``;
            ``None`` for a solver of the flow.
        stage: Where slopes are evaluated, if not at ``u_i``: at ``p_i u_i + q_i N_{i−1} + r_i ξ_i``,
            ``ξ_i`` the normal numbers of the step's own noise; ``(p_i, q_i, r_i)``, ``(n, 3)`` or
            ``(n, 3, d)``. It needs noise.

    Raises:
        ValueError: If the sizes disagree, a number is not finite, or the levels do not decrease.
    """

    sigmas: Array
    told: Array
    keep: Array
    weights: tuple[Array, ...]
    noise: Array | None = None
    stage: Array | None = None

    def __post_init__(self) -> None:
        for name in ("sigmas", "told", "keep"):
            object.__setattr__(self, name, np.array(getattr(self, name), dtype=np.float64))
        weights = tuple(np.array(row, dtype=np.float64) for row in self.weights)
        object.__setattr__(self, "weights", weights)
        n = len(self.weights)
        sizes = (self.sigmas.shape, self.told.shape, self.keep.shape[:1])
        if n < 1 or sizes != ((n + 1,), (n,), (n,)):
            raise ValueError(
                f"sigmas, told and keep have lengths {sizes}; {n} rows of weights need "
                f"{((n + 1,), (n,), (n,))}"
            )
        if any(row.ndim not in (1, 2) or len(row) != i + 1 for i, row in enumerate(weights)):
            raise ValueError("row i of weights must have i + 1 entries, or i + 1 rows of d")
        if self.noise is not None:
            object.__setattr__(self, "noise", np.array(self.noise, dtype=np.float64))
            if len(self.noise) != n or not (self.noise >= 0).all():
                raise ValueError(
                    f"noise must be {n} standard deviations, or rows of them, from 0 on"
                )
        numbers = [self.sigmas, self.told, self.keep, *weights]
        if self.noise is not None:
            numbers.append(self.noise)
        if self.stage is not None:
            object.__setattr__(self, "stage", np.array(self.stage, dtype=np.float64))
            if self.stage.shape[:2] != (n, 3) or self.noise is None:
                raise ValueError(f"stage must be {n} rows of three numbers, and needs noise")
            numbers.append(self.stage)
        if not all(np.isfinite(v).all() for v in numbers):
            raise ValueError("every coefficient must be finite")
        if not (np.diff(self.sigmas) < 0).all() or not min(self.sigmas[-1], *self.told) > 0:
            raise ValueError("sigmas must decrease strictly and end above 0, told must be positive")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.weights)

    @property
    def directions(self) -> int | None:
        """Number of directions, if anything has a number for each.

        Raises:
            ValueError: If two things have them for different numbers.
        """
        rows = [row for row in self.weights if row.ndim == 2]
        rows += [v for v in (self.keep, self.noise) if v is not None and v.ndim == 2]
        rows += [self.stage] if self.stage is not None and self.stage.ndim == 3 else []
        found = {row.shape[-1] for row in rows}
        if len(found) > 1:
            raise ValueError(f"there are numbers for {sorted(found)} directions")
        return found.pop() if found else None


class Calibrated(LinearScheme):
    """``u_{i+1} = a_i u_i + Σ_{j ≤ i} b_ij N_j`` with given coefficients, on their own grid.

    One evaluation per step, all slopes of the past in every step. It has no order: it is made for one
    number of steps.

    Args:
        coefficients: The coefficients.
        event_shape: Shape of the samples they were fitted to.
    """

    affine_only = True

    def __init__(self, coefficients: Coefficients, event_shape: tuple[int, ...]) -> None:
        self.coefficients, self.event_shape = coefficients, event_shape

    def plan(self, coordinates: Coordinates, grid: Points) -> Plan:
        """Write down the steps.

        Raises:
            ValueError: If the grid is not that of the coefficients.
        """
        return _plan(self.coefficients, coordinates, grid)


class CalibratedNoise(NoisyScheme):
    """The same for the reverse SDE of ``η = 1``, with noise of given size after every step.

    Args:
        coefficients: The coefficients, with noise.
        event_shape: Shape of the samples they were fitted to.
    """

    def __init__(self, coefficients: Coefficients, event_shape: tuple[int, ...]) -> None:
        assert coefficients.noise is not None
        self.coefficients, self.event_shape = coefficients, event_shape

    def noisy_plan(self, coordinates: Coordinates, grid: Points, view: AffineView) -> Plan:
        """Write down the steps.

        Raises:
            ValueError: If the grid is not that of the coefficients, or the problem has another ``η``
                than 1.
        """
        if view.problem.eta != 1:
            raise ValueError(
                f"eta = {view.problem.eta:g}, but the solver was calibrated for the reverse SDE of eta "
                "= 1"
            )
        return _plan(self.coefficients, coordinates, grid)


def _plan(own: Coefficients, coordinates: Coordinates, grid: Points) -> Plan:
    check_levels(grid.sigma, own.sigmas)
    # Slopes belong to the level that the network is told; states to that of the grid.
    told = coordinates.at(own.told)
    points = Points(*(np.concatenate(pair) for pair in zip(grid, told, strict=True)))
    offset = own.steps + 1
    steps: list[tuple[int | None, list[Line]]] = []
    draws = []
    variance = own.sigmas**2
    for n, weights in enumerate(own.weights):
        line = Line(
            n,
            n + 1,
            {offset + j: weight for j, weight in enumerate(weights)},
            accept=True,
            evaluate=False,
            keep=own.keep[n],
        )
        lines = [line]
        if own.noise is not None:  # the increment over Δσ² has that variance
            std = np.sqrt(variance[n] - variance[n + 1])
            lines = [line._replace(noise={n: own.noise[n] / std})]
            draws.append(Draw("increment", float(variance[n + 1]), float(variance[n])))
        if own.stage is not None:
            factor, before, size = own.stage[n]
            stage = Line(
                n,
                offset + n,
                {offset + n - 1: before} if n else {},
                accept=False,
                evaluate=True,
                noise={n: size / std},
                keep=factor,
            )
            lines.insert(0, stage)
        steps.append((offset + n if own.stage is None else None, lines))
    return Plan(points, steps, draws)


def check_levels(given: Array, own: Array) -> None:
    """Refuse a grid that is not the one which coefficients were fitted for."""
    if given.shape != own.shape:
        raise ValueError(
            f"the solver was calibrated for {len(own) - 1} steps from sigma = {own[0]:g} to "
            f"{own[-1]:g}, and {len(given) - 1} are asked for; give steps={len(own) - 1} (one more "
            "with an ending at sigma = 0), or calibrate again"
        )
    if not np.allclose(given, own, rtol=1e-6, atol=0):
        first = int(np.argmax(~np.isclose(given, own, rtol=1e-6, atol=0)))
        raise ValueError(
            f"the solver was calibrated for its own noise levels, {own[first]:g} at step {first}, "
            f"where {given[first]:g} is asked for; leave the grid to the solver, or give "
            "sigmas=solver.sigmas"
        )
