"""Chan's worked examples in chapters 2 and 3: mixtures under DDPM's chain, and Langevin dynamics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...brownian import IndependentNoise
from ...chains import langevin
from ...distributions import Gaussian, GaussianMixture
from ...processes import DiscreteVP
from ..calculus import residual
from ..claim import claim
from ..draw import Draw

BATCH = 6
STEPS = 100


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def example_2_1() -> GaussianMixture:
    """Chan's mixture of examples 2.1 and 2.2."""
    return GaussianMixture([0.3, 0.7], [[-2.0], [2.0]], _numbers(0.04, 1.0))


def example_3_2() -> GaussianMixture:
    """Chan's mixture of examples 3.2 and 3.3."""
    return GaussianMixture([0.6, 0.4], [[2.0], [-2.0]], _numbers(0.25, 0.04))


def _score(x: Tensor) -> Tensor:
    return example_3_2().score(x, 0.0)


def _normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return torch.exp(-0.5 * (x - mean) ** 2 / variance) / torch.sqrt(2 * math.pi * variance)


@claim(
    "chan-mixture-forward",
    title="A mixture under DDPM's forward chain",
    statement="pₜ(x) = Σ πₖ N(x | √αᵗ μₖ, (1 − αᵗ) + αᵗ σₖ²), as by t steps μ ← √α μ, σ² ← ασ² + 1 − α",
    sources={"chan": "examples 2.1, 2.2; eq. 37, eq. 48"},
    tags=("forward", "density", "discrete", "ddpm"),
    tolerance=1e-10,
    because="round-off of a hundred steps",
)
def _mixture_forward(draw: Draw) -> float:
    """A linear map and independent Gaussian noise act on every component by itself.

    With Chan's numbers, α = 0.97, the density by recursion and the closed form are compared with
    that of `DiscreteVP` at ten of a hundred steps.
    """
    law, alpha = example_2_1(), 0.97
    process = DiscreteVP(alpha ** torch.arange(1, STEPS + 1, dtype=torch.float64))
    x, found = 2 * draw.normal(BATCH, 1), 0.0
    mean, variance, weights = _numbers(-2, 2), _numbers(0.04, 1), _numbers(0.3, 0.7)
    for i in range(1, STEPS + 1):
        mean, variance = math.sqrt(alpha) * mean, alpha * variance + 1 - alpha
        if i % 10:
            continue
        t = torch.tensor(i / STEPS, dtype=torch.float64)
        s = process.scale(t)
        exact = torch.exp(law.log_prob(x / s, process.sigma(t))) / s
        recursive = (weights * _normal(x, mean, variance)).sum(1)
        power = alpha**i
        at = math.sqrt(power) * _numbers(-2, 2)
        closed = (weights * _normal(x, at, 1 - power + power * _numbers(0.04, 1))).sum(1)
        found = max(found, residual(exact, recursive), residual(exact, closed))
    return found


@claim(
    "chan-example-4-6",
    title="Variance of two modes under DDPM's forward chain",
    statement="Var xᵢ = 1 + 9 (1 − β)ⁱ for x₀ ~ ½ N(3, 1) + ½ N(−3, 1)",
    sources={"chan": "example 4.6"},
    tags=("forward", "moments", "discrete", "ddpm"),
    tolerance=1e-10,
    because="round-off of a few operations",
)
def _example_4_6(draw: Draw) -> float:
    """The chain keeps the variance 1 of the components, and shrinks the 9 between their means.

    The moments of the mixture at the levels of `DiscreteVP`, for random β, Chan's 0.05 among them.
    """
    data = GaussianMixture([0.5, 0.5], [[3.0], [-3.0]], 1.0)
    found = 0.0
    for beta in (0.05, float(draw.uniform(0.01, 0.2))):
        process = DiscreteVP((1 - beta) ** torch.arange(1, STEPS + 1, dtype=torch.float64))
        for i in (1, 10, 50, STEPS):
            t = torch.tensor(i / STEPS, dtype=torch.float64)
            _, cov = data.moments(float(process.sigma(t)))
            exact = process.scale(t) ** 2 * cov[0]
            wanted = torch.tensor([1 + 9 * (1 - beta) ** i], dtype=torch.float64)
            found = max(found, residual(exact, wanted))
    return found


