"""GITS: noise levels by dynamic programming over the steps of a teacher."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from ..grids import karras
from ..inputs import check_steps
from ..sde import ProbabilityFlow
from .teacher import Array, Taught, teach


def gits(
    problem: ProbabilityFlow,
    steps: int,
    *,
    samples: int = 256,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    candidates: int = 100,
    coefficient: float = 1.15,
    device: torch.device | str | None = None,
) -> Array:
    """Choose noise levels for a model by what single Euler steps between them cost.

    The cost ``c_ij`` of a step is the distance, in the mean over samples, of one Euler step in `Noise`
    coordinates (DDIM) from the teacher's state at level ``i`` to the teacher's state at level ``j``. Of
    all paths of so many steps, ``i_0 = 0 < i_1 < … < i_n``, that with the smallest ``Σ_k γ^k c`` is
    taken. Any solver may then use the levels.

    Source: Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling"
    (arXiv:2405.11326), section 4, and its code, whose metric ``l2`` and whose ``γ`` this is.

    Args:
        problem: ``process.probability_flow(denoiser)`` of an affine process.
        steps: Number of steps.
        samples: Number of the teacher's samples, if ``x`` is not given.
        seed: Seed of their starts.
        shape: Shape of one sample, ``event``, if ``x`` is not given.
        x: Starts instead, ``(B, *event)``: states of the process at ``sigma_max``.
        sigma_max: Highest noise level; by default the process's, or the denoiser's if it is lower.
        sigma_min: Lowest noise level; by default the process's, or the denoiser's if it is higher.
        candidates: Number of levels to choose from, on the Karras grid.
        coefficient: Factor ``γ`` by which the cost of each step counts more than that of the one
            before: an error at low noise is not contracted any more.
        device: Device of the teacher's samples, if ``x`` is not given.

    Returns:
        ``steps + 1`` decreasing noise levels, to be given as ``sigmas=``.

    Raises:
        TypeError: If the problem is not the flow of an affine process, or not one of ``x`` and
            ``shape`` is given.
        ValueError: If a number is out of its range, or there are fewer candidates than levels.
        SolveError: If the teacher fails.

    Example:
        >>> import sdekit as sk
        >>> law = sk.Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
        >>> flow = sk.EDM().probability_flow(law)
        >>> gits(flow, 4, samples=8, shape=(2,), candidates=20).round(2).tolist()
        [80.0, 1.98, 0.69, 0.2, 0.0]
    """
    check_steps(steps)
    if check_steps(candidates, "candidates") <= steps:
        raise ValueError(
            f"candidates = {candidates}; {steps} steps need at least {steps + 1} levels"
        )
    if not coefficient > 0:
        raise ValueError(f"coefficient = {coefficient}; it must be positive")
    taught = teach(
        problem,
        functools.partial(karras, candidates - 1),
        samples=samples,
        seed=seed,
        shape=shape,
        x=x,
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        device=device,
    )
    return taught.levels[cheapest_path(step_costs(taught), steps, coefficient)]


def step_costs(taught: Taught) -> Array:
    """Mean distance of an Euler step from each level to each lower one from the teacher, ``(n, n)``.

    Steps that do not go down cost ``∞``.
    """
    sigmas, count = taught.levels, len(taught.levels)
    cost = np.full((count, count), np.inf)
    states, denoised = taught.states.flatten(2), taught.denoised.flatten(2)
    for i in range(count - 1):
        for j in range(i + 1, count):
            # x̂ + (σ' − σ) ε̂ = D + (σ'/σ) (x̂ − D)
            step = torch.lerp(denoised[i], states[i], float(sigmas[j] / sigmas[i]))
            cost[i, j] = float((step - states[j]).norm(dim=1).mean())
    return cost


def cheapest_path(cost: Array, steps: int, coefficient: float) -> list[int]:
    """Return the path from the first level to the last of so many steps with the smallest cost.

    Args:
        cost: Cost of a step from each level to each, ``(n, n)``.
        steps: Number of steps, less than ``n``.
        coefficient: Factor of the cost of each step relative to the one before.
    """
    last = len(cost) - 1
    rest = np.full(len(cost), np.inf)  # cost from each level to the last one, in k steps
    rest[last] = 0.0
    following = []
    for _ in range(steps):
        total = cost + coefficient * rest
        following.append(total.argmin(1))
        rest = total.min(1)
    path = [0]
    for step in reversed(following):
        path.append(int(step[path[-1]]))
    return path
