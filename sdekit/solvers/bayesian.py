"""Bayesian Adams: multistep weights from a prior on how the network's output varies.

Adams' weights integrate the polynomial through past slopes: right where slopes vary little from step to
step, and wild where they do not. Here ``F`` along a trajectory has a Gaussian-process prior instead,
and a step's weights are those of the posterior mean of its integral (Bayesian quadrature; O'Hagan
1991). Where steps are short the posterior mean is close to a polynomial, and where they are long
it leans on the newest slope: no order has to be chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..coordinates import Coordinates, Points
from ..preconditioned import GaussianPreconditioned, Preconditioned
from .linear import LinearScheme, Plan
from .multistep import multistep_plan
from .scheme import Array

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(10)
_JITTER = 1e-14  # of the variance of a slope, so that close slopes can be told apart


@dataclass(frozen=True)
class Prior:
    """Gaussian-process prior of ``F`` as a function of ``θ = arctan(σ/σ_d)``, in units of its size.

    ``F(θ) = A(θ) g(log(θ + c))``: ``g`` is a Matérn process of smoothness 9/2, unit variance and the
    given length, and ``A = θ/(θ + a)`` its amplitude, as the network's output varies least at low
    noise. The values were fitted to random mixtures, none of them a problem of the benchmark, and
    to the digits network.

    Attributes:
        offset: ``c``.
        length: Length scale of ``g``.
        knee: ``a``.
        stiffness: ``κ``: an error of the state changes the slope ``F`` by ``κ cot θ`` times as much.
        misfit: ``ρ``: how long steps are at which the prior is no description of slopes at all. They
            are taken for observations with noise of variance ``(δ/ρ)⁸``, relative to that of ``F``, for
            steps of the mean length ``δ`` in ``log(θ + c)``, in units of ``length``. Networks are less
            smooth than mixtures: without it 20 to 30 steps may be unstable where the range of noise
            levels is long, or ``σ_d`` is too small.
        noise: Variance of the network's own error, relative to that of ``F``: 1e-8, say, for one in
            half precision, where it keeps weights small on grids that crowd points.
    """

    offset: float = 0.91
    length: float = 0.44
    knee: float = 0.08
    stiffness: float = 0.8
    misfit: float = 0.9
    noise: float = 0.0

    def covariance(self, a: Array, b: Array) -> Array:
        """Covariance of slopes at angles ``(…, m)`` and ``(…, k)``: ``(…, m, k)``."""
        s, t = np.log(a + self.offset)[..., :, None], np.log(b + self.offset)[..., None, :]
        r = 3.0 * np.abs(s - t) / self.length
        matern = np.exp(-r) * (1 + r * (1 + r * (3 / 7 + r * (2 / 21 + r / 105))))
        amplitude = (a / (a + self.knee))[..., :, None] * (b / (b + self.knee))[..., None, :]
        covariance: Array = matern * amplitude
        return covariance


class BayesianAdams(LinearScheme):
    """A predictor and a corrector whose weights are posterior means under a prior on ``F``.

    One evaluation per step (PEC). A slope is evaluated at a predicted state, whose error has the
    posterior variance ``v`` of the step before: the prior takes it for an observation with noise
    of variance ``(κ cot θ)² v``. That is what keeps weights small where steps are too long for
    what the network does at low noise.

    In `Preconditioned` coordinates, or `GaussianPreconditioned` ones with a prior for each direction.
    Its order is 3, as of any such scheme that starts with one slope; once started it is higher. Its
    errors level off at about 1e-8 of the state, as slopes that are close cannot be told apart.

    Args:
        memory: Number of slopes, the newest included, that a step uses.
        prior: The prior.

    Raises:
        ValueError: If ``memory`` is less than 1.
    """

    affine_only = True
    nfe_per_step = 1
    order = 3

    def __init__(self, memory: int = 6, prior: Prior | None = None) -> None:
        if memory < 1:
            raise ValueError(f"memory = {memory}; a step uses at least one slope")
        self.memory, self.prior = memory, Prior() if prior is None else prior

    def plan(self, coordinates: Coordinates, grid: Points) -> Plan:
        """Write down the steps of a grid.

        Raises:
            ValueError: If the coordinates have no angle for a clock.
        """
        if not isinstance(coordinates, Preconditioned | GaussianPreconditioned):
            raise ValueError(
                f"BayesianAdams has a prior for F, which {type(coordinates).__name__} does not "
                "integrate; take Preconditioned() or GaussianPreconditioned(mean, cov)"
            )
        angles = coordinates.clock(grid)
        forward, backward = self.weights(angles.reshape(len(grid.tau), -1).T)
        if angles.ndim == 1:
            forward, backward = ([row[:, 0] for row in rows] for rows in (forward, backward))
        return multistep_plan(grid, dict(enumerate(forward)), dict(enumerate(backward, start=1)))

    def weights(self, theta: Array) -> tuple[list[Array], list[Array]]:
        """Return the weights of slopes ``N = −F``, newest first, of each step and each correction.

        Args:
            theta: Angles of the grid in each direction, ``(d, n + 1)``.

        Returns:
            ``n`` arrays ``(k, d)`` of predictions, and ``n − 1`` of corrections, whose first slope is
            that at the end of the step.
        """
        prior, steps = self.prior, theta.shape[1] - 1
        half = 0.5 * np.diff(theta)[..., None]
        x = theta[:, :-1, None] + half * (1 + _NODES)
        w = half * _NODE_WEIGHTS

        def integrals(n: int, at: Array) -> Array:
            """Covariances of the integral over step ``n`` with slopes: ``(d, k)``."""
            values: Array = np.einsum("dq,dqk->dk", w[:, n], prior.covariance(x[:, n], at))
            return values

        def solved(matrix: Array, right: Array) -> Array:
            return np.asarray(np.linalg.solve(matrix, right[..., None])[..., 0], dtype=np.float64)

        length = np.abs(np.diff(np.log(theta[:, [0, -1]] + prior.offset))) / prior.length
        own = _JITTER + prior.noise + (length / (steps * prior.misfit)) ** 8
        noise = own * (theta / (theta + prior.knee)) ** 2
        variance = np.zeros(len(theta))  # of the error that the last prediction is expected to have
        forward, backward = [], []
        for n in range(steps):
            noise[:, n] += (prior.stiffness / np.tan(theta[:, n])) ** 2 * variance
            known = np.arange(n, max(n - self.memory, -1), -1)
            at = theta[:, known]
            matrix = prior.covariance(at, at) + noise[:, known, None] * np.eye(len(known))
            if n > 0:
                backward.append(solved(matrix, integrals(n - 1, at)).T)
            ahead = integrals(n, at)
            weights = solved(matrix, ahead)
            forward.append(weights.T)
            whole = np.einsum("dq,dq->d", w[:, n], integrals(n, x[:, n]))
            variance[:] = np.maximum(whole - (ahead * weights).sum(1), 0.0)
        return forward, backward