@claim(
    "chan-mixture-score",
    title="Score of a mixture",
    statement="∇log p = −Σ πⱼ N(x|μⱼ, σⱼ²) (x − μⱼ)/σⱼ² / Σ πᵢ N(x|μᵢ, σᵢ²)",
    sources={"chan": "examples 3.4, 3.5"},
    tags=("score", "density"),
    tolerance=1e-10,
    because="round-off of a few operations",
)
def _mixture_score(draw: Draw) -> float:
    """The derivative of the logarithm of a sum, written out, against `GaussianMixture.score`."""
    means, variances = 2 * draw.normal(3), draw.uniform(0.1, 1.0, 3)
    weights = draw.normal(3).softmax(0)
    x = 2 * draw.normal(BATCH, 1)
    parts = weights * _normal(x, means, variances)
    wanted = -(parts * (x - means) / variances).sum(1) / parts.sum(1)
    law = GaussianMixture(weights, means[:, None], variances)
    return residual(law.score(x, 0.0)[:, 0], wanted)


@claim(
    "chan-langevin-gaussian",
    title="Langevin equation of a Gaussian",
    statement="xₜ₊₁ = xₜ − τ (xₜ − μ)/σ² + √(2τ) z",
    sources={"chan": "definition 3.1, eq. 96; example 3.1"},
    tags=("langevin",),
    tolerance=1e-10,
    because="round-off of a few steps",
)
def _langevin_gaussian(draw: Draw) -> float:
    """Steps of `sdekit.langevin` with the score of a Gaussian, with the same normal numbers."""
    mean, variance = float(draw.normal()), float(draw.uniform(0.3, 2.0))
    tau, seed = float(draw.uniform(0.01, 0.1)), draw.integer(2**31)
    law, start = Gaussian([mean], variance), draw.normal(BATCH, 1)
    found = langevin(
        lambda x: law.score(x, 0.0),
        start,
        step_size=tau,
        steps=5,
        noise=IndependentNoise(seed),
    ).x
    x, source = start, IndependentNoise(seed)
    for _ in range(5):
        x = x - tau * (x - mean) / variance + math.sqrt(2 * tau) * source.normal(x)
    return residual(found, x)


@claim(
    "chan-example-3-2",
    title="Ascent without noise ends on a peak",
    statement="xₜ₊₁ = xₜ + τ ∇log p(xₜ), x₀ = 0, τ = 0.05: p(xₜ) never falls, and ∇log p(x₅₀₀) = 0",
    sources={"chan": "example 3.2"},
    tags=("langevin", "score"),
    tolerance=1e-10,
    because="round-off of the score near its zero",
)
def _example_3_2(draw: Draw) -> float:
    """The peak that is climbed is the wider one, at 2; both are stable for this step.

    Around a peak of variance σ² a step multiplies the distance by 1 − τ/σ²: 0.8 at 2, and −0.25 at
    −2. Measured are falls of p on the way from 0, the score at the end, from random starts too,
    and whether the curvature there is negative.
    """
    law = example_3_2()
    x = torch.cat([_numbers(0)[:, None], draw.uniform(-3.0, 3.0, BATCH - 1, 1)])
    path = [x]
    for _ in range(500):
        path.append(path[-1] + 0.05 * law.score(path[-1], 0.0))
    heights, x = law.log_prob(torch.stack(path)[:, 0]), path[-1]
    fall = float((heights[:-1] - heights[1:]).max())
    flat = float((0.05 * law.score(x, 0.0)).abs().max())
    curved = bool((law.score_jacobian(x, 0.0) < 0).all()) and float(x[0]) > 1.9
    return max(fall, flat) if curved else 1.0


