"""The evidence lower bound of DDPM, in closed form for Gaussian data."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ...distributions import Gaussian
from ..calculus import gradient, quadrature, residual
from ..claim import claim
from ..draw import Draw
from .ddim import family, joint_covariance
from .ddpm import Schedule, level, schedule

LOG_2PI = math.log(2 * math.pi)


class Model(NamedTuple):
    """A reverse chain of one dimension: ``p(x_{t−1}|x_t) = N(slope_t x_t, variance_t)``, ``(T,)``.

    It is centred, as the data are; it starts from ``p(x_T) = N(0, start)``.
    """

    slope: Tensor
    variance: Tensor
    start: Tensor


def kl(variance: Tensor, other: Tensor, gap: Tensor) -> Tensor:
    """Divergence of ``N(m, variance)`` from ``N(m', other)`` with ``E(m − m')² = gap``."""
    return 0.5 * ((variance + gap) / other - 1 + torch.log(other / variance))


def any_model(draw: Draw, steps: int) -> Model:
    """Draw a model that has nothing to do with the data."""
    one = torch.ones((), dtype=torch.float64)
    return Model(draw.uniform(0.5, 1.2, steps), draw.uniform(0.05, 0.6, steps), one)


def exact_model(chain: Schedule, variance: float) -> Model:
    """The exact reverse chain of data ``N(0, variance)``, from sdekit's `Gaussian.reverse_law`."""
    data = Gaussian([0.0], variance)
    one = torch.ones(1, 1, dtype=torch.float64)
    slopes, spreads = [], []
    for bar, before in zip(chain.bar, chain.before, strict=True):
        mean, cov = data.reverse_law(one, float(level(bar)), float(level(before)))
        slopes.append(mean[0, 0] * torch.sqrt(before / bar))
        spreads.append(cov[0, 0] * before)
    last = chain.bar[-1] * (variance + level(chain.bar[-1]) ** 2)
    return Model(torch.stack(slopes), torch.stack(spreads), last)


def joint_energy(model: Model, cov: Tensor) -> Tensor:
    """``E[−log p(x_{0:T})]`` of a model where ``x_{0:T}`` is normal with a covariance."""
    gap = cov[:-1, :-1].diagonal() + model.slope**2 * cov[1:, 1:].diagonal()
    gap = gap - 2 * model.slope * cov.diagonal(1)
    steps = 0.5 * (gap / model.variance + torch.log(model.variance) + LOG_2PI)
    last = 0.5 * (cov[-1, -1] / model.start + torch.log(model.start) + LOG_2PI)
    return steps.sum() + last


def terms(chain: Schedule, spread: Tensor, model: Model, variance: float) -> Tensor:
    """``L_0, L_1, …, L_T`` of Cho's eq. 3, each from the laws that stand in it, ``(T + 1,)``."""
    of_state, of_data = family(chain, spread)
    bar, state = chain.bar, chain.bar * variance + 1 - chain.bar
    a, b = of_state - model.slope, of_data
    # E (a x_t + b x_0)², with Cov(x_0, x_t) = √ᾱ_t Var x_0
    gap = a**2 * state + 2 * a * b * bar.sqrt() * variance + b**2 * variance
    inner = kl(spread[1:] ** 2, model.variance[1:], gap[1:])
    gap = variance + model.slope[0] ** 2 * state[0]
    gap = gap - 2 * model.slope[0] * bar[0].sqrt() * variance
    first = 0.5 * (gap / model.variance[0] + torch.log(model.variance[0]) + LOG_2PI)
    last = kl(1 - bar[-1], model.start, bar[-1] * variance)
    return torch.cat([first[None], inner, last[None]])


def forward_energy(chain: Schedule) -> Tensor:
    """``E[log q(x_{1:T}|x_0)]`` from the forward kernels of the process: of each, its entropy."""
    one = torch.ones(1, 1, dtype=torch.float64)
    stds = [chain.process.marginal(one, chain.times[0])[1]]
    for r, t in zip(chain.times[:-1], chain.times[1:], strict=True):
        stds.append(chain.process.transition(one, r, t)[1])
    return -(torch.stack(stds).log() + 0.5 * (1 + LOG_2PI)).sum()


def given_data(cov: Tensor) -> Tensor:
    """Covariance of ``x_{1:T}`` given ``x_0``."""
    return cov[1:, 1:] - cov[1:, :1] @ cov[:1, 1:] / cov[0, 0]


