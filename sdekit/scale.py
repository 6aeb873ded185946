"""The scale of the data, ``σ_d``: what coordinates and grids need to know, and where it comes from."""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import replace

import torch
from torch import Tensor

from .affine import AffineSDE
from .coordinates import Noise
from .denoisers import known_sigma_data
from .solution import SolveError
from .solvers.registry import Solver
from .solvers.view import AffineView, Problem
from .spacing import Grid

# Noise level of the pilot call where nothing is known, in units in which data are of order one.
_PILOT_SIGMA = 4.0


def needs_scale(grid: Grid) -> bool:
    """Whether a grid has a keyword ``sigma_data`` that is not filled in."""
    if isinstance(grid, functools.partial) and "sigma_data" in grid.keywords:
        return False
    return "sigma_data" in inspect.signature(grid).parameters


def fit_solver(
    solver: Solver,
    problem: Problem,
    x: Tensor,
    sigma_data: float | None,
    *,
    gridded: bool,
    free: bool = False,
) -> tuple[Solver, int]:
    """Fill the scale of the data into a solver's coordinates and grid.

    It is the one given; else what the denoiser says in its attribute ``sigma_data``; else it is
    estimated by one call of the denoiser.

    Args:
        solver: A composed solver.
        problem: The problem.
        x: Start state, ``(B, *event)``.
        sigma_data: The scale, if the user says it.
        gridded: Whether the solver's own grid is going to be used.
        free: Whether no call may be spent: an unknown scale is then taken to be 1/2, that of images
            in [−1, 1] (Karras et al. 2022).

    Returns:
        The solver, and the number of calls.

    Raises:
        TypeError: If ``sigma_data`` is not a number.
        ValueError: If it is not positive and finite.
        SolveError: If the denoiser is not finite where the scale is to be estimated.
    """
    if sigma_data is not None and not isinstance(sigma_data, int | float):
        raise TypeError(f"sigma_data is a {type(sigma_data).__name__}; it must be a number")
    if sigma_data is not None and not 0 < sigma_data < float("inf"):
        raise ValueError(f"sigma_data = {sigma_data}; it must be positive and finite")
    process = problem.sde
    grid_needs = gridded and needs_scale(solver.grid)
    if not isinstance(process, AffineSDE) or not (
        grid_needs or solver.coordinates.needs_sigma_data
    ):
        return solver, 0
    calls = 0
    value = sigma_data if sigma_data is not None else known_sigma_data(problem.model)
    if value is None:
        value, calls = (0.5, 0) if free or not len(x) else (_estimate(problem, x), 1)
    grid = solver.grid
    if grid_needs:
        grid = functools.partial(grid, sigma_data=value)  # type: ignore[call-arg]  # see needs_scale
    coordinates = solver.coordinates.bind(process, value)
    return replace(solver, coordinates=coordinates, grid=grid), calls


@torch.no_grad()
def _estimate(problem: Problem, x: Tensor) -> float:
    """Estimate the standard deviation of the data by one call of the denoiser.

    At the pilot state ``x̂ = σ ε``, for a moderate ``σ``, the slope of ``D`` over ``x̂`` is
    ``σ_d²/(σ_d² + σ²)`` for Gaussian data, in the mean over directions. It is taken from the first
    two samples, which get ``ε`` and ``−ε``, the same in every solve: so it does not depend on how a
    batch is split, but for batches of one, and where conditioning varies over a batch.
    """
    epsilon = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    signs = torch.ones(len(x), *(1,) * (x.ndim - 1)).to(x)
    signs[1::2] = -1
    x_hat = _PILOT_SIGMA * signs * epsilon
    view = AffineView(problem, Noise(), x)
    denoised = view.denoise(x_hat, x.new_tensor(_PILOT_SIGMA))[:2].double()
    # Half the difference of the two is free of the mean of the data; of one alone it is not.
    odd = (denoised[0] - denoised[-1]) / 2 if len(x) > 1 else denoised[0]
    if len(x) == 1 and odd.numel() > 1:
        odd = odd - odd.mean()
    slope = float((x_hat[0].double() * odd).sum() / x_hat[0].double().square().sum())
    if not math.isfinite(slope):
        raise SolveError(
            f"the denoiser is not finite at σ = {_PILOT_SIGMA:g}, where the scale of the data was to "
            "be estimated; give sigma_data="
        )
    slope = min(max(slope, 1e-5), 1 - 1e-3)
    # Two digits, so that the round-off of another batch size makes no other solver.
    return float(f"{_PILOT_SIGMA * (slope / (1 - slope)) ** 0.5:.1e}")
