"""DDPM: the forward chain and its posterior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...adapters.predictions import coefficients
from ...affine import AffineSDE
from ...processes import DiscreteVP
from ...sde import expand
from ..calculus import log_normal, residual
from ..claim import claim
from ..draw import Draw


class Schedule(NamedTuple):
    """A chain of ``T`` steps, ``t = 1 … T``; all tensors ``(T,)``.

    Attributes:
        process: The chain as a process.
        times: Its times.
        beta: ``β_t``, drawn.
        alpha: ``α_t = 1 − β_t``.
        bar: ``ᾱ_t``, products of the ``α``.
        before: ``ᾱ_{t−1}``, 1 for ``t = 1``.
    """

    process: DiscreteVP
    times: Tensor
    beta: Tensor
    alpha: Tensor
    bar: Tensor
    before: Tensor

    @property
    def small(self) -> Tensor:
        """``β̃_t = β_t (1 − ᾱ_{t−1})/(1 − ᾱ_t)``, the variance of the posterior."""
        return self.beta * (1 - self.before) / (1 - self.bar)

    @property
    def of_state(self) -> Tensor:
        """Coefficient of ``x_t`` in the posterior's mean."""
        return self.alpha.sqrt() * (1 - self.before) / (1 - self.bar)

    @property
    def of_data(self) -> Tensor:
        """Coefficient of ``x_0`` in the posterior's mean."""
        return self.before.sqrt() * self.beta / (1 - self.bar)


def schedule(draw: Draw, steps: int = 8) -> Schedule:
    """Draw a chain."""
    beta = draw.uniform(0.03, 0.35, steps)
    alpha = 1 - beta
    bar = torch.cumprod(alpha, 0)
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    return Schedule(DiscreteVP(bar), times, beta, alpha, bar, before)


def level(bar: Tensor) -> Tensor:
    """Noise level ``σ = sqrt((1 − ᾱ)/ᾱ)`` of the unscaled state."""
    return torch.sqrt((1 - bar) / bar)


@claim(
    "ddpm-forward-kernel",
    title="Kernel of many noising steps",
    statement="x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε, ᾱ_t = α₁⋯α_t, if x_t = √α_t x_{t−1} + √(1 − α_t) ε_t",
    sources={
        "cho": "eq. 1",
        "kim": "lemma 1",
        "chan": "eq. 46, definition 2.1",
        "ddpm": "eq. 2, 4",
    },
    tags=("ddpm", "forward", "discrete"),
    tolerance=1e-12,
    because="round-off of products and of σ² + 1",
)
def _forward_kernel(draw: Draw) -> float:
    """Means multiply, variances obey v ← α v + β, whose solution is 1 − ᾱ.

    The recursion, step by step with the drawn β, and the printed result are compared with the
    kernels that `DiscreteVP` derives from ᾱ: from step to step, and from the data.
    """
    chain = schedule(draw)
    x0 = draw.normal(4, 2)
    mean, variance = x0, torch.zeros((), dtype=torch.float64)
    worst = 0.0
    for i, t in enumerate(chain.times):
        if i:
            one, spread = chain.process.transition(x0, chain.times[i - 1], t)
            worst = max(worst, residual(one, chain.alpha[i].sqrt() * x0))
            worst = max(worst, residual(spread**2, chain.beta[i]))
        mean, variance = chain.alpha[i].sqrt() * mean, chain.alpha[i] * variance + chain.beta[i]
        found, std = chain.process.marginal(x0, t)
        worst = max(worst, residual(found, mean), residual(found, chain.bar[i].sqrt() * x0))
        worst = max(worst, residual(std**2, variance), residual(std**2, 1 - chain.bar[i]))
    return worst


@claim(
    "ddpm-markov",
    title="A Markov chain, or noise that is added independently",
    statement="X_t = √α_t X_{t−1} + √β_t ℰ_t: (X_t) Markov ⇔ X₀, ℰ₁, …, ℰ_T independent",
    sources={"cho": "section 2.1, appendix A.1"},
    tags=("ddpm", "forward", "discrete"),
    tolerance=1e-9,
    because="round-off of an inverse matrix of condition 1e3",
)
def _markov(draw: Draw) -> float:
    """For Gaussian data all is in the chain's covariance matrix, Cov(X_s, X_t) = (s_t/s_s) Var X_s.

    It is built from the kernels of `DiscreteVP`. The Markov property says that its inverse is
    tridiagonal; independence that the noises (X_t − √α_t X_{t−1})/√β_t have unit covariance.
    """
    chain = schedule(draw, 6)
    variance = float(draw.uniform(0.3, 2.0))
    one = torch.ones(1, 1, dtype=torch.float64)
    size = len(chain.times) + 1
    cov = torch.zeros(size, size, dtype=torch.float64)
    cov[0, 0] = variance
    for i, t in enumerate(chain.times):
        scale, std = chain.process.marginal(one, t)
        cov[0, i + 1] = cov[i + 1, 0] = scale[0, 0] * variance
        cov[i + 1, i + 1] = scale[0, 0] ** 2 * variance + std**2
        for j in range(i):
            ratio, _ = chain.process.transition(one, chain.times[j], t)
            cov[i + 1, j + 1] = cov[j + 1, i + 1] = ratio[0, 0] * cov[j + 1, j + 1]
    precision = torch.linalg.inv(cov)
    far = torch.ones_like(cov).triu(2) + torch.ones_like(cov).tril(-2)
    noises = torch.eye(size, dtype=torch.float64)
    for i in range(1, size):
        noises[i, i - 1] = -chain.alpha[i - 1].sqrt()
        noises[i] /= chain.beta[i - 1].sqrt()
    noises[0, 0] = variance**-0.5
    markov = residual((precision * far)[None], torch.zeros_like(cov)[None], precision[None])
    found = noises @ cov @ noises.mT
    return max(markov, residual(found, torch.eye(size, dtype=torch.float64)))


