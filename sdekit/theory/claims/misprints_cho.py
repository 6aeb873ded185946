"""Misprints of Cho's note."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from ...distributions import Empirical, Gaussian
from ...processes import VP
from ..calculus import gradient, residual
from ..claim import Both, claim
from ..draw import Draw
from .ddpm import level, schedule


@claim(
    "cho-prior-term",
    title="Cho's L_T",
    statement="L_T = ½(−n log(1 − ᾱ_T) − n ᾱ_T + ᾱ_T E‖X₀‖²)",
    printed="L_T = ½(log(1 − ᾱ_T) + n(1/(1 − ᾱ_T) − 1) + ᾱ_T/(1 − ᾱ_T) E‖X₀‖²)",
    sources={"cho": "section 2.2, after eq. 3"},
    tags=("misprint", "elbo", "ddpm"),
    tolerance=1e-9,
    because="round-off of logarithms",
)
def _prior_term(draw: Draw) -> Both:
    """Printed is the divergence the other way round, KL(p(x_T) ‖ q(x_T|x₀)), with n missing at its log.

    L_T is the mean over data points of torch's divergence of the law that `DiscreteVP.marginal`
    gives from N(0, I).
    """
    chain = schedule(draw)
    x0 = draw.normal(7, 3)
    mean, std = chain.process.marginal(x0, chain.times[-1])
    one = torch.ones_like(mean)
    exact = (
        kl_divergence(Normal(mean, std * one), Normal(torch.zeros_like(mean), one)).sum(1).mean()
    )
    bar = chain.process.scale(chain.times[-1]) ** 2
    middle, cov = Empirical(x0).moments()
    square = cov.trace() + middle.square().sum()

    def both(bar: torch.Tensor, n: int, square: torch.Tensor | float) -> torch.Tensor:
        printed = torch.log1p(-bar) + n * (1 / (1 - bar) - 1) + bar / (1 - bar) * square
        return 0.5 * torch.stack([printed, -n * torch.log1p(-bar) - n * bar + bar * square])

    printed, right = both(bar, 3, square)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    example = both(torch.prod(1 - betas), 3072, 3072 * 0.25).tolist()
    return Both(
        residual(printed, exact),
        residual(right, exact, bar, square * bar),
        f"of 32 × 32 × 3 numbers of mean square ¼ with DDPM's β, L_T is {example[1]:.4f} nats and not "
        f"{example[0]:.4f}",
    )


@claim(
    "cho-first-term-weight",
    title="Cho's L₀'",
    statement="L₀' = E[1/(2β₁) ‖X₀ − X̂₀(X₁)‖²] = E[(1 − α₁)/(2β₁α₁) ‖ℰ̄₁ − Net_θ(X₁, 1)‖²]",
    printed="L₀' = E[(1 − α₁)/(2β₁α₁) ‖X₀ − X̂₀(X₁)‖²]",
    sources={"cho": "section 2.2.2, end"},
    tags=("misprint", "elbo", "training"),
    tolerance=1e-10,
    because="round-off",
)
def _first_term(draw: Draw) -> Both:
    """The weight belongs to the error of the noise, which is √(1 − α₁)/√α₁ times smaller in the data.

    At random data and noise, with a network that is a mixture's denoiser plus an error; the
    line before has 1/(2β₁), the next the weight with the noise, as is right.
    """
    chain, data = schedule(draw), draw.mixture()
    beta, alpha = chain.beta[0], chain.alpha[0]
    x0, noise, error = draw.normal(3, 6, 2)
    x = chain.process.perturb(x0, chain.times[0], noise=noise)
    clean = data(x / alpha.sqrt(), float(level(alpha))) + 0.2 * error
    guess = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    exact = (x0 - clean).square().sum(1) / (2 * beta)
    weight = (1 - alpha) / (2 * beta * alpha)
    return Both(
        residual(weight * (x0 - clean).square().sum(1), exact),
        residual(weight * (noise - guess).square().sum(1), exact),
        f"with DDPM's β₁ = 1e-4 this term counts {1e-4 / (1 - 1e-4):.4e} of what it should",
    )


@claim(
    "cho-velocity-sampling",
    title="Cho's sampling with the velocity",
    statement="μ̂ = (x_t − (β_t/b_t) ε̂)/√α_t",
    printed="μ̂ = 1/√α_t (x_t − β_t/b_t) ε̂",
    sources={"cho": "section 2.6, sampling"},
    tags=("misprint", "ddpm"),
    tolerance=1e-9,
    because="round-off",
)
def _velocity(draw: Draw) -> Both:
    """The bracket is closed before ε̂: a number is taken from a vector, and vectors are multiplied.

    The mean is that of the exact reverse transition of a mixture, the noise b x + a v̂ with the
    velocity of the mixture's denoiser.
    """
    chain, data = schedule(draw), draw.mixture()
    i = 1 + draw.integer(len(chain.times) - 1)
    a, b = chain.bar[i].sqrt(), (1 - chain.bar[i]).sqrt()
    x, sigma = draw.normal(6, 2), float(level(chain.bar[i]))
    clean = data(x / a, sigma)
    v = a * (x - a * clean) / b - b * clean
    noise = b * x + a * v
    transition = data.reverse_transition(x / a, sigma, float(level(chain.bar[i - 1])))
    exact = chain.before[i].sqrt() * transition.mean()
    rate, root = chain.beta[i] / b, chain.alpha[i].sqrt()
    # of N(0, 1), where ε̂ = b x, with α = 0.98 and ᾱ = 0.5
    square = (3 * 0.5 + 0.02**2) / 0.98
    return Both(
        residual((x - rate) * noise / root, exact),
        residual((x - rate * noise) / root, exact, x),
        f"for N(0, 1), α = 0.98, ᾱ = 0.5: E μ̂ = {(0.5 / 0.98) ** 0.5:.3f} and E μ̂² = {square:.3f}, not "
        "0 and 0.98",
    )


@claim(
    "cho-reverse-drift",
    title="Argument of the drift in Cho's reverse process",
    statement="dX̄ = (−μ̄(X̄_t, t) + σ̄σ̄ᵀ∇log q̄(X̄_t, t) + ∇·(σ̄σ̄ᵀ)) dt + σ̄ dB̄, X̄_t = X_{1−t}",
    printed="dX̄ = (−μ̄(X_t, t) + σ̄σ̄ᵀ∇log q̄(X̄_t, t) + ∇σ̄σ̄ᵀ) dt + σ̄ dB̄",
    sources={"cho": "eq. 10"},
    tags=("misprint", "reverse"),
    tolerance=1e-9,
    because="round-off of automatic differentiation",
)
def _reverse_drift(draw: Draw) -> Both:
    """The drift is a function of the reversed state; X_t, printed twice, is the forward one.

    Both are known on VP with Gaussian data: the growth of E X̄² that the drift gives, with the
    covariance of X_t and X_{1−t} from the process's transition, against the derivative of the
    variance s²(v + σ²).
    """
    process, data = VP(beta_max=4.0), float(draw.uniform(0.3, 2.0))
    t = draw.uniform(0.55, 0.95, 4)  # reversed: X̄_t is at 1 − t, X_t is later
    u = 1 - t

    def variance(at: torch.Tensor) -> torch.Tensor:
        return process.scale(at) ** 2 * (data + process.sigma(at) ** 2)

    one = torch.ones(4, 1, dtype=torch.float64)
    ratio, _ = process.transition(one, u, t)
    law = Gaussian([0.0], data)
    s = process.scale(u)
    slope = law.score(one / s[:, None], process.sigma(u))[:, 0] / s  # score of x(u) at 1
    square = process.g(u) ** 2
    rest = 2 * square * slope * variance(u) + square
    right = -2 * process.f(u) * variance(u) + rest
    printed = -2 * process.f(u) * ratio[:, 0] * variance(u) + rest
    exact = -gradient(variance, u)
    still = VP(beta_max=4.0)
    at = torch.tensor([0.1, 0.9], dtype=torch.float64)
    keep = float(still.transition(one[:1], at[:1], at[1:])[0][0, 0])
    rate = float(still.beta(at[0]))
    return Both(
        residual(printed, exact, square),
        residual(right, exact, square),
        "for VP with β from 0.1 to 4 and N(0, 1), whose law stays, E X̄² changes at t = 0.9 at the "
        f"rate {rate * (keep - 1):.3f}",
    )
