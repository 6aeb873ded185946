"""Scores: Tweedie's formulas, Stein's identities and the objectives of score matching."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...affine import AffineSDE
from ...distributions import Empirical, GaussianMixture
from ...sde import expand
from ..calculus import divergence, gradient, jacobian, quadrature, residual
from ..claim import claim
from ..draw import Draw
from .forward import log_density

Net = Callable[[Tensor], Tensor]


def network(draw: Draw, dim: int) -> Net:
    """Draw a smooth field ``(B, d) -> (B, d)``, which is no score of anything."""
    inner, outer, linear = (
        draw.normal(dim, 5),
        draw.normal(5, dim),
        0.3 * draw.normal(dim, dim),
    )
    shift = draw.normal(5)
    return lambda x: torch.sin(x @ inner + shift) @ outer * 0.5 + x @ linear


def plane(data: GaussianMixture, sigma: float, points: int = 220) -> tuple[Tensor, Tensor]:
    """Nodes ``(n², 2)`` and weights ``(n²,)`` of expectations under a ``p_σ`` in two dimensions."""
    mean, cov = data.moments(sigma)
    reach = 10 * cov.diagonal().sqrt() + (data.means - mean).abs().amax(0)
    unit = torch.linspace(-1, 1, points, dtype=torch.float64)
    grid = torch.stack([v.flatten() for v in torch.meshgrid(unit, unit, indexing="ij")], 1)
    x = mean + grid * reach
    cell = reach.prod() * (unit[1] - unit[0]) ** 2
    return x, torch.exp(data.log_prob(x, sigma)) * cell


def pairs(data: GaussianMixture, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and noisy nodes ``(n, 1)``, and weights ``(n,)``, of ``p(x₀) N(x̃; x₀, σ²)``."""
    clean, weights = quadrature(data, 0.0, 300)
    z = torch.linspace(-9, 9, 81, dtype=torch.float64)
    noise = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    noisy = (clean + sigma * z).reshape(-1, 1)
    return clean.expand(-1, len(z)).reshape(-1, 1), noisy, torch.outer(weights, noise).flatten()


def smooth_mixture(draw: Draw) -> GaussianMixture:
    """Draw a one-dimensional mixture whose own density is smooth enough for 300 points."""
    weights = draw.uniform(0.2, 1.0, 3)
    return GaussianMixture(weights / weights.sum(), draw.normal(3, 1), draw.uniform(0.1, 0.5, 3))


@claim(
    "tweedie",
    title="Tweedie's formula",
    statement="E[x₀|x̂] = x̂ + σ² ∇log p_σ(x̂)",
    sources={"edm": "eq. 3", "sdekit": "design 1"},
    tags=("score", "density"),
    tolerance=1e-9,
    because="quadrature over 4000 points; differentiation of a log-density",
)
def _tweedie(draw: Draw) -> float:
    """∇ of p_σ(x̂) = ∫ p(x₀) N(x̂; x₀, σ²) brings down (x₀ − x̂)/σ², whose mean given x̂ is the score.

    In one dimension the mean is an integral over x₀ with the density of the data; the score is the
    automatic derivative of the log-density. In two dimensions denoiser, score and derivative.
    """
    data, sigma = draw.mixture(1), float(draw.log_uniform(0.1, 3.0))
    nodes, weights = quadrature(data, 0.0)
    x = data.sample(5, sigma, seed=draw.integer(2**31))
    posterior = weights * torch.exp(-0.5 * ((x - nodes[:, 0]) / sigma) ** 2)
    mean = (posterior @ nodes) / posterior.sum(1, keepdim=True)
    slope = gradient(lambda y: data.log_prob(y, sigma), x)
    worst = residual(mean, x + sigma**2 * slope, x)
    worst = max(worst, residual(data(x, sigma), mean, x))
    both, levels = draw.mixture(), draw.levels(5)
    x = both.sample(5, seed=draw.integer(2**31)) + levels[:, None] * draw.normal(5, 2)
    slope = gradient(lambda y: both.log_prob(y, levels), x)
    clean, score = both.denoise_and_score(x, levels)
    worst = max(worst, residual(score, slope), residual(both.score(x, levels), slope))
    return max(worst, residual(clean, x + levels[:, None] ** 2 * slope, x))


