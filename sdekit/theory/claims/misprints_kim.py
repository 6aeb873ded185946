"""Misprints of Kim's lecture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...distributions import Gaussian, GaussianMixture
from ..calculus import divergence, log_normal, quadrature, residual
from ..claim import Both, claim
from ..draw import Draw
from .ddpm import level, schedule
from .score_matching import network, pairs, smooth_mixture


@claim(
    "kim-explicit-objective",
    title="Kim's explicit objective",
    statement="J = ½ E‖s_θ(x) − ∇log p(x)‖² = E[tr ∇s_θ + ½‖s_θ‖²] + C",
    printed="J_ESP = ½ E‖tr(∇ₓ s_θ(x)) − ∇ₓ log p_data(x)‖²",
    sources={"kim": "section 2.1"},
    tags=("misprint", "score", "training"),
    tolerance=1e-9,
    because="quadrature over 4000 points",
)
def _explicit(draw: Draw) -> Both:
    """The first line has the trace of the Jacobian where the next ones have the network itself.

    All lines are integrals in one dimension, where the trace is a number; the last line is the
    implicit objective with C = ½E‖∇log p‖².
    """
    data, sigma = smooth_mixture(draw), float(draw.uniform(0.2, 1.0))
    x, weights = quadrature(data, sigma)
    net, score = network(draw, 1), data.score(x, sigma)
    trace = divergence(net, x)[:, None]
    constant = 0.5 * weights @ score[:, 0] ** 2
    last = weights @ (trace[:, 0] + 0.5 * net(x)[:, 0] ** 2) + constant
    values = [0.5 * weights @ (guess - score)[:, 0] ** 2 for guess in (trace, net(x))]
    x, weights = quadrature(Gaussian([0.0], 1.0), 0.0)
    true = 0.5 * weights @ (-1 + x[:, 0]) ** 2
    none = 0.5 * weights @ x[:, 0] ** 2
    return Both(
        residual(values[0], last, constant),
        residual(values[1], last, constant),
        f"for N(0, 1) it gives the true score a loss of {true:.2f} where it is 0, and prefers s = 0, "
        f"with {none:.2f}",
    )


@claim(
    "kim-mixture-score",
    title="Kim's score of a mixture",
    statement="∇log(π p₁ + (1 − π) p₂) = r₁ ∇log p₁ + r₂ ∇log p₂, "
    "r₁ = π p₁/(π p₁ + (1 − π) p₂) = 1 − r₂",
    printed="∇(log p_data) = ∇(log π + log(1 − π) + log p₁ + log p₂) = ∇(log p₁ + log p₂)",
    sources={"kim": "section 2.3"},
    tags=("misprint", "score", "langevin"),
    tolerance=1e-10,
    because="round-off",
)
def _mixture(draw: Draw) -> Both:
    """The logarithm of a sum is not the sum of logarithms: printed is the score of the product p₁p₂.

    Where the supports are disjoint the score is that of one component, as Song and Ermon (2019,
    section 3.2.2) write. The scores of sdekit's mixtures and Gaussians, at random points.
    """
    weight, means, variances = (
        float(draw.uniform(0.2, 0.8)),
        draw.normal(2, 2),
        draw.uniform(0.2, 1.0, 2),
    )
    weights = torch.tensor([weight, 1 - weight], dtype=torch.float64)
    data = GaussianMixture(weights, means, variances)
    x = data.sample(8, seed=draw.integer(2**31))
    parts = [Gaussian(means[k], variances[k]) for k in (0, 1)]
    r = (torch.stack([part.log_prob(x, 0.0) for part in parts], 1) + weights.log()).softmax(1)
    first, second = (part.score(x, 0.0) for part in parts)
    score = data.score(x, 0.0)
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    both = sum(Gaussian([m], 0.5).score(ends, 0.0)[:, 0] for m in (-4.0, 4.0))
    assert isinstance(both, Tensor)
    grid, mass = quadrature(GaussianMixture([0.2, 0.8], [[-4.0], [4.0]], 0.5), 0.0)
    near = float(mass[grid[:, 0].abs() < 1.5].sum())
    return Both(
        residual(first + second, score),
        residual(r[:, :1] * first + r[:, 1:] * second, score),
        "Langevin dynamics for modes N(∓4, ½) of shares 0.2 and 0.8 then tends to "
        f"N(0, {float(1 / (both[0] - both[1])):.2f}), between the modes: 0.997 of it is in |x| < 1.5, "
        f"where p has {near:.1e}",
    )


@claim(
    "kim-bayes-left-side",
    title="Left side of Kim's rule of Bayes",
    statement="q(z_{t−1}|z_t, x) = q(z_t|z_{t−1}, x) q(z_{t−1}|x)/q(z_t|x)",
    printed="q(z_t|z_{t−1}, x) = q(z_t|z_{t−1}, x) q(z_{t−1}|x)/q(z_t|x)",
    sources={"kim": "section 3.1.3"},
    tags=("misprint", "ddpm", "discrete"),
    tolerance=1e-10,
    because="log-densities of normal laws cancel",
)
def _bayes(draw: Draw) -> Both:
    """As printed, q(z_{t−1}|x) would have to be q(z_t|x). The heading has the posterior, as is right.

    All densities are those of the kernels of `DiscreteVP`, but the posterior's, which is the
    result of the section.
    """
    chain, x0 = schedule(draw, 3), draw.normal(6, 1)
    before, x = draw.normal(2, 6, 1)
    step, spread = chain.process.transition(before, chain.times[1], chain.times[2])
    parts = [log_normal(x, step, spread**2)]
    for point, time in ((before, chain.times[1]), (x, chain.times[2])):
        start, std = chain.process.marginal(x0, time)
        parts.append(log_normal(point, start, std**2))
    right = parts[0] + parts[1] - parts[2]
    mean = chain.of_state[2] * x + chain.of_data[2] * x0
    # at x = z_{t−1} = z_t = 0, with β = 0.1 and ᾱ_{t−1} = 0.5
    here = math.sqrt((1 - 0.45) / (2 * math.pi * 0.1 * 0.5))
    return Both(
        residual(parts[0], right, *parts),
        residual(log_normal(before, mean, chain.small[2]), right, *parts),
        "at x = z_{t−1} = z_t = 0 with β = 0.1, ᾱ_{t−1} = 0.5 it says "
        f"{1 / math.sqrt(0.2 * math.pi):.3f} = {here:.3f}",
    )


@claim(
    "kim-gaussian-exponent",
    title="The exponent of Kim's normal density",
    statement="p(y) = (2π)^{−n/2} |Σ|^{−1/2} exp(−½ (y − μ)ᵀΣ⁻¹(y − μ))",
    printed="= 1/((2π)^{n/2} |Σ^{1/2}|) exp((y − μ)ᵀΣ⁻¹(y − μ))",
    sources={"kim": "appendix A, lemma 2, lemma 3"},
    tags=("misprint", "density"),
    tolerance=1e-10,
    because="round-off",
)
def _exponent(draw: Draw) -> Both:
    """The −½ is lost between exp(−½(x₁² + … + x_n²)) and exp(xᵀx), and in the lemmas' exponents.

    Logarithms are compared with `Gaussian.log_prob`; the lemmas are right, as their results do not
    depend on the factor.
    """
    data = draw.gaussian()
    mean, cov = data.moments()
    x = data.sample(6, seed=draw.integer(2**31))
    square = ((x - mean) @ torch.linalg.inv(cov) * (x - mean)).sum(1)
    front = -math.log(2 * math.pi) - 0.5 * torch.logdet(cov)
    exact = data.log_prob(x, 0.0)
    return Both(
        residual(front + square, exact),
        residual(front - 0.5 * square, exact),
        f"one standard deviation from μ the density is {math.e:.2f} times that at μ, not "
        f"{math.exp(-0.5):.2f}; its integral diverges",
    )


@claim(
    "kim-lemma-2-constant",
    title="The constant of the density in Kim's lemma 2",
    statement="N_v(Aw, B) = (2π)^{−d/2} |B|^{−1/2} exp(−½ (v − Aw)ᵀB⁻¹(v − Aw))",
    printed="N_v(Aw, B) = 1/((2π)^d B^{1/2}) exp((v − Aw)ᵀB⁻¹(v − Aw))",
    sources={"kim": "lemma 2"},
    tags=("misprint", "density"),
    tolerance=1e-10,
    because="round-off",
)
def _lemma_2(draw: Draw) -> Both:
    """The power of 2π is d/2; it is printed as d in all three lines.

    With the exponent put right, so that the power is all that differs, the logarithm is compared with
    `Gaussian.log_prob` at random v.
    """
    matrix, w = draw.normal(2, 2), draw.normal(2)
    _, B = draw.gaussian().moments()
    law = Gaussian(matrix @ w, B)
    v = law.sample(6, seed=draw.integer(2**31))
    gap = v - matrix @ w
    rest = -0.5 * torch.logdet(B) - 0.5 * (gap @ torch.linalg.inv(B) * gap).sum(1)
    exact = law.log_prob(v, 0.0)
    return Both(
        residual(rest - 2 * math.log(2 * math.pi), exact),
        residual(rest - math.log(2 * math.pi), exact),
        f"with the exponent put right, the density integrates to {1 / (2 * math.pi):.3f} where d = 2",
    )


@claim(
    "kim-lemma-4-proof",
    title="Last but one line of Kim's lemma 4",
    statement="KL = ½(log |B|/|A| + tr(B⁻¹A − I) + aᵀB⁻¹a − 2bᵀB⁻¹a + bᵀB⁻¹b)",
    printed="= ½ log(|A|/|B|) + tr(B⁻¹A + I) + aᵀB⁻¹a − 2bᵀB⁻¹a + bᵀB⁻¹b",
    sources={"kim": "lemma 4, proof"},
    tags=("misprint", "elbo"),
    tolerance=1e-9,
    because="quadrature over 4000 points",
)
def _lemma_4(draw: Draw) -> Both:
    """Three slips that the last line does not have: the ½ of the exponents, |A|/|B|, and + I for − I.

    The divergence is an integral over sdekit's densities, in one dimension.
    """
    first, second = draw.gaussian(1), draw.gaussian(1)
    (a, A), (b, B) = first.moments(), second.moments()
    x, weights = quadrature(first, 0.0)
    exact = weights @ (first.log_prob(x, 0.0) - second.log_prob(x, 0.0))
    square = ((a - b) ** 2 / B).sum()
    ratio, logs = (A / B).sum(), torch.log(B / A).sum()
    return Both(
        residual(-0.5 * logs + ratio + 1 + square, exact),
        residual(0.5 * (logs + ratio - 1 + square), exact, logs, ratio, square),
        "the divergence of N(0, I) from itself is 2d, not 0",
    )


@claim(
    "kim-noise-target",
    title="Target of Kim's network",
    statement="L = Σ ‖g_t(z_t) − ε‖², least for g_t(z_t) = E[ε|z_t]",
    printed="L = Σᵢ Σ_t ‖g_t[z_it, φ_t] − σ_it‖²",
    sources={"kim": "section 3.1.7, end"},
    tags=("misprint", "training", "ddpm"),
    tolerance=1e-9,
    because="quadrature over 300 × 81 points",
)
def _target(draw: Draw) -> Both:
    """Printed three times is σ_it for ε_it, which Kim's algorithm 2 has right.

    Read as the σ_t of the text, the deviation of the reverse step, the least squares are at the
    constant g = σ_t. Compared are projections E[target h(z)] on functions h of the state with those
    of the exact E[ε|z], by double quadrature.
    """
    data, chain = smooth_mixture(draw), schedule(draw, 3)
    sigma = float(level(chain.bar[2]))
    clean, noisy, weights = pairs(data, sigma)
    noise = (noisy - clean) / sigma
    shape = torch.tanh(noisy * draw.normal(6) + draw.normal(6))
    exact = weights @ ((noisy - data(noisy, sigma)) / sigma * shape)
    target = weights @ (noise * shape)
    wrong = weights @ (chain.small[2].sqrt() * shape)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars, variance = torch.cumprod(1 - betas, 0), 1.0
    for i in range(999, 0, -1):
        small = betas[i] * (1 - bars[i - 1]) / (1 - bars[i])
        variance = float(variance / (1 - betas[i]) + small)
    return Both(
        residual(wrong[None], exact[None]),
        residual(target[None], exact[None]),
        f"algorithm 3 with g = σ_t and DDPM's 1000 β has the variance {variance:.1e}, of data N(0, 1)",
    )