@claim(
    "kl-normals",
    title="Divergence of two normal laws",
    statement="KL(N(a, A) ‖ N(b, B)) = ½(tr B⁻¹A − d + (a − b)ᵀB⁻¹(a − b) + log |B|/|A|)",
    sources={"kim": "lemma 4"},
    tags=("elbo",),
    tolerance=1e-9,
    because="quadrature over a grid of 200 × 200 points",
)
def _kl_normals(draw: Draw) -> float:
    """The integral of N(a, A) log N(a, A)/N(b, B) in two dimensions, with sdekit's densities.

    The trapezoidal rule is taken in the eigenbasis of A, where it converges exponentially.
    """
    first, second = draw.gaussian(), draw.gaussian()
    a, A = first.moments()
    b, B = second.moments()
    z = torch.linspace(-9, 9, 200, dtype=torch.float64)
    grid = torch.stack([v.flatten() for v in torch.meshgrid(z, z, indexing="ij")], 1)
    values, basis = torch.linalg.eigh(A)
    x = a + (grid * values.sqrt()) @ basis.mT
    cell = (z[1] - z[0]) ** 2 * values.prod().sqrt()
    log_first, log_second = first.log_prob(x, 0.0), second.log_prob(x, 0.0)
    integral = (torch.exp(log_first) * (log_first - log_second)).sum() * cell
    inverse = torch.linalg.inv(B)
    gap = (a - b) @ inverse @ (a - b)
    logs = torch.logdet(B) - torch.logdet(A)
    return residual(integral, 0.5 * ((inverse @ A).trace() - 2 + gap + logs), gap, logs)


@claim(
    "normal-products",
    title="Change of variables and product of normal densities",
    statement="N_v(Aw, B) ∝ N_w((AᵀB⁻¹A)⁻¹AᵀB⁻¹v, (AᵀB⁻¹A)⁻¹); "
    "N_w(a, A) N_w(b, B) ∝ N_w((A⁻¹ + B⁻¹)⁻¹(A⁻¹a + B⁻¹b), (A⁻¹ + B⁻¹)⁻¹)",
    sources={"kim": "lemma 2, lemma 3"},
    tags=("elbo", "ddpm"),
    tolerance=1e-9,
    because="differences of log-densities",
)
def _products(draw: Draw) -> float:
    """The exponents are the same quadratic functions of w, up to a constant: so posteriors are found.

    Log-densities of sdekit's Gaussians as functions of w, less their means over six points.
    """
    w, v, matrix = draw.normal(6, 2), draw.normal(2), draw.normal(2, 2)
    first, second = draw.gaussian(), draw.gaussian()
    (a, A), (b, B) = first.moments(), second.moments()
    inverse = torch.linalg.inv(B)
    cov = torch.linalg.inv(matrix.mT @ inverse @ matrix)
    turned = Gaussian(cov @ matrix.mT @ inverse @ v, 0.5 * (cov + cov.mT))
    zero = Gaussian([0.0, 0.0], B)
    pairs = [(zero.log_prob(v - w @ matrix.mT, 0.0), turned.log_prob(w, 0.0))]
    cov = torch.linalg.inv(torch.linalg.inv(A) + inverse)
    mean = cov @ (torch.linalg.solve(A, a) + inverse @ b)
    product = Gaussian(mean, 0.5 * (cov + cov.mT))
    pairs.append((first.log_prob(w, 0.0) + second.log_prob(w, 0.0), product.log_prob(w, 0.0)))
    return max(residual((x - x.mean())[None], (y - y.mean())[None]) for x, y in pairs)


@claim(
    "elbo-decomposition",
    title="The bound is a sum of divergences",
    statement="E[−log p(x_{0:T})/q(x_{1:T}|x₀)] = L_T + Σ_{t≥2} L_{t−1} + L₀, "
    "L_T = E KL(q(x_T|x₀) ‖ p(x_T)), L_{t−1} = E KL(q(x_{t−1}|x_t, x₀) ‖ p(x_{t−1}|x_t)), "
    "L₀ = E[−log p(x₀|x₁)]",
    sources={
        "cho": "eq. 3, appendix A.4",
        "kim": "section 3.1.6",
        "chan": "theorem 2.4, eq. 56",
        "ddpm": "eq. 5",
    },
    tags=("elbo", "ddpm"),
    tolerance=1e-10,
    because="round-off of sums of logarithms",
)
def _decomposition(draw: Draw) -> float:
    """Both sides are Gaussian integrals, for Gaussian data and an affine model that is nothing special.

    The left side takes the model's energy under the chain's joint covariance and the entropies
    of the forward kernels of `DiscreteVP`; the right side is the divergences one by one.
    """
    chain, variance = schedule(draw, 6), float(draw.uniform(0.3, 2.0))
    spread = chain.small.sqrt()
    model = any_model(draw, 6)
    cov = joint_covariance(chain, spread, variance)
    left = joint_energy(model, cov) + forward_energy(chain)
    parts = terms(chain, spread, model, variance)
    return residual(left, parts.sum(), *parts)