@claim(
    "tweedie-second-order",
    title="Tweedie's formula of second order",
    statement="Cov(x₀|x̂) = σ² ∇D(x̂) = σ² I + σ⁴ ∇²log p_σ(x̂)",
    sources={"sdekit": "theory 4.3"},
    tags=("score", "density"),
    tolerance=1e-8,
    because="a covariance as a difference of moments; second derivatives",
)
def _second(draw: Draw) -> float:
    """A second derivative of p_σ brings down a second moment.

    In one dimension the covariance is an integral over x₀; in two that of the mixture, against
    automatic derivatives of the denoiser and of the score.
    """
    data, sigma = draw.mixture(1), float(draw.log_uniform(0.1, 3.0))
    nodes, weights = quadrature(data, 0.0)
    x = data.sample(5, sigma, seed=draw.integer(2**31))
    posterior = weights * torch.exp(-0.5 * ((x - nodes[:, 0]) / sigma) ** 2)
    posterior = posterior / posterior.sum(1, keepdim=True)
    variance = posterior @ nodes**2 - (posterior @ nodes) ** 2
    slope = jacobian(lambda y: data(y, sigma), x)
    worst = residual(variance[:, :, None], sigma**2 * slope)
    both, levels = draw.mixture(), draw.levels(5)
    x = both.sample(5, seed=draw.integer(2**31)) + levels[:, None] * draw.normal(5, 2)
    square = levels[:, None, None] ** 2
    cov = both.posterior_cov(x, levels)
    worst = max(worst, residual(cov, square * jacobian(lambda y: both(y, levels), x)))
    second = jacobian(lambda y: both.score(y, levels), x)
    worst = max(worst, residual(second, both.score_jacobian(x, levels)))
    trace = second.diagonal(dim1=1, dim2=2).sum(1)
    worst = max(worst, residual(trace, both.score_divergence(x, levels), second))
    eye = torch.eye(2, dtype=torch.float64)
    return max(worst, residual(cov, square * eye + square**2 * second, square * eye))


@claim(
    "score-of-noise",
    title="Score, noise and clean data",
    statement="∇log p_t(x) = −E[ε|x]/(s σ) = (s E[x₀|x] − x)/(s σ)²",
    sources={"chan": "theorem 3.3", "kim": "section 2.4", "ddpm": "section 3.2"},
    tags=("score", "process"),
    tolerance=1e-9,
    because="differentiation of a log-density",
    over="process",
)
def _of_noise(process: AffineSDE, draw: Draw) -> float:
    """Tweedie's formula in the scaled state x = s (x₀ + σ ε), for every process.

    The score is the automatic derivative of the log-density of x(t); E[x₀|x] is the mixture's
    denoiser at x/s and σ, with s and s σ from the process.
    """
    data = draw.mixture()
    t = draw.times(process, 6)
    x = draw.states(process, data, t)
    score = gradient(lambda y: log_density(process, data, y, t), x)
    s, std = expand(process.scale(t), x), expand(process.std(t), x)
    clean = data(x / s, process.sigma(t))
    noise = (x - s * clean) / std
    worst = residual(score, -noise / std, x / std**2)
    return max(worst, residual(score, (s * clean - x) / std**2, x / std**2))


@claim(
    "stein-identity",
    title="Stein's identities of the score",
    statement="E[∇log p] = 0, E[f·∇log p + ∇·f] = 0, E[Δ log p + ‖∇log p‖²] = 0",
    sources={"hyvarinen": "theorem 1", "kim": "section 2.1"},
    tags=("score", "density"),
    tolerance=1e-9,
    because="quadrature over 220 × 220 points",
)
def _stein(draw: Draw) -> float:
    """Each is the integral of a divergence, ∇p, ∇·(f p) and Δp, which vanishes.

    The expectations are sums over a grid in two dimensions, with a mixture's score and its
    divergence, and a random field f.
    """
    data, sigma = draw.mixture(), float(draw.uniform(0.4, 1.0))
    x, weights = plane(data, sigma)
    score, field = data.score(x, sigma), network(draw, 2)
    worst = residual(
        (weights @ score)[None], torch.zeros(1, 2).double(), (weights @ score.abs())[None]
    )
    flux = weights @ (field(x) * score).sum(1)
    spread = weights @ divergence(field, x)
    worst = max(worst, residual(flux, -spread, weights @ (field(x) * score).abs().sum(1)))
    square = weights @ score.square().sum(1)
    return max(worst, residual(square, -(weights @ data.score_divergence(x, sigma))))


@claim(
    "implicit-score-matching",
    title="Explicit and implicit score matching",
    statement="½ E‖s_θ − ∇log p‖² = E[tr ∇s_θ + ½‖s_θ‖²] + ½ E‖∇log p‖²",
    sources={"hyvarinen": "theorem 1", "kim": "section 2.1", "chan": "eq. 101, 104"},
    tags=("score", "training"),
    tolerance=1e-9,
    because="quadrature over 220 × 220 points",
)
def _implicit(draw: Draw) -> float:
    """The mixed term is integrated by parts, so the constant does not depend on the network.

    The expectations are sums over a grid in two dimensions, for a random network.
    """
    data, sigma = draw.mixture(), float(draw.uniform(0.4, 1.0))
    x, weights = plane(data, sigma)
    score, net = data.score(x, sigma), network(draw, 2)
    explicit = 0.5 * weights @ (net(x) - score).square().sum(1)
    implicit = weights @ (divergence(net, x) + 0.5 * net(x).square().sum(1))
    constant = 0.5 * weights @ score.square().sum(1)
    return residual(explicit, implicit + constant, implicit, constant)