@claim(
    "ddpm-posterior",
    title="Posterior of a noising step",
    statement="q(x_{t−1}|x_t, x₀) = N(√α_t(1 − ᾱ_{t−1})/(1 − ᾱ_t) x_t + √ᾱ_{t−1} β_t/(1 − ᾱ_t) x₀, "
    "β_t(1 − ᾱ_{t−1})/(1 − ᾱ_t) I)",
    sources={"cho": "eq. 4", "kim": "section 3.1.3, lemma 3", "ddpm": "eq. 6, 7"},
    tags=("ddpm", "discrete"),
    tolerance=1e-10,
    because="log-densities of normal laws cancel in Bayes' rule",
)
def _posterior(draw: Draw) -> float:
    """Bayes' rule, log q(x_t|x_{t−1}) + log q(x_{t−1}|x₀) − log q(x_t|x₀), at random points.

    The three densities are those of the process's kernels; the left side is the printed normal
    law with the drawn β.
    """
    chain, worst = schedule(draw), 0.0
    for i in range(1, len(chain.times)):
        r, t = chain.times[i - 1], chain.times[i]
        x0, before, x = draw.normal(3, 5, 2)
        mean = chain.of_state[i] * x + chain.of_data[i] * x0
        found = log_normal(before, mean, chain.small[i])
        step, spread = chain.process.transition(before, r, t)
        parts = [log_normal(x, step, spread**2)]
        for point, time in ((before, r), (x, t)):
            start, std = chain.process.marginal(x0, time)
            parts.append(log_normal(point, start, std**2))
        worst = max(worst, residual(found, parts[0] + parts[1] - parts[2], *parts))
    return worst


@claim(
    "bridge-posterior",
    title="Posterior between the data and a later time, for every process",
    statement="x̂_r | x̂_t, x₀ ~ N(x₀ + (σ_r²/σ_t²)(x̂_t − x₀), σ_r²(1 − σ_r²/σ_t²) I), x̂ = x/s",
    sources={"cho": "eq. 4", "sdekit": "theory 4.1, 4.4"},
    tags=("process", "forward", "ddpm"),
    tolerance=1e-9,
    because="log-densities of normal laws cancel in Bayes' rule",
    over="process",
)
def _bridge(process: AffineSDE, draw: Draw) -> float:
    """The unscaled state is x₀ + B(σ²), so the posterior is that of a Brownian bridge.

    It is compared with Bayes' rule on the densities of `marginal` and `transition`.
    """
    r, t = draw.ordered_times(process, 6)
    low, high = process.sigma(r) ** 2, process.sigma(t) ** 2
    x0, z, y = draw.normal(3, 6, 2)
    x = process.perturb(x0, t, noise=z)
    before = process.perturb(x0, r, noise=y)
    scale = process.scale(r)
    share = expand(low / high, x)
    mean = expand(scale, x) * (x0 + share * (x / expand(process.scale(t), x) - x0))
    found = log_normal(before, mean, scale**2 * low * (1 - low / high))
    step, spread = process.transition(before, r, t)
    parts = [log_normal(x, step, spread**2)]
    for point, time in ((before, r), (x, t)):
        start, std = process.marginal(x0, time)
        parts.append(log_normal(point, start, std**2))
    return residual(found, parts[0] + parts[1] - parts[2], *parts)


@claim(
    "ddpm-posterior-forms",
    title="Mean of the posterior from x₀, ε and v",
    statement="√α(1 − ᾱ')/(1 − ᾱ) x + √ᾱ' β/(1 − ᾱ) x̂₀ = (x − β/√(1 − ᾱ) ε̂)/√α, "
    "x̂₀ = a x − b v̂, ε̂ = b x + a v̂, a = √ᾱ, b = √(1 − ᾱ)",
    sources={"cho": "section 2.6, eq. 4, 8", "kim": "section 3.1.7", "ddpm": "eq. 11"},
    tags=("ddpm", "discrete"),
    tolerance=1e-11,
    because="round-off of a few sums",
)
def _forms(draw: Draw) -> float:
    """The three predictions determine one another through x = a x̂₀ + b ε̂ and v̂ = a ε̂ − b x̂₀.

    x̂₀ is the exact denoiser of a mixture. From the noise and the velocity that belong to it,
    sdekit's coefficients of these predictions must give it back, and the means must agree.
    """
    chain, data, worst = schedule(draw), draw.mixture(), 0.0
    for i, t in enumerate(chain.times):
        x = draw.normal(5, 2)
        a, b = chain.bar[i].sqrt(), (1 - chain.bar[i]).sqrt()
        x_hat, sigma = x / chain.process.scale(t), chain.process.sigma(t)
        clean = data(x_hat, sigma)
        noise = (x - a * clean) / b
        velocity = a * noise - b * clean
        mean = chain.of_state[i] * x + chain.of_data[i] * clean
        for kind, output in (("noise", noise), ("v", velocity)):
            c = coefficients(kind, chain.process, sigma[None], None)
            worst = max(worst, residual(c.state * x_hat + c.output * output, clean, x_hat))
        from_noise = (x - chain.beta[i] / b * noise) / chain.alpha[i].sqrt()
        turned = b * x + a * velocity
        from_v = (x - chain.beta[i] / b * turned) / chain.alpha[i].sqrt()
        worst = max(worst, residual(mean, from_noise, x), residual(mean, from_v, x))
    return worst
