"""Misprints of Chan's tutorial in chapter 5: Markov processes, with jumps and without."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import poisson
from torch import Tensor

from ...affine import AffineSDE
from ...distributions import GaussianMixture
from ..calculus import residual
from ..claim import Both, claim
from ..draw import Draw, span
from .forward import transition_log_density

BATCH = 6


@claim(
    "chan-pawula-inequality",
    title="Inequality in Pawula's theorem",
    statement="(m! Dₘ)² ≤ (m − 1)! Dₘ₋₁ (m + 1)! Dₘ₊₁, m odd and m ≥ 3",
    printed="Dₘ² ≤ Dₘ₋₁ Dₘ₊₁, m odd and m ≥ 3, where Dₘ has the factor 1/m!",
    sources={"chan": "theorem 5.8, proof", "risken": "section 4.3"},
    tags=("density", "moments", "misprint"),
    tolerance=1e-8,
    because="the step in time, 1e-10 of the mean time of a jump",
)
def _pawula_inequality(draw: Draw) -> Both:
    """Cauchy and Schwarz bound the moments, not the coefficients; the theorem itself is not touched.

    Jumps of one size at random times are the extreme case: equality for the moments, so that the
    printed line, D₃² ≤ D₂D₄, fails by 36 to 48. Moments are sums over the Poisson law of the jumps in a
    short time; random laws of jumps satisfy the right line too.
    """
    rate, size = float(draw.uniform(0.5, 3.0)), float(draw.uniform(0.3, 2.0))
    short = 1e-10 / rate
    counts = np.arange(1, 6)
    weights = poisson.pmf(counts, rate * short) / short
    moments = {m: float((weights * (size * counts) ** m).sum()) for m in (2, 3, 4)}

    def excess(two: float, three: float, four: float) -> float:
        return max(0.0, three**2 - two * four) / (three**2 + two * four)

    k = draw.mixture(1).sample(1000, seed=draw.integer(2**31), dtype=torch.float64)
    others = [float((k**m).mean()) for m in (2, 3, 4)]
    printed = excess(*(moments[m] / math.factorial(m) for m in (2, 3, 4)))
    return Both(
        printed,
        max(excess(*(moments[m] for m in (2, 3, 4))), excess(*others)),
        "for jumps of size 1 at rate 1 it reads 1/36 ≤ 1/48",
    )


@claim(
    "chan-any-markov-process",
    title="Which Markov processes obey a Fokker–Planck equation",
    statement="∂p/∂t = ∫ [W(x|x′) p(x′, t) − W(x′|x) p(x, t)] dx′ for any Markov process that jumps",
    printed="for any Markov process, ∂p/∂t = −∂/∂x D⁽¹⁾p + ∂²/∂x² D⁽²⁾p",
    sources={"chan": "definition 5.4, eq. 167; eq. 157"},
    tags=("density", "misprint"),
    tolerance=1e-9,
    because="round-off of sums over the numbers of jumps",
)
def _any_markov_process(draw: Draw) -> Both:
    """A particle that jumps by N(0, δ²) at rate λ is Markov; its law is a Poisson mixture of Gaussians.

    Its derivative in time is λ times a difference of neighbouring weights. The master equation,
    with the jump density as noise of level δ, gives it exactly; the equation with D⁽¹⁾ = 0 and
    D⁽²⁾ = λδ²/2 does not, as higher moments of jumps do not vanish (Pawula's third case).
    """
    rate, size, before = (float(draw.uniform(0.5, 1.5)) for _ in range(3))
    t, counts = float(draw.uniform(0.5, 2.0)), np.arange(60)
    weights = poisson.pmf(counts, rate * t)
    variances = torch.as_tensor(before + counts * size**2)
    law = GaussianMixture(weights, torch.zeros(60, 1), variances)
    x = draw.normal(BATCH, 1) * 2
    gains = torch.as_tensor(rate * np.diff(weights, prepend=0.0))
    normals = torch.exp(-0.5 * x**2 / variances) / torch.sqrt(2 * math.pi * variances)
    exact = -(normals * gains).sum(1)
    p, after = torch.exp(law.log_prob(x)), torch.exp(law.log_prob(x, size))
    score, slope = law.score(x, 0.0)[:, 0], law.score_jacobian(x, 0.0)[:, 0, 0]
    second = p * (slope + score**2)
    # One jump of N(0, 1) on average, from N(0, 0.01): the density where it started.
    start = [poisson.pmf(n, 1.0) / math.sqrt(2 * math.pi * (0.01 + n)) for n in range(40)]
    return Both(
        residual(exact, 0.5 * rate * size**2 * second, rate * p),
        residual(exact, rate * (after - p), rate * p),
        f"after one jump of N(0, 1) on average, from N(0, 0.01), the density at 0 is {sum(start):.2f}; "
        f"the Fokker–Planck equation gives {1 / math.sqrt(2 * math.pi * 1.01):.2f}",
    )


@claim(
    "chan-chapman-kolmogorov-times",
    title="Times in the Chapman–Kolmogorov equation",
    statement="p(x₃, t₃|x₁, t₁) = ∫ p(x₃, t₃|x₂, t₂) p(x₂, t₂|x₁, t₁) dx₂",
    printed="p(x₃, t₃|x₁, t₁) = ∫ p(x₃, t₂|x₂, t₂) p(x₂, t₂|x₁, t₁) dx₂",
    sources={"chan": "eq. 155 and the line before it (eq. 154 is right)"},
    tags=("density", "process", "misprint"),
    tolerance=1e-9,
    because="round-off of a sum over 2000 points",
    over="process",
)
def _chapman_kolmogorov_times(process: AffineSDE, draw: Draw) -> Both:
    """p(x₃, t₂|x₂, t₂) is δ(x₃ − x₂), so that the printed integral is p(x₃, t₂|x₁, t₁).

    The kernels are those of the process; the integral is a sum over a fine grid.
    """
    low, high = span(process)
    times = process.time(low * (high / low) ** torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64))
    x = draw.normal(1, 1)

    def kernel(y: Tensor, x: Tensor, a: int, b: int) -> Tensor:
        return torch.exp(transition_log_density(process, y, times[b], x, times[a]))

    mean, std = process.transition(x, times[0], times[2])
    far = mean + std * draw.normal(BATCH, 1)
    middle, width = process.transition(x, times[0], times[1])
    between = middle + width * torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None]
    inner = kernel(between, x, 0, 1)
    outer = torch.stack([kernel(y[None], between, 1, 2) for y in far], 1)
    total = (outer * inner[:, None]).sum(0) * (between[1, 0] - between[0, 0])
    exact = kernel(far, x, 0, 2)
    return Both(
        residual(exact, kernel(far, x, 0, 1)),
        residual(exact, total),
        "the last of two steps is not taken: of a Wiener process at t₃ = 2 it gives the variance at "
        "t₂ = 1, half of the right one",
    )
