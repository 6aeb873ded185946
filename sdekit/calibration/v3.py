"""DPM-Solver-v3: coordinates made of the statistics of a model, in its diagonal form."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from ..coordinates import LogVariable, Points
from ..denoisers import known_sigma_data
from ..grids import balanced
from ..sde import ProbabilityFlow, check_output
from ..solvers.adams import Adams, clock_integrals
from ..solvers.registry import Solver
from ..spacing import with_ends
from .teacher import Array, Taught, teach

# Levels of the teacher, and degree of the polynomials in λ that smooth the statistics there.
_LEVELS, _DEGREE = 61, 20
_FINE = 200  # Chebyshev points that resolve l, which has poles at a distance of π/2 from real λ
_SLACK = 1e-9
# Where the nonlinear part is this small relative to the state it is round-off.
_NOTHING = 1e-10
_NUDGE = 1e-3  # of λ, for derivatives along trajectories
_SMALLEST, _LARGEST = 1e-6, 4.0  # variance that l is taken for, relative to that of the component


@dataclass(frozen=True, eq=False)
class ModelStatistics(LogVariable):
    """Coordinates in which the linear part of a model is solved exactly, and its first change.

    With ``l(λ)``, the mean of the diagonal of ``I − ∇D``, what is left is ``f = (1 − l) x̂ − D``; with
    ``s(λ)``, the regression of ``df/dλ`` along trajectories on ``f``, it is ``f = e^S N``, where ``N``
    changes as little as may be::

        u = e^L x̂,    du = −e^(L + S) N dλ,    L = ∫ l dλ,    S = ∫ s dλ.

    All of them are diagonal: each component of a sample has its own. ``l = σ²/(σ² + v)`` is kept as
    the variance ``v(λ)`` of the Gaussian that has it, and so is precise relative to ``l`` and to
    ``1 − l``. The bias ``b`` of the paper, the constant of that regression, is the mean: where states
    are counted from the mean of the data, those of ``f`` and of ``df/dλ`` vanish at every noise level.

    Source: Zheng et al. 2023 (arXiv:2310.13268), sections 3.1 and 3.2.

    Args:
        mean: Mean of the data, flattened, ``(d,)``.
        sigma_data: Standard deviation ``σ_d`` of the data; it is only a unit.
        variance: ``log v/σ_d²``, Chebyshev coefficients in ``λ``, ``(k, d)``.
        scaling: ``s``, the same.
        sigma_max: Highest noise level that they are known for.
        sigma_min: Lowest.
    """

    mean: Array
    sigma_data: float
    variance: Array
    scaling: Array
    sigma_max: float
    sigma_min: float

    @property
    def frame(self) -> tuple[Array, Array]:
        """The mean, and the components as they are."""
        return self.mean, np.eye(len(self.mean))

    @property
    def half(self) -> float:
        """Half the length of the range in ``λ``."""
        return 0.5 * float(np.log(self.sigma_max / self.sigma_min))

    @cached_property
    def _integrals(self) -> tuple[Array, Array]:
        """Coefficients of ``∫ (l − σ²/(σ² + σ_d²)) dλ`` and of ``S``, from the highest level on."""
        x = _nodes(_FINE)
        sigma = self.sigma_max * np.exp(-self.half * (x + 1))
        signal = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        excess = chebyshev.chebfit(x, signal[:, None] - self.rest(sigma), _FINE - 1)
        linear = chebyshev.chebint(excess, lbnd=-1, scl=self.half)
        scaling = chebyshev.chebint(self.scaling, lbnd=-1, scl=self.half)
        return np.asarray(linear, np.float64), np.asarray(scaling, np.float64)

    def _values(self, coefficients: Array, sigma: Array) -> Array:
        x = np.log(self.sigma_max / sigma) / self.half - 1
        values: Array = chebyshev.chebval(np.clip(x, -1.0, 1.0), coefficients).T
        return values

    def h(self, p: Points) -> Array:
        """``e^(−L)``, scaled so that it is ``sqrt(σ² + σ_d²)`` for a Gaussian of that size."""
        std = np.hypot(p.sigma, self.sigma_data)[:, None]
        return std * np.exp(-self._values(self._integrals[0], p.sigma))

    def clock(self, p: Points) -> Array:
        """``W = −∫ e^(L + S) dλ``."""
        top = self.at(np.full(len(p.sigma), self.sigma_max))
        return clock_integrals(self, top, p, lambda rows, tau: np.ones((1, *tau.shape)))[:, 0]

    def clock_rate(self, sigma: Array) -> Array:
        """``e^(L + S)/σ``.

        Raises:
            ValueError: If a level is outside the range of the statistics.
        """
        outside = (sigma > self.sigma_max * (1 + _SLACK)) | (sigma < self.sigma_min * (1 - _SLACK))
        if outside.any():
            raise ValueError(
                f"the statistics were taken from sigma = {self.sigma_max:g} to {self.sigma_min:g}, "
                f"and {sigma[outside][0]:g} is asked for; take them again with sigma_max= and "
                "sigma_min="
            )
        growth = np.exp(self._values(self._integrals[1], sigma))
        rate: Array = growth / (sigma[:, None] * self.h(self.at(sigma)))
        return rate

    def field(self, p: Points) -> tuple[Array, Array]:
        """``e^(−S) (1 − l) h`` and ``−e^(−S)``."""
        decay = np.exp(-self._values(self._integrals[1], p.sigma))
        return decay * self.rest(p.sigma) * self.h(p), -decay

    def rest(self, sigma: Array) -> Array:
        """``1 − l``, ``(n, d)``."""
        v = self.sigma_data**2 * np.exp(self._values(self.variance, sigma))
        return 1 / (1 + sigma[:, None] ** 2 / v)

    def rest_rate(self, sigma: Array) -> Array:
        """Derivative of ``1 − l`` with respect to ``λ``, ``(n, d)``."""
        derivative = chebyshev.chebder(self.variance, scl=1 / self.half)
        slope = self._values(np.asarray(derivative, np.float64), sigma)
        rest = self.rest(sigma)
        return rest * (1 - rest) * (2 + slope)


def dpm_solver_v3(
    problem: ProbabilityFlow,
    *,
    order: int = 2,
    corrector: bool = True,
    samples: int = 256,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    device: torch.device | str | None = None,
) -> Solver:
    """Make DPM-Solver-v3 of a model: multistep in coordinates of its statistics.

    The statistics are taken along trajectories of the adaptive engine; the diagonal of the denoiser's
    Jacobian by one probe of signs for each sample and level. They hold for any number of steps
    and any grid on their range. Multistep formulas by Taylor expansion with divided differences, as
    in the paper, are those of `Adams` in these coordinates.

    Source: Zheng et al. 2023 (arXiv:2310.13268), algorithms 1 and 2. Their corrector uses one slope
    less, and their "pseudo-order" variants are left out.

    Args:
        problem: ``process.probability_flow(denoiser)`` of an affine process; the denoiser must be
            differentiable by autograd.
        order: Slopes of the predictor.
        corrector: Whether to correct states, without evaluations.
        samples: Number of the teacher's samples, if ``x`` is not given.
        seed: Seed of their starts, and of the probes.
        shape: Shape of one sample, ``event``, if ``x`` is not given.
        x: Starts instead, ``(B, *event)``: states of the process at ``sigma_max``.
        sigma_max: Highest noise level; by default the process's, or the denoiser's if it is lower.
        sigma_min: Lowest noise level; by default the process's, or the denoiser's if it is higher.
        device: Device of the teacher's samples, if ``x`` is not given.

    Returns:
        The solver, on the balanced grid, which suits it better than those of its paper.

    Raises:
        TypeError: If the problem is not the flow of an affine process, or not one of ``x`` and
            ``shape`` is given.
        ValueError: If a number is out of its range, or the denoiser is not differentiable.
        SolveError: If the teacher fails.
    """
    scheme = Adams(order, corrector=corrector, tail="lower")
    taught = teach(
        problem,
        _levels,
        samples=samples,
        seed=seed,
        shape=shape,
        x=x,
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        device=device,
    )
    coordinates = statistics(problem, taught, seed)
    grid = functools.partial(balanced, sigma_data=coordinates.sigma_data)
    return Solver(scheme, coordinates, grid)


def statistics(problem: ProbabilityFlow, taught: Taught, seed: int) -> ModelStatistics:
    """Take the statistics of a model along a teacher's trajectories.

    Raises:
        ValueError: If the denoiser is not differentiable.
    """
    sigmas, final = taught.levels, taught.states[-1].flatten(1)
    diagonal = _diagonals(problem, taught, seed)
    # At the highest level D is all but linear in the state. For Gaussians this is the mean exactly.
    signal = torch.as_tensor(diagonal[0]).to(final)
    noisy, clean = (v[0].flatten(1).mean(0) for v in (taught.states, taught.denoised))
    mean = (clean - signal * noisy) / (1 - signal)
    known = known_sigma_data(problem.model)
    sigma_data = float((final - mean).square().mean().sqrt()) if known is None else known
    # The variance that l is taken for is at most that of the data, but where a probe is unlucky.
    whole = final.var(0).numpy(force=True) + _SMALLEST * sigma_data**2
    noise = sigmas[:, None] ** 2
    low, high = (v / (noise + v) for v in (_SMALLEST * whole, _LARGEST * whole))
    odds = 1 / np.clip(diagonal, low, high) - 1
    variance = _fitted(np.log(noise / (odds * sigma_data**2)))
    made = ModelStatistics(
        mean.numpy(force=True),
        sigma_data,
        variance,
        np.zeros_like(variance),
        float(sigmas[0]),
        float(sigmas[-1]),
    )
    slopes = []
    for i, rows in enumerate(zip(made.rest(sigmas), made.rest_rate(sigmas), strict=True)):
        rest, rest_rate = (torch.as_tensor(row).to(final) for row in rows)
        y, denoised = (v[i].flatten(1) - mean for v in (taught.states, taught.denoised))
        f = rest * y - denoised
        rate = rest_rate * y - rest * (y - denoised) - _rate_of_denoised(problem, taught, i)
        variances = f.var(0, correction=0)
        covariance = ((f - f.mean(0)) * (rate - rate.mean(0))).mean(0)
        something = variances.sqrt() > _NOTHING * y.square().mean(0).sqrt()
        slopes.append(covariance.where(something, 0.0) / variances.where(something, 1.0))
    return replace(made, scaling=_fitted(torch.stack(slopes).numpy(force=True)))


def _fitted(values: Array) -> Array:
    """Chebyshev coefficients of smooth functions of ``λ`` through values at the levels."""
    return np.asarray(chebyshev.chebfit(_nodes(len(values)), values, _DEGREE), np.float64)


def _nodes(count: int) -> Array:
    """Chebyshev points of −1 … 1."""
    return -np.cos(np.linspace(0.0, np.pi, count))


def _levels(sigma_max: float, sigma_min: float) -> Array:
    """Levels at Chebyshev points in ``λ``."""
    share = 0.5 * (_nodes(_LEVELS) + 1)
    return with_ends(sigma_max ** (1 - share) * sigma_min**share, sigma_max, sigma_min)


@torch.no_grad()
def _rate_of_denoised(problem: ProbabilityFlow, taught: Taught, i: int) -> Tensor:
    """Derivative of ``D`` with respect to ``λ`` along trajectories at a level, by differences."""
    state, velocity = taught.states[i], taught.denoised[i] - taught.states[i]
    levels = taught.levels[i] * np.exp([_NUDGE, -_NUDGE])
    levels = np.clip(levels, taught.levels[-1], taught.levels[0])
    ends = []
    for level in levels:
        moved = state + float(np.log(taught.levels[i] / level)) * velocity
        sigma = torch.as_tensor(level, device=state.device)
        ends.append(check_output(problem.model(moved, sigma), moved, "denoiser").double())
    return (ends[1] - ends[0]).flatten(1) / float(np.log(levels[0] / levels[1]))


def _diagonals(problem: ProbabilityFlow, taught: Taught, seed: int) -> Array:
    """Mean over samples of the diagonal of ``∇D`` at each level, ``(levels, d)``."""
    rng = np.random.default_rng(seed)
    rows = []
    for state, sigma in zip(taught.states, taught.levels, strict=True):
        signs = torch.as_tensor(_signs(rng, len(state), state[0].numel())).to(state)
        level = torch.as_tensor(sigma, device=state.device)
        with torch.enable_grad():
            leaf = state.detach().clone().requires_grad_()
            denoised = check_output(problem.model(leaf, level), leaf, "denoiser")
            if not denoised.requires_grad:
                raise ValueError(
                    "the denoiser's output does not depend differentiably on its input: it detaches it "
                    "or runs under torch.no_grad(); the statistics need its Jacobian"
                )
            (gradient,) = torch.autograd.grad((denoised.flatten(1) * signs).sum(), leaf)
        rows.append((signs * gradient.flatten(1)).mean(0))
    diagonals: Array = torch.stack(rows).numpy(force=True)
    return diagonals


def _signs(rng: np.random.Generator, samples: int, d: int) -> Array:
    """Probes of signs, ``(samples, d)``: random columns of a Hadamard matrix, its rows in turn.

    Every run of as many samples as the matrix has rows cancels what is off the diagonal and the same
    for all samples.
    """
    bits = max(1, (d - 1).bit_length())
    column = rng.permutation(2**bits)[:d]
    parity = np.zeros((samples, d), dtype=np.int64)
    for bit in range(bits):
        parity ^= (np.arange(samples)[:, None] & column) >> bit & 1
    return np.where(parity == 1, -1.0, 1.0)