def _share_of_example_3_3(tau: float) -> float:
    """Share of Langevin chains above 0 after a hundred steps, by its transition on a grid."""
    x = torch.linspace(-8, 8, 401, dtype=torch.float64)[:, None]
    width = float(x[1] - x[0])
    mean = (x + tau * _score(x))[:, 0]
    kernel = _normal(x, mean, _numbers(2 * tau)) * width
    weights = (3 - x[:, 0].abs() > -1e-9).double()
    weights[(3 - x[:, 0].abs()).abs() < 1e-9] = 0.5  # the ends of the interval
    weights = weights / weights.sum()
    for _ in range(STEPS):
        weights = kernel @ weights
    above = x[:, 0] > width / 2
    return float(weights[above].sum() + 0.5 * weights[len(x) // 2])


@claim(
    "chan-example-3-3",
    title="Weights of the modes after a hundred Langevin steps",
    statement="from Uniform[−3, 3] with τ = 0.05, P(x₁₀₀ > 0) = 0.640, not π₁ = 0.6",
    sources={"chan": "example 3.3 (τ of example 3.2)"},
    tags=("langevin",),
    kind="statistics",
    tolerance=5.0,
    because="standard errors of a share of 10,000 chains",
)
def _example_3_3(draw: Draw) -> float:
    """Chains stay in the mode above which they start: of the interval, 0.64 is right of the watershed.

    The share by the transition operator on a grid, without samples, is 0.640; it is compared with
    that of `sdekit.langevin`, in standard errors.
    """
    share, count = _share_of_example_3_3(0.05), 10_000
    if abs(share - 0.640) > 5e-4:
        return math.inf
    start = draw.uniform(-3.0, 3.0, count, 1)
    seed = draw.integer(2**31)
    chain = langevin(_score, start, step_size=0.05, steps=STEPS, seed=seed)
    found = float((chain.x > 0).double().mean())
    return abs(found - share) / math.sqrt(share * (1 - share) / count)


@claim(
    "chan-preserving-scalars",
    title="Why √α and √(1 − α)",
    statement="xₜ = a xₜ₋₁ + b ε: Cov wₜ = b² (1 − a²ᵗ)/(1 − a²), which tends to 1 for b² = 1 − a²",
    sources={"chan": "theorem 2.1, eq. 41"},
    tags=("ddpm", "forward", "discrete", "moments"),
    tolerance=1e-10,
    because="round-off of a few operations",
)
def _preserving_scalars(draw: Draw) -> float:
    """The sum b²(1 + a² + … + a²⁽ᵗ⁻¹⁾) is that of t independent noises, each a time older.

    With a = √α it is compared with the noise of `DiscreteVP` with constant α, step by step, and its
    limit with that of a long chain.
    """
    alpha = draw.uniform(0.8, 0.98)
    a, b = alpha.sqrt(), (1 - alpha).sqrt()
    process = DiscreteVP(alpha ** torch.arange(1, 21, dtype=torch.float64))
    t = torch.arange(1, 21, dtype=torch.float64)
    found = residual(process.std(t / 20) ** 2, b**2 * (1 - a ** (2 * t)) / (1 - a**2))
    variance = torch.zeros((), dtype=torch.float64)
    for _ in range(2000):
        variance = alpha * variance + b**2
    return max(found, residual(variance, torch.ones_like(variance)))


@claim(
    "chan-linear-gaussian",
    title="Marginal of a linear Gaussian model",
    statement="p(y) = N(Aμ + b, L⁻¹ + A Λ⁻¹ Aᵀ) for p(x) = N(μ, Λ⁻¹), p(y|x) = N(Ax + b, L⁻¹)",
    sources={"chan": "theorem 2.8"},
    tags=("ddim", "moments"),
    tolerance=1e-10,
    because="round-off of a few operations",
)
def _linear_gaussian(draw: Draw) -> float:
    """Along random directions u the law of Ax is that of x along Aᵀu, as `marginal` has it."""
    x, noise = draw.gaussian(), draw.gaussian()
    A, b, u = draw.normal(2, 2), draw.normal(2), draw.normal(BATCH, 2)
    (mean, within), added = x.moments(), noise.moments()[1]
    parts = [x.marginal(A.T @ v).moments() for v in u]
    center = torch.stack([m[0] for m, _ in parts]) + u @ b
    spread = torch.stack([c[0, 0] for _, c in parts]) + torch.einsum("bi,ij,bj->b", u, added, u)
    cov = added + A @ within @ A.T
    first = residual(center, u @ (A @ mean + b), u @ b)
    return max(first, residual(spread, torch.einsum("bi,ij,bj->b", u, cov, u)))
