"""The scale of the data, ``σ_d``: what coordinates and grids need to know, and where it comes from."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace

import torch
from torch import Tensor

from .affine import AffineSDE
from .denoisers import known_sigma_data
from .grids import Grid
from .sde import check_output
from .solvers.registry import Solver
from .solvers.view import Problem

# Noise level of the pilot call where nothing is known, in units in which data are of order one.
_PILOT_SIGMA = 1.0


def needs_scale(grid: Grid) -> bool:
    """Whether a grid has a keyword ``sigma_data`` that is not filled in."""
    if isinstance(grid, functools.partial) and "sigma_data" in grid.keywords:
        return False
    return "sigma_data" in inspect.signature(grid).parameters


def fit_solver(
    solver: Solver,
    problem: Problem,
    x: Tensor,
    sigma: float | None,
    sigma_data: float | None,
    *,
    free: bool = False,
) -> tuple[Solver, int]:
    """Fill the scale of the data into a solver's coordinates and grid.

    It is the one given; else what the denoiser says in its attribute ``sigma_data``; else it is read
    off the start state, or estimated by one call of the denoiser.

    Args:
        solver: A composed solver.
        problem: The problem.
        x: Start state, ``(B, *event)``.
        sigma: Its noise level; the process's largest if not known yet.
        sigma_data: The scale, if the user says it.
        free: Whether no call may be spent: an unknown scale is then taken to be that of the start
            state at least, or 1/2 (Karras et al. 2022, for images in [−1, 1]).

    Returns:
        The solver, and the number of calls.

    Raises:
        ValueError: If ``sigma_data`` is not positive and finite.
    """
    if sigma_data is not None and not 0 < sigma_data < float("inf"):
        raise ValueError(f"sigma_data = {sigma_data}; it must be positive and finite")
    process = problem.sde
    grid_needs = needs_scale(solver.grid)
    if not isinstance(process, AffineSDE) or not (
        grid_needs or solver.coordinates.needs_sigma_data
    ):
        return solver, 0
    calls = 0
    value = sigma_data if sigma_data is not None else known_sigma_data(problem.model)
    if value is None:
        value, calls = _estimate(problem, process, x, sigma or process.sigma_max, free=free)
    grid = solver.grid
    if grid_needs:
        grid = functools.partial(grid, sigma_data=value)  # type: ignore[call-arg]  # see needs_scale
    coordinates = solver.coordinates.bind(process, value)
    return replace(solver, coordinates=coordinates, grid=grid), calls


@torch.no_grad()
def _estimate(
    problem: Problem, process: AffineSDE, x: Tensor, sigma: float, *, free: bool
) -> tuple[float, int]:
    """Estimate the standard deviation of the data from a state at ``σ``; return it and the calls.

    A state has variance ``σ_d² + σ²``, which tells where noise does not drown the data. Else, for
    the pilot state ``x̂ = σ' ε`` at a moderate ``σ'``, the slope of ``D`` over ``x̂`` is
    ``σ_d²/(σ_d² + σ'²)`` for Gaussian data, in the mean over directions.
    """
    scale = float(process.on_host("scale", process.on_host("time", sigma)))
    if scale > 0:
        variance = float(x.double().var()) / scale**2
        if variance > 2 * sigma**2:
            return (variance - sigma**2) ** 0.5, 0
    if free:
        return 0.5, 0
    epsilon = x / x.square().mean().sqrt()
    x_hat = _PILOT_SIGMA * epsilon
    denoised = check_output(
        problem.model(x_hat, x.new_tensor(_PILOT_SIGMA)), x_hat, "denoiser"
    ).double()
    centred, denoised = x_hat.double(), denoised
    if len(x) > 1:  # else the mean of the data cannot be told apart
        centred, denoised = centred - centred.mean(0), denoised - denoised.mean(0)
    slope = float((centred * denoised).sum() / centred.square().sum())
    slope = min(max(slope, 1e-3), 1 - 1e-3)
    return _PILOT_SIGMA * (slope / (1 - slope)) ** 0.5, 1
