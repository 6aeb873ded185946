"""Grids fitted to a model: steps where the flow is hard, from one accurate pilot solve.

In `Preconditioned` coordinates the flow is ``du/dθ = −F(u, θ)``, and a scheme of order ``p`` makes in a
step ``Δθ`` an error of about ``Δθ^(p+1) |F⁽ᵖ⁾|``, the derivative taken along the trajectory. All steps
make the same error if their density in ``θ`` is proportional to ``|F⁽ᵖ⁾|^(1/(p+1))``: the error is
equidistributed (de Boor 1973; Ascher, Mattheij & Russell 1995, ch. 9). Where steps are few no
single power law holds, and the pilot batch itself is the judge among several such densities.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .affine import AffineSDE
from .denoisers import known_sigma_data, trained_range
from .fitted import FittedGrid, phi_of
from .grids import balanced_share, power_theta
from .inputs import check_state, default_method, named_solver
from .preconditioned import Preconditioned
from .sampling import solve
from .sde import ProbabilityFlow, check_output
from .solution import Solution, SolveError
from .solvers.registry import Solver
from .solvers.rk import RungeKutta
from .solvers.tableaus import RK4
from .spacing import with_ends

Array = NDArray[np.float64]

# Width of the smoothing and number of the table's cells, in the range of arctan sqrt(σ/σ_d).
_SMOOTHING = 0.03
_CELLS = 256
# Of a density that is not judged on the pilot; the rest is uniform in arctan sqrt(σ/σ_d), so that
# no gap opens where the pilot saw nothing to resolve.
_FITTED_SHARE = 0.9
# Orders and shares of the fitted density, in one with that of the balanced grid, that are judged.
_CANDIDATES = ((3, 0.0), (2, 0.4), (2, 0.8), (3, 0.4), (3, 0.8), (5, 0.4), (5, 0.8))
_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Pilot:
    """A pilot batch, solved: what the model's flow is like, for grids to be fitted to it.

    Attributes:
        problem: The flow.
        start: States of the process at the first level, ``(B, *event)``, float64.
        levels: Noise levels of the dense grid, decreasing.
        slopes: ``F`` at the levels.
        sigma_data: Standard deviation of the data.
        seed: Seed of the start; ``None`` if it was given.
        nfe: Network evaluations per sample.
    """

    problem: ProbabilityFlow
    start: Tensor = field(repr=False)
    levels: Array = field(repr=False)
    slopes: list[Tensor] = field(repr=False)
    sigma_data: float
    seed: int | None
    nfe: int

    def equidistributed(self, order: int = 3) -> FittedGrid:
        """Return the grid that equidistributes the ``order``-th derivative of ``F``, for any steps.

        With ``m(θ)`` the root-mean-square, over samples and components, of the derivative of ``F``
        with respect to ``θ``, the density of steps in ``θ`` is ``m^(1/(order + 1))``, smoothed over 3 %
        of the range of ``arctan sqrt(σ/σ_d)``; 10 % of it is then made uniform in that variable.

        Raises:
            ValueError: If ``order < 1`` or the pilot has too few points for it.
        """
        levels, fitted = self._table(order)
        uniform = np.linspace(0.0, 1.0, len(levels))
        return self._grid(order, _FITTED_SHARE, levels, fitted, uniform)

    def best(self, n: int, method: str | Solver | None = None) -> FittedGrid:
        """Return the best of several grids of ``n`` steps, judged by a method's error on the pilot.

        They mix the densities of derivatives of order 2, 3 and 5 with that of the balanced grid. The
        pilot is solved once more, to 1e-8, and by the method on each grid.

        Raises:
            ValueError: If ``n < 1`` or the method is unknown.
            SolveError: If the accurate solve fails.
        """
        if method is None:
            method = default_method(flow=True, affine=True, adaptive=False)
        solver = named_solver(method)
        coordinates = solver.coordinates.bind(_process(self.problem), self.sigma_data)
        solver = replace(solver, coordinates=coordinates)
        grids = self.candidates(n)
        best = grids[int(np.argmin([self._error(solver, grid, n) for grid in grids]))]
        spent = self._accurate.nfe + len(grids) * n * solver.scheme.nfe_per_step
        return replace(best, nfe=self.nfe + spent)

    @cached_property
    def _accurate(self) -> Solution:
        method = default_method(flow=True, affine=True, adaptive=True)
        ends = self.levels[[0, -1]]
        return solve(
            self.problem,
            self.start,
            method=method,
            sigmas=ends,
            rtol=_TOLERANCE,
            sigma_data=self.sigma_data,
        )

    def candidates(self, n: int) -> list[FittedGrid]:
        """Return the grids of ``n`` steps that `best` judges."""
        levels, _ = self._tables[_CANDIDATES[0][0]]
        high, low = levels[0], levels[-1]
        balanced = balanced_share(levels, n, high, low, sigma_data=self.sigma_data)
        points = power_theta(512, high, low, p=0.75, sigma_data=self.sigma_data)
        wide = np.interp(-levels, -points, np.linspace(0.0, 1.0, len(points)))
        rests = [(order, share, balanced) for order, share in _CANDIDATES]
        return [
            self._grid(order, share, levels, self._tables[order][1], rest)
            for order, share, rest in (*rests, (_CANDIDATES[0][0], 0.0, wide))
        ]

    @cached_property
    def _tables(self) -> dict[int, tuple[Array, Array]]:
        """Tables of the candidates' orders, the same for every number of steps."""
        return {order: self._table(order) for order in {order for order, _ in _CANDIDATES}}

    def _error(self, solver: Solver, grid: FittedGrid, n: int) -> float:
        sigmas = grid(n, self.levels[0], self.levels[-1])
        try:
            own = replace(solver, grid=grid)  # so that no scale is asked for
            x = solve(self.problem, self.start, method=own, sigmas=sigmas).x
        except SolveError:
            return math.inf
        return float((x - self._accurate.x).square().mean())

    def _grid(
        self, order: int, share: float, levels: Array, fitted: Array, rest: Array
    ) -> FittedGrid:
        cumulative = share * fitted + (1 - share) * rest
        if not (np.diff(cumulative) > 0).all():  # a mixture may have no steps at the top
            cumulative = 0.99 * cumulative + 0.01 * np.linspace(0.0, 1.0, len(levels))
        cumulative[0], cumulative[-1] = 0.0, 1.0
        return FittedGrid(
            order=order,
            share=share,
            sigma_data=self.sigma_data,
            samples=len(self.start),
            seed=self.seed,
            nfe=self.nfe,
            levels=tuple(levels.tolist()),
            cumulative=tuple(cumulative.tolist()),
        )

    def _table(self, order: int) -> tuple[Array, Array]:
        """Tabulate the share of steps made above noise levels by the fitted density."""
        if order < 1:
            raise ValueError(f"order = {order}; it must be at least 1")
        if len(self.levels) < order + 4:
            raise ValueError(
                f"points = {len(self.levels)}; order {order} needs at least {order + 4}"
            )
        theta = np.arctan(self.levels / self.sigma_data)
        density = _derivative_rms(theta, self.slopes, order) ** (1 / (order + 1))
        knots = phi_of(self.levels, self.sigma_data)
        phi = np.linspace(knots[0], knots[-1], _CELLS + 1)
        # dθ/dφ, from tan θ = tan² φ
        density = density * np.sin(2 * knots) / (1 - 0.5 * np.sin(2 * knots) ** 2)
        fine = np.interp(-phi, -knots, density)
        distance = (phi[:, None] - phi) / (_SMOOTHING * (phi[0] - phi[-1]))
        kernel = np.exp(-0.5 * distance**2)
        fine = kernel @ fine / kernel.sum(1)
        cumulative = np.concatenate([[0.0], np.cumsum(fine[1:] + fine[:-1])])
        # Where F is linear in θ for all samples every grid is as good; the pilot then has no say.
        uniform = np.linspace(0.0, 1.0, _CELLS + 1)
        fitted = cumulative / cumulative[-1] if cumulative[-1] > 0 else uniform
        levels = self.sigma_data * np.tan(phi) ** 2
        return with_ends(levels, self.levels[0], self.levels[-1]), fitted