@claim(
    "elbo-decomposition-ddim",
    title="The same decomposition for DDIM's chains",
    statement="E_{q_σ}[−log p(x_{0:T})/q_σ(x_{1:T}|x₀)] = L_T + Σ_{t≥2} L_{t−1} + L₀ for every σ > 0",
    sources={"cho": "section 2.4", "ddim": "section 3.2"},
    tags=("elbo", "ddim"),
    tolerance=1e-10,
    because="round-off of determinants and sums of logarithms",
)
def _decomposition_ddim(draw: Draw) -> float:
    """No forward kernels are needed: the entropy of x_{1:T} given x₀ is a determinant.

    The left side has the covariance of the whole family at random σ; the right side the
    divergences of its steps one by one.
    """
    chain, variance = schedule(draw, 6), float(draw.uniform(0.3, 2.0))
    spread = torch.sqrt(1 - chain.before) * draw.uniform(0.2, 0.9, 6)
    model = any_model(draw, 6)
    cov = joint_covariance(chain, spread, variance)
    inner = given_data(cov)
    entropy = 0.5 * (torch.logdet(inner) + len(inner) * (1 + LOG_2PI))
    parts = terms(chain, spread, model, variance)
    return residual(joint_energy(model, cov) - entropy, parts.sum(), *parts)


@claim(
    "elbo-gap",
    title="The gap of the bound",
    statement="L − E[−log p(x₀)] = E KL(q(x_{1:T}|x₀) ‖ p(x_{1:T}|x₀)) ≥ 0",
    sources={"cho": "section 2.2", "kim": "section 3.1.6", "chan": "eq. 52"},
    tags=("elbo", "ddpm"),
    tolerance=1e-9,
    because="round-off of determinants",
)
def _gap(draw: Draw) -> float:
    """Jensen's inequality loses the divergence of the model's posterior of the latent states.

    For an affine model the law of (x₀, …, x_T) is normal: its marginal gives the likelihood, its
    conditional law the divergence from that of the chain. A negative gap would be an error of 1.
    """
    chain, variance = schedule(draw, 5), float(draw.uniform(0.3, 2.0))
    spread = chain.small.sqrt()
    model = any_model(draw, 5)
    cov = joint_covariance(chain, spread, variance)
    bound = terms(chain, spread, model, variance).sum()
    rows = torch.zeros(6, 6, dtype=torch.float64)
    rows[5, 5] = model.start.sqrt()
    for t in range(4, -1, -1):
        rows[t] = model.slope[t] * rows[t + 1]
        rows[t, t] += model.variance[t].sqrt()
    own = rows @ rows.mT
    likelihood = 0.5 * (variance / own[0, 0] + torch.log(own[0, 0]) + LOG_2PI)
    first, second = given_data(cov), given_data(own)
    shift = cov[1:, 0] / cov[0, 0] - own[1:, 0] / own[0, 0]
    inverse = torch.linalg.inv(second)
    mean = variance * shift @ inverse @ shift
    logs = torch.logdet(second) - torch.logdet(first)
    divergence = 0.5 * ((inverse @ first).trace() - 5 + mean + logs)
    gap = bound - likelihood
    return residual(gap, divergence, bound, likelihood) if gap > 0 else 1.0


@claim(
    "elbo-tight",
    title="For the exact reverse chain the bound is tight",
    statement="p(x_T) = q(x_T), p(x_{t−1}|x_t) = q(x_{t−1}|x_t) ⇒ L = E[−log q(x₀)]",
    sources={"cho": "section 2.2", "chan": "theorem 2.4", "vdm": "section 5"},
    tags=("elbo", "ddpm"),
    tolerance=1e-10,
    because="round-off of sums of logarithms",
)
def _tight(draw: Draw) -> float:
    """The exact reverse chain has the forward chain's joint law, so the gap of the bound is 0.

    For Gaussian data its steps are normal; they are those of `Gaussian.reverse_law`. The sum of
    the divergences has to be the entropy of the data.
    """
    chain, variance = schedule(draw, 6), float(draw.uniform(0.3, 2.0))
    parts = terms(chain, chain.small.sqrt(), exact_model(chain, variance), variance)
    log_variance = parts.new_tensor(variance).log()
    return residual(parts.sum(), 0.5 * (log_variance + 1 + LOG_2PI), *parts)


