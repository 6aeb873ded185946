"""Misprints of Chan's tutorial in chapter 3: score matching and Langevin dynamics."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...brownian import IndependentNoise
from ...chains import langevin
from ...coordinates import Noise
from ...distributions import GaussianMixture
from ...grids import karras
from ...processes import EDM
from ...sampling import solve
from ...solvers.langevin import AnnealedLangevin
from ...solvers.registry import Solver
from ..calculus import residual
from ..claim import Both, claim
from ..draw import Draw

BATCH = 6
ROUNDING = "round-off of a few operations"


def _kernel_estimate(draw: Draw, dim: int) -> tuple[Tensor, float, GaussianMixture]:
    """Draw points, a width ``h``, and the law of points blurred by normal kernels."""
    points, h = draw.normal(8, dim), float(draw.uniform(0.2, 0.5))
    return points, h, GaussianMixture(torch.full((8,), 0.125), points, h**2)


@claim(
    "chan-kernel-density",
    title="Kernel density estimate",
    statement="q_h(x) = (1/M) Σ h⁻ᵈ K((x − x⁽ᵐ⁾)/h)",
    printed="q_h(x) = (1/M) Σ h⁻¹ K((x − x⁽ᵐ⁾)/h)",
    sources={"chan": "eq. 100, eq. 102"},
    tags=("score", "training", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _kernel_density(draw: Draw) -> Both:
    """In d dimensions a kernel of width h has the volume hᵈ; 1/h is right for numbers, not vectors.

    That is for a kernel K of integral 1, whatever h. With a normal kernel in two dimensions it is
    compared with the density of the mixture. The score does not depend on the factor, but every
    expectation does.
    """
    points, h, law = _kernel_estimate(draw, 2)
    x = draw.normal(BATCH, 2)
    distance = (x[:, None] - points).square().sum(-1)
    kernels = torch.exp(-0.5 * distance / h**2).mean(1) / (2 * math.pi)
    exact = torch.exp(law.log_prob(x))
    return Both(
        residual(exact, kernels / h),
        residual(exact, kernels / h**2),
        "the printed density of an image of 784 pixels integrates to h⁷⁸³: 1e-783 for h = 0.1",
    )


@claim(
    "chan-sgld-noise",
    title="Noise of stochastic gradient Langevin dynamics",
    statement="Δθₜ = (εₜ/2) (∇log p(θₜ) + (N/n) Σ ∇log p(yₜᵢ|θₜ)) + ηₜ with ηₜ ~ N(0, εₜ I)",
    printed="Δθₜ = (εₜ/2) (∇log p(θₜ) + (N/n) Σ ∇log p(yₜᵢ|θₜ)) + ηₜ, where ηₜ ~ N(0, I)",
    sources={"chan": "section 3.1, remark 1"},
    tags=("langevin", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _sgld_noise(draw: Draw) -> Both:
    """A step ε/2 of the drift goes with noise of variance ε, as in eq. 96 with τ = ε/2.

    A few steps with all of the data, where the bracket is the score of the posterior, are compared with
    those of `sdekit.langevin` with the same normal numbers.
    """
    data, epsilon, seed = draw.mixture(), float(draw.uniform(0.01, 0.1)), draw.integer(2**31)
    start = draw.normal(BATCH, 2)

    def run(size: float) -> Tensor:
        x, source = start, IndependentNoise(seed)
        for _ in range(3):
            x = x + 0.5 * epsilon * data.score(x, 0.0) + size * source.normal(x)
        return x

    exact = langevin(
        lambda x: data.score(x, 0.0),
        start,
        step_size=0.5 * epsilon,
        steps=3,
        noise=IndependentNoise(seed),
    ).x
    decay = 1 - (1 - 0.01 / 2) ** 2
    return Both(
        residual(exact, run(1.0)),
        residual(exact, run(math.sqrt(epsilon))),
        f"for a posterior N(0, 1) and ε = 0.01 the variance of the samples is {1 / decay:.1f} "
        f"instead of 1 ({0.01 / decay:.4f} with the right noise)",
    )


@claim(
    "chan-annealed-step",
    title="Step sizes of annealed Langevin dynamics",
    statement="αᵢ = ε σᵢ²/σ_L²",
    printed="αᵢ = σᵢ²/σ_L²",
    sources={"chan": "section 3.3, inference", "song2019": "algorithm 1"},
    tags=("langevin", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _annealed_step(draw: Draw) -> Both:
    """Without ε the last steps have size 1 whatever the data, and σ_L⁻² times the noise's variance.

    Two steps at each of three levels are compared with those of `sdekit.AnnealedLangevin`, whose ε
    is half of Song and Ermon's, with the same normal numbers.
    """
    data, epsilon, seed = draw.mixture(), float(draw.uniform(1e-3, 1e-2)), draw.integer(2**31)
    levels, start = np.geomspace(1.0, 0.2, 4), draw.normal(BATCH, 2)
    solver = Solver(AnnealedLangevin(epsilon / 2, 2), Noise(), karras)
    problem = EDM().reverse(data)
    exact = solve(problem, start, method=solver, sigmas=levels, noise=IndependentNoise(seed)).x

    def run(size: float) -> Tensor:
        x, source = start, IndependentNoise(seed)
        for sigma in levels[1:].tolist():
            alpha = size * sigma**2 / float(levels[-1]) ** 2
            for _ in range(2):
                z = source.normal(x)
                x = x + alpha / 2 * data.score(x, sigma) + math.sqrt(alpha) * z
        return x

    factor = 1 - 1 / (2 * (1e-4 + 1e-4))  # data of standard deviation 0.01, as σ_L
    return Both(
        residual(exact, run(1.0)),
        residual(exact, run(epsilon)),
        "at σ_L = 0.01, with data of the same standard deviation, a step multiplies the state by "
        f"{factor:.0f}: no sample stays finite",
    )