@claim(
    "sliced-score-matching",
    title="Sliced score matching",
    statement="E_v E[vᵀ∇s_θ v + ½‖s_θ‖²] = ½ E‖s_θ − ∇log p‖² − ½ E‖∇log p‖² if E[vvᵀ] = I; "
    "so is it with ½(vᵀs_θ)² for ½‖s_θ‖²",
    sources={"ssm": "section 3", "kim": "section 2.3"},
    tags=("score", "training"),
    tolerance=1e-9,
    because="quadrature over 220 × 220 points",
)
def _sliced(draw: Draw) -> float:
    """E[vᵀAv] = tr(A E[vvᵀ]), so slices give the trace without computing it.

    The four vectors of signs, turned by a random angle, have E[vvᵀ] = I exactly. vᵀ∇s_θ is the
    derivative of vᵀs_θ, as in the algorithm.
    """
    data, sigma = draw.mixture(), float(draw.uniform(0.4, 1.0))
    x, weights = plane(data, sigma)
    score, net = data.score(x, sigma), network(draw, 2)
    angle = draw.uniform(0.0, 2 * math.pi)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    plain = sliced = torch.zeros((), dtype=torch.float64)

    def along(v: Tensor, y: Tensor) -> Tensor:
        return net(y) @ v

    for v in signs @ turn:
        second = gradient(partial(along, v), x) @ v
        plain = plain + weights @ (second + 0.5 * net(x).square().sum(1)) / 4
        sliced = sliced + weights @ (second + 0.5 * (net(x) @ v) ** 2) / 4
    explicit = 0.5 * weights @ (net(x) - score).square().sum(1)
    constant = 0.5 * weights @ score.square().sum(1)
    parts = (explicit, constant)
    return max(
        residual(plain, explicit - constant, *parts), residual(sliced, explicit - constant, *parts)
    )


@claim(
    "denoising-score-matching",
    title="Denoising score matching",
    statement="½ E‖s_θ(x̃) − ∇log q_σ(x̃|x)‖² = ½ E‖s_θ − ∇log p_σ‖² + C, "
    "C = ½(d/σ² − E‖∇log p_σ‖²) = ½ E‖x₀ − D‖²/σ⁴",
    sources={"vincent": "section 4.2", "kim": "section 2.2", "chan": "theorem 3.4"},
    tags=("score", "training"),
    tolerance=1e-9,
    because="quadrature over 300 × 81 points",
)
def _denoising(draw: Draw) -> float:
    """The score of p_σ is the mean of the scores of the kernel given x̃, so C is a variance.

    The left side is a double integral over clean data and noise, the right side one over x̃; the
    network is random, and the score and the denoiser's error are a mixture's.
    """
    data, sigma = smooth_mixture(draw), float(draw.uniform(0.3, 1.5))
    net = network(draw, 1)
    clean, noisy, weights = pairs(data, sigma)
    left = 0.5 * weights @ (net(noisy) + (noisy - clean) / sigma**2)[:, 0] ** 2
    x, weights = quadrature(data, sigma)
    explicit = 0.5 * weights @ (net(x) - data.score(x, sigma))[:, 0] ** 2
    fisher = weights @ data.score(x, sigma)[:, 0] ** 2
    error = weights @ data.posterior_cov(x, sigma)[:, 0, 0]
    worst = residual(left, explicit + 0.5 * (1 / sigma**2 - fisher), explicit, fisher)
    return max(worst, residual(left, explicit + 0.5 * error / sigma**4, explicit, fisher))


