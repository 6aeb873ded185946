"""How wrong the log-density is that a method gives, where the density is known."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..brownian import IndependentNoise
from ..coordinates import Coordinates
from ..distributions.base import Distribution
from ..divergence import Exact
from ..likelihood import log_likelihood
from ..prepared import set_up
from ..sde import ProbabilityFlow
from ..solvers.augmented import AugmentedAffine
from ..solvers.fixed import integrate_fixed
from ..solvers.registry import Solver
from ..solvers.scheme import Array
from ..solvers.view import Evaluation
from .problems import Problem, rms

_SEED = 9000  # other samples than those that are solved for


def likelihood_error(
    problem: Problem,
    solver: str | Solver,
    sigmas: ArrayLike,
    *,
    rtol: float | None = None,
    seed: int = _SEED,
) -> tuple[float, float]:
    """Measure the log-density at ``sigma_min`` that a method gives, against the exact one.

    It is that of as many exact samples as the problem has start states, by the flow from ``sigma_min``
    up to ``sigma_max``, with the exact divergence, on the grid backwards; the density at ``sigma_max``
    is the exact one. So all of the error is the method's.

    Args:
        problem: A problem whose law is known.
        solver: Name of a method of the flow, or a composed solver.
        sigmas: The grid, from ``sigma_max`` down; with a tolerance its ends are what counts.
        rtol: Tolerance of a method that chooses its steps.
        seed: Seed of the samples.

    Returns:
        The RMS error over the samples, in nats, and the network evaluations, each with its
        divergence, in the mean over samples.

    Raises:
        ValueError: If the law is not known, or the method does not fit.
        SolveError: If a state becomes non-finite.
    """
    law, grid = problem.law, np.asarray(sigmas, dtype=np.float64)[::-1].copy()
    if law is None:
        raise ValueError(
            f"the law of {problem.name!r} is not known, so neither are its densities; take a problem "
            "whose denoiser is a sdekit Distribution"
        )
    x_hat = law.sample(len(problem.start), float(grid[0]), seed=seed)
    exact = law.log_prob(x_hat, float(grid[0]))
    if rtol is None:
        found, nfe = _on_grid(problem, law, solver, x_hat, grid)
        return rms(found - exact), float(nfe)
    scale = float(problem.scale(grid)[0])
    solved = log_likelihood(
        problem.process,
        law,
        x_hat * scale,
        divergence="exact",
        prior=law,
        method=solver,
        sigmas=grid[[0, -1]],
        rtol=rtol,
    )
    error = solved.log_prob + law.dim * math.log(scale) - exact
    return rms(error), float(solved.stats.nfe_per_sample.mean())


@torch.no_grad()
def _on_grid(
    problem: Problem,
    law: Distribution,
    solver: str | Solver,
    x_hat: Tensor,
    grid: Array,
) -> tuple[Tensor, int]:
    """Return log-densities of unscaled states, by the steps of an upward grid, and evaluations."""
    flow = problem.process.probability_flow(law)
    x = x_hat * float(problem.scale(grid)[0])
    bound, _, levels, calls = set_up(
        flow,
        x,
        method=solver,
        steps=None,
        sigmas=grid,
        times=None,
        adaptive=False,
        ending="stop",
        sigma_data=None,
    )
    view = _DensityView(flow, bound.coordinates, x, law)
    (rows,) = integrate_fixed(
        bound.scheme.prepare(view, levels, IndependentNoise(None), "stop"),
        view.join(x_hat),
        levels,
        view.symbol,
        save=False,
        progress=False,
        repeatable=True,
    )
    latent, change = view.split(rows)
    start, end = view.h(levels[0]), view.h(levels[-1])
    log_density = law.log_prob(latent, float(levels[-1])) + law.dim * math.log(end / start)
    return log_density + change[:, 0] / end, view.nfe + calls


class _DensityView(AugmentedAffine):
    """The flow and its divergence for linear schemes, whose states are ``x̂ = h u`` and ``h q``."""

    def __init__(
        self, flow: ProbabilityFlow, coordinates: Coordinates, x: Tensor, law: Distribution
    ) -> None:
        super().__init__(flow, coordinates, x, Exact().prepare(x))
        self._law = law

    def h(self, level: float) -> float:
        """The scale of the coordinates at a level."""
        return float(self.coordinates.h(self.coordinates.at(np.array([level])))[0])

    def evaluate(self, z: Tensor, at: Evaluation) -> Tensor:
        """What slopes are made of.

        A slope of the state is ``B (D + A/(h B) x̂)``. That of ``q``, ``A + B h tr(∂D/∂x̂)/d``, is
        ``B (E + A/(h B) h q)`` for the ``E`` that is returned.
        """
        x_hat, level = z[:, : self.dim], float(at.level)
        # The law knows the trace: tr(∂D/∂x̂) = d + σ² div(score), without d backward passes.
        trace = 1 + level**2 / self.dim * self._law.score_divergence(x_hat, level)
        h = self.h(level)
        integrand = h * (at.state + trace[:, None]) - at.state * z[:, self.dim :]
        return torch.cat([self.denoise(x_hat, at.level), integrand], 1)
