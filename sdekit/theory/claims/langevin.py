"""Langevin dynamics: what it keeps, its bias, and how slowly it mixes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...chains import langevin
from ...distributions import Gaussian, GaussianMixture
from ..calculus import fokker_planck, generator, quadrature, residual
from ..claim import claim
from ..draw import Draw
from ..noises import Impulses

EYE = torch.eye(1, dtype=torch.float64)


def kernel(data: GaussianMixture, sigma: float, step: float, grid: Tensor) -> Tensor:
    """Transition matrix of ``x ← x + ε ∇log p_σ + sqrt(2ε) z`` on a grid, ``(from, to)``."""
    mean = grid + step * data.score(grid[:, None], sigma)[:, 0]
    matrix: Tensor = torch.exp(-((grid - mean[:, None]) ** 2) / (4 * step))
    return matrix.div(matrix.sum(1, keepdim=True))


def two_modes(weight: float, centre: float, variance: float) -> GaussianMixture:
    """Mixture of modes at ``∓centre``, the left one with a weight."""
    return GaussianMixture([weight, 1 - weight], [[-centre], [centre]], variance)


@claim(
    "langevin-invariance",
    title="Langevin dynamics keeps its density",
    statement="dX = ∇log p dt + √2 dW: −∇·(p ∇log p) + Δp = 0, and ∫ p Lφ = 0 for every φ",
    sources={"chan": "theorem 3.1, eq. 97", "risken": "section 5.2"},
    tags=("langevin", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives; quadrature over 4000 points",
)
def _invariance(draw: Draw) -> float:
    """The flux p ∇log p − ∇p vanishes, so p is stationary, and the generator has mean zero.

    The Fokker–Planck operator of the drift ∇log p and GGᵀ = 2I on a mixture in two dimensions, at
    random points; and the mean of Lφ in one dimension, for φ = sin(ax + b) and tanh(ax + b).
    """
    data, sigma = draw.mixture(), float(draw.uniform(0.3, 1.0))
    x = data.sample(6, sigma, seed=draw.integer(2**31))
    square = 2 * torch.eye(2, dtype=torch.float64)
    parts = fokker_planck(
        lambda y: data.score(y, sigma),
        lambda y: square.expand(len(y), 2, 2),
        lambda y: torch.exp(data.log_prob(y, sigma)),
        x,
    )
    worst = residual(parts[0], -parts[1])
    flat = draw.mixture(1)
    nodes, weights = quadrature(flat, sigma)
    a, b = draw.uniform(0.5, 2.0), draw.normal()

    def wave(shape: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        return shape(a * y[:, 0] + b)

    for shape in (torch.sin, torch.tanh):
        found = generator(
            lambda y: flat.score(y, sigma),
            lambda y: 2 * EYE.expand(len(y), 1, 1),
            partial(wave, shape),
            nodes,
        )
        worst = max(worst, residual(weights @ found, torch.zeros(()), weights @ found.abs()))
    return worst


@claim(
    "langevin-bias-gaussian",
    title="Bias of Langevin steps, of a Gaussian",
    statement="x ← x + ε ∇log p + √(2ε) z with p = N(m, v) tends to N(m, v/(1 − ε/(2v)))",
    sources={"chan": "example 3.1, eq. 96", "kim": "section 2.2.1"},
    tags=("langevin",),
    tolerance=1e-10,
    because="round-off of a step",
)
def _bias_gaussian(draw: Draw) -> float:
    """The chain is v' = (1 − ε/v)² v + 2ε, whose fixed point is v/(1 − ε/(2v)).

    The coefficients of a step are read off `sdekit.langevin`, by starts and noise that differ in
    one number each. Kim's step size is 2ε. So for ε/v = 0.1 the variance is 5 % too large.
    """
    mean, variance = float(draw.normal()), float(draw.uniform(0.3, 2.0))
    step = float(draw.uniform(0.05, 0.9)) * variance
    data = Gaussian([mean], variance)

    def score(x: Tensor) -> Tensor:
        return data.score(x, 0.0)

    x = torch.tensor([[mean], [mean], [mean + 1]], dtype=torch.float64)
    after = langevin(score, x, step_size=step, steps=1, noise=Impulses()).x[:, 0]
    keep, spread = after[2] - after[0], after[1] - after[0]
    wanted = variance / (1 - step / (2 * variance))
    size = after.new_tensor(wanted)
    return max(
        residual(keep**2 * size + spread**2, size), residual(after[0], after.new_tensor(mean), keep)
    )


@claim(
    "langevin-bias-mixture",
    title="Bias of Langevin steps, of a mixture",
    statement="E_ε φ − E φ = O(ε) for the stationary law of x ← x + ε ∇log p + √(2ε) z",
    sources={"chan": "eq. 96", "kim": "section 2.2.1"},
    tags=("langevin",),
    kind="rate",
    tolerance=0.1,
    because="an order measured between ε = 0.02 and 0.01",
)
def _bias_mixture(draw: Draw) -> float:
    """The transition operator on a grid of 400 points has one stationary vector, found by squaring.

    The measured order of the error of E x², for two modes that overlap, against 1.
    """
    weight, centre = float(draw.uniform(0.3, 0.7)), float(draw.uniform(0.5, 0.9))
    data = two_modes(weight, centre, 0.3)
    grid = torch.linspace(-5, 5, 400, dtype=torch.float64)
    exact = float(data.moments()[0] ** 2 + data.moments()[1][0, 0])
    errors = []
    for step in (0.02, 0.01):
        matrix = kernel(data, 0.0, step, grid)
        for _ in range(14):
            matrix = matrix @ matrix
        errors.append(float(matrix[0] @ grid**2) - exact)
    return abs(math.log2(abs(errors[0] / errors[1])) - 1)


@claim(
    "langevin-adjusted",
    title="Metropolis-adjusted Langevin dynamics has no bias",
    statement="proposals x' = x + ε ∇log p + √(2ε) z, accepted with probability "
    "min(1, p(x')q(x|x')/(p(x)q(x'|x))), keep p for every ε",
    sources={"roberts": "the Metropolis-adjusted algorithm, MALA"},
    tags=("langevin",),
    kind="statistics",
    tolerance=5.0,
    because="standard errors of three means over 4000 chains",
)
def _adjusted(draw: Draw) -> float:
    """Acceptance makes the chain reversible, so chains that start with the law p stay there.

    4000 chains of 20 steps of `sdekit.langevin`, started from samples of a mixture, with a step so
    long that without acceptance the law is plainly wrong: that has to be off by eight standard
    errors at least. The means of x, x² and cos 2x, in standard errors.
    """
    data = two_modes(float(draw.uniform(0.3, 0.7)), 0.9, 0.3)
    x, seed = data.sample(4000, seed=draw.integer(2**31)), draw.integer(2**31)
    nodes, weights = quadrature(data, 0.0)

    def features(y: Tensor) -> Tensor:
        return torch.cat([y, y**2, torch.cos(2 * y)], 1)

    def distance(log_prob: Callable[[Tensor], Tensor] | None) -> float:
        def score(y: Tensor) -> Tensor:
            return data.score(y, 0.0)

        chain = langevin(score, x, step_size=0.4, steps=20, log_prob=log_prob, seed=seed)
        found = features(chain.x)
        error = found.std(0) / len(found) ** 0.5
        return float(((found.mean(0) - weights @ features(nodes)) / error).abs().max())

    return distance(data.log_prob) if distance(None) > 8 else float("inf")


@claim(
    "score-of-mixture-weights",
    title="How the score depends on the weights of modes",
    statement="∂/∂π ∇log(π p₁ + (1 − π) p₂) = r₁ r₂ (∇log p₁ − ∇log p₂)/(π(1 − π)), "
    "r_k the posterior weight of mode k",
    sources={"kim": "section 2.3", "song2019": "section 3.2.2"},
    tags=("langevin", "score"),
    tolerance=1e-9,
    because="truncation and round-off of a difference quotient",
)
def _weights(draw: Draw) -> float:
    """The score is r₁∇log p₁ + r₂∇log p₂, and dr₁/dπ = r₁r₂/(π(1 − π)).

    It does not depend on π only where one of the r vanishes, away from the overlap of the modes:
    that, and not independence, is why Langevin dynamics mixes so slowly. The left side is a
    difference quotient of sixth order of the score of sdekit's mixtures.
    """
    weight = float(draw.uniform(0.2, 0.8))
    means, variances = draw.normal(2, 1), draw.uniform(0.2, 1.0, 2)
    x = 1.5 * draw.normal(6, 1)

    def score(share: float) -> Tensor:
        return GaussianMixture([share, 1 - share], means, variances).score(x, 0.0)

    h = 2e-3
    near, mid, wide = (score(weight + k * h) - score(weight - k * h) for k in (1, 2, 3))
    left = (45 * near - 9 * mid + wide) / (60 * h)
    parts = [Gaussian(means[k], variances[k]) for k in (0, 1)]
    logs = torch.stack([part.log_prob(x, 0.0) for part in parts], 1)
    r = (logs + torch.tensor([weight, 1 - weight], dtype=torch.float64).log()).softmax(1)
    gap = parts[0].score(x, 0.0) - parts[1].score(x, 0.0)
    right = r.prod(1, keepdim=True) * gap / (weight * (1 - weight))
    return residual(left, right, score(weight))


@claim(
    "langevin-loses-weights",
    title="Langevin dynamics loses the weights of separated modes",
    statement="p₁, p₂ far apart: after a feasible number of steps the shares of the modes do not "
    "depend on π, but on the start alone",
    sources={"kim": "section 2.3, figure 6", "song2019": "section 3.2.2, figure 3"},
    tags=("langevin",),
    kind="rate",
    tolerance=0.1,
    because="a limit: with the distance of the modes the dependence on π vanishes",
)
def _loses(draw: Draw) -> float:
    """The laws after 300 steps, from one start N(0, 4²), for π = 0.2 and π = 0.8, with exact scores.

    No samples are drawn: the transition operator is applied on a grid. The residual is the
    difference of the shares of the left mode over 0.6, that of the weights.
    """
    centre = float(draw.uniform(4.0, 5.0))
    grid = torch.linspace(-20, 20, 500, dtype=torch.float64)
    start = torch.exp(-(grid**2) / 32)
    start = start / start.sum()
    shares = []
    for weight in (0.2, 0.8):
        law, matrix = start, kernel(two_modes(weight, centre, 0.5), 0.0, 0.02, grid)
        for _ in range(300):
            law = law @ matrix
        shares.append(float(law[grid < 0].sum()))
    return abs(shares[0] - shares[1]) / 0.6