@torch.no_grad()
def run_pilot(
    problem: ProbabilityFlow,
    *,
    samples: int = 64,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    sigma_data: float | None = None,
    points: int = 60,
    device: torch.device | str | None = None,
) -> Pilot:
    """Solve a pilot batch in float64, by classical Runge–Kutta on a dense grid.

    The dense grid is uniform in ``arctan sqrt(σ/σ_d)``, in `Preconditioned` coordinates.

    Args:
        problem: ``process.probability_flow(denoiser)`` of an affine process.
        samples: Size of the pilot batch, if ``x`` is not given.
        seed: Seed of its start.
        shape: Shape of one sample, ``event``, if ``x`` is not given.
        x: Start of the pilot instead, ``(B, *event)``: state of the process at ``sigma_max``.
        sigma_max: Highest noise level; by default the process's, or the denoiser's if it is lower.
        sigma_min: Lowest noise level; by default the process's, or the denoiser's if it is higher.
        sigma_data: Standard deviation of the data; by default the denoiser's attribute.
        points: Number of points of the dense grid, which takes ``5 points − 4`` evaluations. More
            resolve sharper features, and amplify the round-off of a model in low precision.
        device: Device of the pilot batch, if ``x`` is not given.

    Raises:
        TypeError: If the problem is not the probability flow of an affine process, or not one of
            ``x`` and ``shape`` is given.
        ValueError: If a number is out of its range, ``sigma_data`` is not known, or the denoiser
            returns a value that is not finite.
        SolveError: If the pilot fails.
    """
    process = _process(problem)
    if (x is None) == (shape is None):
        raise TypeError("give either x, a start state, or shape, that of one sample")
    sigma_data = known_sigma_data(problem.model) if sigma_data is None else float(sigma_data)
    if sigma_data is None:
        raise ValueError(
            "sigma_data is not known: the denoiser has no such attribute; pass the standard "
            "deviation of the data (a rough value will do)"
        )
    highest, lowest = trained_range(problem.model)
    sigma_max = min(process.sigma_max, highest) if sigma_max is None else sigma_max
    sigma_min = max(process.sigma_min, lowest) if sigma_min is None else sigma_min
    sigmas = power_theta(points - 1, sigma_max, sigma_min, sigma_data=sigma_data)
    given = x is not None
    if x is None:
        assert shape is not None
        x = _start(process, sigma_max, (samples, *shape), seed).to(device)
    check_state(x)
    x = x.double()
    slopes, nfe = _slopes(problem, x, sigmas, sigma_data)
    finite = [bool(torch.isfinite(slope).all()) for slope in slopes]
    if not all(finite):
        raise ValueError(
            f"the denoiser returned a value that is not finite near sigma = "
            f"{sigmas[finite.index(False)]:g}"
        )
    seen = None if given else seed
    return Pilot(problem, x, sigmas, slopes, sigma_data, seen, nfe)