@claim(
    "elbo-noise-weight",
    title="Weights of the losses on noise and data",
    statement="KL(q(x_{t−1}|x_t, x₀) ‖ N(μ_θ, σ_t² I)) − C = β²/(2σ_t² α(1 − ᾱ)) ‖ε − ε_θ‖² "
    "= ᾱ_{t−1}β²/(2σ_t² (1 − ᾱ)²) ‖x₀ − x_θ‖², C = 0 if σ_t² = β̃_t",
    sources={
        "cho": "eq. 7, section 2.2.2",
        "kim": "section 3.1.7",
        "chan": "eq. 77",
        "ddpm": "eq. 8, 12",
    },
    tags=("elbo", "ddpm", "training"),
    tolerance=1e-10,
    because="round-off of a few sums",
)
def _noise_weight(draw: Draw) -> float:
    """The divergence of normal laws of fixed variances is a squared distance of means, plus C.

    At random x₀ and ε, with a network that is a mixture's denoiser plus an error; the divergence
    is torch's, the state that of `perturb`, and σ_t² is β̃, then β.
    """
    chain, data, worst = schedule(draw), draw.mixture(), 0.0
    for i in range(1, len(chain.times)):
        bar, beta, alpha = chain.bar[i], chain.beta[i], chain.alpha[i]
        x0, noise, error = draw.normal(3, 4, 2)
        x = chain.process.perturb(x0, chain.times[i], noise=noise)
        clean = data(x / bar.sqrt(), float(level(bar))) + 0.3 * error
        guess = (x - bar.sqrt() * clean) / (1 - bar).sqrt()
        mean = (x - beta / (1 - bar).sqrt() * guess) / alpha.sqrt()
        truth = Normal(chain.of_state[i] * x + chain.of_data[i] * x0, chain.small[i].sqrt())
        for variance in (chain.small[i], beta):
            found = kl_divergence(truth, Normal(mean, variance.sqrt())).sum(1)
            constant = 2 * kl(chain.small[i], variance, torch.zeros_like(variance))
            weight = beta**2 / (2 * variance * alpha * (1 - bar))
            on_noise = weight * (noise - guess).square().sum(1)
            weight = chain.before[i] * beta**2 / (2 * variance * (1 - bar) ** 2)
            on_data = weight * (x0 - clean).square().sum(1)
            worst = max(worst, residual(found - constant, on_noise, found))
            worst = max(worst, residual(on_data, on_noise))
    return worst


@claim(
    "de-bruijn",
    title="Entropy, Fisher information and the error of the denoiser",
    statement="d/dσ² E[−log p_σ] = ½ E‖∇log p_σ‖² = ½(d/σ² − E‖x₀ − D‖²/σ⁴)",
    sources={"vdm": "section 5", "sdekit": "theory 4.3"},
    tags=("elbo", "score", "density"),
    tolerance=1e-9,
    because="quadrature over 4000 points",
)
def _de_bruijn(draw: Draw) -> float:
    """The heat equation under the integral, and Tweedie's formula: the bound for chains of short steps.

    The entropy of a one-dimensional mixture is an integral over fixed points, differentiated in
    σ² automatically; the denoiser's error is the mean of the posterior's variance.
    """
    data = draw.mixture(1)
    sigma = float(draw.log_uniform(0.2, 3.0))
    nodes, weights = quadrature(data, sigma)

    def entropy(variance: Tensor) -> Tensor:
        log_prob = data.log_prob(nodes, variance.sqrt())
        return -(torch.exp(log_prob) * log_prob).sum()[None] * (nodes[1, 0] - nodes[0, 0])

    at = torch.tensor([sigma**2], dtype=torch.float64)
    rate = gradient(lambda v: entropy(v[0]), at)
    fisher = weights @ data.score(nodes, sigma)[:, 0] ** 2
    error = weights @ data.posterior_cov(nodes, sigma)[:, 0, 0]
    parts = (1 / at, error / sigma**4)
    return max(
        residual(rate, 0.5 * fisher, *parts), residual(rate, 0.5 * (parts[0] - parts[1]), *parts)
    )
