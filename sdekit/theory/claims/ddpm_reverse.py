"""DDPM: the exact reverse chain, its moments and that of a class."""

from __future__ import annotations

import torch
from torch import Tensor

from ...distributions import Gaussian, GaussianMixture
from ...distributions.conditional import LabelledMixture
from ..calculus import quadrature, residual
from ..claim import claim
from ..draw import Draw
from .ddpm import level, schedule


def _backward(data: GaussianMixture, low: float, high: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``x̂`` at ``low`` given ``x̂`` at ``high``, by quadrature, in 1-D."""
    nodes, weights = quadrature(data, low)
    posterior = weights * torch.exp(-0.5 * (x - nodes[:, 0]) ** 2 / (high**2 - low**2))  # (B, n)
    posterior = posterior / posterior.sum(1, keepdim=True)
    mean = posterior @ nodes[:, 0]
    return mean, posterior @ nodes[:, 0] ** 2 - mean**2


@claim(
    "ddpm-mean-exact",
    title="DDPM's mean is that of the exact reverse chain",
    statement="E[x_{t−1}|x_t] = (x_t − β_t/√(1 − ᾱ_t) E[ε|x_t])/√α_t for every data law",
    sources={"ddpm": "section 3.2, eq. 11", "cho": "section 2.2", "sdekit": "theory 4.4"},
    tags=("ddpm", "discrete", "moments"),
    tolerance=1e-9,
    because="quadrature over 4000 points",
)
def _mean_exact(draw: Draw) -> float:
    """The posterior's mean is linear in x₀, so its expectation given x_t has E[x₀|x_t] in its place.

    The left side is an integral over x_{t−1} of q(x_{t−1}) q(x_t|x_{t−1}) in one dimension, and
    sdekit's exact reverse transition; the right side has ε̂ from the mixture as a denoiser.
    """
    chain, data, worst = schedule(draw, 4), draw.mixture(1), 0.0
    for i in range(1, len(chain.times)):
        sigma, low = float(level(chain.bar[i])), float(level(chain.bar[i - 1]))
        x = draw.normal(4, 1) * 1.5
        x_hat = x / chain.bar[i].sqrt()
        noise = (x_hat - data(x_hat, sigma)) / sigma
        right = (x - chain.beta[i] / (1 - chain.bar[i]).sqrt() * noise) / chain.alpha[i].sqrt()
        mean, _ = _backward(data, low, sigma, x_hat)
        exact = data.reverse_transition(x_hat, sigma, low).mean()
        root = chain.bar[i - 1].sqrt()
        worst = max(worst, residual(right, root * mean[:, None], x))
        worst = max(worst, residual(right, root * exact, x))
    return worst


@claim(
    "ddpm-variances",
    title="DDPM's two variances are the extremes",
    statement="Cov(x_{t−1}|x_t) = β̃_t I + (ᾱ_{t−1}β_t²/(1 − ᾱ_t)²) Cov(x₀|x_t): "
    "β̃_t I for a point, β_t I for N(0, I)",
    sources={"ddpm": "section 3.2", "cho": "eq. 5", "sdekit": "theory 4.4"},
    tags=("ddpm", "discrete", "moments"),
    tolerance=1e-8,
    because="quadrature, and a variance as a difference of moments",
)
def _variances(draw: Draw) -> float:
    """The law of total variance, as the posterior's mean is linear in x₀ and its variance constant.

    The left side by quadrature in one dimension, and from the exact reverse transition in two;
    Cov(x₀|x_t) from the mixture. For the two extremes the transition's covariance is compared
    with β̃ and β alone.
    """
    chain, worst = schedule(draw, 4), 0.0
    line_data, data = draw.mixture(1), draw.mixture(2)
    origin = torch.zeros(2, dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    for i in range(1, len(chain.times)):
        sigma, low = float(level(chain.bar[i])), float(level(chain.bar[i - 1]))
        scale = chain.bar[i - 1]
        x_hat = draw.normal(4, 1)
        _, variance = _backward(line_data, low, sigma, x_hat)
        inner = line_data.posterior_cov(x_hat, sigma)[:, 0, 0]
        right = chain.small[i] + chain.of_data[i] ** 2 * inner
        worst = max(worst, residual(scale * variance, right))
        x_hat = draw.normal(4, 2)
        exact = data.reverse_transition(x_hat, sigma, low).cov()
        inner = data.posterior_cov(x_hat, sigma)
        worst = max(
            worst, residual(scale * exact, chain.small[i] * eye + chain.of_data[i] ** 2 * inner)
        )
        for law, variance in (
            (Gaussian(origin, 0.0), chain.small),
            (Gaussian(origin, 1.0), chain.beta),
        ):
            exact = law.reverse_transition(x_hat, sigma, low).cov()
            worst = max(worst, residual(scale * exact, variance[i] * eye.expand(4, 2, 2)))
    return worst


@claim(
    "ddpm-reverse-chain",
    title="The exact reverse chain gives the data back",
    statement="p(x_T) = q(x_T), p(x_{t−1}|x_t) = q(x_{t−1}|x_t) ⇒ p(x₀) = q(x₀); "
    "and from p(x_T) = N(0, I) mean and variance are off by ∏ᵢ(vᵢ₋₁/vᵢ) of what they are at T",
    sources={"cho": "section 2.2, appendix A.2"},
    tags=("ddpm", "discrete", "reverse"),
    tolerance=1e-10,
    because="round-off of a chain of eight steps",
)
def _reverse_chain(draw: Draw) -> float:
    """For Gaussian data the reverse chain is affine: mean and covariance are propagated exactly.

    Each step is `Gaussian.reverse_law` between neighbouring levels. Started from N(0, I), the
    deviations are multiplied by the slope of each step, v'/v per eigenvalue and step.
    """
    chain, data = schedule(draw), draw.gaussian()
    mean, cov = data.moments()
    sigmas = [float(s) for s in level(chain.bar)]
    scale = float(chain.bar[-1]) ** -0.5
    last_mean, last_cov = data.moments(sigmas[-1])
    law = (last_mean[None], last_cov)
    noise = (torch.zeros_like(mean)[None], scale**2 * torch.eye(2, dtype=torch.float64))
    slope = torch.eye(2, dtype=torch.float64)
    probe = torch.cat([torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)])
    for high, low in zip(sigmas[::-1], [*sigmas[-2::-1], 0.0], strict=True):
        image, spread = data.reverse_law(probe, high, low)
        matrix, shift = (image[1:] - image[0]).mT, image[:1]
        law = (law[0] @ matrix.mT + shift, matrix @ law[1] @ matrix.mT + spread)
        noise = (noise[0] @ matrix.mT + shift, matrix @ noise[1] @ matrix.mT + spread)
        slope = cov_at(cov, low) @ torch.linalg.inv(cov_at(cov, high)) @ slope
    worst = max(residual(law[0], mean[None]), residual(law[1][None], cov[None]))
    gap = scale**2 * torch.eye(2, dtype=torch.float64) - last_cov
    worst = max(worst, residual(noise[0] - mean, -last_mean[None] @ slope.mT, mean[None]))
    return max(worst, residual((noise[1] - cov)[None], (slope @ gap @ slope.mT)[None], cov[None]))


def cov_at(cov: Tensor, sigma: float) -> Tensor:
    """``C + σ² I``."""
    return cov + sigma**2 * torch.eye(len(cov), dtype=torch.float64)


@claim(
    "ddpm-conditional-chain",
    title="Reverse chain of a class",
    statement="q(x_{t−1}|x_t, y) = q(x_{t−1}|x_t) q(y|x_{t−1})/q(y|x_t)",
    sources={"cho": "section 2.5", "guidance": "appendix H"},
    tags=("ddpm", "discrete", "guidance"),
    tolerance=1e-9,
    because="log-densities of mixtures cancel",
)
def _conditional_chain(draw: Draw) -> float:
    """The noise does not depend on the class, so q(y|x_{t−1}, x_t) = q(y|x_{t−1}).

    The left side is the exact reverse transition of the mixture of one class; on the right that
    of all, and the exact classifier at both levels.
    """
    mixture = draw.mixture(2, 4)
    data = LabelledMixture(mixture, [0, 1, 0, 1])
    high = draw.uniform(0.8, 2.0, 6)
    low = high * draw.uniform(0.3, 0.8, 6)
    x = mixture.sample(6, seed=draw.integer(2**31)) + high[:, None] * draw.normal(6, 2)
    before = mixture.reverse_transition(x, high, low).sample(seed=draw.integer(2**31))
    joint = mixture.reverse_transition(x, high, low).log_prob(before)
    worst = 0.0
    for label in (0, 1):
        left = data.given(label).reverse_transition(x, high, low).log_prob(before)
        parts = (
            joint,
            data.class_log_prob(before, low)[:, label],
            data.class_log_prob(x, high)[:, label],
        )
        worst = max(worst, residual(left, parts[0] + parts[1] - parts[2], *parts))
    return worst