def equidistribute(
    problem: ProbabilityFlow,
    n: int | None = None,
    *,
    method: str | Solver | None = None,
    order: int = 3,
    samples: int = 64,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    sigma_data: float | None = None,
    device: torch.device | str | None = None,
) -> FittedGrid:
    """Fit a grid to a model by a pilot run, so that steps make equal errors.

    With ``n`` the grid is the best of several of so many steps on the pilot (`Pilot.best`); without,
    it equidistributes one derivative, for any number of steps (`Pilot.equidistributed`).

    Args:
        problem: ``process.probability_flow(denoiser)`` of an affine process.
        n: Number of steps.
        method: Method that is to use the grid, with ``n``; the default one if not given.
        order: Order of the derivative, without ``n``.
        samples: As of `run_pilot`, like what follows.
        seed: Seed of the pilot's start.
        shape: Shape of one sample.
        x: Start of the pilot, instead.
        sigma_max: Highest noise level.
        sigma_min: Lowest noise level.
        sigma_data: Standard deviation of the data.
        device: Device of the pilot.

    Returns:
        The grid, to be called as any other, given to a `Solver`, or saved.

    Raises:
        TypeError: As `run_pilot` does.
        ValueError: As `run_pilot` does, or for ``n`` or ``order`` less than 1, or an unknown method.
        SolveError: If the pilot fails.
    """
    if n is not None and n < 1:
        raise ValueError(f"n = {n} steps; a grid needs at least one")
    if order < 1:
        raise ValueError(f"order = {order}; it must be at least 1")
    pilot = run_pilot(
        problem,
        samples=samples,
        seed=seed,
        shape=shape,
        x=x,
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        sigma_data=sigma_data,
        device=device,
    )
    return pilot.equidistributed(order) if n is None else pilot.best(n, method)