@claim(
    "score-matching-gradients",
    title="One gradient for explicit, implicit and denoising score matching",
    statement="∂θ ½E‖s_θ − ∇log p_σ‖² = ∂θ E[tr ∇s_θ + ½‖s_θ‖²] = ∂θ ½E‖s_θ(x + σz) + z/σ‖²",
    sources={"hyvarinen": "theorem 1", "vincent": "section 4.2", "chan": "theorem 3.3, 3.4"},
    tags=("score", "training"),
    tolerance=1e-9,
    because="quadrature over 300 × 81 points",
)
def _gradients(draw: Draw) -> float:
    """The constants by which the objectives differ do not depend on θ.

    Gradients in the seven parameters of a network a tanh(b x + c) + e x are taken automatically,
    through integrals.
    """
    data, sigma = smooth_mixture(draw), float(draw.uniform(0.3, 1.5))
    theta = draw.normal(7).requires_grad_()

    def net(x: Tensor) -> Tensor:
        hidden = torch.tanh(x * theta[:2] + theta[2:4])
        return hidden @ theta[4:6, None] + theta[6] * x

    clean, noisy, joint = pairs(data, sigma)
    x, weights = quadrature(data, sigma)
    z = (noisy - clean) / sigma
    objectives = (
        0.5 * weights @ (net(x) - data.score(x, sigma))[:, 0] ** 2,
        weights @ (divergence(net, x) + 0.5 * net(x)[:, 0] ** 2),
        0.5 * joint @ (net(clean + sigma * z) + z / sigma)[:, 0] ** 2,
    )
    first, *others = (torch.autograd.grad(value, theta)[0][None] for value in objectives)
    return max(residual(first, other) for other in others)


@claim(
    "fisher-information",
    title="Size of the score",
    statement="E‖σ ∇log p_σ‖² = d − E‖x₀ − D‖²/σ² ≤ d, with equality for a point",
    sources={"kim": "section 2.4", "song2019": "section 4.2", "sdekit": "theory 4.3"},
    tags=("score", "density", "training"),
    tolerance=1e-9,
    because="quadrature over 220 × 220 points",
)
def _fisher(draw: Draw) -> float:
    """The trace of Tweedie's formula of second order, in the mean, with Stein's identity.

    So ‖σ s‖ is of size √d where the noise dominates, which is why λ(σ) = σ² is a good weight. The
    expectations are sums over a grid for a mixture; for a point both sides are d.
    """
    data, sigma = draw.mixture(), float(draw.log_uniform(0.5, 3.0))
    x, weights = plane(data, sigma)
    size = weights @ (sigma * data.score(x, sigma)).square().sum(1)
    error = weights @ data.posterior_cov(x, sigma).diagonal(dim1=1, dim2=2).sum(1)
    worst = residual(size, 2 - error / sigma**2, error / sigma**2)
    if size > 2:
        return 1.0
    point = Empirical(draw.normal(1, 2))
    x, weights = plane(point, sigma)
    size = weights @ (sigma * point.score(x, sigma)).square().sum(1)
    return max(worst, residual(size, torch.tensor(2.0)))


@claim(
    "score-size-limit",
    title="Size of the score at high noise",
    statement="E‖σ ∇log p_σ‖² = d − tr Cov(x₀)/σ² + O(σ⁻⁴)",
    sources={"kim": "section 2.4", "sdekit": "theory 4.3"},
    tags=("score", "training"),
    kind="rate",
    tolerance=0.1,
    because="an order measured between σ = 20 and 40",
)
def _size_limit(draw: Draw) -> float:
    """What the score knows of the data is lost as σ⁻²; the rest falls as σ⁻⁴.

    The measured order of the remainder, for a mixture, against 4.
    """
    data = draw.mixture()
    total = float(data.moments()[1].trace())
    rest = []
    for sigma in (20.0, 40.0):
        x, weights = plane(data, sigma)
        error = weights @ data.posterior_cov(x, sigma).diagonal(dim1=1, dim2=2).sum(1)
        rest.append(abs(float(error) - total) / sigma**2)
    return abs(math.log2(rest[0] / rest[1]) - 4)


@claim(
    "ncsn-loss",
    title="NCSN's weighted loss of the exact score",
    statement="min_θ σ² l(θ; σ) = ½ E‖σ ∇log p_σ(x̃) + z‖² = ½ E‖x₀ − D‖²/σ²",
    sources={"song2019": "eq. 5, 6", "kim": "section 2.4", "chan": "eq. 108"},
    tags=("score", "training"),
    tolerance=1e-9,
    because="quadrature over 300 × 81 points",
)
def _ncsn_loss(draw: Draw) -> float:
    """The exact score is −E[z|x̃]/σ, so what is left is the variance of z given x̃.

    The left side is a double integral over clean data and noise, the right side the mean of the
    mixture's posterior variance.
    """
    data, sigma = smooth_mixture(draw), float(draw.uniform(0.3, 1.5))
    clean, noisy, weights = pairs(data, sigma)
    z = (noisy - clean) / sigma
    loss = 0.5 * weights @ (sigma * data.score(noisy, sigma) + z)[:, 0] ** 2
    x, weights = quadrature(data, sigma)
    error = weights @ data.posterior_cov(x, sigma)[:, 0, 0]
    return residual(loss, 0.5 * error / sigma**2)
