"""Steps of linear SDEs whose noise is exact: transitions, and Euler steps of reverse SDEs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .brownian import NoiseSource
from .clock import TIME
from .linear import LinearSDE
from .linear_kernels import Array, Coefficients, collocated_kernel
from .solvers.scheme import Scheme, Step
from .solvers.view import View, floats


class ExactNoiseEuler(Scheme):
    """Euler steps of the reverse SDE of a linear SDE, with noise of exactly its covariance.

    ``u' = u + Δt a(u, t) + L z`` with ``L Lᵀ = η² ∫ G Gᵀ dt`` over the step, which Euler–Maruyama
    takes for ``η² |Δt| G Gᵀ`` where it starts. In the coordinates ``Whitened(sde, m, C, eta=η)`` the
    drift vanishes where the data are N(m, C), so that any number of steps, one included, has the exact
    law, as the stochastic gDDIM has for a point (Zhang, Tao & Chen 2022, section 4).

    The noise is new, not that of a given path: there is no strong order.
    """

    weak_order = 1.0
    solves = "sde"
    stochastic = True

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Step:
        """Prepare the steps of a grid.

        Raises:
            ValueError: If the process is not linear.
        """
        sde = view.problem.sde
        if not isinstance(sde, LinearSDE):
            raise ValueError(
                f"ExactNoiseEuler needs a LinearSDE, whose noise does not depend on the state; got a "
                f"{type(sde).__name__}, for which there is 'euler_maruyama_t'"
            )
        nodes, lengths = view.nodes(grid[:-1]), floats(np.diff(grid))
        roots = [
            view.problem.eta * _root(_accumulated(sde, end, start)) for start, end in pairwise(grid)
        ]
        draw = _draws(roots, grid, noise, view.like)

        def step(n: int, u: Tensor) -> Tensor:
            return torch.add(u, view(nodes[n], u), alpha=lengths[n]) + draw(n, u)

        return step


def linear_transition(process: LinearSDE, x: Tensor, grid: Array, noise: NoiseSource) -> Step:
    """Prepare the exact transitions of a linear SDE: no error at any step.

    Args:
        process: The SDE.
        x: A state, ``(B, d)``.
        grid: Strictly increasing times.
        noise: Source of noise on the clock of the times.

    Raises:
        ValueError: If the state has another dimension.
    """
    if x.shape[1:] != (process.dim,):
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (B, {process.dim})")
    kernels = [process.kernel(*interval) for interval in pairwise(grid)]
    matrices = [torch.as_tensor(k.matrix).to(x) for k in kernels]
    shifts = [torch.as_tensor(k.shift).to(x) for k in kernels]
    draw = _draws([_root(k.cov) for k in kernels], grid, noise, x)

    def step(n: int, x: Tensor) -> Tensor:
        return torch.addmm(shifts[n], x, matrices[n].mT) + draw(n, x)

    return step


def _accumulated(sde: LinearSDE, start: float, end: float) -> Array:
    """``∫ G Gᵀ dt``."""

    def spread(t: Array) -> Coefficients:
        c = sde.coefficients(t)
        return Coefficients(np.zeros_like(c.K), np.zeros_like(c.b), c.gram)

    return collocated_kernel(spread, float(start), float(end), sde.dim).cov


def _root(cov: Array) -> Array:
    """A square root ``L Lᵀ`` of a covariance, which may be singular."""
    values, vectors = np.linalg.eigh(cov)
    root: Array = vectors * np.sqrt(np.maximum(values, 0.0))
    return root


def _draws(roots: Sequence[Array], grid: Array, noise: NoiseSource, like: Tensor) -> Step:
    """Prepare draws from N(0, L Lᵀ), one for each step: made of the noise of its interval."""
    source, times = noise.on(TIME), floats(grid)
    lengths = np.abs(np.diff(grid))
    factors = [
        torch.as_tensor(root / math.sqrt(length)).to(like)
        for root, length in zip(roots, lengths, strict=True)
    ]

    def draw(n: int, x: Tensor) -> Tensor:
        low, high = sorted((times[n], times[n + 1]))
        return source.increment(low, high, x) @ factors[n].mT

    return draw