def _process(problem: ProbabilityFlow) -> AffineSDE:
    if not isinstance(problem, ProbabilityFlow) or not isinstance(problem.sde, AffineSDE):
        raise TypeError(
            f"problem is a {type(problem).__name__}; pass process.probability_flow(denoiser) of an "
            "affine process"
        )
    return problem.sde


def _start(process: AffineSDE, sigma: float, shape: tuple[int, ...], seed: int) -> Tensor:
    """Pure noise at ``σ``, drawn on the host: the same on every device."""
    std = float(process.on_host("std", process.on_host("time", sigma)))
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(shape, generator=generator, dtype=torch.float64)


def _slopes(
    problem: ProbabilityFlow, x: Tensor, sigmas: Array, sigma_data: float
) -> tuple[list[Tensor], int]:
    """Solve the flow; return ``F`` at every level, and the evaluations per sample.

    ``F = D/(σ_d sin θ) − u cot θ``, which is regular at ``σ = ∞``, ``θ = π/2``.
    """
    process = problem.sde
    assert isinstance(process, AffineSDE)
    coordinates = Preconditioned(sigma_data)
    grid = functools.partial(power_theta, sigma_data=sigma_data)
    solver = Solver(RungeKutta(RK4), coordinates, grid)
    solution = solve(problem, x, method=solver, sigmas=sigmas, trajectory=True)
    assert solution.trajectory is not None
    t = process.on_host("time", sigmas)
    s, n = process.on_host("scale", t), process.on_host("std", t)
    # Where the signal is gone the state is n ε, and a denoiser is handed ε = u.
    scale, h = np.where(s == 0, n, s), np.where(s == 0, 1.0, np.hypot(sigmas, sigma_data))
    theta = np.arctan(sigmas / sigma_data)
    slopes = []
    for i, state in enumerate(solution.trajectory):
        x_hat = state / float(scale[i])
        level = torch.as_tensor(sigmas[i], dtype=x.dtype, device=x.device)
        denoised = check_output(problem.model(x_hat, level), x_hat, "denoiser")
        slope = denoised / (sigma_data * math.sin(theta[i])) - x_hat / (h[i] * math.tan(theta[i]))
        slopes.append(slope)
    return slopes, solution.nfe + len(sigmas)


def _derivative_rms(theta: Array, values: list[Tensor], order: int) -> Array:
    """RMS of the ``order``-th derivative along a batch of curves, at their points.

    Each derivative is that of a polynomial of degree ``order + 2`` fitted by least squares to the
    ``order + 4`` nearest points: of second order in their distance or better, and little affected by
    round-off as the density takes the root of degree ``order + 1``.
    """
    width = order + 4
    squares = []
    for i in range(len(theta)):
        first = min(max(i - width // 2, 0), len(theta) - width)
        offset = theta[first : first + width] - theta[i]
        reach = np.abs(offset).max()
        powers = np.vander(offset / reach, order + 3, increasing=True)
        weights = np.linalg.pinv(powers)[order] * (math.factorial(order) / reach**order)
        derivative = torch.zeros_like(values[i])
        for weight, value in zip(weights, values[first : first + width], strict=True):
            derivative.add_(value, alpha=float(weight))
        squares.append(derivative.square().mean())
    mean_squares: Array = torch.stack(squares).numpy(force=True)
    return np.sqrt(mean_squares)
