"""The teacher of baselines: samples of a flow, solved accurately, at given noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..affine import AffineSDE
from ..denoisers import trained_range
from ..inputs import check_state, check_steps
from ..sampling import solve
from ..sde import ProbabilityFlow, check_output
from ..solution import SolveError

Array = NDArray[np.float64]

_TOLERANCE = 1e-6


class Taught(NamedTuple):
    """Accurate trajectories.

    Attributes:
        levels: Noise levels, decreasing.
        states: States ``x̂`` at the levels, ``(levels, B, *event)``, float64.
        denoised: ``D`` at the states.
    """

    levels: Array
    states: Tensor
    denoised: Tensor


def teach(
    problem: ProbabilityFlow,
    levels: Callable[[float, float], Array],
    *,
    samples: int,
    seed: int,
    shape: tuple[int, ...] | None,
    x: Tensor | None,
    sigma_max: float | None,
    sigma_min: float | None,
    device: torch.device | str | None,
) -> Taught:
    """Solve a batch by the adaptive engine, to 1e-6, and denoise it at every level.

    Args:
        problem: ``process.probability_flow(denoiser)`` of an affine process.
        levels: The levels between the largest and the smallest, decreasing, both included.
        samples: Number of samples, if ``x`` is not given.
        seed: Seed of their starts.
        shape: Shape of one sample, ``event``, if ``x`` is not given.
        x: Starts instead, ``(B, *event)``: states of the process at ``sigma_max``.
        sigma_max: Highest noise level; by default the process's, or the denoiser's if it is lower.
        sigma_min: Lowest noise level; by default the process's, or the denoiser's if it is higher.
        device: Device of the batch, if ``x`` is not given.

    Raises:
        TypeError: If the problem is not the flow of an affine process, or not one of ``x`` and
            ``shape`` is given.
        ValueError: If a number is out of its range.
        SolveError: If the solve does not reach the end.
    """
    if not isinstance(problem, ProbabilityFlow) or not isinstance(problem.sde, AffineSDE):
        raise TypeError(
            f"problem is a {type(problem).__name__}; pass process.probability_flow(denoiser) of an "
            "affine process"
        )
    if (x is None) == (shape is None):
        raise TypeError("give either x, start states, or shape, that of one sample")
    process = problem.sde
    highest, lowest = trained_range(problem.model)
    high = min(process.sigma_max, highest) if sigma_max is None else float(sigma_max)
    low = max(process.sigma_min, lowest) if sigma_min is None else float(sigma_min)
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"sigma_max = {high:g} and sigma_min = {low:g}; 0 < sigma_min < sigma_max < ∞ is needed"
        )
    grid = levels(high, low)
    t = process.on_host("time", grid)
    if x is None:
        assert shape is not None
        generator = torch.Generator().manual_seed(seed)
        event = (check_steps(samples, "samples"), *shape)
        noise = torch.randn(event, generator=generator, dtype=torch.float64)
        x = (noise * float(process.on_host("std", t[0]))).to(device)
    check_state(x)
    with torch.no_grad():
        solution = solve(problem, x.double(), sigmas=grid, rtol=_TOLERANCE, trajectory=True)
        if solution.status != "success":
            raise SolveError(f"the teacher failed: {solution.message}")
        assert solution.trajectory is not None
        scale = torch.as_tensor(process.on_host("scale", t), device=x.device)
        states = solution.trajectory / scale.reshape(-1, *(1,) * x.ndim)
        sigmas = torch.as_tensor(grid, device=x.device)
        denoised = [
            check_output(problem.model(state, sigma), state, "denoiser").double()
            for state, sigma in zip(states, sigmas, strict=True)
        ]
    return Taught(grid, states, torch.stack(denoised))
